"""Every argument that does not fit: the error's type, and that it names the argument, the expectation and what came."""

from dataclasses import replace

import cases
import pytest
import torch

import caan_kernels as ck

SHAPE = (3, 4, 2, 5, 6, 7)
long = torch.tensor


def features(**changes):
    return lambda case: replace(case, **{name: change(getattr(case, name)) for name, change in changes.items()})


def weight(**changes):
    return lambda case: replace(
        case,
        weights=case.weights._replace(**{name: change(getattr(case.weights, name)) for name, change in changes.items()}),
    )


def field(**values):
    return lambda case: replace(case, **values)


WRONG_TENSORS = [
    (features(regions=lambda x: x.numpy()), TypeError, "regions: expected a tensor or ProjectedRegions, got ndarray"),
    (features(words=lambda x: None), TypeError, "words: expected a tensor or ProjectedWords, got NoneType"),
    (features(regions=lambda x: x.long()), TypeError, "regions: expected dtype float16, .* got torch.int64"),
    (features(regions=lambda x: x[0]), ValueError, r"regions: expected 3 dimensions .* got shape \(4, 6\)"),
    (features(words=lambda x: x[None]), ValueError, r"words: expected 3 dimensions .* got shape \(1, 2, 5, 6\)"),
    (
        features(regions=lambda x: x[..., :0]),
        ValueError,
        r"regions: expected a width of at least 1, got shape \(3, 4, 0\)",
    ),
    (
        features(words=lambda x: x[..., :5]),
        ValueError,
        r"words: expected width 6, that of regions, got shape \(2, 5, 5\)",
    ),
    (
        features(words=lambda x: x.double()),
        TypeError,
        "words: expected dtype torch.float32, that of regions, got torch.float64",
    ),
    (features(words=lambda x: x.to("meta")), ValueError, "words: expected device cpu, that of regions, got meta"),
    (field(weights=None), TypeError, "weights: expected ContextAttentionWeights, got NoneType"),
    (
        weight(affinity=lambda x: x[:5]),
        ValueError,
        r"weights.affinity: expected shape \(D, D\) = \(6, 6\), .*got \(5, 6\)",
    ),
    (
        weight(region_intra=lambda x: x.T),
        ValueError,
        r"weights.region_intra: expected shape \(D, H\) = \(6, 7\), .*got \(7, 6\)",
    ),
    (weight(region_inter=lambda x: x[0]), ValueError, r"weights.region_inter: expected shape \(D, H\).*got \(7,\)"),
    (
        weight(word_intra=lambda x: x.half()),
        TypeError,
        "weights.word_intra: expected dtype torch.float32, .* got torch.float16",
    ),
    (weight(word_inter=lambda x: x.to("meta")), ValueError, "weights.word_inter: expected device cpu, .* got meta"),
    (
        weight(region_score=lambda x: x[:, None]),
        ValueError,
        r"weights.region_score: expected shape \(H\).* got \(7, 1\)",
    ),
    (weight(region_score=lambda x: x[:0]), ValueError, r"weights.region_score: expected shape \(H\), .* got \(0,\)"),
    (
        weight(word_score=lambda x: x[:3]),
        ValueError,
        r"weights.word_score: expected shape \(H\) = \(7,\), .*got \(3,\)",
    ),
    (weight(word_score=lambda x: 1.0), TypeError, "weights.word_score: expected a tensor, got float"),
    (field(region_lengths=[1, 2, 3]), TypeError, "region_lengths: expected a tensor, got list"),
    (field(region_lengths=torch.ones(3)), TypeError, "region_lengths: expected an integer dtype, got torch.float32"),
    (
        field(word_lengths=torch.ones(2, dtype=torch.bool)),
        TypeError,
        "word_lengths: expected an integer dtype, got torch.bool",
    ),
    (field(region_lengths=long([1, 2])), ValueError, r"region_lengths: expected shape \(3,\), .* got \(2,\)"),
    (field(word_lengths=long([[1, 2]])), ValueError, r"word_lengths: expected shape \(2,\), .* got \(1, 2\)"),
    (field(region_lengths=long([1, 5, 0])), ValueError, "region_lengths: expected values from 0 to 4, .* got 5"),
    (field(word_lengths=long([1, -1])), ValueError, "word_lengths: expected values from 0 to 5, .* got -1"),
    (field(word_lengths=long([1, 1], device="meta")), ValueError, "word_lengths: expected device cpu.*, got meta"),
    (field(pairs=[(0, 0)]), TypeError, "pairs: expected a tensor, got list"),
    (field(pairs=long([[0, 0]], dtype=torch.int32)), TypeError, "pairs: expected dtype torch.int64, got torch.int32"),
    (field(pairs=long([0, 0])), ValueError, r"pairs: expected shape \(P, 2\), got \(2,\)"),
    (field(pairs=long([[0, 0, 0]])), ValueError, r"pairs: expected shape \(P, 2\), got \(1, 3\)"),
    (field(pairs=long([[0, 0], [3, 1]])), ValueError, r"pairs\[:, 0\]: expected values from 0 to 2, .* regions, got 3"),
    (field(pairs=long([[0, -2]])), ValueError, r"pairs\[:, 1\]: expected values from 0 to 1, .* words, got -2"),
    (field(pairs=long([[0, 0]], device="meta")), ValueError, "pairs: expected device cpu.*, got meta"),
]

