"""From a split to batches of tensors, by way of PyTorch's DataLoader."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..isolation import integers
from ..progress import watched
from ..vocabulary import PAD, UNKNOWN, Vocabulary
from .splits import Split

# Flickr8k's vocabulary lacks 2% of its own captions' words, 4% of Flickr30K's and 7% of COCO's.
_MANY_UNKNOWN = 0.05
# Few captions have many rare words: those of 250 images of Flickr8k lack 10% of their own. Another language lacks most.
_OTHER_LANGUAGE = 1 / 3


class ImageBatch(NamedTuple):
    """Images; lengths and indices stay on the CPU, where the operator wants them.

    Attributes:
        regions: (B, R, F), float32 or float16 as in the file, zeros beyond the real regions of an image.
        region_lengths: (B,) int64.
        images: (B,) int64, which images of the split these are.
    """

    regions: Tensor
    region_lengths: Tensor
    images: Tensor

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The batch with its regions on a device; a copy from pinned memory does not wait."""
        return self._replace(regions=self.regions.to(device, non_blocking=True))


class CaptionBatch(NamedTuple):
    """Captions; lengths and indices stay on the CPU, where the operator wants them.

    Attributes:
        words: (B, N) int64 ids, <pad> beyond a caption's end.
        word_lengths: (B,) int64, <start> and <end> included.
        captions: (B,) int64, which captions of the split these are.
    """

    words: Tensor
    word_lengths: Tensor
    captions: Tensor

    def to(self, device: torch.device | str) -> "CaptionBatch":
        """The batch with its words on a device; a copy from pinned memory does not wait."""
        return self._replace(words=self.words.to(device, non_blocking=True))


class PairBatch(NamedTuple):
    """Captions, each with its image: item b of `images` and item b of `captions` belong together.

    An image stands in a batch as often as captions of it do.
    """

    images: ImageBatch
    captions: CaptionBatch

    def to(self, device: torch.device | str) -> "PairBatch":
        """The batch with its regions and words on a device."""
        return PairBatch(self.images.to(device), self.captions.to(device))


for _type in (ImageBatch, CaptionBatch, PairBatch):
    # torch.load makes only what was declared safe.
    torch.serialization.add_safe_globals([_type])


class Images(Dataset):
    """The images of a split; item i is (i, (R_i, F) features).

    Reading an image whose features are not finite raises `NonFiniteError`.
    """

    def __init__(self, split: Split):
        self.split = split

    def __len__(self) -> int:
        return self.split.num_images

    def __getitem__(self, image: int) -> tuple[int, np.ndarray]:
        return image, self.split.read_regions(image)

    @staticmethod
    def collate(items: Sequence[tuple[int, np.ndarray]]) -> ImageBatch:
        """Pad a batch to its longest image."""
        lengths = [len(features) for _, features in items]
        _, first = items[0]
        regions = torch.from_numpy(np.zeros((len(items), max(lengths), first.shape[1]), dtype=first.dtype))
        for row, (_, features) in zip(regions, items, strict=True):
            row[: len(features)] = torch.from_numpy(features)
        return ImageBatch(regions, integers(lengths), integers([image for image, _ in items]))


class Captions(Dataset):
    """The captions of a split as ids; item t is (t, (N_t,) int64 ids).

    Args:
        split: whose captions.
        vocabulary: gives the ids; captions are encoded here, once.
    """

    def __init__(self, split: Split, vocabulary: Vocabulary):
        encoded = [
            np.array(vocabulary.encode(caption), dtype=np.int32)
            for caption in watched(split.captions, f"{split.name}: words", "captions")
        ]
        # One array for all: a list of half a million would be copied, page by page, into every worker.
        self.lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate(encoded) if encoded else np.empty(0, dtype=np.int32)
        self._name, self._marks = split.name, vocabulary.marks

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, caption: int) -> tuple[int, np.ndarray]:
        end = self._ends[caption]
        return caption, self._ids[end - self.lengths[caption] : end].astype(np.int64)

    def warning(self) -> str | None:
        """What to say if more than 5% of the captions' words are not in the vocabulary; None if it is less."""
        # Not those for start and end.
        unknown = int((self._ids == UNKNOWN).sum()) / max(1, len(self._ids) - 2 * len(self))
        if unknown <= _MANY_UNKNOWN:
            return None
        lacking = f"{self._name}: warning: {unknown:.0%} of the captions' words are not in the vocabulary"
        if unknown <= _OTHER_LANGUAGE:
            return f"{lacking}; the model takes them all for one unknown word"
        known = np.bincount(np.repeat(np.arange(len(self)), self.lengths), ~np.isin(self._ids, self._marks), len(self))
        return (
            f"{lacking}, and {np.mean(known == 0):.0%} of the captions have no known word. Words are separated by spaces: in a "
            "language without spaces, separate the words first. Captions of another language or spelling need a model that was "
            "trained on such captions"
        )

    @staticmethod
    def collate(items: Sequence[tuple[int, np.ndarray]]) -> CaptionBatch:
        """Pad a batch to its longest caption."""
        lengths = [len(ids) for _, ids in items]
        words = torch.full((len(items), max(lengths)), PAD, dtype=torch.int64, device="cpu")
        for row, (_, ids) in zip(words, items, strict=True):
            row[: len(ids)] = torch.from_numpy(ids)
        return CaptionBatch(words, integers(lengths), integers([caption for caption, _ in items]))


