"""Which pairs the launches on a GPU take: plain PyTorch, tested wherever that runs."""

import itertools

import cases
import pytest
import torch

from caan_kernels.context_attention.triton import plan as of_triton
from caan_kernels.core.gpu import plan

pytestmark = pytest.mark.parametrize("device", dict.fromkeys(["cpu", *cases.KERNELS.values()]))


def features(count, rows, device):
    return torch.empty(count, rows, 1, device=device)


def lengths_of(*values, device):
    return torch.tensor(values, device=device)


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 31, 32, 33, 36, 48, 49, 64, 65, 96, 97, 128, 129, 200, 256])
def test_sizes(device, rows, halfway):
    sizes = plan.sizes_up_to(rows, halfway)
    assert sizes == [x for x in ([16, 32, 48, 64, 96, 128, 192, 256] if halfway else [16, 32, 64, 128, 256]) if x <= sizes[-1]]
    assert sizes[-1] >= rows
    assert len(sizes) == 1 or sizes[-2] < rows
    for size in sizes:
        power, tail = plan.parts_of(size)
        assert power + tail == size
        assert power == plan.size_of(power)
        assert tail == 0 or tail == plan.size_of(tail) == power // 2


@pytest.mark.parametrize("halfway", [False, True])
def test_items_lie_in_the_smallest_block_that_holds_them(device, halfway):
    rows = 97
    lengths = torch.cat([torch.arange(rows, -1, -1), torch.arange(rows + 1)]).to(device)
    items = plan.plan_items(features(len(lengths), rows, device), lengths, halfway)
    assert torch.equal(items.lengths, lengths)
    assert items.sizes == plan.sizes_up_to(rows, halfway)
    for length, bucket in zip(lengths.tolist(), items.buckets.tolist(), strict=True):
        fitting = [k for k, size in enumerate(items.sizes) if length <= size]
        assert bucket == (fitting[0] if length else len(items.sizes))
    starts = items.starts.tolist()
    for bucket, (start, stop) in enumerate(itertools.pairwise(starts)):
        own = [k for k, x in enumerate(items.buckets.tolist()) if x == bucket]
        assert items.order[start:stop].tolist() == sorted(own, key=lengths.tolist().__getitem__)
    assert items.order[starts[-1] :].tolist() == [k for k, length in enumerate(lengths.tolist()) if length == 0]


def test_a_block_does_not_depend_on_the_batch(device):
    """An item's own length decides, not how long the tensor or its neighbours are."""
    for rows in (20, 33, 200):
        items = plan.plan_items(features(3, rows, device), lengths_of(3, 20, rows, device=device), True)
        assert [items.sizes[bucket] for bucket in items.buckets.tolist()[:2]] == [16, 32]


def test_lengths_out_of_range_hold_nothing(device):
    items = plan.plan_items(features(5, 7, device), lengths_of(-1, 8, 7, 2**40, 3, device=device))
    assert items.lengths.tolist() == [0, 0, 7, 0, 3]
    assert items.buckets.tolist() == [1, 1, 0, 1, 0]
    assert items.order.tolist() == [4, 2, 0, 1, 3]
    assert items.starts.tolist() == [0, 2]


@pytest.mark.parametrize(("count", "rows", "starts"), [(3, 20, [0, 3]), (3, 0, [0, 0]), (0, 20, [0, 0])])
def test_items_without_lengths_are_full(device, count, rows, starts):
    items = plan.plan_items(features(count, rows, device), None)
    assert items.lengths.tolist() == [rows] * count
    assert items.sizes == [plan.size_of(rows)]
    assert items.order.tolist() == list(range(count))
    assert items.starts.tolist() == starts


def sides(device):
    """Four images and four captions; the last of each is empty."""
    regions = plan.plan_items(features(4, 40, device), lengths_of(40, 3, 17, 0, device=device), True)
    words = plan.plan_items(features(4, 20, device), lengths_of(2, 20, 16, 0, device=device))
    return regions, words