WRONG_OPTIONS = [
    ({"similarity": "l2"}, ValueError, "similarity: expected 'dot' or 'cosine', got 'l2'"),
    ({"similarity": 3}, TypeError, "similarity: expected 'dot' or 'cosine', got 3"),
    ({"inter": 1}, TypeError, "inter: expected True or False, got 1"),
    ({"intra": True}, TypeError, "intra: expected 'semantics', 'features' or None, got True"),
    ({"intra": "cosine"}, ValueError, "intra: expected 'semantics', 'features' or None, got 'cosine'"),
    ({"intra": "features"}, TypeError, "weights.region_bilinear: expected a tensor, got NoneType"),
    ({"backend": "gpu"}, ValueError, "backend: expected 'auto', .* got 'gpu'"),
    ({"backend": None}, TypeError, "backend: expected 'auto', .* got None"),
]


@pytest.fixture
def case():
    return cases.problem(SHAPE, torch.float32)


@pytest.mark.parametrize(("change", "error", "message"), WRONG_TENSORS, ids=[message for *_, message in WRONG_TENSORS])
def test_tensors(case, change, error, message):
    case = change(case)
    with pytest.raises(error, match=f"^{message}$"):
        case.call()
    if case.pairs is None:
        case = replace(case, pairs=torch.tensor([[0, 0]]))
    with pytest.raises(error, match=f"^{message}$"):
        case.call(ck.attention_maps)


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS, ids=[message for *_, message in WRONG_OPTIONS])
def test_options(case, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        case.call(**options)


def test_maps_need_pairs(case):
    with pytest.raises(TypeError, match=r"^pairs: expected a tensor of shape \(P, 2\), got None$"):
        case.call(ck.attention_maps)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'pairs'"):
        ck.attention_maps(case.regions, case.words, case.weights)


def test_options_are_keywords(case):
    with pytest.raises(TypeError, match="positional arguments but 7 were given"):
        ck.context_attention(case.regions, case.words, case.weights, None, None, None, "cosine")
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalization'"):
        case.call(normalization="softmax")


def test_bilinear(case):
    case = replace(case, weights=case.weights._replace(region_bilinear=torch.eye(6), word_bilinear=torch.eye(5)))
    assert case.call().isfinite().all()
    with pytest.raises(ValueError, match=r"^weights.word_bilinear: expected shape \(D, D\) = \(6, 6\), .*got \(5, 5\)$"):
        case.call(intra="features")


def test_projection(case):
    with pytest.raises(ValueError, match=r"^regions: expected 3 dimensions"):
        ck.project_regions(case.regions[0], case.weights)
    with pytest.raises(ValueError, match=r"^weights.word_inter: expected shape \(D, H\) = \(6, 7\)"):
        ck.project_regions(case.regions, case.weights._replace(word_inter=case.weights.word_inter.T))
    with pytest.raises(ValueError, match=r"^word_lengths: expected values from 0 to 5"):
        ck.project_words(case.words, case.weights, torch.tensor([6, 0]))
    with pytest.raises(TypeError, match=r"^weights.affinity: expected a tensor, got NoneType$"):
        ck.project_words(case.words, case.weights._replace(affinity=None))


PREFIX = "expected True for the real words, which come first, and False after them, got False before True in item 1"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, "expected a tensor, got ndarray"),
        (lambda x: x.long(), TypeError, "expected dtype torch.bool, got torch.int64"),
        (lambda x: x[:1], ValueError, r"expected shape \(2, 5\), an entry for each row of words, got \(1, 5\)"),
        (lambda x: x.to("meta"), ValueError, "expected device cpu .*, got meta"),
        (lambda x: x.logical_xor(long([[0], [1]])), ValueError, PREFIX),
    ],
)
def test_masks(case, change, error, message):
    mask = change(torch.arange(5) < long([[2], [3]]))
    bare = replace(case, word_lengths=None)
    calls = {
        "context_attention": lambda: bare.call(word_mask=mask),
        "attention_maps": lambda: replace(bare, pairs=long([[0, 1]])).call(ck.attention_maps, word_mask=mask),
        "project_words": lambda: ck.project_words(case.words, case.weights, word_mask=mask),
        "max_similarity": lambda: ck.max_similarity(case.regions, case.words, word_mask=mask),
    }
    for call in calls.values():
        with pytest.raises(error, match=f"^word_mask: {message}$"):
            call()


