"""What is left out of comparisons with float64 is what docs/operator.md says, and nothing else."""

from dataclasses import replace

import cases
import comparison
import pytest
import torch
from comparison import left_out
from workloads import CAPTION_LENGTHS, RandomSource, make_weights

import caan_kernels as ck

# Distances of an alignment from 0, and whether they are within τ.
DISTANCES = [(0.0, True), (0.5e-6, True), (-0.5e-6, True), (2e-6, False), (-2e-6, False)]


def weights_of(width, hidden=3, affinity=None):
    made = make_weights(width, hidden, seed=0)
    made = made._replace(affinity=torch.eye(width) if affinity is None else affinity)
    return ck.ContextAttentionWeights(*(x.double() for x in made[:7]))


def masks(rows, **more):
    """What is left out of one image with one caption whose alignments are tanh of `rows`: words are unit vectors."""
    regions = torch.tensor([rows], dtype=torch.float64)
    words = torch.eye(regions.shape[2], dtype=torch.float64)[None]
    found = left_out(regions, words, weights_of(regions.shape[2]), **more)
    return bool(found.scores), bool(found.gradients)


@pytest.mark.parametrize(("distance", "near"), DISTANCES)
@pytest.mark.parametrize(
    ("second", "third"), [(-0.5, 0.5), (0.5, -0.5)], ids=["largest of its region alone", "largest of its word alone"]
)
def test_a_largest_alignment_near_0_is_left_out(second, third, distance, near):
    assert masks([[distance, second], [third, 0.4]]) == (near, near)


@pytest.mark.parametrize(("distance", "near"), DISTANCES)
def test_another_alignment_near_0_takes_part_in_scores_but_not_in_gradients(distance, near):
    assert masks([[distance, 0.5], [0.5, 0.4]]) == (False, near)


def test_regions_and_words_without_a_positive_alignment_are_compared():
    assert masks([[-0.1, -0.5], [-0.2, -2e-6]]) == (False, False)


@pytest.mark.parametrize(("tau", "near"), [(1e-3, True), (1e-5, False)])
def test_the_distance_is_a_parameter(tau, near):
    assert masks([[1e-4, -0.5], [0.5, 0.4]], tau=tau) == (near, near)


def test_the_affinity_is_read():
    regions = words = torch.ones(1, 1, 2, dtype=torch.float64)
    for entry, near in ((-1.0 + 1e-7, True), (-1.0 + 1e-5, False)):
        affinity = torch.tensor([[1.0, 0.0], [0.0, entry]], dtype=torch.float64)
        assert bool(left_out(regions, words, weights_of(2, affinity=affinity)).scores) == near


@pytest.mark.parametrize("padding", [float("nan"), 0.0, 1.0, -1.0])
def test_padding_does_not_count(padding):
    # Real: region 0 with word 0, 0.5. Padding of 1 would be the largest, and hide that region 1 is near.
    for alone, near in ((0.5, False), (1e-7, True)):
        regions = torch.full((1, 3, 2), padding, dtype=torch.float64)
        words = torch.full((1, 2, 2), padding, dtype=torch.float64)
        regions[0, 0], words[0, 0] = torch.tensor([alone, 0.0]), torch.tensor([1.0, 0.0])
        lengths = torch.tensor([1]), torch.tensor([1])
        found = left_out(regions, words, weights_of(2), *lengths)
        assert (bool(found.scores), bool(found.gradients)) == (near, near)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_side_is_compared(empty, similarity):
    lengths = [torch.tensor([2]), torch.tensor([2])]
    lengths[empty] = torch.tensor([0])
    regions, words = torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, 2, dtype=torch.float64)
    found = left_out(regions, words, weights_of(2), *lengths, similarity=similarity)
    assert not found.scores.any() and not found.gradients.any()
    assert found.scores.shape == (1, 1)