def test_a_list_is_sorted_into_runs_of_one_image_and_one_block(device):
    regions, words = sides(device)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(-1, 5, (300, 2), generator=generator).to(device)
    order, keys = (x.tolist() for x in plan.plan_list(pairs, regions, words))
    assert sorted(order) == list(range(300))
    nothing = len(regions.sizes) * len(words.sizes)
    seen = {}
    for place, key in zip(order, keys, strict=True):
        image, caption = pairs[place].tolist()
        bucket = nothing
        if 0 <= image < 3 and 0 <= caption < 3:
            bucket = int(regions.buckets[image]) * len(words.sizes) + int(words.buckets[caption])
            assert key % 4 == image
        assert key // 4 == bucket
        assert not seen.setdefault(key, []) or seen[key][-1] < place, "the order of the list is not kept"
        seen[key].append(place)
    assert keys == sorted(keys)


def test_ranks_of_a_list(device):
    """Triton's tiles are pieces of runs of one class and image, which its own plan of the same list counts."""
    regions, words = sides(device)
    pairs = torch.randint(-1, 5, (300, 2), generator=torch.Generator().manual_seed(0)).to(device)
    classes = of_triton.classes_of(regions, words, (40, 20), True)
    order, ranks, starts = (x.tolist() for x in of_triton.plan_list(pairs, regions, words, classes))
    assert sorted(order) == list(range(300)) and starts == sorted(starts)
    seen = {}
    for position in range(starts[-1]):
        place, number = order[position], sum(position >= x for x in starts[1:-1])
        run = seen.setdefault((number, int(pairs[place][0])), [])
        assert ranks[position] == len(run)
        assert not run or run[-1] < place, "the order of the list is not kept"
        run.append(place)


def test_an_empty_list(device):
    regions, words = sides(device)
    listed = plan.plan_list(torch.empty(0, 2, dtype=torch.int64, device=device), regions, words)
    assert [len(x) for x in listed] == [0, 0]


def check_walk(walk, expected, images, captions):
    """`expected` holds (image, caption, place in the call) of the pairs with a gradient, in any order."""
    count = int(walk.count)
    assert walk.count.shape == (1,)
    found = [(key // captions, key % captions, place) for key, place in zip(walk.keys.tolist(), walk.order.tolist(), strict=True)]
    assert found[:count] == sorted(expected)
    assert all(image >= images for image, _, _ in found[count:])
    by_image, by_caption = walk.image_starts.tolist(), walk.caption_starts.tolist()
    assert (by_image[-1], by_caption[-1]) == (count, count)
    for image in range(images):
        assert found[by_image[image] : by_image[image + 1]] == sorted(x for x in expected if x[0] == image)
    for caption in range(captions):
        places = walk.by_caption[by_caption[caption] : by_caption[caption + 1]].tolist()
        assert [found[place] for place in places] == sorted(x for x in expected if x[1] == caption)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_walk_over_all_pairs(device, share):
    regions, words = sides(device)
    wanted = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).to(device) < share
    expected = [(i, t, 4 * i + t) for i in range(3) for t in range(3) if wanted[i, t]]
    check_walk(plan.plan_walk(wanted, None, regions, words), expected, 4, 4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_walk_over_a_list(device, share):
    regions, words = sides(device)
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randint(-1, 5, (100, 2), generator=generator).to(device)
    wanted = torch.rand(100, generator=generator).to(device) < share
    expected = [
        (i, t, place)
        for place, ((i, t), some) in enumerate(zip(pairs.tolist(), wanted.tolist(), strict=True))
        if some and 0 <= i < 3 and 0 <= t < 3
    ]
    check_walk(plan.plan_walk(wanted, pairs, regions, words), expected, 4, 4)


def test_which_pairs_exist(device):
    pairs = torch.tensor([[0, 0], [3, 2], [4, 0], [0, 3], [-1, 1], [1, -1], [2**40, 0]], device=device)
    assert plan.exist(pairs, 4, 3).tolist() == [True, True, *[False] * 5]
