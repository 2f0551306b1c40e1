"""The model: shapes, padding, galleries, and that it learns."""

import numpy as np
import pytest
import torch
from ablation import TABLE_4
from models import new_model
from ranks import positive_pairs
from torch.nn.functional import normalize

import caan_kernels as ck
from caan import ModelConfig, Vocabulary, triplet_loss
from caan.data import Captions, Images, LengthBatches, Pairs, ShuffledBatches, load_scan_split, make_loader
from caan.model import Encoded, EncodedAttention, keep_some
from caan.recall import RankCounter


@pytest.fixture
def split(scan_folder):
    np.save(scan_folder / "dev_num_boxes.npy", np.array([4, 2, 3, 1, 4, 0, 2]))
    return load_scan_split(scan_folder, "dev")


@pytest.fixture
def vocabulary(split):
    return Vocabulary.from_captions(split.captions, threshold=1)


def one_batch(dataset, size=100):
    return next(iter(make_loader(dataset, LengthBatches(np.zeros(len(dataset)), size))))


def test_parameters(vocabulary):
    model = new_model(vocabulary, affinity_scale=3.0)
    attention = model.attention
    assert [tuple(weight.shape) for weight in attention.weights[:7]] == [(16, 16), *[(16, 12)] * 4, (12,), (12,)]
    assert torch.equal(attention.affinity.detach(), 3 * torch.eye(16)) and attention.weights[7:] == (None, None)
    assert set(dict(attention.named_parameters())) == set(ck.ContextAttentionWeights._fields[:7])
    assert all(weight is getattr(attention, name) for name, weight in attention.weights._asdict().items())
    fresh = EncodedAttention(8)
    assert torch.equal(fresh.region_score, torch.zeros(8)) and torch.equal(fresh.word_score, torch.zeros(8))

    features = new_model(vocabulary, affinity_scale=3.0, intra="features").attention
    assert set(dict(features.named_parameters())) == set(ck.ContextAttentionWeights._fields)
    assert all(torch.equal(weight.detach(), torch.eye(16)) for weight in features.weights[7:])
    # What both have starts the same.
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(attention.weights[:7], features.weights[:7], strict=True))


def test_encodings_are_unit_vectors_of_their_own_item(split, vocabulary):
    model = new_model(vocabulary)
    batch = one_batch(Pairs(split, vocabulary))
    words = model.encode_captions(batch.captions)
    norms = words.features.norm(dim=-1)
    real = torch.arange(words.features.shape[1]) < batch.captions.word_lengths[:, None]
    torch.testing.assert_close(norms, real.to(norms.dtype))
    torch.testing.assert_close(model.encode_images(batch.images).features.norm(dim=-1)[0], torch.ones(4))

    captions = Captions(split, vocabulary)
    alone = captions.collate([captions[3]])
    assert alone.words.shape[1] < batch.captions.words.shape[1]
    features, length = model.encode_captions(alone).features[0], int(batch.captions.word_lengths[3])
    torch.testing.assert_close(features, words.features[3, :length])


def test_words_are_the_mean_of_both_directions_and_unit_length_is_an_option(split, vocabulary):
    plain, unit = new_model(vocabulary, unit_length=False), new_model(vocabulary)
    batch = one_batch(Pairs(split, vocabulary))
    words, gru = plain.encode_captions(batch.captions).features, plain.word_encoder.gru
    length = int(batch.captions.word_lengths[3])
    states, _ = gru(plain.word_encoder.embedding(batch.captions.words[3:4, :length]))
    torch.testing.assert_close(words[3, :length], states[0].reshape(length, 2, 16).mean(dim=1))
    assert not words[3, length:].any()
    torch.testing.assert_close(normalize(words, dim=-1), unit.encode_captions(batch.captions).features)
    regions = plain.encode_images(batch.images).features
    torch.testing.assert_close(regions, plain.region_encoder.projection(batch.images.regions))
    torch.testing.assert_close(normalize(regions, dim=-1), unit.encode_images(batch.images).features)
    assert not torch.allclose(plain(batch), unit(batch))


def test_half_precision_features_are_taken(scan_folder, vocabulary, features):
    np.save(scan_folder / "dev_ims.npy", features.astype(np.float16))
    batch = one_batch(Pairs(load_scan_split(scan_folder, "dev"), vocabulary))
    assert batch.images.regions.dtype == torch.float16
    assert new_model(vocabulary)(batch).dtype == torch.float32


