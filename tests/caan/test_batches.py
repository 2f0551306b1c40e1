"""Batches: padding, indices, order, and going on where a run stopped."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from caan import Vocabulary, errors
from caan.data import Captions, Images, LengthBatches, Pairs, ShuffledBatches, load_scan_split, make_loader


@pytest.fixture
def split(scan_folder):
    np.save(scan_folder / "dev_num_boxes.npy", np.array([4, 2, 3, 1, 4, 4, 2]))
    return load_scan_split(scan_folder, "dev")


@pytest.fixture
def vocabulary(split):
    return Vocabulary.from_captions(split.captions)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pair_comes_once_and_right(split, vocabulary, features, workers):
    pairs = Pairs(split, vocabulary)
    seen = []
    for images, captions in make_loader(pairs, ShuffledBatches(len(pairs), 8), workers):
        assert images.regions.dtype == torch.float32 and captions.words.dtype == torch.int64
        assert images.regions.shape[1] == images.region_lengths.max() and captions.words.shape[1] == captions.word_lengths.max()
        for b, (image, caption) in enumerate(zip(images.images.tolist(), captions.captions.tolist(), strict=True)):
            count, length = int(images.region_lengths[b]), int(captions.word_lengths[b])
            assert image == caption // 5 and count == split.region_counts[image]
            np.testing.assert_array_equal(images.regions[b, :count].numpy(), features[image, :count])
            assert captions.words[b, :length].tolist() == vocabulary.encode(split.captions[caption])
            assert not images.regions[b, count:].any() and not captions.words[b, length:].any()
            seen.append(caption)
    assert sorted(seen) == list(range(35))


def test_half_precision_stays(scan_folder, features):
    np.save(scan_folder / "dev_ims.npy", features.astype(np.float16))
    images = Images(load_scan_split(scan_folder, "dev"))
    (batch,) = make_loader(images, LengthBatches(np.full(7, 4), 10))
    np.testing.assert_array_equal(batch.regions.numpy(), features.astype(np.float16))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        # "caption", "of", "image", "." and all numbers but the last: 1 of 175 words is missing.
        (34, None),
        (26, "5% of the captions' words are not in the vocabulary; the model takes them all for one unknown word"),
        (None, "80% of the captions' words are not in the vocabulary, and 100% of the captions have no known word. Words are"),
    ],
)
def test_captions_of_unknown_words(split, known, message):
    split = replace(split, captions=[f"caption {number} of image ." for number in range(35)])
    words = ["."] if known is None else ["caption", "of", "image", ".", *map(str, range(known))]
    warning = Captions(split, Vocabulary(words)).warning()
    assert (warning is None) if message is None else warning.startswith(f"dev: warning: {message}")


def test_a_batch_of_empty_images(scan_folder):
    np.save(scan_folder / "dev_num_boxes.npy", np.zeros(7, dtype=np.int64))
    images = Images(load_scan_split(scan_folder, "dev"))
    (batch,) = make_loader(images, LengthBatches(np.zeros(7), 10))
    assert batch.regions.shape == (7, 0, 6) and not batch.region_lengths.any()


def test_the_image_that_is_not_finite_is_named(scan_folder, features):
    features[5, 0, 0] = np.nan
    np.save(scan_folder / "dev_ims.npy", features)
    images = Images(load_scan_split(scan_folder, "dev"))
    with pytest.raises(errors.NonFiniteError, match=r"dev_ims\.npy.*row 5, image 5\.jpg"):
        list(make_loader(images, LengthBatches(np.full(7, 4), 2)))


def test_batches_go_to_a_device(split, vocabulary):
    pairs = Pairs(split, vocabulary)
    (batch,) = make_loader(pairs, LengthBatches(pairs.captions.lengths, 35))
    moved = batch.to("cpu")
    assert type(moved) is type(batch) and torch.equal(moved.images.regions, batch.images.regions)
    assert moved.images.region_lengths is batch.images.region_lengths and moved.captions.captions is batch.captions.captions


def test_length_batches_have_little_padding(split, vocabulary):
    captions = Captions(split, vocabulary)
    batches = list(LengthBatches(captions.lengths, 7))
    assert len(batches) == len(LengthBatches(captions.lengths, 7)) == 5
    assert sorted(chain(*batches)) == list(range(35))
    lengths = [captions.lengths[batch] for batch in batches]
    assert all(np.ptp(own) == 0 for own in lengths), "seven captions of each of five lengths"
    assert [own[0] for own in lengths] == sorted((own[0] for own in lengths), reverse=True)


def test_epochs_differ_and_repeat():
    sampler = ShuffledBatches(100, 10, seed=3)
    first = list(sampler)
    assert list(sampler) == first, "iterating does not count"
    for _ in range(10):
        sampler.advance()
    assert (sampler.epoch, sampler.batch) == (1, 0)
    second = list(sampler)
    assert second != first and sorted(chain(*second)) == list(range(100))
    assert list(ShuffledBatches(100, 10, seed=3)) == first != list(ShuffledBatches(100, 10, seed=4))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_last_batch(drop_last, sizes):
    sampler = ShuffledBatches(10, 4, drop_last=drop_last)
    assert [len(batch) for batch in sampler] == sizes and len(sampler) == len(sizes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [0, 1, 3, 5, 7])
def test_resumed_run_sees_the_same_batches(split, vocabulary, used, workers):
    """Workers draw batches ahead; only those that were used count."""
    pairs = Pairs(split, vocabulary)

    def run(sampler, steps):
        seen, loader = [], make_loader(pairs, sampler, workers)
        while len(seen) < steps:
            for batch in loader:
                seen.append(batch.captions.captions.tolist())
                sampler.advance()
                if len(seen) == steps:
                    break
        return seen

    whole = run(ShuffledBatches(35, 7, seed=1), 9)
    killed = ShuffledBatches(35, 7, seed=1)
    before = run(killed, used)
    resumed = ShuffledBatches(35, 7, seed=1)
    resumed.load_state_dict(killed.state_dict())
    assert before + run(resumed, 9 - used) == whole


@pytest.mark.parametrize("change", [{"num_items": 36}, {"batch_size": 8}, {"seed": 2}, {"drop_last": True}])
def test_state_of_another_run_is_refused(change):
    settings = {"num_items": 35, "batch_size": 7, "seed": 1, "drop_last": False}
    state = ShuffledBatches(**settings).state_dict()
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected {settings[name]}, as in the run to continue, got {change[name]}"):
        ShuffledBatches(**{**settings, **change}).load_state_dict(state)


def test_loading_leaves_the_global_random_state_alone(split, vocabulary):
    pairs = Pairs(split, vocabulary)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(make_loader(pairs, ShuffledBatches(len(pairs), 8)))
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        LengthBatches(np.ones(3), 0)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got -1"):
        ShuffledBatches(3, -1)
    with pytest.raises(ValueError, match="seed: expected at least 0"):
        ShuffledBatches(3, 1, seed=-1)
    with pytest.raises(ValueError, match="num_items: expected enough for one batch of 4, got 3"):
        ShuffledBatches(3, 4, drop_last=True)
    with pytest.raises(ValueError, match="num_items: expected enough"):
        ShuffledBatches(0, 4)


def test_shared_memory_that_is_full_is_told(split, vocabulary, monkeypatch):
    def full(self):
        raise RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    for dataset in (Images(split), Pairs(split, vocabulary)):
        assert len(list(make_loader(dataset, [[0, 1]]))) == 1
        with pytest.raises(RuntimeError, match="unable to write to file </torch_7_1>"):
            list(make_loader(dataset, [[0, 1]], workers=1))


def test_batches_can_be_saved_and_loaded(split, vocabulary, tmp_path):
    [batch] = make_loader(Pairs(split, vocabulary), [[0, 1]])
    torch.save(batch, tmp_path / "batch.pt")
    loaded = torch.load(tmp_path / "batch.pt")
    assert type(loaded) is type(batch) and torch.equal(loaded.images.regions, batch.images.regions)
