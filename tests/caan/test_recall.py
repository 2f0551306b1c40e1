"""Ranks against a plain count, tile by tile, with ties."""

import math
import statistics

import pytest
import torch
from ranks import count_ranks, positive_pairs

from caan.published import PUBLISHED, published_rows
from caan.recall import RankCounter, Ranks, chance, chance_limit, folds, recall


def brute_force(scores, image_of_caption, fold=None):
    """Ranks of both directions, one comparison at a time."""
    fold = [0] * len(scores) if fold is None else fold
    image_of_caption = image_of_caption.tolist()
    by_image, by_caption = {}, {}
    for image, row in enumerate(scores.tolist()):
        own = [row[caption] for caption, owner in enumerate(image_of_caption) if owner == image]
        if own:
            foreign = [s for s, owner in zip(row, image_of_caption, strict=True) if owner != image and fold[owner] == fold[image]]
            by_image[image] = sum(s >= max(own) for s in foreign)
    for caption, owner in enumerate(image_of_caption):
        column = [(image, s) for image, s in enumerate(scores[:, caption].tolist()) if fold[image] == fold[owner]]
        by_caption[caption] = sum(s >= scores[owner, caption].item() for image, s in column if image != owner)
    return by_image, by_caption


def as_dict(ranks):
    return dict(zip(ranks.queries.tolist(), ranks.ranks.tolist(), strict=True))


def problem(seed, images=12, max_captions=4, levels=6):
    """Scores on a few levels, so that many tie, and captions in no order, 0 to max_captions an image."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, max_captions + 1, (images,), generator=generator)
    counts[0] = 1
    image_of_caption = torch.repeat_interleave(torch.arange(images), counts)
    image_of_caption = image_of_caption[torch.randperm(len(image_of_caption), generator=generator)]
    scores = torch.randint(0, levels, (images, len(image_of_caption)), generator=generator) / levels
    return scores, image_of_caption


def counted(scores, image_of_caption, fold=None, seed=0):
    """The counter after shuffled tiles of shuffled rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    captions = torch.randperm(scores.shape[1], generator=generator)
    images = torch.randperm(scores.shape[0], generator=generator)
    positives = scores[image_of_caption, torch.arange(scores.shape[1])]
    counter = RankCounter(positives, image_of_caption, scores.shape[0], fold)
    for i in images.split(5):
        for t in captions.split(7):
            counter.add(scores[i][:, t], i, t)
    return counter


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("levels", [2, 6, 10000])
def test_ranks_are_those_of_a_plain_count(seed, levels):
    scores, image_of_caption = problem(seed, levels=levels)
    by_image, by_caption = brute_force(scores, image_of_caption)
    for counter in (counted(scores, image_of_caption, seed=seed), count_ranks(scores, image_of_caption, rows=5)):
        image_ranks, caption_ranks = counter.ranks()
        assert as_dict(image_ranks) == by_image and as_dict(caption_ranks) == by_caption


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("whole_matrix", [True, False])
def test_folds(seed, whole_matrix):
    """Pairs across folds change nothing, and need not be there."""
    scores, image_of_caption = problem(seed)
    fold = folds(12, 4)
    by_image, by_caption = brute_force(scores, image_of_caption, fold.tolist())
    if whole_matrix:
        counter = counted(scores, image_of_caption, fold, seed=seed)
    else:
        counter = RankCounter(scores[image_of_caption, torch.arange(scores.shape[1])], image_of_caption, 12, fold)
        for f in range(3):
            images, captions = slice(4 * f, 4 * f + 4), (fold[image_of_caption] == f).nonzero()[:, 0]
            counter.add(scores[images][:, captions], images, captions)
    image_ranks, caption_ranks = counter.ranks()
    assert as_dict(image_ranks) == by_image and as_dict(caption_ranks) == by_caption


