"""What is the Triton backend's own: its limits, borders between blocks of sizes, split launches, functions."""

from dataclasses import replace

import cases
import pytest
import torch
from accuracy import assert_accurate

import caan_kernels as ck
from caan_kernels.core import backends
from caan_kernels.core.gpu import limits

triton = pytest.importorskip("triton")
tl = triton.language

from caan_kernels.context_attention.gpu import launch as operators  # noqa: E402
from caan_kernels.context_attention.gpu.launch import Vectors  # noqa: E402
from caan_kernels.context_attention.triton import configurations, launch, plan, schedule  # noqa: E402
from caan_kernels.core.triton import functions  # noqa: E402

pytestmark = pytest.mark.skipif("triton" not in cases.KERNELS, reason="on a GPU, or by tests/test_interpreted.py")

DEVICE = cases.KERNELS.get("triton")
DTYPES = cases.KERNEL_DTYPES["triton"]
HALF_DTYPES = [dtype for dtype in DTYPES if dtype != torch.float32]
# Widths of the shared cases: a kernel is compiled for each.
WIDTHS = cases.SHAPES["odd"][4:]


def lengths_given(shape, regions, words, dtype, **given):
    """A problem whose items have these lengths."""
    case = cases.problem(shape, dtype, lengths=False, **given)
    case = replace(case, region_lengths=torch.tensor(regions), word_lengths=torch.tensor(words))
    for items, lengths in ((case.regions, case.region_lengths), (case.words, case.word_lengths)):
        items[torch.arange(items.shape[1]) >= lengths[:, None]] = float("nan")
    return case.on("triton")


def test_other_dtypes_are_refused():
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run this call: it has no kernels for torch.float64"):
        cases.problem("odd").call(backend="triton")
    assert backends.select("context_attention", "auto", torch.device(DEVICE), torch.float64) == "reference"


def test_too_many_regions():
    case = cases.problem((1, 257, 1, 2, *WIDTHS), torch.float32, pairs=True).on("triton")
    assert cases.score_error(case.call(backend="triton"), cases.oracle(case)[0]) <= 2e-6
    reason = "backend 'triton' cannot run this call: it has {} for at most 256 regions an image; these have 257"
    with pytest.raises(RuntimeError, match=reason.format("maps")):
        case.call(ck.attention_maps, backend="triton")
    with pytest.raises(RuntimeError, match=reason.format("derivatives")):
        cases.run(case, backend="triton")
    assert torch.equal(case.call(ck.attention_maps).scores, case.call(ck.attention_maps, backend="reference").scores)


def test_too_many_words():
    case = cases.problem((1, 2, 1, 129, *WIDTHS), torch.float32, near_zero=True).on("triton")
    with pytest.raises(
        RuntimeError, match="backend 'triton' cannot run this call: it takes at most 128 words a caption; these have 129"
    ):
        case.call(backend="triton")
    assert torch.equal(case.call(), case.call(backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"similarity": "cosine", "intra": None}], ids=str)