@pytest.mark.parametrize("options", [*TABLE_4.values(), {"similarity": "cosine"}], ids=[*TABLE_4, "cosine"])
def test_scores_are_those_of_the_operator(split, vocabulary, options):
    model = new_model(vocabulary, **options)
    batch = one_batch(Pairs(split, vocabulary))
    regions, words = model.encode_images(batch.images), model.encode_captions(batch.captions)
    expected = ck.context_attention(
        regions.features, words.features, model.attention.weights, regions.lengths, words.lengths, **options
    )
    torch.testing.assert_close(model(batch), expected)
    reference = model.attention(regions, words, backend="reference")
    torch.testing.assert_close(model(batch), reference, atol=2e-6, rtol=0)

    pairs = torch.tensor([[0, 0], [3, 20], [34, 1]])
    torch.testing.assert_close(model.attention(regions, words, pairs), expected[pairs[:, 0], pairs[:, 1]])
    with torch.no_grad():
        maps = model.attention.maps(regions, words, pairs)
    torch.testing.assert_close(maps.scores, expected[pairs[:, 0], pairs[:, 1]].detach())


UNREAD = {
    "baseline": set(ck.ContextAttentionWeights._fields[:7]),
    "IA": {"region_intra", "word_intra"},
    "FA": {"affinity", "region_inter", "word_inter"},
    "SA": {"region_inter", "word_inter"},
    "IA+FA": set(),
    "CAAN": set(),
}


@pytest.mark.parametrize("row", TABLE_4)
def test_every_parameter_that_is_read_learns(split, vocabulary, row):
    model = new_model(vocabulary, **TABLE_4[row])
    batch = one_batch(Pairs(split, vocabulary))
    triplet_loss(model(batch), batch.images.images).backward()
    without = {name.removeprefix("attention.") for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == UNREAD[row]
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.any()), name


def test_the_baseline_pools_uniformly(split, vocabulary):
    model = new_model(vocabulary, **TABLE_4["baseline"])
    batch = one_batch(Pairs(split, vocabulary))
    regions, words = model.encode_images(batch.images), model.encode_captions(batch.captions)
    means = [side.features[3, : side.lengths[3]].mean(dim=0) for side in (regions, words)]
    torch.testing.assert_close(model(batch)[3, 3], means[0] @ means[1])


def test_gallery_in_tiles_is_the_whole_matrix(split, vocabulary):
    """Images once, captions by length, and ranks from tiles and single pairs."""
    model = new_model(vocabulary).eval()
    images, captions = Images(split), Captions(split, vocabulary)
    regions = model.prepare_images(one_batch(images))
    whole = torch.full((7, 35), float("nan"))
    positives = torch.full((35,), float("nan"))
    own = torch.from_numpy(split.image_of_caption)
    tiles = []
    for batch in make_loader(captions, LengthBatches(captions.lengths, 6)):
        words = model.prepare_captions(batch)
        with torch.no_grad():
            tiles.append((model.attention(regions, words), slice(None), batch.captions))
            positives[batch.captions] = model.attention(regions, words, positive_pairs(own[batch.captions]))
        whole[:, batch.captions] = tiles[-1][0]
    assert torch.equal(positives, whole[own, torch.arange(35)])
    assert not any(x.requires_grad for x in (regions.features, regions.products))

    batch = one_batch(Pairs(split, vocabulary))
    torch.testing.assert_close(whole[own], model(batch).detach(), atol=1e-6, rtol=0)
    counter = RankCounter(positives, own, 7)
    for tile in tiles:
        counter.add(*tile)
    assert 0 <= counter.figures().rsum <= 600


def test_a_dense_model_is_prepared_but_not_projected(split, vocabulary):
    model, other = (new_model(vocabulary, **TABLE_4[row]).eval() for row in ("FA", "SA"))
    assert model.dense and not other.dense
    for name, items in (("images", Images(split)), ("captions", Captions(split, vocabulary))):
        batch = one_batch(items)
        prepared, projected = (getattr(x, f"prepare_{name}")(batch) for x in (model, other))
        encoded = getattr(model, f"encode_{name}")(batch)
        assert isinstance(prepared, Encoded) and not prepared.features.requires_grad
        torch.testing.assert_close(prepared.features, encoded.features.detach())
        assert isinstance(projected, (ck.ProjectedRegions, ck.ProjectedWords))
        assert torch.equal(prepared.features, projected.features)


def test_empty_images_score_zero(split, vocabulary):
    scores = new_model(vocabulary)(one_batch(Pairs(split, vocabulary)))
    assert not scores[25:30].any() and scores[0].all()


def test_encoded_words_must_fit():
    attention = EncodedAttention(8)
    regions, words = Encoded(torch.randn(2, 3, 8), torch.tensor([3, 4])), Encoded(torch.randn(2, 5, 8), torch.tensor([5, 1]))
    with pytest.raises(ValueError, match="region_lengths"):
        attention(regions, words)


