"""The module: `context_attention` of its parameters, and how these start."""

import doctest

import cases
import pytest
import torch
from masks import mask_of

import caan_kernels as ck
from caan_kernels.context_attention import module

FIELDS = ck.ContextAttentionWeights._fields


def seeded(*arguments, **options):
    torch.manual_seed(3)
    return ck.ContextAwareAttention(*arguments, **options)


def test_how_parameters_start():
    """A seed gives the weights that it always gave: runs are repeated by it."""
    attention = seeded(16, 12, affinity_scale=3.0, intra="features")
    torch.manual_seed(3)
    expected = [
        3 * torch.eye(16),
        *(torch.randn(16, 12) / 4 for _ in range(4)),
        *torch.zeros(2, 12),
        *torch.eye(16).repeat(2, 1, 1),
    ]
    assert all(torch.equal(x.detach(), y) for x, y in zip(attention.weights, expected, strict=True))
    assert set(attention.state_dict()) == set(FIELDS)
    assert set(seeded(16).state_dict()) == set(FIELDS[:7]) and seeded(16).region_score.shape == (16,)
    assert seeded(4, 2, dtype=torch.float64).affinity.dtype == torch.float64
    with torch.no_grad():
        for x in attention.parameters():
            x.fill_(torch.nan)
    torch.manual_seed(3)
    attention.reset_parameters()
    assert all(torch.equal(x.detach(), y) for x, y in zip(attention.weights, expected, strict=True))
    assert repr(attention) == "ContextAwareAttention(16, 12, similarity='dot', inter=True, intra='features')"


@pytest.mark.parametrize("options", [{}, {"similarity": "cosine", "inter": False}, {"intra": "features"}], ids=str)
def test_it_is_the_operator(options):
    case = cases.problem("odd", torch.float32, pairs=True, bilinear=True)
    *_, width, hidden = cases.SHAPES["odd"]
    attention = ck.ContextAwareAttention(width, hidden, **options)
    attention.load_state_dict({name: getattr(case.weights, name) for name in attention.state_dict()})
    tensors, lengths = (case.regions, case.words), (case.region_lengths, case.word_lengths)
    expected = ck.context_attention(*tensors, case.weights, *lengths, case.pairs, **options)
    scores = attention(*tensors, *lengths, case.pairs)
    assert torch.equal(scores, expected)
    scores.sum().backward()
    assert attention.word_intra.grad.any()
    maps = attention.maps(*tensors, case.pairs, *lengths, backend="reference")
    wanted = ck.attention_maps(*tensors, case.weights, case.pairs, *lengths, **options, backend="reference")
    assert all(torch.equal(x, y) for x, y in zip(maps, wanted, strict=True))
    if attention.options["intra"] != "features":
        V, U = attention.project_regions(case.regions, lengths[0]), attention.project_words(case.words, lengths[1])
        assert torch.equal(attention(V, U, pairs=case.pairs), expected)
    masks = [mask_of(*side) for side in zip(tensors, lengths, strict=True)]
    assert torch.equal(attention(*tensors, pairs=case.pairs, region_mask=masks[0], word_mask=masks[1]), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, ValueError, "width: expected at least 1, got 0"),
        ((8.5, 4), {}, TypeError, "width: expected an integer, got 8.5"),
        (("8", 4), {}, TypeError, "width: expected an integer, got '8'"),
        ((4, True), {}, TypeError, "hidden_width: expected an integer, got True"),
        ((4, -1), {}, ValueError, "hidden_width: expected at least 0, got -1"),
        ((4,), {"affinity_scale": "1"}, TypeError, "affinity_scale: expected a number, got '1'"),
        ((4,), {"dtype": torch.int32}, TypeError, "dtype: expected torch.float16, .* or torch.float64, got torch.int32"),
        ((4,), {"dtype": "float32"}, TypeError, "dtype: expected torch.float16, .* or torch.float64, got 'float32'"),
        ((4,), {"device": "gpu"}, ValueError, "device: expected a device, such as 'cpu' or 'cuda:0', got 'gpu'"),
        ((4,), {"device": 1.5}, TypeError, "device: expected a device, such as 'cpu' or 'cuda:0', got 1.5"),
        ((4, 4), {"similarity": "angle"}, ValueError, "similarity: expected 'dot' or 'cosine', got 'angle'"),
        ((4, 4), {"similarity": 3}, TypeError, "similarity: expected 'dot' or 'cosine', got 3"),
        ((4, 4), {"inter": 1}, TypeError, "inter: expected True or False, got 1"),
    ],
)
def test_what_does_not_fit(arguments, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ck.ContextAwareAttention(*arguments, **options)


def test_the_example():
    assert doctest.testmod(module, raise_on_error=True).attempted