def test_regions_in_blocks(dtype, options):
    """Images that take one block of regions, several, and the last in part; captions on both sides of 64 words."""
    case = lengths_given((2, 40, 2, 70, *WIDTHS), [40, 3], [70, 60], dtype, near_zero=True)
    expected, plain = cases.oracle(case, **options)[0], case.call(backend="reference", **options)
    found = case.call(backend="triton", **options)
    assert cases.spread_errors(found, expected)[0] <= max(5e-7, 2 * cases.spread_errors(plain, expected)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_most_regions(dtype):
    case = lengths_given((2, 256, 2, 20, *WIDTHS), [256, 129], [20, 3], dtype)
    # Of four scores the largest error may well be twice another's.
    assert_accurate(case, "triton", {}, score=2e-6 if dtype == torch.float32 else 1e-3, gradient=1e-4, of_reference=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_borders_between_blocks(dtype):
    """Items that just fit a block and that just do not: accurate, and with the bits of the item alone."""
    regions, words = [15, 16, 17, 33], [15, 16, 17, 32, 33, 64, 65]
    case = lengths_given((4, 33, 7, 65, *WIDTHS), regions, words, dtype)
    scores = case.call(backend="triton")
    expected = cases.oracle(case)[0]
    plain = case.call(backend="reference")
    assert cases.score_error(scores, expected) <= max(2e-6, 2 * cases.score_error(plain, expected))
    for i, t in ((0, 0), (1, 1), (2, 2), (3, 3), (0, 4), (1, 5), (2, 6)):
        alone = ck.context_attention(
            case.regions[i : i + 1, : regions[i]], case.words[t : t + 1, : words[t]], case.weights, backend="triton"
        )
        assert alone.item() == scores[i, t].item()


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("listed", [False, True], ids=["all_pairs", "list"])
def test_largest_tiles(dtype, listed):
    """Blocks of 64 regions, with one caption in a program and with two."""
    case = lengths_given((2, 64, 3, 20, *WIDTHS), [64, 49], [20, 9, 16], dtype, pairs=listed)
    expected, plain = cases.oracle(case)[0], case.call(backend="reference")
    error = cases.score_error(case.call(backend="triton"), expected)
    assert error <= max(2e-6, 2 * cases.score_error(plain, expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_at_borders_between_blocks(dtype):
    case = lengths_given((2, 33, 3, 33, *WIDTHS), [17, 33], [16, 17, 33], dtype)
    assert_accurate(case, "triton", {}, score=2e-6 if dtype == torch.float32 else 1e-3, gradient=1e-5, of_reference=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_pairs_of_an_image_than_a_tile_holds(dtype):
    """Runs of one image, of pairs that are listed several times and of several blocks, in any order."""
    case = lengths_given((3, 5, 6, 20, *WIDTHS), [5, 0, 3], [3, 20, 16, 0, 17, 1], dtype)
    scores = case.call(backend="triton")
    together = configurations.tiles(16, 16).blocks["TOGETHER"]
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(6)).repeat(together, 1)
    pairs = torch.cat([pairs, torch.tensor([[0, 0]]).expand(2 * together + 1, 2)])
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    listed = replace(case, pairs=pairs).call(backend="triton")
    assert torch.equal(listed, scores[pairs[:, 0].to(scores.device), pairs[:, 1].to(scores.device)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_captions_of_one_word_leave_the_alignment_no_gradient(dtype):
    """Without words to compare, a row of Ĉ or of R holds exactly 1 or 0, and what reaches the alignment is exactly 0."""
    case = lengths_given((2, 5, 2, 7, *WIDTHS), [5, 4], [1, 1], dtype)
    gradients = cases.run(case, inter=False, backend="triton")[1]
    assert gradients["region_intra"].any()
    assert not gradients["affinity"].any()


def weights_scaled(case, region, word):
    weights = case.weights
    scaled = {"region_score": weights.region_score * region, "word_score": weights.word_score * word}
    return replace(case, weights=weights._replace(**scaled))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("power", [-10, 12, 16])
def test_scale_of_the_score_vectors(dtype, power):
    """Vectors at the ends of what float16 holds and, in bfloat16, far above, and both ends at once."""
    power = min(power, 14) if dtype == torch.float16 else power
    case = cases.problem("odd", dtype, pairs=True).on("triton")
    for scaled in (weights_scaled(case, 2.0**power, 1.0), weights_scaled(case, 2.0**-power, 2.0**power)):
        assert scaled.weights.region_score.isfinite().all() and scaled.weights.word_score.isfinite().all()
        expected, plain = cases.oracle(scaled)[0], scaled.call(backend="reference")
        found = scaled.call(backend="triton")
        assert cases.score_error(found, expected) <= max(5e-3, 2 * cases.score_error(plain, expected))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_score_vectors_of_zero(dtype):
    case = cases.problem("odd", dtype).on("triton")
    zero = weights_scaled(case, 0.0, 0.0)
    # No context counts, as with both of its terms left out.
    assert torch.equal(zero.call(backend="triton"), case.call(backend="triton", inter=False, intra=None))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1.0, 6e4, 1e5, 1e30])
def test_score_vectors_keep_their_bits(scale):
    """What bfloat16 holds survives in float16, over a power of two, down to 2⁻¹⁴ of the largest."""
    generator = torch.Generator().manual_seed(0)
    region = (torch.rand(500, generator=generator) * scale).bfloat16().to(DEVICE)
    word = (torch.randn(500, generator=generator) * scale * 3).bfloat16().to(DEVICE)
    vectors = launch._scaled(Vectors(region, word))
    assert vectors.halves.dtype == torch.float16
    assert vectors.halves.abs().max() <= 1
    for vector, half, power in zip((region, word), vectors.halves, vectors.scales, strict=True):
        large = vector.float().abs() > 2.0**-14 * vector.float().abs().max()
        assert torch.equal((half.float() * power)[large], vector.float()[large])
        assert torch.frexp(power).mantissa == 0.5


@pytest.fixture
def float32_products():
    """torch.set_float32_matmul_precision, undone after the test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)
    torch.backends.cuda.matmul.fp32_precision = "none"


def test_tf32_is_for_those_who_allow_it(float32_products):
    for choice, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
        float32_products(choice)
        assert launch.precision_of(torch.float32) == launch.gradient_precision(torch.float32) == expected
        assert launch.score_precision(torch.float32) == expected
        assert launch.precision_of(torch.float16) == "ieee"
        assert launch.gradient_precision(torch.float16) == "tf32"


def test_tf32_allowed_by_the_setting_of_one_backend():
    # Once this newer setting is made, torch.get_float32_matmul_precision() raises.
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "none"
        assert launch.precision_of(torch.float32) == "ieee"
        assert launch.score_precision(torch.float32) == "tf32x3"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert launch.precision_of(torch.float32) == launch.score_precision(torch.float32) == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert launch.precision_of(torch.float32) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


MODULES = {"WORKSPACE_BYTES": launch, "LONGEST": limits, "PROGRAMS": configurations}
FEW = {"BLOCK_BYTES": 2000, "SCRATCH_BYTES": 4000, "WORKSPACE_BYTES": 12000, "MOST_LISTED": 2, "MOST_ORDERED": 3}
# As little as can be, of items at a time and of pairs a launch.
LEAST = {"BLOCK_BYTES": 1, "LONGEST": 0.0, "PROGRAMS": 1}


@pytest.mark.parametrize(("dtype", "few"), [(torch.float32, FEW), (torch.float16, LEAST)], ids=["few", "least"])
def test_split_launches(dtype, few, monkeypatch):
    """Scores, gradients and maps have the same bits in however many pieces they are made."""
    case = lengths_given((2, 5, 3, 66, *WIDTHS), [5, 2], [3, 66, 0], dtype)
    listed = replace(case, pairs=torch.tensor([[1, 1], [0, 0], [1, 2], [0, 0]]))

    def results():
        yield case.call(backend="triton")
        yield listed.call(backend="triton")
        for some in (case, listed):
            scores, gradients = cases.run(some, backend="triton")
            yield scores
            yield from gradients.values()
        yield from listed.call(ck.attention_maps, backend="triton")

    whole = list(results())
    for name, limit in few.items():
        monkeypatch.setattr(MODULES.get(name, operators), name, limit)
    for found, expected in zip(results(), whole, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("count", "size", "programs"), [(1, 7, 1), (7, 7, 3), (8, 7, 3), (100, 7, 3)])
def test_launches_take_everything_once(count, size, programs):
    grids = list(plan.Launches(count, size, programs).grids())
    assert [number for number, _ in grids] == list(range(-(-count // size)))
    assert all(0 < of_launch <= min(programs, count - number * size) for number, of_launch in grids)


@triton.jit
def bands_kernel(found, images, captions, BLOCK: tl.constexpr):
    number = tl.arange(0, BLOCK)
    image, caption = schedule.in_bands(number, images, captions)
    exists = number < images * captions
    tl.store(found + 2 * number, image, mask=exists)
    tl.store(found + 2 * number + 1, caption, mask=exists)


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (1, 100), (32, 3), (33, 1), (70, 50)])
def test_bands_hold_every_pair_once(images, captions):
    """Those that follow each other are of up to 32 images, and of as few captions as can be."""
    found = torch.full((images * captions, 2), -1, device=DEVICE)
    bands_kernel[(1,)](found, images, captions, BLOCK=4096)
    places = found.tolist()
    assert sorted(map(tuple, places)) == [(image, caption) for image in range(images) for caption in range(captions)]
    first_band = [image for image, _ in places[: min(images, 32) * captions]]
    assert max(first_band) < 32
    assert [caption for _, caption in places[: min(images, 32)]] == [0] * min(images, 32)


@triton.jit
def tanh_kernel(x, y, count, HALF: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + place, mask=place < count)
    if HALF:
        tl.store(y + place, functions.tanh_to_half(values), mask=place < count)
    else:
        tl.store(y + place, functions.tanh(values), mask=place < count)


def tanh(x, dtype=torch.float32):
    x = x.to(DEVICE)
    y = torch.full_like(x, torch.nan, dtype=dtype)
    block = 2**17 if cases.INTERPRETED else 1024
    tanh_kernel[(-(-len(x) // block),)](x, y, len(x), HALF=dtype == torch.float16, BLOCK=block)
    return y.cpu()


def floats(low, high, step):
    """Every `step`-th float32 number from `low` to `high`, both above 0, and their negatives."""
    first, last = (int(torch.tensor(x).view(torch.int32)) for x in (low, high))
    positive = torch.arange(first, last, step, dtype=torch.int32).view(torch.float32)
    return torch.cat([positive, -positive])


def test_tanh_is_within_4_ulp():
    for low, high, step in ((1e-37, 2.0**-4, 1001), (2.0**-4, 0.54, 31), (0.54, 0.56, 1), (0.56, 10.0, 31), (10.0, 1e38, 10007)):
        x = floats(low, high, step)
        exact = x.double().tanh()
        rounded = exact.float().abs()
        ulp = (torch.nextafter(rounded, torch.tensor(2.0)) - rounded).double()
        error = (tanh(x).double() - exact).abs() / ulp
        assert error.max() <= 4, f"{float(error.max())} at {float(x[error.argmax()])}"


def test_tanh_of_special_numbers():
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40])
    torch.testing.assert_close(tanh(x), x.tanh(), equal_nan=True, rtol=0, atol=2e-45 if cases.INTERPRETED else 1e-38)
    torch.testing.assert_close(tanh(x, torch.float16), x.tanh().half(), equal_nan=True, rtol=0, atol=0)


def test_tanh_to_half():
    """Within 2⁻¹⁰ of the result, or half of the least number that float16 holds."""
    for low, high, step in ((1e-10, 2.0**-4, 301), (2.0**-4, 12.0, 31)):
        x = floats(low, high, step)
        exact = x.double().tanh()
        error = (tanh(x, torch.float16).double() - exact).abs()
        assert (error <= 2.0**-10 * exact.abs() + 2.0**-25).all()