class Pairs(Dataset):
    """The captions of a split, each with its image; item t is a pair of items of `Images` and `Captions`."""

    def __init__(self, split: Split, vocabulary: Vocabulary):
        self.images, self.captions = Images(split), Captions(split, vocabulary)
        self._image_of_caption = split.image_of_caption

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, caption: int) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
        return self.images[int(self._image_of_caption[caption])], self.captions[caption]

    @staticmethod
    def collate(items: Sequence[tuple]) -> PairBatch:
        """Pad a batch to its longest image and its longest caption."""
        images, captions = zip(*items, strict=True)
        return PairBatch(Images.collate(images), Captions.collate(captions))


class LengthBatches(Sampler[list[int]]):
    """Batches of items of like length, for evaluation: little padding, and every item once.

    The longest come first, so that a batch too large for the memory fails at once.

    Args:
        lengths: (N,) integers.
        batch_size: items in a batch; the last may have fewer.

    Raises:
        ValueError: batch_size is less than 1.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int):
        _check_batch_size(batch_size)
        order = np.argsort(-np.asarray(lengths), kind="stable")
        self._batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


class ShuffledBatches(Sampler[list[int]]):
    """Shuffled batches for training, which continue where a run was killed.

    Every epoch is a permutation given by (seed, epoch) alone; no other random state is read or written. Iterating
    gives the rest of the current epoch, and does not count: loader workers draw batches long before they are used. The
    training loop calls `advance` after each batch that it has used, and `state_dict` then tells the next one.

    Captions of one image may meet in a batch. The loss knows that they are no negatives of each other
    (`caan.loss.triplet_loss`), so nothing is rejected here.

    Args:
        num_items: N, the length of the data set.
        batch_size: items in a batch.
        seed: at least 0.
        drop_last: leave out an epoch's last batch where it would have fewer items.

    Raises:
        ValueError: there would be no batch, or an argument is out of range.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int = 0, drop_last: bool = False):
        _check_batch_size(batch_size)
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self._settings = {"num_items": num_items, "batch_size": batch_size, "seed": seed, "drop_last": drop_last}
        self._length = num_items // batch_size if drop_last else -(-num_items // batch_size)
        if self._length < 1:
            raise ValueError(f"num_items: expected enough for one batch of {batch_size}, got {num_items}")
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        num_items, size, seed = (self._settings[name] for name in ("num_items", "batch_size", "seed"))
        order = np.random.default_rng((seed, self.epoch)).permutation(num_items)
        for batch in range(self.batch, self._length):
            yield order[batch * size : (batch + 1) * size].tolist()

    def advance(self) -> None:
        """Count one batch as used; after an epoch's last one, the next epoch begins."""
        self.batch += 1
        if self.batch == self._length:
            self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the run is: epoch and batch come next. The settings are in it for `load_state_dict` to compare."""
        return {**self._settings, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state is of another number of items, batch size or seed, and would give other batches.
        """
        for name, value in self._settings.items():
            if state[name] != value:
                raise ValueError(f"{name}: expected {state[name]}, as in the run to continue, got {value}")
        self.epoch, self.batch = state["epoch"], state["batch"]


class OwnPairs(Sampler[list[int]]):
    """One process's part of every batch: consecutive items of it.

    Args:
        batches: the same in every process; their size is a multiple of `processes`.
        process: from 0 to processes - 1.
        processes: how many share a batch.
    """

    def __init__(self, batches: ShuffledBatches, process: int, processes: int):
        self._batches, self._process, self._processes = batches, process, processes

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            size = len(batch) // self._processes
            yield batch[self._process * size : (self._process + 1) * size]


def make_loader(
    dataset: Images | Captions | Pairs,
    batches: Sampler[list[int]] | Sequence[list[int]],
    workers: int = 0,
    pin_memory: bool | None = None,
) -> DataLoader:
    """A DataLoader that neither reads nor writes PyTorch's global random state.

    Args:
        dataset: gives items and knows how to put them together.
        batches: which items, batch by batch.
        workers: processes that read; 0 reads in this one.
        pin_memory: put batches where a copy to a GPU need not wait; None does so where there is CUDA.

    Returns:
        A loader of `ImageBatch`, `CaptionBatch` or `PairBatch`, as the data set is.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(_collated, dataset.collate),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        # Every iterator draws a number to seed its workers with; without this it comes out of the global state.
        generator=torch.Generator("cpu"),
        worker_init_fn=_leave_group,
    )


def _collated(collate: Callable, items: Sequence[tuple]) -> ImageBatch | CaptionBatch | PairBatch:
    batch = collate(items)
    if get_worker_info() is not None:
        # As sending it would do; but what fails there, in a thread of the queue's, is not told to anybody, and waited for.
        for part in batch if isinstance(batch, PairBatch) else (batch,):
            for tensor in part:
                tensor.share_memory_()
    return batch


def _leave_group(worker: int) -> None:
    # Ctrl-C, and what ends a job, reach every process of the group; a worker that died of it would take down its parent
    # before that has saved. Workers end with their parent all the same.
    os.setpgrp()


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
