"""Host-side planning: every pair once, blocks within their limits, gradients in one order."""

import random
from collections import Counter

import pytest

from caan_kernels import _host

SIZES = {"width": 8, "hidden": 16}


def lengths(count, longest, generator):
    return [generator.randint(0, longest) for _ in range(count)]


def scored(tiles, captions, pairs):
    """Counts of (image, caption, position), as planned."""
    return Counter((image, t, out) for tile in tiles for image, listed in tile for t, out in listed)


@pytest.mark.parametrize("threads", [1, 7])
@pytest.mark.parametrize("limits", [(1, 1), (9, 20), (10**6, 10**6)])
@pytest.mark.parametrize("listed", [False, True], ids=["all_pairs", "pair_list"])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_with_content_is_scored_once(seed, listed, limits, threads):
    generator = random.Random(seed)
    regions, words = lengths(13, 5, generator), lengths(29, 9, generator)
    pairs = None
    if listed:
        pairs = [(generator.randrange(13), generator.randrange(29)) for _ in range(200)]
    wanted = enumerate(pairs) if listed else ((i * 29 + t, (i, t)) for i in range(13) for t in range(29))
    expected = Counter((i, t, out) for out, (i, t) in wanted if regions[i] and words[t])

    tiles = _host.plan_pairs(regions, words, pairs, **SIZES, block_regions=limits[0], block_words=limits[1], threads=threads)
    assert scored(tiles, 29, pairs) == expected
    for tile in tiles:
        images = {image for image, _ in tile}
        captions = {t for _, unit in tile for t, _ in unit}
        assert len(images) == 1 or sum(regions[i] for i in images) <= limits[0]
        assert len(captions) == 1 or sum(words[t] for t in captions) <= limits[1]


def test_a_pair_list_projects_a_caption_once_for_every_block_of_images():
    pairs = [(i, t) for t in range(6) for i in range(4)]
    tiles = _host.plan_pairs([3] * 4, [2] * 6, pairs, **SIZES, block_regions=6, block_words=4, threads=1)
    visits = Counter((min(i for i, _ in tile) // 2, t) for tile in tiles for t in {t for _, u in tile for t, _ in u})
    assert set(visits.values()) == {1}


def test_few_images_are_split_for_many_threads():
    (tile,) = _host.plan_pairs([36], [12] * 80, None, **SIZES, block_regions=10**6, block_words=1024, threads=8)
    assert len(tile) == 5
    assert all(len(unit) == 16 for _, unit in tile)


def test_no_level_shares_an_item():
    generator = random.Random(0)
    gradients = [(generator.randrange(7), generator.randrange(5), generator.gauss(0, 1)) for _ in range(120)]
    levels = _host.gradient_levels(gradients, 7, 5)
    for level in levels:
        assert len({image for image, _, _ in level}) == len({caption for _, caption, _ in level}) == len(level)
    assert Counter(entry for level in levels for entry in level) == Counter(gradients)
    busiest = max(Counter((side, entry[side]) for entry in gradients for side in (0, 1)).values())
    assert busiest <= len(levels) < 2 * busiest


def test_the_order_of_gradients_does_not_depend_on_that_of_the_pairs():
    gradients = [(i % 3, i % 4, float(i)) for i in range(60)] + [(0, 0, float("-inf"))]
    shuffled = random.Random(1).sample(gradients, len(gradients))
    assert _host.gradient_levels(gradients, 3, 4) == _host.gradient_levels(shuffled, 3, 4)


def test_a_dense_batch_fills_its_levels():
    gradients = [(i, t, 1.0) for i in range(128) for t in range(128)]
    levels = _host.gradient_levels(gradients, 128, 128)
    assert len(levels) == 128
    assert {len(level) for level in levels} == {128}
