"""No launch takes longer than 50 ms on an H100, by estimate: kernels are left out, and tensors have no memory."""

import json
from pathlib import Path

import cases
import pytest
import torch
from launch_limits import MOST_SECONDS, Recorded, all_pairs_or_listed, both_dtypes, of_no_memory

from caan_kernels.context_attention import cuda
from caan_kernels.context_attention.call import Vectors
from caan_kernels.context_attention.gpu import launch as operators
from caan_kernels.context_attention.gpu import limits
from caan_kernels.core import cuda as core_cuda
from caan_kernels.core.gpu.limits import product, steps
from caan_kernels.core.gpu.plan import Items, Plan, Schedule, sizes_up_to

ESTIMATE = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_estimate.json").read_text())

# Images, captions, regions, words, width and hidden width.
SHAPES = {
    "coco": (5000, 25_000, 36, 16, 1024, 1024),
    "coco_with_a_long_caption": (5000, 25_000, 36, 52, 1024, 1024),
    "narrow": (5000, 25_000, 36, 13, 8, 8),
    "one_word": (100_000, 100_000, 1, 1, 8, 8),
    "wide": (5000, 25_000, 36, 16, 4096, 4096),
    "largest_tiles": (5000, 25_000, 64, 32, 4096, 4096),
    "one_image": (1, 1_000_000, 36, 16, 1024, 1024),
    "one_caption": (1_000_000, 1, 36, 16, 1024, 1024),
    "patches": (5000, 25_000, 196, 32, 8, 1024),
    "many_rows": (200, 200, 1030, 128, 1024, 1024),
}
all_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def launches(monkeypatch):
    """Records of what is launched, as on a GPU with the multiprocessors of an H100."""
    recorded = Recorded(
        cuda_score_tiles=cuda.TileLaunch,
        cuda_score_large=cuda.LargeLaunch,
        cuda_score_pairs=cuda.PairLaunch,
        cuda_differentiate=cuda.GradientLaunch,
        cuda_multiply=core_cuda._Product,
    )
    for module in (cuda, core_cuda):
        monkeypatch.setattr(module, "_ops", recorded)
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: limits.MULTIPROCESSORS)
    return recorded.records


def planned_call(shape, dtype, listed):
    """A call and its scores; all captions that lie in tiles are in the last bucket that tiles take."""
    images, captions, m, n, width, hidden = shape
    of = (images, m, width, 2 * hidden), (captions, n, width, width + 2 * hidden)
    sides = [of_no_memory(dtype, *x[:3]) for x in of], [of_no_memory(dtype, *x[:2], x[3]) for x in of]
    V, U = (operators.PlannedSide(*x, None, None) for x in zip(("region", "word"), *sides, strict=True))
    sizes = sizes_up_to(n, False)
    bucket = max(i for i, size in enumerate(sizes) if i == 0 or size <= (16 if dtype == torch.float32 else 32))
    starts = torch.tensor([0] * (bucket + 1) + [captions] * (len(sizes) - bucket))
    plan = Plan(*(Items(of_no_memory(torch.int64, len(x)), sizes, of_no_memory(torch.int64, len(x)), starts) for x in (V, U)), None)
    pairs = of_no_memory(torch.int64, listed, 2) if listed else None
    plan = plan._replace(keys=of_no_memory(torch.int64, listed) if listed else None)
    scores = of_no_memory(torch.float32, *((listed,) if listed else (images, captions)))
    vectors = Vectors(*(of_no_memory(dtype, hidden) for _ in range(2)))
    return operators.PlannedCall(V, U, vectors, pairs, cases.PAPER, cuda, plan), scores