def test_it_learns_to_tell_pairs_apart(scan_folder, threads):
    """Seven images with a word of their own: soon captions find their image and images their captions (chance: 14%)."""
    threads(1)
    names = ["dog", "cat", "horse", "bird", "fish", "cow", "fox"]
    captions = [f"a {word} {name} is here" for name in names for word in ("small", "big", "red", "blue", "shy")]
    (scan_folder / "dev_caps.txt").write_text("\n".join(captions))
    split = load_scan_split(scan_folder, "dev")
    vocabulary = Vocabulary.from_captions(split.captions)
    pairs = Pairs(split, vocabulary)
    model = new_model(vocabulary)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    sampler = ShuffledBatches(len(pairs), 14)
    while sampler.epoch < 20:
        for batch in make_loader(pairs, sampler):
            form = "mean" if sampler.epoch < 4 else "hardest"
            loss = triplet_loss(model(batch), batch.images.images, form=form)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            sampler.advance()
    batch = one_batch(pairs)
    with torch.no_grad():
        scores = model(batch)[::5]
    own = torch.from_numpy(split.image_of_caption)
    counter = RankCounter(scores[own, torch.arange(35)], own, 7)
    counter.add(scores, slice(None), slice(None))
    figures = counter.figures()
    assert figures.image_to_text.r1 > 80 and figures.text_to_image.r1 > 80, figures


def test_standardized_features_score_as_those_standardized_before(split, vocabulary):
    model, plain = new_model(vocabulary, standardize=True), new_model(vocabulary)
    batch = one_batch(Pairs(split, vocabulary))
    mean, deviation = torch.arange(6.0), torch.tensor([1.0, 2, 0.5, 0, 10, 1])
    model.region_encoder.set_statistics(mean, deviation)
    assert {"region_encoder.mean", "region_encoder.deviation"} <= set(model.state_dict())
    prepared = (batch.images.regions - mean) / torch.tensor([1.0, 2, 0.5, 1, 10, 1])
    expected = plain(batch._replace(images=batch.images._replace(regions=prepared)))
    torch.testing.assert_close(model(batch), expected)


def test_dropping_is_for_training_only(split, vocabulary):
    model = new_model(vocabulary, dropout=0.5, region_drop=0.5, word_drop=0.5)
    plain = new_model(vocabulary)
    batch = one_batch(Pairs(split, vocabulary))
    assert not torch.equal(model(batch), model(batch))
    assert torch.equal(model.eval()(batch), plain(batch))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("marks", [0, 1])
def test_keep_some(seed, marks):
    torch.manual_seed(seed)
    lengths = torch.tensor([9, 2, 3, 5, 0 if marks == 0 else 2])
    items = torch.arange(1, 46).reshape(5, 9)
    padding = torch.arange(9) >= lengths[:, None]
    features = torch.stack((items, -items), dim=2).float().masked_fill(padding[..., None], float("nan"))
    ids = items.masked_fill(padding, 99)
    before = torch.get_rng_state()
    kept, kept_lengths = keep_some(ids, lengths, 0.5, marks)
    torch.set_rng_state(before)
    kept_features, same_lengths = keep_some(features, lengths, 0.5, marks)
    assert torch.equal(kept_features[..., 0], kept.float()) and torch.equal(kept_lengths, same_lengths)
    free = (lengths - 2 * marks).clamp(min=0)
    assert torch.equal(kept_lengths, lengths - free // 2) and kept.shape == (5, int(kept_lengths.max()))
    for row, count, before, length in zip(kept.tolist(), kept_lengths.tolist(), items.tolist(), lengths.tolist(), strict=True):
        chosen = row[:count]
        assert chosen == sorted(set(chosen)) and set(chosen) <= set(before[:length]) and not any(row[count:])
        assert marks == 0 or (chosen[0], chosen[-1]) == (before[0], before[length - 1])


def test_every_item_is_left_out_as_often():
    torch.manual_seed(0)
    items = torch.arange(1, 11).expand(4000, 10)
    kept, _ = keep_some(items, torch.full((4000,), 10), 0.3)
    share = torch.bincount(kept.flatten(), minlength=11)[1:] / 4000
    torch.testing.assert_close(share, torch.full((10,), 0.7), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_width": 0}, "region_width: expected at least 1, got 0"),
        ({"vocabulary_size": 2}, "vocabulary_size: expected at least 3, got 2"),
        ({"hidden_width": -1}, "hidden_width: expected at least 0, got -1"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
        ({"word_drop": -0.1}, "word_drop: expected at least 0 and less than 1, got -0.1"),
        ({"affinity_scale": float("inf")}, "affinity_scale: expected a finite number, got inf"),
        ({"similarity": "euclid"}, "similarity: expected one of dot, cosine, got 'euclid'"),
        ({"intra": "none"}, "intra: expected one of semantics, features, None, got 'none'"),
        ({"intra": False}, "intra: expected one of semantics, features, None, got False"),
    ],
)
def test_shapes_out_of_range(change, message):
    with pytest.raises(ValueError) as error:
        ModelConfig(**{"region_width": 6, "vocabulary_size": 9, **change})
    assert str(error.value) == message
