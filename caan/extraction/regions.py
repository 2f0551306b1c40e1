"""Sources of regions, and the threads that read from them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..photographs import Unreadable
from .sources import CaptionedImage

_PATIENCE = 5.0  # seconds that the end of a run waits for its threads


class Regions(NamedTuple):
    """The regions of one image.

    Attributes:
        features: (R, F) floating point.
        boxes: (R, 4) float32, x1 y1 x2 y2 as fractions of the photograph's width and height.
    """

    features: np.ndarray
    boxes: np.ndarray


class RegionSource(Protocol):
    """Where regions come from.

    Attributes:
        place: the folder or file, for messages.
        dtype: what features are stored as, float16 or float32.
        settings: what the features depend on, in JSON's types, with "width": F.
    """

    place: Path
    dtype: np.dtype
    settings: dict[str, Any]

    def find(self, image: CaptionedImage) -> tuple[str, Any] | None:
        """The name of an image as it goes into the list of ids, and what `load` takes; None where it is not there. Called in
        threads; raises `Unreadable` where it cannot be told from another."""
        ...

    def load(self, key: Any) -> Any:
        """What `encode` needs of an image that was found. Called in threads; raises `Unreadable`."""
        ...

    def encode(self, loaded: Sequence[Any]) -> list[Regions]:
        """The regions of a batch."""
        ...

    def images(self) -> list[CaptionedImage]:
        """All images that are there, without captions, in an order of their names' own."""
        ...

    def examples(self) -> list[str]:
        """The names of some images that are there."""
        ...


def batches(
    images: Sequence[CaptionedImage], source: RegionSource, size: int, workers: int
) -> Iterator[list[tuple[str, Regions | str]]]:
    """Batches of (name, regions or the reason why there are none); threads read ahead by two batches.

    Close it where it is left early: its threads end then, but for one whose read takes longer than `_PATIENCE`.
    """
    tasks: SimpleQueue = SimpleQueue()
    waiting: deque = deque()
    # A ThreadPoolExecutor's threads are waited for when the process ends, and a read can take minutes.
    threads = [Thread(target=_read, args=(tasks, source), daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for start in range(0, len(images), size):
            batch = [(Future(), image) for image in images[start : start + size]]
            waiting.append([future for future, _ in batch])
            for task in batch:
                tasks.put(task)
            if len(waiting) > 2:
                yield _encode(waiting.popleft(), source)
        while waiting:
            yield _encode(waiting.popleft(), source)
    finally:
        for future in chain(*waiting):
            future.cancel()
        for _ in threads:
            tasks.put(None)
        # Python ends daemon threads by unwinding their stack, and torch's C++ answers that by aborting the process.
        until = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _read(tasks: SimpleQueue, source: RegionSource) -> None:
    """What a thread does: tasks, a future and the image it is of, until there is None."""
    while (task := tasks.get()) is not None:
        future, image = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(_load(source, image))
            except BaseException as error:
                future.set_exception(error)


def _load(source: RegionSource, image: CaptionedImage) -> tuple[str, Any]:
    name = image.name
    try:
        found = source.find(image)
        if found is None:
            return name, Unreadable(f"it is not in {source.place}")
        name, key = found
        return name, source.load(key)
    except Unreadable as error:
        return name, error


def _encode(futures: list[Future], source: RegionSource) -> list[tuple[str, Regions | str]]:
    loaded = [future.result() for future in futures]
    good = [content for _, content in loaded if not isinstance(content, Unreadable)]
    regions = iter(source.encode(good) if good else ())
    batch = []
    for name, content in loaded:
        outcome = str(content) if isinstance(content, Unreadable) else next(regions)
        if isinstance(outcome, Regions) and not _fits(outcome.features, source.dtype):
            outcome = f"its features are not finite numbers in {source.dtype}"
        batch.append((name, outcome))
    return batch


def _fits(features: np.ndarray, dtype: np.dtype) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(features.astype(dtype, copy=False)).all())
