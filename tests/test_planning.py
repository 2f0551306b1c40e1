"""Host-side planning: every pair once, blocks within their limits, gradients in one order."""

import random
from collections import Counter

import pytest

from caan_kernels import _host

SIZES = {"width": 8, "hidden": 16}


def lengths(count, longest, generator):
    return [generator.randint(0, longest) for _ in range(count)]


def planned(regions, words, pairs, block_regions, block_words, word_multiple=1, images_together=1, threads=1):
    return _host.plan_pairs(
        regions,
        words,
        pairs,
        **SIZES,
        block_regions=block_regions,
        block_words=block_words,
        word_multiple=word_multiple,
        images_together=images_together,
        threads=threads,
    )


def distinct(tile, field):
    return {pair[field] for unit in tile for pair in unit}


@pytest.mark.parametrize("threads, images_together", [(1, 1), (7, 4)])
@pytest.mark.parametrize("limits", [(1, 1), (9, 20), (10**6, 10**6)])
@pytest.mark.parametrize("listed", [False, True], ids=["all_pairs", "pair_list"])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_with_content_is_scored_once(seed, listed, limits, threads, images_together):
    generator = random.Random(seed)
    regions, words = lengths(13, 5, generator), lengths(29, 9, generator)
    pairs = None
    if listed:
        pairs = [(generator.randrange(13), generator.randrange(29)) for _ in range(200)]
    wanted = enumerate(pairs) if listed else ((i * 29 + t, (i, t)) for i in range(13) for t in range(29))
    expected = Counter((i, t, out) for out, (i, t) in wanted if regions[i] and words[t])

    tiles = planned(regions, words, pairs, *limits, images_together=images_together, threads=threads)
    assert Counter(pair for tile in tiles for unit in tile for pair in unit) == expected
    for tile in tiles:
        images, captions = distinct(tile, 0), distinct(tile, 1)
        assert len(images) == 1 or sum(regions[i] for i in images) <= limits[0]
        assert len(captions) == 1 or sum(words[t] for t in captions) <= limits[1]
        assert all(len(distinct([unit], 0)) <= (1 if listed else images_together) for unit in tile)


def test_a_caption_of_a_pair_list_counts_as_whole_vectors():
    pairs = [(0, t) for t in range(12)]
    tiles = planned([3], [2, 5] * 6, pairs, 10**6, 24, word_multiple=4)
    assert [len(distinct(tile, 1)) for tile in tiles] == [4, 4, 4]


def test_a_pair_list_projects_a_caption_once_for_every_block_of_images():
    pairs = [(i, t) for t in range(6) for i in range(4)]
    tiles = planned([3] * 4, [2] * 6, pairs, 6, 4)
    visits = Counter((min(distinct(tile, 0)) // 2, t) for tile in tiles for t in distinct(tile, 1))
    assert set(visits.values()) == {1}


def test_few_images_are_split_for_many_threads():
    (tile,) = planned([36], [12] * 80, None, 10**6, 1024, threads=8)
    assert [len(unit) for unit in tile] == [16] * 5
    (tile,) = planned([36] * 6, [12] * 80, None, 10**6, 1024, images_together=4, threads=8)
    assert [len(unit) for unit in tile] == [4 * 16] * 5 + [2 * 16] * 5


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