def test_figures_by_hand():
    """Three images with two captions each; images 1 and 2 tie with a foreign caption, captions 3 and 5 with a foreign image."""
    image_of_caption = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.3, 0.2, 0.0, 0.5],
            [0.2, 0.4, 0.1, 0.0, 0.0, 0.1],
            [0.1, 0.3, 0.5, 0.0, 0.2, 0.5],
        ]
    )
    counter = count_ranks(scores, image_of_caption)
    image_ranks, caption_ranks = counter.ranks()
    assert image_ranks.better.tolist() == [0, 2, 0] and image_ranks.tied.tolist() == [0, 1, 1]
    assert caption_ranks.better.tolist() == [0, 2, 2, 1, 0, 0] and caption_ranks.tied.tolist() == [0, 0, 0, 1, 0, 1]
    figures = counter.figures()
    assert figures.image_to_text.r1 == pytest.approx(100 / 3) and figures.image_to_text.r5 == 100
    assert (figures.image_to_text.median_rank, figures.image_to_text.mean_rank) == (2, pytest.approx(1 + 4 / 3))
    assert (figures.text_to_image.r1, figures.text_to_image.r5) == (pytest.approx(200 / 6), 100)
    assert (figures.text_to_image.median_rank, figures.text_to_image.mean_rank) == (2, pytest.approx(1 + 7 / 6))
    assert (figures.image_to_text.tied_queries, figures.text_to_image.tied_queries) == (2, 2)
    assert figures.rsum == pytest.approx(100 / 3 + 200 / 6 + 400)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_model_that_knows_nothing_gets_nothing(reverse):
    """Sorting would give the answers that stand first, or last, a perfect rank."""
    image_of_caption = torch.arange(100) // 5
    if reverse:
        image_of_caption = image_of_caption.flip(0)
    figures = count_ranks(torch.full((20, 100), 0.5), image_of_caption).figures()
    assert figures.rsum == 0 and figures.image_to_text.median_rank == 96 and figures.text_to_image.median_rank == 20
    assert (figures.image_to_text.tied_queries, figures.text_to_image.tied_queries) == (20, 100)


def test_own_captions_do_not_compete():
    figures = count_ranks(torch.eye(4).repeat_interleave(5, dim=1), torch.arange(20) // 5).figures()
    assert figures.rsum == 600 and figures.image_to_text.mean_rank == figures.text_to_image.median_rank == 1


@pytest.mark.parametrize("ranks", [[0], [3, 1], [0, 1, 2, 9, 10], [5, 5, 6, 7], [4, 9, 0, 100]])
def test_figures_follow_the_field(ranks):
    values = torch.tensor(ranks)
    figures = recall(Ranks(torch.arange(len(ranks)), values, torch.zeros_like(values)))
    assert figures.median_rank == math.floor(statistics.median(ranks)) + 1
    assert figures.mean_rank == pytest.approx(statistics.mean(ranks) + 1)
    for name, k in (("r1", 1), ("r5", 5), ("r10", 10)):
        assert getattr(figures, name) == pytest.approx(100 * sum(rank < k for rank in ranks) / len(ranks))


def test_rsum_of_folds_is_the_mean_of_their_rsums():
    scores, image_of_caption = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)), torch.arange(100) // 5
    scores[image_of_caption, torch.arange(100)] += 2
    together = count_ranks(scores, image_of_caption, folds(20, 4)).figures()
    apart = []
    for f in range(5):
        images, captions = slice(4 * f, 4 * f + 4), slice(20 * f, 20 * f + 20)
        apart.append(count_ranks(scores[images, captions], image_of_caption[captions] - 4 * f).figures())
    assert together.rsum == pytest.approx(statistics.mean(figures.rsum for figures in apart))
    for direction in ("image_to_text", "text_to_image"):
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank", "tied_queries"):
            values = [getattr(getattr(figures, direction), name) for figures in apart]
            assert getattr(getattr(together, direction), name) == pytest.approx(statistics.mean(values))


def test_coco_folds():
    assert torch.bincount(folds(5000, 1000)).tolist() == [1000] * 5
    with pytest.raises(ValueError, match="size: expected a divisor of 5000 images, got 999"):
        folds(5000, 999)


def test_positive_pairs():
    assert positive_pairs(torch.tensor([0, 0, 3])).tolist() == [[0, 0], [0, 1], [3, 2]]


def test_nan_is_no_rank():
    scores, image_of_caption = torch.rand(3, 6), torch.arange(6) // 2
    scores[1, 4] = float("nan")
    with pytest.raises(ValueError, match=r"scores: expected numbers, got NaN at \(1, 4\)"):
        count_ranks(scores, image_of_caption)
    scores[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"positives: expected numbers, got NaN at \(2,\)"):
        count_ranks(scores, image_of_caption)


def test_tiles_that_are_missing_or_come_twice():
    scores, image_of_caption = torch.rand(4, 8), torch.arange(8) // 2
    counter = RankCounter(scores[image_of_caption, torch.arange(8)], image_of_caption, 4)
    counter.add(scores[:2], slice(0, 2), slice(None))
    with pytest.raises(ValueError, match="expected 6 wrong answers from the tiles, each once, found 0 for image 2"):
        counter.ranks()
    counter.add(scores[2:, :4], slice(2, 4), slice(0, 4))
    counter.add(scores[2:, :4], slice(2, 4), slice(0, 4))
    with pytest.raises(ValueError, match="found 8 for image 2"):
        counter.figures()


