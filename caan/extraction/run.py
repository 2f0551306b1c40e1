"""A run that can be killed at any moment: from a source of regions to the files of one split.

While it runs, a split has three files: `{split}_ims.part` and `{split}_boxes.part`, to which the rows of each batch are
appended, and `{split}_extract.journal`, a line of settings and then a line a batch. A batch counts when its line is
whole, and its rows are on the disk before its line is. The last file of a finished split to appear is `{split}_ims.npy`.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from tqdm import tqdm

from ..data.splits import CAPTIONS_PER_IMAGE
from ..errors import CaptionMismatchError, DataError
from ..files import check_writable, hold, make_folder, naming, replacing
from ..progress import bar
from .regions import Regions, RegionSource, batches
from .sources import CaptionedImage

# So many images are named on the screen; all of them are in {split}_extract.json.
_NAMED = 20
_FINAL = ("ims.npy", "caps.txt", "ids.txt", "boxes.npy", "num_boxes.npy", "extract.json")
_BOX = 4


@dataclass(frozen=True)
class Summary:
    """How a split ended.

    Attributes:
        images: how many are in its files.
        skipped: (name, reason) of each that is not.
        ran: False where everything was there already.
    """

    images: int
    skipped: list[tuple[str, str]]
    ran: bool


def extract_split(
    images: Sequence[CaptionedImage],
    source: RegionSource,
    folder: str | Path,
    split: str,
    captions: str | Path | None = None,
    *,
    captions_per_image: int = CAPTIONS_PER_IMAGE,
    batch_size: int = 8,
    workers: int = 2,
    overwrite: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Summary:
    """Write the files of one split; continue where a run with the same settings was killed.

    These are `{split}_ims.npy` (N, R, F), `_caps.txt` where there are captions, `_ids.txt`, `_boxes.npy` (N, R, 4) float32,
    `_num_boxes.npy` (N,) int64 where images differ in the number of regions (the rest of a row is zeros), and `_extract.json`,
    which tells what they were made with and which images were skipped. Killed or not, the same call ends in the same bytes.

    Args:
        images: what belongs to the split, in the order of the rows. Those that cannot be read, and those with too few
            captions, are skipped.
        source: gives their regions.
        folder: where the files go; it is made where it is not there.
        split: the first part of their names.
        captions: the file that the captions are from, for messages and for the record; None takes images without captions.
        captions_per_image: how many captions of an image are taken, the first ones; of no meaning where `captions` is None.
        batch_size: images that go through the source at once.
        workers: threads that read.
        overwrite: make the split anew, even if it exists or is unfinished.
        say: takes each line that tells what happens.

    Raises:
        CaptionMismatchError: no image has enough captions.
        DataError: no image could be read.
        ValueError: files of other settings are there and overwrite is False, or an argument is out of range.
        OSError: a file cannot be written, or another run is writing the split.
    """
    _check(split, captions_per_image=captions_per_image, batch_size=batch_size, workers=workers)
    folder, captions_per_image = Path(folder), captions_per_image if captions else 0
    enough = _with_captions(
        images, captions_per_image, f"{captions}: expected {captions_per_image} captions for an image of {split}"
    )
    of_captions = {"captions": Path(captions).name if captions else None, "captions_per_image": captions_per_image}
    settings = {**source.settings, **of_captions, "captions_digest": _digest(images, captions_per_image)}
    make_folder("folder", folder)
    for name in _FINAL:
        check_writable("folder", folder / f"{split}_{name}")
    if overwrite:
        _remove(folder, split, _FINAL)
    elif (done := _finished(folder, split, settings)) is not None:
        say(f"{split}: everything is there already, {done.images:,} images; nothing to do")
        return done

    report = _Report(split, say)
    short = [image for image in images if len(image.captions) < captions_per_image]
    skipped = [(image.name, f"expected {captions_per_image} captions, found {len(image.captions)}") for image in short]
    for name, reason in skipped:
        report(name, reason)
    with _Journal(folder, split, settings, source.dtype, overwrite) as journal:
        begin = len(journal.images)
        if begin:
            say(f"{split}: continues after {begin:,} of {len(enough):,} images, where an earlier run was stopped")
        watch = bar(total=len(enough), initial=begin, desc=split, unit=" images")
        with watch, closing(batches(enough[begin:], source, batch_size, workers)) as read:
            for batch in read:
                journal.append(batch)
                for name, reason in batch:
                    if isinstance(reason, str):
                        report(name, reason)
                watch.update(len(batch))
        skipped += [(name, outcome) for name, outcome in journal.images if isinstance(outcome, str)]
        stored = [(image, *row) for image, row in zip(enough, journal.images, strict=True) if isinstance(row[1], int)]
        if not stored:
            _remove(folder, split, _Journal.files)
            raise DataError(
                f"{source.place}: expected images, found none of {len(enough)} that can be read; {': '.join(skipped[-1])}"
            )
        _write_texts(folder, split, stored, settings, skipped)
        journal.finish(np.array([count for *_, count in stored]))
    return Summary(len(stored), skipped, True)


def _check(split: str, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not split or Path(split).name != split:
        raise ValueError(f"split: expected the first part of file names, got {split!r}")


def _with_captions(images: Sequence[CaptionedImage], least: int, expected: str) -> list[CaptionedImage]:
    """The images that have enough captions; an error that says what was expected, if none has."""
    enough = [image for image in images if len(image.captions) >= least]
    if not enough:
        most = max((len(image.captions) for image in images), default=0)
        raise CaptionMismatchError(f"{expected}, found at most {most}")
    return enough


def _write_texts(
    folder: Path,
    split: str,
    stored: Sequence[tuple[CaptionedImage, str, int]],
    settings: dict[str, Any],
    skipped: Sequence[tuple[str, str]],
) -> None:
    """The files beside the arrays: of the stored images, with their names and numbers of regions, and of the run."""
    if settings["captions"] is not None:
        texts = (caption for image, *_ in stored for caption in image.captions[: settings["captions_per_image"]])
        _write_lines(folder / f"{split}_caps.txt", texts)
    _write_lines(folder / f"{split}_ids.txt", (name for _, name, _ in stored))
    versions = {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}
    record = {"settings": settings, "images": len(stored), "versions": versions, "skipped": skipped}
    _write_lines(folder / f"{split}_extract.json", [json.dumps(record, indent=1)])


def _way_out(split: str) -> str:
    default = " (without it, the split is test)" if split == "test" else ""
    return f"--split NAME makes another split{default}, another --out another folder; --overwrite makes this split anew"


class _Report:
    """Names the first images that are skipped."""

    def __init__(self, split: str, say: Callable[[str], None]):
        self._split, self._say, self._named = split, say, 0

    def __call__(self, name: str, reason: str) -> None:
        self._named += 1
        if self._named <= _NAMED:
            self._say(f"{self._split}: skipped {name}: {reason}")
        elif self._named == _NAMED + 1:
            self._say(f"{self._split}: skipped more; {self._split}_extract.json will name them all")


class _Journal:
    """The three files of an unfinished split.

    Attributes:
        images: [name, number of regions, or the reason why it was skipped] of each image so far.
    """

    files = ("ims.part", "boxes.part", "extract.journal")

    def __init__(self, folder: Path, split: str, settings: dict[str, Any], dtype: np.dtype, anew: bool):
        self._folder, self._split = folder, split
        self._dtype, self._width = dtype, settings["width"]
        self._features, self._boxes, self._lines = (_open(folder / f"{split}_{name}") for name in self.files)
        self.images: list[list] = []
        try:
            if not hold(self._lines):
                raise OSError(f"{folder}: another run is writing {split} at this moment")
            self._recover(settings, anew)
        except BaseException:
            self.__exit__()
            raise

    def _recover(self, settings: dict[str, Any], anew: bool) -> None:
        """Take what is whole, and cut off the rest."""
        # A line without its end is of a batch that was being written.
        lines = [] if anew else self._lines.read().split(b"\n")[:-1]
        path = Path(self._lines.name)
        try:
            content = [json.loads(line) for line in lines]
        except ValueError:
            expected = "expected the journal of an earlier run, found another file"
            raise ValueError(f"{path}: {expected}; {_way_out(self._split)}") from None
        if content:
            _compare(path, self._split, content[0], settings)
        header = len(_header((1, 1, self._width), self._dtype))
        room = min((_size(self._features) - header) // (self._width * self._dtype.itemsize), _size(self._boxes) // (_BOX * 4))
        regions, end = 0, 0
        for line, batch in zip(lines, content, strict=True):
            if end:
                more = regions + sum(outcome for _, outcome in batch if isinstance(outcome, int))
                # A disk that does not keep the order of writes may hold a line and not its rows.
                if more > room:
                    break
                regions = more
                self.images += batch
            end += len(line) + 1
        self._lines.truncate(end)
        self._features.truncate(header + regions * self._width * self._dtype.itemsize)
        self._boxes.truncate(regions * _BOX * 4)
        for file in (self._features, self._boxes, self._lines):
            file.seek(0, os.SEEK_END)
        if not end:
            self._write_line(settings)

    def append(self, batch: Sequence[tuple[str, Regions | str]]) -> None:
        """Store a batch: of each image its name, and its regions or the reason why it has none."""
        line = []
        for name, outcome in batch:
            if isinstance(outcome, Regions):
                for file, rows, dtype in (
                    (self._features, outcome.features, self._dtype),
                    (self._boxes, outcome.boxes, np.float32),
                ):
                    with naming(file.name):
                        file.write(np.ascontiguousarray(rows, dtype=dtype).data)
                outcome = len(outcome.features)
            line.append([name, outcome])
        for file in (self._features, self._boxes):
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())
        self._write_line(line)
        self.images += line

    def _write_line(self, content: Any) -> None:
        with naming(self._lines.name):
            self._lines.write(json.dumps(content).encode() + b"\n")
            self._lines.flush()
            os.fsync(self._lines.fileno())

    def finish(self, counts: np.ndarray) -> None:
        """Make the arrays of the split, (N,) regions an image, and remove the three files."""
        final = self._folder / f"{self._split}_ims.npy"
        same = bool((counts == counts[0]).all())
        _pad(self._boxes, 0, counts, _BOX, np.dtype(np.float32), final.with_name(f"{self._split}_boxes.npy"))
        header = _header((len(counts), int(counts.max()), self._width), self._dtype)
        if same:
            with naming(final):
                self._features.seek(0)
                self._features.write(header)
                self._features.flush()
                os.fsync(self._features.fileno())
            os.replace(self._features.name, final)
        else:
            with replacing(final.with_name(f"{self._split}_num_boxes.npy")) as unfinished, unfinished.open("wb") as file:
                np.save(file, counts.astype(np.int64))
            _pad(self._features, len(header), counts, self._width, self._dtype, final)
        _remove(self._folder, self._split, self.files)

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._features, self._boxes, self._lines):
            # Closing writes again what a full disk has refused. That error has been raised already.
            with suppress(OSError):
                file.close()


def _finished(folder: Path, split: str, settings: dict[str, Any]) -> Summary | None:
    """What a finished run with these settings left; None where there is no run, or one to continue."""
    there = [folder / f"{split}_{name}" for name in _FINAL if (folder / f"{split}_{name}").is_file()]
    record = folder / f"{split}_extract.json"
    if record in there:
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            found, images, skipped = content["settings"], content["images"], content["skipped"]
        except (ValueError, KeyError, TypeError):
            expected = "expected the record of an earlier run, found another file"
            raise ValueError(f"{record}: {expected}; {_way_out(split)}") from None
        _compare(record, split, found, settings)
        needed = ["ims.npy", "ids.txt", "boxes.npy", *(["caps.txt"] if settings["captions"] is not None else [])]
        if {folder / f"{split}_{name}" for name in needed} <= set(there):
            _remove(folder, split, _Journal.files)
            return Summary(images, [(name, reason) for name, reason in skipped], False)
    elif there and not (folder / f"{split}_extract.journal").is_file():
        raise ValueError(f"{there[0]}: expected no file of the split {split!r} that another program made; {_way_out(split)}")
    return None


def _compare(path: Path, split: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in {**found, **settings}:
        there, now = found.get(name), settings.get(name)
        if there != now:
            other = f"other settings: {name} was {there!r}, and is {now!r}"
            if name == "captions_digest":
                other = "other images or captions: is --hold-out, --images or the captions file another?"
            raise ValueError(f"{path}: the split {split!r} was begun with {other}; {_way_out(split)}")


def _digest(images: Sequence[CaptionedImage], captions_per_image: int) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(json.dumps([image.name, *image.captions[:captions_per_image]]).encode())
    return digest.hexdigest()[:16]


def _header(shape: tuple[int, int, int], dtype: np.dtype) -> bytes:
    """The beginning of a .npy file; its length does not depend on the number of rows."""
    header = io.BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _pad(part: io.BufferedRandom, offset: int, counts: np.ndarray, width: int, dtype: np.dtype, path: Path) -> None:
    """Copy rows of regions to a .npy file (N, R, width), image by image, each filled up with zeros."""
    most = int(counts.max())
    part.seek(offset)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(_header((len(counts), most, width), dtype))
        for count in counts.tolist():
            file.write(part.read(count * width * dtype.itemsize))
            file.write(bytes((most - count) * width * dtype.itemsize))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _open(path: Path) -> io.BufferedRandom:
    """A file to read and write, made where it is not there."""
    path.touch()
    return path.open("r+b")


def _size(file: io.BufferedRandom) -> int:
    return os.fstat(file.fileno()).st_size


def _remove(folder: Path, split: str, names: Sequence[str]) -> None:
    for name in names:
        (folder / f"{split}_{name}").unlink(missing_ok=True)
