"""Which items and pairs the launches on a GPU take: one plan, whoever writes it."""

import cases
import pytest
import torch

from caan_kernels.core.backends import available_backends
from caan_kernels.core.gpu import plan

PLANNERS = [name for name in cases.KERNELS if name != "cpu" and available_backends()[name][0]]
DEVICE = next((cases.KERNELS[name] for name in PLANNERS), "cpu")
planners = pytest.mark.parametrize("planner", PLANNERS)


def kernels_of(planner):
    if planner == "triton":
        from caan_kernels.context_attention.triton import launch

        return launch
    from caan_kernels.context_attention import cuda

    return cuda


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 36, 48, 49, 64, 65, 96, 97, 128, 129, 200, 256])
def test_sizes(rows, halfway):
    sizes = plan.sizes_up_to(rows, halfway)
    assert list(sizes) == [
        x for x in ([16, 32, 48, 64, 96, 128, 192, 256] if halfway else [16, 32, 64, 128, 256]) if x <= sizes[-1]
    ]
    assert sizes[-1] >= rows
    assert len(sizes) == 1 or sizes[-2] < rows
    for size in sizes:
        power, tail = plan.parts_of(size)
        assert power + tail == size
        assert power == plan.size_of(power)
        assert tail == 0 or tail == plan.size_of(tail) == power // 2


class Side:
    """One side, and what its plan must be. Given lengths begin one below what there is, end one above, and one is far away."""

    def __init__(self, count, rows, given, halfway):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(rows)).tolist()
        lengths = [[*range(-1, rows + 2), 2**40][item % (rows + 4)] for item in order] if given else [rows] * count
        self.features = torch.empty(count, rows, 1, device=DEVICE)
        self.given = torch.tensor(lengths, dtype=torch.int64, device=DEVICE) if given else None
        self.wrong = [not 0 <= x <= rows for x in lengths]
        self.lengths = [0 if wrong else x for wrong, x in zip(self.wrong, lengths, strict=True)]
        self.sizes = plan.sizes_up_to(rows, halfway)[0 if given else -1 :]
        self.buckets = [next(k for k, size in enumerate(self.sizes) if x <= size) if x else len(self.sizes) for x in self.lengths]

    def check(self, items):
        assert items.sizes == self.sizes
        assert items.lengths.tolist() == self.lengths
        late = [
            4 * x > 3 * self.sizes[min(bucket, len(self.sizes) - 1)] for x, bucket in zip(self.lengths, self.buckets, strict=True)
        ]
        assert items.order.tolist() == sorted(range(len(self.lengths)), key=lambda item: (self.buckets[item], late[item]))
        assert items.starts.tolist() == [sum(x < bucket for x in self.buckets) for bucket in range(len(self.sizes) + 1)]


# Items and rows of both sides, and whether lengths are given. From 129 items on a thread of the CUDA kernel has several, and from
# 257 on a program of Triton's takes several steps.
SHAPES = {
    "ragged": (300, 97, 11, 33, True),
    "captions": (4, 40, 270, 130, True),
    "full": (3, 36, 5, 20, False),
    "one_side": (5, 20, 3, 0, True),
    "no_rows": (3, 0, 2, 0, False),
    "no_images": (0, 5, 3, 2, True),
}


def sides(shape):
    images, M, captions, N, given = SHAPES[shape]
    return Side(images, M, given, True), Side(captions, N, given, False)


def wanted(regions, words, pairs, scores, dtype=torch.float32):
    return plan.Wanted(regions.features.to(dtype), regions.given, words.features.to(dtype), words.given, pairs, scores)


@planners
@pytest.mark.parametrize("shape", SHAPES)
def test_all_pairs(planner, shape):
    regions, words = sides(shape)
    # A piece of longer rows.
    rows = torch.full((len(regions.wrong), len(words.wrong) + 3), 7.0, device=DEVICE)
    scores = rows[:, : len(words.wrong)]
    made = kernels_of(planner).plan(wanted(regions, words, None, scores))
    regions.check(made.regions)
    words.check(made.words)
    assert made.keys is None
    assert scores.isnan().tolist() == [[one or other for other in words.wrong] for one in regions.wrong]
    assert not scores.nan_to_num().any()
    assert (rows[:, len(words.wrong) :] == 7).all()


@planners
def test_sides_alone(planner):
    """Nobody wants scores."""
    regions, words = sides("ragged")
    made = kernels_of(planner).plan(wanted(regions, words, None, torch.empty(0, device=DEVICE)))
    regions.check(made.regions)
    words.check(made.words)