def tile_seconds(launch, shape, listed):
    images, captions, m, _, *widths = shape
    kernel = limits.Shape(min(m, 64), 16 * launch.strips, *widths, launch.sides.regions.itemsize)
    if listed:
        return len(launch.keys) * limits.listed_tile(kernel)
    captions = (launch.word_starts[launch.bucket + 1] - launch.word_starts[launch.bucket]).item()
    return min(images, max(cuda.BAND, launch.launch_images // cuda.BAND * cuda.BAND)) * captions * limits.tile(kernel)


@all_shapes
@both_dtypes
@all_pairs_or_listed
def test_tiles(shape, dtype, listed, launches):
    call, scores = planned_call(shape, dtype, listed)
    cuda.score_tiles(call, scores)
    assert launches
    assert max(tile_seconds(x, shape, listed) for x in launches) <= MOST_SECONDS
    last = [x for x in launches if x.strips == max(y.strips for y in launches)]
    if listed:
        assert sum(len(x.keys) for x in last) == listed
    else:
        assert sum((x.word_starts[x.bucket + 1] - x.word_starts[x.bucket]).item() for x in last) == shape[1]


def test_few_launches(launches):
    """An evaluation on COCO's test set, whose kernels take seconds."""
    for dtype, most in ((torch.bfloat16, 100), (torch.float32, 400)):
        launches.clear()
        call, scores = planned_call(SHAPES["coco"], dtype, 0)
        cuda.score_tiles(call, scores)
        assert sum(steps(5000, max(cuda.BAND, x.launch_images // cuda.BAND * cuda.BAND)) for x in launches) <= most
    launches.clear()
    call, scores = planned_call((128, 128, 36, 16, 1024, 1024), torch.bfloat16, 0)
    cuda.score_tiles(call, scores)
    assert len(launches) == 1 and launches[0].launch_images >= 128


@pytest.mark.parametrize(
    ("dtype", "words", "most"),
    [
        (torch.bfloat16, 52, [700]),
        (torch.float32, 52, [2500]),
        (torch.bfloat16, 140, [1200, 45_000]),
        (torch.float32, 140, [2500, 45_000]),
    ],
)
def test_launches_for_long_captions(dtype, words, most, launches):
    """docs/cuda.md, "Launches": as many as if all captions of COCO's test set were that long."""
    call, scores = planned_call((5000, 25_000, 36, words, 1024, 1024), dtype, 0)
    cuda.score_rest(operators.Slots(call, operators.SCORE_SCRATCH_BYTES, gradient=False), scores)
    assert len(launches) == len(most)
    assert all(steps(scores.numel(), x.launch_pairs) <= count for x, count in zip(launches, most, strict=True))


@all_shapes
@both_dtypes
@all_pairs_or_listed
def test_pairs_with_a_block_each(shape, dtype, listed, launches, monkeypatch):
    call, scores = planned_call(shape, dtype, listed)
    slots, find = [], cuda._large_pairs
    monkeypatch.setattr(cuda, "_large_pairs", lambda call, most: slots.append(most) or find(call, most))
    cuda._score_large(operators.Slots(call, operators.SCORE_SCRATCH_BYTES, gradient=False), scores)
    (launch,) = launches
    most = min(limits.size_of(shape[3]), cuda.most_words(dtype))
    kernel = limits.Shape(shape[2], most, *shape[4:], dtype.itemsize)
    resident = 1 if most > 32 and dtype != torch.float32 else 2
    pair = (limits.large(kernel) + (kernel.read if listed else 0)) * limits.MULTIPROCESSORS * resident
    rounds = steps(launch.launch_pairs, min(slots[0], resident * limits.MULTIPROCESSORS))
    assert rounds == 1 or rounds * pair <= MOST_SECONDS


@all_shapes
@both_dtypes
@all_pairs_or_listed
def test_pairs_in_float32_arithmetic(shape, dtype, listed, launches):
    images, captions, m, n, *widths = shape
    shape = images, captions, min(m, 200), n, *widths
    call, scores = planned_call(shape, dtype, listed)
    slots = operators.Slots(call, operators.SCORE_SCRATCH_BYTES, gradient=False)
    cuda._score_pairs(slots, 0, scores.numel(), scores, slots.scratch, rest=False)
    (launch,) = launches
    kernel = operators.shape_of(call)
    pair = limits.in_float32(kernel) + (kernel.read if listed else 0)
    rounds = steps(launch.launch_pairs, min(slots.count, 4 * limits.MULTIPROCESSORS))
    assert rounds == 1 or rounds * pair * 4 * limits.MULTIPROCESSORS <= MOST_SECONDS


@pytest.fixture
def float32_products():
    """Makes a setting of float32 products, which is undone."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    yield lambda precision: setattr(products, "fp32_precision", precision)
    products.fp32_precision = before


@all_shapes
@pytest.mark.parametrize(
    ("dtype", "arithmetic"),
    [
        *((dtype, arithmetic) for dtype in (torch.bfloat16, torch.float32) for arithmetic in ("tensor_cores", "long_captions")),
        (torch.float32, "ieee"),
    ],
    ids=str,
)
@all_pairs_or_listed
def test_derivatives(shape, dtype, arithmetic, listed, launches, float32_products):
    """On tensor cores, and in float32 arithmetic for either of its reasons."""
    images, captions, m, n, *widths = shape
    tiled = arithmetic == "tensor_cores"
    n = max(n, 113) if arithmetic == "long_captions" else min(n, 80)
    if arithmetic == "ieee":
        float32_products("ieee")
    # Of more items the sums alone would take longer, and no GPU holds them.
    captions = min(captions, 100_000)
    rows = max(1, min(images, 100_000, operators.MOST_ORDERED // captions))
    call, _ = planned_call((rows, captions, m if tiled else min(m, 200), n, *widths), dtype, listed)
    slots = operators.Slots(call, operators.SCRATCH_BYTES, gradient=True)
    grad = of_no_memory(torch.float32, *((listed,) if listed else (rows, captions)))
    slots.reserve = lambda count: None
    schedule, sums = Schedule(*[of_no_memory(torch.int64, 1)] * 6), [of_no_memory(torch.float32, 1)] * 6
    cuda.differentiate(slots, schedule, grad, sums)
    most = launches[0].most
    assert all(x.tiled == tiled for x in launches)
    assert [x.first for x in launches] == list(range(0, grad.numel(), most))
    of, at_once = limits.derivatives(operators.shape_of(call), tiled), min(slots.count, 3 * limits.MULTIPROCESSORS)
    turns = (rows + captions) * sum(steps(x, cuda.TILED_COLUMNS if tiled else cuda.COLUMNS) for x in widths)
    seconds = steps(most, slots.count) * turns * limits.seconds_of(900)
    seconds += most * of.pair * 3 * limits.MULTIPROCESSORS / at_once + min(most, max(grad.shape)) * of.step
    # What is worked on at once cannot be split.
    assert seconds <= MOST_SECONDS or most <= at_once


@both_dtypes
@pytest.mark.parametrize("shape", [(113_000, 36, 2048, 4096), (25_000, 16, 1024, 3072), (10, 1030, 4096, 12_288)], ids=str)
def test_projections(shape, dtype, launches, monkeypatch):
    items, rows, width, columns = shape
    result = of_no_memory(dtype, items * rows, columns)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *arguments: result)
    lengths = of_no_memory(torch.int64, items)
    core_cuda.product(of_no_memory(dtype, items * rows, width), of_no_memory(dtype, width, columns), lengths, rows)
    assert sum(len(x.left) for x in launches) == items * rows
    assert all(len(x.left) == len(x.product) == len(x.lengths) * rows for x in launches)
    assert max(len(x.lengths) for x in launches) * product(rows, width, columns, dtype) <= MOST_SECONDS


@pytest.mark.parametrize("name", [*ESTIMATE["shapes"], *(f"float32 {x}" for x in ESTIMATE["float32"])])
def test_seconds_are_those_of_the_machine_code(name):
    """A launch is limited by what benchmarks/gpu_estimate.py counts without overlap, or by up to a third more."""
    single = name.startswith("float32 ")
    counted = ESTIMATE["float32" if single else "shapes"][name.removeprefix("float32 ")]["apart"] * 1e-9
    m, n, hidden = (int(x) for x in name.removeprefix("float32 ").replace(" x ", " ").replace(", H =", "").split())
    shape = limits.Shape(m, n, 1024, hidden, 4 if single else 2)
    in_tile = m <= (40 if single else 64)
    assert 0.99 <= (limits.tile if in_tile else limits.large)(shape) / counted <= 1.33


@pytest.mark.parametrize("hidden", [64, 1024])
@pytest.mark.parametrize("single", [False, True], ids=["bfloat16", "float32"])
def test_seconds_of_derivatives_are_more_than_was_counted(hidden, single):
    """The estimate of a training step has three pairs an image, and is a lower bound."""
    key = "training in float32" if single else "training"
    counted = ESTIMATE[key][f"B = 128, H = {hidden}, ms"]["parts"]["apart"]["gradients"] * 1e-3 / (3 * 128)
    found = limits.derivatives(limits.Shape(36, 16, 1024, hidden, 4 if single else 2), tiled=True).pair
    assert 1 <= found / counted <= 2


@pytest.fixture
def triton_launch(monkeypatch):
    """As on a GPU with the multiprocessors of an H100."""
    pytest.importorskip("triton")
    from caan_kernels.context_attention.triton import launch

    monkeypatch.setattr(launch, "multiprocessors", lambda device: limits.MULTIPROCESSORS)
    return launch


@all_shapes
@both_dtypes
@all_pairs_or_listed
def test_scores_in_triton(shape, dtype, listed, triton_launch, monkeypatch):
    """Each launch, and that together they hold every pair there may be; of a list each pair may be a tile of its own."""
    pieces = []
    monkeypatch.setattr(triton_launch.Launches, "grids", lambda launches: pieces.append(launches) or ())
    call, scores = planned_call(shape, dtype, listed)
    sides = triton_launch.Sides(*(x for side in (call.V, call.U) for x in (side.features, side.products)))
    scoring = triton_launch.Scoring(call, sides, *call.plan[:2], listed or None, None, scores)
    of, scaled = operators.shape_of(call), triton_launch.Scaled(scores, scores)
    for kind in triton_launch.classes_of(*call.plan[:2], shape[2:4], dtype != torch.float32):
        together = triton_launch.configurations.tiles(*kind.sizes).blocks["TOGETHER"] if kind.small else 1
        scoring.score_small(kind, scaled) if kind.small else scoring.score_large(kind)
        count, size, programs = pieces.pop()
        assert count == (listed or shape[0] * steps(shape[1], together))
        kernel = of._replace(regions=kind.rows[0], words=kind.rows[1])
        tile = together * limits.in_triton(kernel, kind.small, False, bool(listed))
        # However few they are, a program takes as long as beside three others on its multiprocessor.
        seconds = steps(size, programs) * tile * 4 * limits.MULTIPROCESSORS
        assert programs <= 4 * limits.MULTIPROCESSORS and (size == programs or seconds <= MOST_SECONDS)


@all_shapes
@both_dtypes
@all_pairs_or_listed
def test_derivatives_in_triton(shape, dtype, listed, triton_launch, monkeypatch):
    launch = triton_launch
    call, _ = planned_call(shape, dtype, listed)
    counts = []
    first, beyond = map(launch.gradient_kernel.arg_names.index, ("first", "beyond"))

    class Counted:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: counts.append(min(arguments[beyond], grad.numel()) - arguments[first])

    monkeypatch.setattr(launch, "gradient_kernel", Counted())
    slots = operators.Slots(call._replace(kernels=launch), operators.SCRATCH_BYTES, gradient=True)
    slots.reserve = lambda count: None
    grad = of_no_memory(torch.float32, *((listed,) if listed else (min(shape[0], 100), min(shape[1], 2000))))
    launch.differentiate(slots, Schedule(*(None,) * 6), grad, (None,) * 6)
    pair, step = launch._derivatives(slots)
    at_once = min(slots.count, 3 * limits.MULTIPROCESSORS)
    seconds = counts[0] * pair * 3 * limits.MULTIPROCESSORS / at_once + min(counts[0], max(grad.shape)) * step
    assert sum(counts) == grad.numel() and (seconds <= MOST_SECONDS or counts[0] <= at_once)
