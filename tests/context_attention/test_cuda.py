"""What is the CUDA backend's own: tiles and their borders, pairs that do not fit them, split launches, limits."""

from dataclasses import replace
from functools import partial

import cases
import pytest
import torch
from accuracy import assert_accurate

import caan_kernels as ck
from caan_kernels.context_attention import cuda
from caan_kernels.context_attention.gpu import launch
from caan_kernels.core.gpu import limits

pytestmark = pytest.mark.skipif("cuda" not in cases.KERNELS, reason="on a GPU, or by tests/test_emulated.py")

ops = torch.ops.caan_kernels
DEVICE = cases.KERNELS.get("cuda")
DTYPES = cases.KERNEL_DTYPES["cuda"]
half = pytest.mark.parametrize("dtype", cases.HALF_DTYPES, ids=str)
# Tiles take widths that are multiples of 8; 64 columns are a piece.
WIDTHS = 72, 136


def lengths_given(shape, regions, words, dtype, **given):
    """A problem whose items have these lengths."""
    case = cases.problem(shape, dtype, lengths=False, **given)
    case = replace(case, region_lengths=torch.tensor(regions), word_lengths=torch.tensor(words))
    for items, lengths in ((case.regions, case.region_lengths), (case.words, case.word_lengths)):
        items[torch.arange(items.shape[1]) >= lengths[:, None]] = float("nan")
    return case.on("cuda")


def assert_scores(case, **options):
    """Scores as accurate as the reference's in the same dtype: on average, since a jump of one pair decides the largest error."""
    expected, plain = cases.oracle(case, **options)[0], case.call(**options, backend="reference").cpu()
    found = case.call(**options, backend="cuda").cpu()
    assert (found - expected).norm() <= 2 * (plain - expected).norm() + 1e-6
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [(3, 50, 72, 136), (1, 1, 8, 8), (5, 7, 64, 264), (2, 70, 200, 16), (3, 5, 6, 24), (3, 5, 24, 9)], ids=str
)
def test_projections(dtype, sizes, monkeypatch):
    """One tile and several, whole or not; depths of a piece, of less and of more; widths not copied 16 bytes at a time."""
    count, rows, width, columns = sizes
    generator = torch.Generator().manual_seed(0)
    items, weight, grad = (
        torch.randn(shape, generator=generator).to(dtype).to(DEVICE)
        for shape in ((count, rows, width), (width, columns), (count, rows, columns))
    )
    lengths = torch.randint(rows + 1, (count,), generator=generator).to(DEVICE)
    beyond = torch.arange(rows, device=DEVICE) >= lengths[:, None]
    items[beyond] = grad[beyond] = float("nan")
    real, real_grad = items.double().masked_fill(beyond[..., None], 0), grad.double().masked_fill(beyond[..., None], 0)
    projection = items, weight, lengths, "cuda"
    found = ops.project(*projection)
    # Autograd may run where autocast is on, which has no say in it.
    with torch.autocast(DEVICE, torch.bfloat16):
        of_items, of_weight = ops.project_backward(grad, *projection, True, True)
    expected = real @ weight.double(), real_grad @ weight.double().mT, real.flatten(0, 1).mT @ real_grad.flatten(0, 1)
    for x, exact in zip((found, of_items, of_weight), expected, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-6 * float(exact.abs().max() + 1))
    assert not found[beyond].any() and not of_items[beyond].any()
    # In blocks, too, whose parts of the weight's gradient are rounded one by one.
    monkeypatch.setattr(launch, "ROW_BYTES", 1)
    found, whole = ops.project_backward(grad, *projection, True, True), (of_items, of_weight)
    for x, y in zip(found, whole, strict=True):
        torch.testing.assert_close(x, y, rtol=4 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps * float(y.abs().max()))