@planners
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", ["ragged", "captions", "full", "no_images"])
def test_list(planner, shape, dtype):
    regions, words = sides(shape)
    images, captions = len(regions.wrong), len(words.wrong)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randint(-1, count + 1, (1100,), generator=generator) for count in (images, captions)], dim=1)
    pairs[0] = 2**40
    scores = torch.full((len(pairs),), 7.0, device=DEVICE)
    made = kernels_of(planner).plan(wanted(regions, words, pairs.to(DEVICE), scores, dtype))
    regions.check(made.regions)
    words.check(made.words)
    # Triton has kernels of their own for pairs of up to 64 regions and 32 words in half precision.
    small = (64, 32) if planner == "triton" and dtype == torch.float16 else (0, 0)
    few, small_words = (sum(x <= most for x in side.sizes) for side, most in zip((regions, words), small, strict=True))
    for (image, caption), key, score in zip(pairs.tolist(), made.keys.tolist(), scores.tolist(), strict=True):
        exists = 0 <= image < images and 0 <= caption < captions
        assert str(score) == ("nan" if not exists or regions.wrong[image] or words.wrong[caption] else "0.0")
        first, second, buckets = few + 1, 0, len(words.sizes)
        if exists and regions.lengths[image] and words.lengths[caption]:
            first, second = regions.buckets[image], words.buckets[caption]
            first = first if first < few and second < small_words else few
        assert key == (first * buckets + second) * images + (image if exists else 0)
    listed = plan.sort_list(made)
    assert listed.keys.tolist() == sorted(made.keys.tolist())
    assert listed.order.tolist() == sorted(range(len(pairs)), key=made.keys.tolist().__getitem__)


@planners
def test_an_empty_list(planner):
    regions, words = sides("full")
    pairs, scores = torch.empty(0, 2, dtype=torch.int64, device=DEVICE), torch.empty(0, device=DEVICE)
    made = kernels_of(planner).plan(wanted(regions, words, pairs, scores))
    assert [len(x) for x in plan.sort_list(made)] == [0, 0]
    regions.check(made.regions)


def test_ranks_of_a_list():
    """Triton's tiles are pieces of runs of one class and image."""
    of_triton = pytest.importorskip("caan_kernels.context_attention.triton.plan")
    regions, words = (plan.Items(None, plan.sizes_up_to(*x), None, None) for x in ((40, True), (20, False)))
    classes = of_triton.classes_of(regions, words, (40, 20), True)
    assert [x.number for x in classes] == [0, 2, 4, 1, 3, 5]
    keys = torch.tensor([0, 0, 0, 1, 1, 3, 8, 11, 11, 24, 24])
    ranks, starts = of_triton.rank(plan.Listed(keys, None), 4, classes)
    assert ranks.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 1, 0, 1]
    assert starts.tolist() == [0, 6, 6, 9, 9, 9, 9]


def check_schedule(schedule, expected, images, captions):
    """`expected` holds (image, caption, place in the call) of the pairs with a gradient, in any order."""
    count = int(schedule.count)
    assert schedule.count.shape == (1,)
    found = [
        (key // captions, key % captions, place) for key, place in zip(schedule.keys.tolist(), schedule.order.tolist(), strict=True)
    ]
    assert found[:count] == sorted(expected)
    assert all(image >= images for image, _, _ in found[count:])
    by_image, by_caption = schedule.image_starts.tolist(), schedule.caption_starts.tolist()
    assert (by_image[-1], by_caption[-1]) == (count, count)
    for image in range(images):
        assert found[by_image[image] : by_image[image + 1]] == sorted(x for x in expected if x[0] == image)
    for caption in range(captions):
        places = schedule.by_caption[by_caption[caption] : by_caption[caption + 1]].tolist()
        assert [found[place] for place in places] == sorted(x for x in expected if x[1] == caption)


def schedule_of(planner, grad, pairs, regions, words):
    planned = plan if planner == "torch" else kernels_of(planner)
    lengths = (torch.tensor(side.lengths, dtype=torch.int64, device=DEVICE) for side in (regions, words))
    return planned.plan_schedule(grad, pairs, *lengths)


def gradients(*shape, share):
    generator = torch.Generator().manual_seed(1)
    wanted = torch.rand(shape, generator=generator) < share
    return torch.where(wanted, torch.randn(shape, generator=generator), 0).to(DEVICE)


@pytest.mark.parametrize("planner", ["torch", *PLANNERS])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", ["ragged", "captions", "full"])
def test_schedule_of_all_pairs(planner, shape, share):
    regions, words = sides(shape)
    images, captions = len(regions.lengths), len(words.lengths)
    grad = gradients(images, captions, share=share)
    if share:
        grad[-1, -1] = torch.nan
    places = torch.arange(images * captions).view(images, captions).tolist()
    real = [
        [bool(x and m and n) for x, n in zip(row, words.lengths, strict=True)]
        for row, m in zip(grad.tolist(), regions.lengths, strict=True)
    ]
    expected = [(i, t, places[i][t]) for i in range(images) for t in range(captions) if real[i][t]]
    check_schedule(schedule_of(planner, grad, None, regions, words), expected, images, captions)


@pytest.mark.parametrize("planner", ["torch", *PLANNERS])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_schedule_of_a_list(planner, share):
    regions, words = sides("full")
    pairs = torch.randint(-1, 6, (100, 2), generator=torch.Generator().manual_seed(1))
    grad = gradients(100, share=share)
    expected = [
        (i, t, place)
        for place, ((i, t), x) in enumerate(zip(pairs.tolist(), grad.tolist(), strict=True))
        if x and 0 <= i < 3 and 0 <= t < 5
    ]
    check_schedule(schedule_of(planner, grad, pairs.to(DEVICE), regions, words), expected, 3, 5)


def test_which_pairs_exist():
    pairs = torch.tensor([[0, 0], [3, 2], [4, 0], [0, 3], [-1, 1], [1, -1], [2**40, 0]], device=DEVICE)
    assert plan.exist(pairs, 4, 3).tolist() == [True, True, *[False] * 5]
