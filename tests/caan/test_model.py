"""The model: shapes, padding, galleries, and that it learns."""

import numpy as np
import pytest
import torch

import caan_kernels as ck
from caan import CAAN, ModelConfig, Vocabulary, triplet_loss
from caan.data import Captions, Images, LengthBatches, Pairs, ShuffledBatches, load_scan_split, make_loader
from caan.model import ContextAwareAttention, Encoded
from caan.recall import RankCounter, positive_pairs


@pytest.fixture
def split(scan_folder):
    np.save(scan_folder / "dev_num_boxes.npy", np.array([4, 2, 3, 1, 4, 0, 2]))
    return load_scan_split(scan_folder, "dev")


@pytest.fixture
def vocabulary(split):
    return Vocabulary.from_captions(split.captions, threshold=1)


def make_model(vocabulary, **options):
    torch.manual_seed(0)
    return CAAN(ModelConfig(6, len(vocabulary), width=16, hidden_width=12, word_width=10, **options))


def one_batch(dataset, size=100):
    return next(iter(make_loader(dataset, LengthBatches(np.zeros(len(dataset)), size))))


def test_parameters(vocabulary):
    model = make_model(vocabulary, affinity_scale=3.0)
    attention = model.attention
    assert [tuple(weight.shape) for weight in attention.weights] == [(16, 16), *[(16, 12)] * 4, (12,), (12,)]
    assert torch.equal(attention.affinity.detach(), 3 * torch.eye(16))
    assert set(dict(attention.named_parameters())) == set(ck.ContextAttentionWeights._fields)
    assert all(weight is getattr(attention, name) for name, weight in attention.weights._asdict().items())
    assert ContextAwareAttention(8).region_score.shape == (8,)


def test_encodings_are_unit_vectors_of_their_own_item(split, vocabulary):
    model = make_model(vocabulary)
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


def test_half_precision_features_are_taken(scan_folder, vocabulary, features):
    np.save(scan_folder / "dev_ims.npy", features.astype(np.float16))
    batch = one_batch(Pairs(load_scan_split(scan_folder, "dev"), vocabulary))
    assert batch.images.regions.dtype == torch.float16
    assert make_model(vocabulary)(batch).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [{}, {"intra": False}, {"inter": False}, {"normalization": "softmax", "temperature": 4.0}, {"similarity": "dot"}],
)
def test_scores_are_those_of_the_operator(split, vocabulary, options):
    model = make_model(vocabulary, **options)
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


def test_every_parameter_learns(split, vocabulary):
    model = make_model(vocabulary)
    batch = one_batch(Pairs(split, vocabulary))
    triplet_loss(model(batch), batch.images.images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_gallery_in_tiles_is_the_whole_matrix(split, vocabulary):
    """Images once, captions by length, and ranks from tiles and single pairs."""
    model = make_model(vocabulary).eval()
    images, captions = Images(split), Captions(split, vocabulary)
    regions = model.project_images(one_batch(images))
    whole = torch.full((7, 35), float("nan"))
    positives = torch.full((35,), float("nan"))
    own = torch.from_numpy(split.image_of_caption)
    tiles = []
    for batch in make_loader(captions, LengthBatches(captions.lengths, 6)):
        words = model.project_captions(batch)
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


def test_empty_images_score_zero(split, vocabulary):
    scores = make_model(vocabulary)(one_batch(Pairs(split, vocabulary)))
    assert not scores[25:30].any() and scores[0].all()


def test_encoded_words_must_fit():
    attention = ContextAwareAttention(8)
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
    model = make_model(vocabulary)
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