# Options are a matter of each kernel, not of its dtype.
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.bfloat16, {}), (torch.float32, {}), *((torch.float16, options) for options in cases.OPTIONS.values())],
    ids=str,
)
def test_borders_of_tiles(dtype, options):
    """Items that just fit a tile, a multiple of 8 or 16, and that just do not: accurate, and with the bits of the item alone."""
    regions, words = [1, 8, 36, 40, 41, 48, 64, 65], [1, 7, 8, 12, 15, 16, 17, 24, 25, 31, 32, 33]
    case = lengths_given((8, 65, 12, 33, *WIDTHS), regions, words, dtype)
    scores = assert_scores(case, **options)
    for i, t in ((0, 0), (1, 5), (2, 3), (3, 6), (2, 7), (2, 8), (5, 7), (4, 10), (6, 11), (7, 3), (7, 11)):
        some = case.regions[i : i + 1, : regions[i]], case.words[t : t + 1, : words[t]]
        assert ck.context_attention(*some, case.weights, **options, backend="cuda").item() == scores[i, t].item()


@pytest.mark.parametrize(
    ("dtype", "m", "n"),
    [(torch.bfloat16, 36, 14), (torch.float16, 36, 30), (torch.float16, 64, 16), (torch.bfloat16, 49, 32), (torch.float32, 36, 14)],
    ids=str,
)
def test_many_tiles(dtype, m, n):
    """More images than a band, more captions than a block, ragged on both sides, each pair in one place."""
    case = cases.problem((35, m, 11, n, 8, 16), dtype, near_zero=True).on("cuda")
    scores = assert_scores(case)
    order = torch.randperm(scores.numel(), generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([order // 11, order % 11], dim=1)
    assert torch.equal(replace(case, pairs=pairs).call(backend="cuda").cpu(), scores[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lists_of_all_kinds(dtype):
    """Runs of one image, of pairs that are listed several times, of several sizes, of empty items, in any order."""
    case = lengths_given((4, 70, 6, 40, 8, 16), [5, 0, 70, 64], [3, 20, 16, 0, 40, 32], dtype)
    scores = case.call(backend="cuda").cpu()
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(6)).repeat(3, 1)
    pairs = torch.cat([pairs, torch.tensor([[0, 0]]).expand(5, 2)])
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    listed = replace(case, pairs=pairs).call(backend="cuda").cpu()
    assert torch.equal(listed, scores[pairs[:, 0], pairs[:, 1]])
    assert not scores[1].any() and not scores[:, 3].any()


@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_positive_alignment(dtype, options):
    """A region and a word with one positive alignment weigh it by exactly 1, and give the affinity a gradient of exactly 0."""
    case = cases.problem((2, 8, 3, 8, 8, 16), dtype, lengths=False, near_zero=True, pairs=True)
    affinity = torch.eye(8, dtype=dtype)
    size = torch.linspace(0.1, 1.3, 8).diag().to(dtype)
    case = replace(case, regions=size.repeat(2, 1, 1), words=size.repeat(3, 1, 1), weights=case.weights._replace(affinity=affinity))
    maps = case.call(ck.attention_maps, **options, backend="cuda")
    for x in (maps.word_to_region, maps.region_to_word):
        assert torch.equal(x.cpu(), torch.eye(8).expand_as(x))
    _, gradients = cases.run(case, **options, backend="cuda")
    assert not gradients["affinity"].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_pairs(dtype, bad):
    """Captions that share a warp, images that share a block: one with a number that is none spoils its own scores alone."""
    images, captions = (2, 6) if dtype == torch.float32 else (4, 8)
    case = cases.problem((images, 36, captions, 16, *WIDTHS), dtype, lengths=False).on("cuda")
    scores = case.call(backend="cuda").cpu()
    regions, words = case.regions.clone(), case.words.clone()
    regions[1, 3, 5], words[2, 4, 6], words[5, 15, 71] = bad, bad, bad
    spoilt = replace(case, regions=regions, words=words).call(backend="cuda").cpu()
    own = torch.zeros(images, captions, dtype=torch.bool)
    own[1] = own[:, 2] = own[:, 5] = True
    assert spoilt[own].isnan().all()
    assert torch.equal(spoilt[~own], scores[~own])


@half
@pytest.mark.parametrize("pieces", [1, 8, 9, 63])
def test_pieces_of_widths(dtype, pieces):
    """Widths of one piece and of several, whole or not, of either kind."""
    assert_scores(cases.problem((4, 36, 9, 16, 8 * pieces, 8), dtype).on("cuda"))
    assert_scores(cases.problem((4, 36, 9, 16, 8, 8 * pieces), dtype).on("cuda"))


@half
def test_widths_that_tiles_do_not_take(dtype):
    for widths in ((12, 16), (16, 12)):
        assert_accurate(cases.problem((3, 36, 4, 14, *widths), dtype), "cuda", {}, score=1e-6, gradient=1e-4, of_reference=2.0)


@half
def test_features_that_begin_anywhere(dtype):
    """Copies of 16 bytes want addresses that are multiples of them; a view into a tensor may have another."""
    case = cases.problem((2, 36, 3, 14, 16, 16), dtype, lengths=False).on("cuda")

    def moved(x):
        store = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        store[1:] = x.flatten()
        return store[1:].view(x.shape)

    assert torch.equal(
        replace(case, regions=moved(case.regions), words=moved(case.words)).call(backend="cuda"), case.call(backend="cuda")
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_launches(dtype, monkeypatch):
    """Scores, gradients and maps have the same bits in however many pieces they are made."""
    case = lengths_given((2, 5, 3, 40, 8, 16), [5, 2], [3, 40, 0], dtype)
    listed = replace(case, pairs=torch.tensor([[1, 1], [0, 0], [1, 2], [0, 0]]))

    def results():
        yield case.call(backend="cuda")
        yield listed.call(backend="cuda")
        for some in (case, listed):
            scores, gradients = cases.run(some, backend="cuda")
            yield scores
            yield from gradients.values()
        yield from listed.call(ck.attention_maps, backend="cuda")

    whole = list(results())
    few = {"BLOCK_BYTES": 2000, "SCRATCH_BYTES": 1, "SCORE_SCRATCH_BYTES": 1, "MOST_LISTED": 2, "MOST_ORDERED": 3}
    for name, limit in few.items():
        monkeypatch.setattr(launch, name, limit)
    # As little a launch as can be.
    monkeypatch.setattr(limits, "LONGEST", 0.0)
    monkeypatch.setattr(cuda, "CAPTIONS", 2)
    for found, expected in zip(results(), whole, strict=True):
        assert torch.equal(found, expected)


@pytest.fixture
def kernels(monkeypatch):
    """Names of what scores pairs, as they are launched; torch's setting of float32 products is undone after the test."""
    launched = []
    for name in ("TileLaunch", "_score_large", "_score_pairs"):
        kernel = getattr(cuda, name)
        monkeypatch.setattr(cuda, name, lambda *given, n=name, k=kernel, **named: launched.append(n) or k(*given, **named))
    before = torch.backends.cuda.matmul.fp32_precision
    yield launched
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(("dtype", "slots"), [(torch.float32, 3), (torch.bfloat16, 1), (torch.float16, 3)], ids=str)
def test_more_pairs_than_blocks(dtype, slots, monkeypatch, kernels):
    """Those that no tile takes are scored by as many blocks as there are slots, each looking at more places than it has threads."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    regions, words = [1, 0, 2, 65, 3, 2, 1, 4] * 3, [3, 40, 0, 2, 1, 33, 2] * 3
    case = lengths_given((24, 65, 21, 40, 8, 16), regions, words, dtype)
    whole = assert_scores(case)
    pairs = torch.cartesian_prod(torch.arange(24), torch.arange(21)).flip(0)
    numbers = cuda.pair_numbers(65, 40, 8, gradient=False)
    monkeypatch.setattr(launch, "SCORE_SCRATCH_BYTES", 4 * slots * numbers)
    assert torch.equal(case.call(backend="cuda").cpu(), whole)
    listed = replace(case, pairs=pairs).call(backend="cuda").cpu()
    assert torch.equal(listed, whole[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(300, 40), (20, 320)], ids=str)
def test_most_rows(dtype, rows):
    m, n = rows
    case = lengths_given((2, m, 2, n, 6, 9), [m, m // 2], [n, 3], dtype)
    assert_accurate(case, "cuda", {}, score=2e-6 if dtype == torch.float32 else 1e-3, gradient=1e-5, of_reference=2.0)


def assert_same_alone_and_listed(case, scores, **options):
    """Every pair's score has the bits of a list's; those of the first captions, of the two items alone."""
    captions = scores.shape[1]
    order = torch.randperm(scores.numel(), generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([order // captions, order % captions], dim=1)
    listed = replace(case, pairs=pairs).call(**options, backend="cuda").cpu()
    assert torch.equal(listed, scores[pairs[:, 0], pairs[:, 1]])
    for i, m in enumerate(case.region_lengths.tolist()):
        for t, n in enumerate(case.word_lengths.tolist()[:3]):
            some = case.regions[i : i + 1, :m], case.words[t : t + 1, :n]
            assert ck.context_attention(*some, case.weights, **options, backend="cuda").item() == scores[i, t].item()


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        *((torch.bfloat16, sizes) for sizes in ((70, 12), (36, 40), (196, 32), (576, 64))),
        *((torch.float16, sizes) for sizes in ((1030, 32), (20, 128), (90, 50))),
        *((torch.float32, sizes) for sizes in ((41, 16), (70, 33), (20, 70))),
    ],
    ids=str,
)
def test_large_pairs(dtype, sizes):
    """Pairs with a block each, every class of words, beside pairs that lie in tiles or that no tensor core takes."""
    m, n = sizes
    case = lengths_given((2, m, 6, n, 24, 136), [m, m // 3], [n, n // 2 + 1, 5, n - 1, n // 3 + 1, 9], dtype)
    assert_same_alone_and_listed(case, assert_scores(case))


@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_options_of_large_pairs(dtype, options):
    m = 20 if dtype == torch.float32 else 90
    # In float32 a caption of 9 words lies in a tile.
    case = lengths_given((1, m, 3, 40, 16, 136), [m], [40, 17, 9], dtype)
    assert_same_alone_and_listed(case, assert_scores(case, **options), **options)


@pytest.mark.parametrize(("precision", "kernel"), [("none", "TileLaunch"), ("tf32", "TileLaunch"), ("ieee", "_score_pairs")])
def test_products_of_float32_are_as_torch_is_told(precision, kernel, kernels):
    """Six of bfloat16 for one of float32, but for who wants IEEE's; both are as accurate as they have to be."""
    case = cases.problem((1, 36, 2, 13, 1024, 256), torch.float32).on("cuda")
    torch.backends.cuda.matmul.fp32_precision = precision
    assert cases.score_error(case.call(backend="cuda").cpu(), cases.oracle(case)[0]) <= 1e-6
    assert kernels == [kernel]


@pytest.mark.skipif(not cases.EMULATED, reason="once this setting is made, others of the process no longer come back")
def test_highest_means_ieee(kernels):
    case = cases.problem((1, 5, 2, 7, 8, 16), torch.float32).on("cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        case.call(backend="cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    assert kernels == ["_score_pairs"]


def test_float32_without_tensor_cores(kernels):
    """Widths that are not copied 16 bytes at a time."""
    for widths in ((6, 16), (16, 6), (12, 20)):
        assert_scores(cases.problem((2, 9, 3, 7, *widths), torch.float32).on("cuda"))
    assert kernels == ["_score_pairs", "_score_pairs", "TileLaunch"]


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        *((torch.bfloat16, sizes) for sizes in ((36, 13), (196, 32), (576, 64), (90, 112))),
        *((torch.float16, sizes) for sizes in ((49, 20), (1030, 32), (70, 112))),
        *((torch.float32, sizes) for sizes in ((36, 13), (400, 17), (64, 80), (20, 112))),
    ],
    ids=str,
)
def test_gradients_on_tensor_cores(dtype, sizes):
    """Regions in one chunk and in several, of one strip and of more; words of a call that has shorter ones, too. The last are more
    than fit in float32, which takes another kernel."""
    m, n = sizes
    hidden = 72 if m < 50 else 16
    case = lengths_given((1, m, 2, n, 24, hidden), [m - 3], [n, n // 3 + 1], dtype)
    # Two scores say little of the scores' error.
    assert_accurate(case, "cuda", {}, score=4e-3, gradient=1e-5, of_reference=2.0)


@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
def test_options_of_gradients_on_tensor_cores(options):
    """Regions in two chunks."""
    case = lengths_given((1, 70, 2, 20, 16, 24), [70], [20, 7], torch.bfloat16)
    assert_accurate(case, "cuda", options, score=1e-3, gradient=1e-5, of_reference=2.0)


def test_gradients_with_products_of_either_kind(kernels):
    """In float32: those of parts on tensor cores, and IEEE's for who asks for them, which have other bits."""
    case = cases.problem((1, 36, 2, 13, 24, 72), torch.float32, lengths=False).on("cuda")
    of_parts = cases.run(case, backend="cuda")[1]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    exact = cases.run(case, backend="cuda")[1]
    for name, gradient in exact.items():
        assert cases.gradient_error(of_parts[name], gradient.double().cpu()) <= 1e-5, name
    assert not torch.equal(of_parts["regions"], exact["regions"])


@pytest.mark.parametrize(("dtype", "value"), [(torch.bfloat16, float("nan")), (torch.float32, float("inf"))], ids=str)
def test_gradients_beside_what_is_not_finite(dtype, value):
    """Of more rows than one strip of a tile; test_invariance.py has this of fewer."""
    case = lengths_given((2, 20, 3, 18, 24, 16), [20, 3], [18, 5, 17], dtype)
    wrong = replace(case, words=case.words.clone())
    wrong.words[1, 2, 5] = value
    grad = torch.ones(2, 3, device=case.words.device)
    expected, spoiled = (cases.run(x, grad, backend="cuda")[1]["words"] for x in (case, wrong))
    assert not spoiled[1, :5].isfinite().all()
    assert torch.equal(spoiled[[0, 2]], expected[[0, 2]])
    grad[:, 1] = 0
    expected, spared = (cases.run(x, grad, backend="cuda")[1] for x in (case, wrong))
    assert all(torch.equal(spared[name], expected[name]) for name in ("regions", "words"))


TILES, LARGE = ([3, 9] + [1] * 31, [12, 5, 17]), ([66, 9], [129, 5, 33])


@pytest.mark.parametrize(
    ("few", "lengths", "parts", "dtype"),
    [
        *(("places", TILES, 2, x) for x in (torch.float16, torch.float32)),
        *(("places", LARGE, 2, x) for x in (torch.float16, torch.float32)),
        ("slots", LARGE, 1, torch.float16),
        ("scores", ([3, 9] + [1] * 7, [12, 5, 17]), 2, torch.float16),
    ],
)
def test_scores_in_pieces(few, lengths, parts, dtype, monkeypatch, kernels):
    """Blocks that have several pairs, one after another, and launches of few places, of pairs that each kernel takes."""
    regions, words = lengths
    case = lengths_given((len(regions), max(regions), len(words), max(words), 8, 16), regions, words, dtype)
    scores = case.call(backend="cuda").cpu()
    whole = kernels.count("TileLaunch")
    kernels.clear()
    pairs = torch.cartesian_prod(torch.arange(len(regions)), torch.arange(len(words)))
    monkeypatch.setattr(launch, "SCORE_SCRATCH_BYTES", 1)
    if few == "scores":
        # They are planned for 8 images at least.
        monkeypatch.setattr(launch, "MOST_SCORED", 1)
    if few == "places":
        # A launch of tiles has a band of images at least.
        monkeypatch.setattr(limits, "LONGEST", 0.0)
        monkeypatch.setattr(cuda, "CAPTIONS", 2)
    assert torch.equal(case.call(backend="cuda").cpu(), scores)
    assert kernels.count("TileLaunch") == whole * parts
    assert torch.equal(replace(case, pairs=pairs).call(backend="cuda").cpu(), scores.flatten())


@half
@pytest.mark.parametrize("rows", [(0, 33), (66, 0), (0, 0)], ids=str)
def test_no_rows(dtype, rows):
    """Tensors of images without regions, or of captions without words."""
    case = cases.problem((2, rows[0], 3, rows[1], 8, 16), dtype, lengths=False).on("cuda")
    assert torch.equal(case.call(backend="cuda").cpu(), torch.zeros(2, 3))


TOGETHER = "at most 340 regions and words together"
LONG = "where regions and words are more than 340 together"
TOO_LARGE = [
    ((300, 41, 6, 9), torch.float32, {}, f"it takes {TOGETHER} in float32 where a width is no multiple of 4"),
    ((300, 41, 12, 16), torch.float16, {}, f"it takes {TOGETHER} in half precision where a width is no multiple of 8"),
    ((300, 65, 8, 16), torch.float32, {}, f"it takes at most 64 words a caption in float32 {LONG}"),
    ((300, 65, 8, 16), torch.float32, {"gradient": True}, f"it takes at most 64 words a caption in float32 {LONG}"),
    ((300, 129, 8, 16), torch.float16, {}, f"it takes at most 128 words a caption in half precision {LONG}"),
    (
        (300, 113, 8, 16),
        torch.float16,
        {"gradient": True},
        f"it has derivatives for at most 112 words a caption in half precision {LONG}",
    ),
    ((300, 41, 8, 16), torch.float16, {"maps": True}, f"it has maps for {TOGETHER}"),
]


@pytest.mark.parametrize(("sizes", "dtype", "wanted", "limit"), TOO_LARGE, ids=lambda x: str(x).removeprefix("torch."))
def test_too_many_rows(sizes, dtype, wanted, limit):
    """The error names the one limit that a call does not keep, and what the call has."""
    m, n, *widths = sizes
    case = cases.problem((1, m, 1, n, *widths), dtype, pairs=True).on("cuda")
    if "gradient" in wanted:
        case = replace(case, regions=case.regions.clone().requires_grad_())
    call = partial(case.call, ck.attention_maps if "maps" in wanted else ck.context_attention, backend="cuda")
    with pytest.raises(RuntimeError, match=f"^backend 'cuda' cannot run this call: {limit}; these have {m} and {n}$"):
        call()


def test_what_takes_many_rows():
    """On tensor cores scores do; derivatives and other limits are in `TOO_LARGE`."""
    case = cases.problem((1, 300, 1, 41, 8, 16), torch.float16, lengths=False).on("cuda")
    longer = replace(case, words=case.words.repeat(1, 3, 1))
    assert longer.call(backend="cuda").isfinite().all()


def test_many_rows_are_not_for_ieee_products(kernels):
    """Whether these are asked for before a call, between its two passes, or after torch.compile has traced it."""
    case = cases.problem((1, 330, 1, 20, 8, 16), torch.float32, lengths=False).on("cuda")
    compiled = torch.compile(
        lambda regions: ck.context_attention(regions, case.words, case.weights, backend="cuda"), backend="eager", fullgraph=True
    )
    found = compiled(case.regions)
    scores = case.with_tensors(x.requires_grad_() for x in case.tensors().values()).call(backend="cuda")
    assert torch.equal(found, scores)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    for refused in (scores.sum().backward, lambda: case.call(backend="cuda"), lambda: compiled(case.regions.detach())):
        with pytest.raises(
            RuntimeError, match=f'cannot run this call: it takes {TOGETHER} where .*fp32_precision is "ieee"; these have 330 and 20'
        ):
            refused()


def test_a_scratch_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "slot_numbers", lambda *_: 4)
    with pytest.raises(RuntimeError, match="scratch: expected slots of"):
        cases.problem("odd", torch.float32).call(backend="cuda")
    monkeypatch.setattr(cuda, "MOST_LARGE_WORDS", 1)
    monkeypatch.setattr(launch, "SCORE_SCRATCH_BYTES", 1)
    with pytest.raises(RuntimeError, match="scratch: expected numbers for a pair"):
        cases.problem((1, 3, 1, 40, 8, 16), torch.float16, lengths=False).call(backend="cuda")


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "ieee"), (torch.float32, "none"), (torch.bfloat16, "none")], ids=str
)
def test_slots_of_another_kernel_are_refused(dtype, precision, monkeypatch, kernels):
    """Each of the kernels for derivatives has slots of its own size."""
    torch.backends.cuda.matmul.fp32_precision = precision
    numbers = cuda.pair_numbers

    def other_numbers(*sizes, gradient, parts):
        return numbers(*sizes, gradient=gradient, parts=2 if gradient and not parts else 0)

    monkeypatch.setattr(cuda, "pair_numbers", other_numbers)
    case = cases.problem("odd", dtype).on("cuda")
    with pytest.raises(RuntimeError, match="scratch: expected slots of"):
        cases.run(case, backend="cuda")