@pytest.mark.parametrize(("length", "short"), [(0.009, True), (0.011, False)])
@pytest.mark.parametrize("side", ["regions", "words"])
def test_a_cosine_leaves_out_short_pooled_vectors(side, length, short):
    """Without context attention is uniform, and the pooled vector the mean."""
    canceling = torch.tensor([[[1.0, 0.5], [2 * length - 1, -0.5]]], dtype=torch.float64)
    plain = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    given = (canceling, plain) if side == "regions" else (plain, canceling)
    options = {"inter": False, "intra": None}
    found = left_out(*given, weights_of(2), similarity="cosine", **options)
    assert (bool(found.scores), bool(found.gradients)) == (short, False)
    assert not left_out(*given, weights_of(2), **options).scores.any()


def plainly(case, tau, options):
    """The rule, pair by pair, from the maps."""
    images, captions = case.regions.shape[0], case.words.shape[0]
    pairs = torch.cartesian_prod(torch.arange(images), torch.arange(captions))
    plain = {name: option for name, option in options.items() if name != "similarity"}
    maps = ck.attention_maps(
        case.regions, case.words, case.weights, pairs, case.region_lengths, case.word_lengths, **plain, backend="reference"
    )
    scores, gradients = torch.zeros(2, images, captions, dtype=torch.bool)
    for (i, t), A, f, g in zip(pairs.tolist(), maps.alignment, maps.region_attention, maps.word_attention, strict=True):
        m, n = int(case.region_lengths[i]), int(case.word_lengths[t])
        if m == 0 or n == 0:
            continue
        A = A[:m, :n]
        largest = torch.cat([A.amax(0), A.amax(1)])
        pooled = f[:m] @ case.regions[i, :m], g[:n] @ case.words[t, :n]
        short = options.get("similarity") == "cosine" and min(x.norm() for x in pooled) < comparison.SHORTEST
        scores[i, t] = largest.abs().min() <= tau or short
        gradients[i, t] = A.abs().min() <= tau
    return scores, gradients


@pytest.mark.parametrize("block_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"similarity": "cosine"}, {"similarity": "cosine", "intra": "features"}], ids=str)
def test_blocks_and_lists_give_what_a_plain_loop_gives(monkeypatch, options, block_bytes):
    monkeypatch.setattr(comparison, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(comparison, "SHORTEST", 0.3)
    case = cases.problem((6, 4, 9, 3, 2, 5), seed=1, pairs=True, bilinear=True, near_zero=True)
    expected = plainly(case, 0.05, options)
    assert all(0 < int(x.sum()) < x.numel() for x in expected)
    listed = case.call(left_out, **options, tau=0.05)
    whole = replace(case, pairs=None).call(left_out, **options, tau=0.05)
    for found, of_list, plain in zip(whole, listed, expected, strict=True):
        assert torch.equal(found, plain)
        assert torch.equal(of_list, plain[case.pairs[:, 0], case.pairs[:, 1]])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("shape", [(0, 3, 2, 3, 2, 2), (2, 0, 2, 3, 2, 2), (2, 3, 0, 3, 2, 2), (2, 3, 2, 0, 2, 2)])
def test_nothing_is_left_out_of_nothing(shape, similarity):
    case = cases.problem(shape)
    found = case.call(left_out, similarity=similarity)
    assert found.scores.shape == found.gradients.shape == (shape[0], shape[2])
    assert found.score_count == found.gradient_count == 0


def test_the_counts_are_printed():
    found = comparison.LeftOut(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
    assert found.text() == "left out of 3 pairs: 1 scores, 2 upstream gradients"


def test_few_of_real_lengths_are_left_out():
    regions, words, lengths = RandomSource(CAPTION_LENGTHS["coco"]).load(64, 192, 5)
    found = left_out(regions, words, make_weights(1024, 1024, seed=1), word_lengths=lengths)
    print(found.text())
    assert found.score_count <= found.scores.numel() / 10_000


def test_a_score_that_is_left_out_jumps():
    """Two inputs that differ by one rounding of float32: region 0 has one alignment that is not negative."""
    below, above = (torch.tensor(0.5).nextafter(torch.tensor(x)) for x in (0.0, 1.0))
    regions = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    weights = weights_of(2, 8)
    scores = []
    for first in (below, above):
        words = torch.tensor([[[float(first), 0.5], [0.0, 0.5]]])
        assert left_out(regions, words, weights).scores.all()
        scores.append(ck.context_attention(regions.double(), words.double(), weights, backend="reference"))
    assert (scores[0] - scores[1]).abs() > 1e-3