def test_masks_beside_lengths(case):
    mask = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^region_mask: expected None beside region_lengths, got Tensor: give one of them$"):
        case.call(region_mask=mask)
    V = ck.project_regions(case.regions, case.weights, region_mask=mask)
    with pytest.raises(ValueError, match=r"^region_mask: expected None, since projected regions keep their lengths, got Tensor$"):
        ck.context_attention(V, case.words, case.weights, region_mask=mask)


def test_projected(case):
    V = ck.project_regions(case.regions, case.weights, case.region_lengths)
    U = ck.project_words(case.words, case.weights, case.word_lengths)

    def call(V, U, weights=case.weights, **lengths):
        return ck.context_attention(V, U, weights, **lengths)

    with pytest.raises(TypeError, match=r"^regions: expected a tensor or ProjectedRegions, got ProjectedWords$"):
        call(U, V)
    with pytest.raises(ValueError, match=r"^region_lengths: expected None, since projected regions keep their lengths"):
        call(V, U, region_lengths=case.region_lengths)
    with pytest.raises(ValueError, match=r"^regions.products: expected shape \(3, 4, 14\), got \(3, 4, 13\)$"):
        call(V._replace(products=V.products[..., 1:]), U)
    with pytest.raises(ValueError, match=r"^words.products: expected shape \(2, 5, 20\), got \(2, 5, 14\)$"):
        call(V, U._replace(products=U.products[..., 6:]))
    with pytest.raises(
        TypeError, match=r"^words.products: expected dtype torch.float32, that of words.features, got torch.float64$"
    ):
        call(V, U._replace(products=U.products.double()))
    with pytest.raises(
        TypeError, match=r"^words.features: expected dtype torch.float32, that of regions.features, got torch.float64$"
    ):
        call(V, ck.ProjectedWords(U.features.double(), U.products.double(), None))
    with pytest.raises(ValueError, match=r"^regions.lengths: expected values from 0 to 4, .* got 9$"):
        call(V._replace(lengths=torch.tensor([9, 0, 0])), U)
    for missing in ("features", "products"):
        with pytest.raises(TypeError, match=f"^regions.{missing}: expected a tensor, got NoneType$"):
            call(V._replace(**{missing: None}), U)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"^words.features: expected a tensor, got NoneType$"),
    ):
        call(case.regions, ck.ProjectedWords(None, None, None))
    only_vectors = ck.ContextAttentionWeights(None, None, None, None, None, case.weights.region_score, case.weights.word_score)
    assert torch.equal(call(V, U, only_vectors), case.call())
    with pytest.raises(TypeError, match=r"^weights.affinity: expected a tensor, got NoneType$"):
        call(V, case.words, only_vectors)