def test_scores_in_another_order_than_their_indices():
    scores, image_of_caption = torch.arange(32.0).view(4, 8), torch.arange(8) // 2
    counter = RankCounter(scores[image_of_caption, torch.arange(8)], image_of_caption, 4)
    with pytest.raises(ValueError, match=r"scores: expected 0\.0 for image 0 with caption 0, its score in positives, got 24\.0"):
        counter.add(scores.flip(0), slice(None), slice(None))


def test_wrong_arguments():
    scores, own = torch.rand(3, 6), torch.arange(6) // 2
    positives = scores[own, torch.arange(6)]
    for arguments, message in (
        ((positives, own, 2), "image_of_caption: expected images from 0 to 1, got 0 to 2"),
        ((positives, own - 1, 3), "image_of_caption: expected images from 0 to 2, got -1 to 1"),
        ((positives[:5], own, 3), r"positives: expected shape \(6,\)"),
        ((positives[:0], own[:0], 3), "image_of_caption: expected shape"),
        ((positives, own, 3, torch.zeros(2)), r"fold_of_image: expected shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            RankCounter(*arguments)
    counter = RankCounter(positives, own, 3)
    with pytest.raises(ValueError, match=r"scores: expected shape \(2, 6\) for this tile, got \(3, 6\)"):
        counter.add(scores, slice(0, 2), slice(None))
    with pytest.raises(TypeError, match=r"scores: expected torch\.float32 on cpu, as the positives, got torch\.float64"):
        counter.add(scores.double(), slice(None), slice(None))
    with pytest.raises(ValueError, match="ranks: expected at least one query"):
        recall(Ranks(*torch.zeros(3, 0, dtype=torch.int64)))


def test_published_rows():
    rsums = {(row.method, row.protocol): row.rsum for row in PUBLISHED}
    assert rsums["CAAN", "f30k"] == 478.6 and rsums["CAAN", "coco1k"] == 515.6 and rsums["CAAN", "coco5k"] == 421.1
    assert len(rsums) == len(PUBLISHED)
    for row in PUBLISHED:
        assert list(row.image_to_text) == sorted(row.image_to_text) and list(row.text_to_image) == sorted(row.text_to_image)
    assert [row.method for row in published_rows("f8k")] == ["SCAN"]
    with pytest.raises(ValueError, match="protocol: expected one of f30k, coco1k, coco5k, f8k, got 'coco'"):
        published_rows("coco")


def test_chance_is_what_random_scores_have_on_average():
    counts = torch.tensor([5, 0, 1, 3, 5, 2, 5, 4, 1, 1, 2, 3])
    image_of_caption = torch.repeat_interleave(torch.arange(12), counts)
    torch.manual_seed(0)
    found = torch.zeros(6, dtype=torch.float64)
    rounds = 4000
    for _ in range(rounds):
        figures = count_ranks(torch.rand(12, len(image_of_caption)), image_of_caption).figures()
        found += torch.tensor(
            [getattr(side, r) for side in (figures.image_to_text, figures.text_to_image) for r in ("r1", "r5", "r10")]
        )
    expected = torch.tensor(sum(chance(image_of_caption, 12), ()), dtype=torch.float64)
    torch.testing.assert_close(found / rounds, expected, atol=0.7, rtol=0)


def test_chance_in_a_set_smaller_than_ten():
    assert chance(torch.tensor([0, 1, 2]), 3) == (pytest.approx((100 / 3, 100, 100)), pytest.approx((100 / 3, 100, 100)))


def test_few_random_scores_exceed_the_limit_of_chance():
    image_of_caption = torch.arange(200) // 5
    torch.manual_seed(0)
    limit = chance_limit(image_of_caption, 40, 40)
    rsums = torch.tensor([count_ranks(torch.rand(40, 200), image_of_caption).figures().rsum for _ in range(200)])
    # Captions of an image that are quite the same, and a score that does not depend on the direction, deviate most.
    alike = torch.rand(200, 40, 40).repeat_interleave(5, dim=2) + 1e-6 * torch.rand(200, 40, 200)
    rsums_alike = torch.tensor([count_ranks(scores, image_of_caption).figures().rsum for scores in alike])
    assert sum(map(sum, chance(image_of_caption, 40))) < limit < 200
    assert (rsums > limit).float().mean() < 0.01 and (rsums_alike > limit).float().mean() < 0.03
