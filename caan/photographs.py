"""Photographs of a data set's images, in a folder of the user's: the one place where they are looked for."""

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from .errors import DataError
from .progress import watched
from .text import normalised

_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# What systems put beside photographs, and where they keep what was deleted; names with a dot in front are left out, too.
_OTHERS = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", "@Recycle", "lost+found"})


class Unreadable(Exception):
    """An image that cannot be used; the message is the reason."""


class PhotoFolder:
    """Finds the photographs of images by what the data set calls them.

    The first of these that fits counts:

    1. a file at this path in the folder, whatever its ending;
    2. a photograph whose path ends in this name, in any folder: `b.jpg` is found as `a/b.jpg`, if there is no other `b.jpg`;
    3. both once more without the name's first folder, then its second: `photos/b.jpg` is found as `b.jpg`, too;
    4. likewise, a photograph that is called so without its ending;
    5. for a number, a photograph whose name ends in it, as COCO's do: 391895 is found as
       `val2014/COCO_val2014_000000391895.jpg`.

    Accents count as the same however they are composed, endings in capitals and small letters as well. Links to folders are
    followed. Photographs are files with the ending of an image, or with none; hidden files are not looked at.

    Args:
        folder: searched once, its folders included.

    Raises:
        DataError: there is no such folder, or no photograph in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: expected a folder of photographs, found none")
        # By a file's name, its stem, and the number at the end: paths in the form that is compared, and as they are on the disk.
        self._by_name: dict[str, list[tuple[str, str]]] = {}
        self._by_stem: dict[str, list[tuple[str, str]]] = {}
        self._by_number: dict[str, list[tuple[str, str]]] = {}
        for path in watched(_files(str(self.folder)), f"looking through {self.folder}", "files"):
            try:
                form = _form(path)
            except ValueError:
                # Its name is no text, and no data set can have it.
                continue
            name = form.rsplit("/", 1)[-1]
            stem, ending = os.path.splitext(name)
            if ending not in ("", *_ENDINGS):
                continue
            self._by_name.setdefault(name, []).append((form, path))
            self._by_stem.setdefault(stem, []).append((form, path))
            number = stem.rsplit("_", 1)[-1]
            if number.isdecimal():
                self._by_number.setdefault(_digits(number), []).append((form, path))
        if not self._by_name:
            raise DataError(f"{folder}: expected photographs ({', '.join(_ENDINGS)}), found none")

    def find(self, image_id: str) -> Path | None:
        """The photograph of an image; None where there is none.

        Raises:
            Unreadable: several different files fit, and none of them better than the others.
        """
        parts = image_id.split("/") if "/" in image_id else image_id.split("\\")
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        for tail in tails:
            path = self.folder / tail
            # Path.is_file raises where a name is too long for a file.
            if os.path.isfile(path):
                return path
            found = self._named(self._by_name, tail, _form)
            if found:
                return found
        for tail in tails:
            found = self._named(self._by_stem, tail, normalised, without_ending=True)
            if found:
                return found
        return self._only(self._by_number.get(_digits(image_id), ())) if image_id.isdecimal() else None

    def look_up(self, image_id: str) -> Path | Unreadable | None:
        """As `find`, with the error in the photograph's place: for a page, on which other photographs are to be seen."""
        try:
            return self.find(image_id)
        except Unreadable as error:
            return error

    def name_of(self, path: Path) -> str:
        """What a photograph that was found is called: its path in the folder, by which it is found again."""
        return normalised(path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path))

    def names(self) -> list[str]:
        """What all photographs are called, in the order of their names. Files without an ending are left out: most are others'."""
        found = (normalised(path) for paths in self._by_name.values() for _, path in paths)
        return sorted(name for name in found if is_photograph(name))

    def examples(self) -> list[str]:
        """The names of some photographs that are there."""
        return sorted(form for found in self._by_name.values() for form, _ in found)[:3]

    def _named(
        self, index: dict[str, list[tuple[str, str]]], tail: str, form: Callable[[str], str], without_ending: bool = False
    ) -> Path | None:
        """The photograph whose path, with or without its ending, is or ends in a name."""
        try:
            wanted = form(tail)
        except ValueError:
            return None
        exact, deeper = [], []
        for found in index.get(wanted.rsplit("/", 1)[-1], ()):
            own = os.path.splitext(found[0])[0] if without_ending else found[0]
            if own == wanted:
                exact.append(found)
            elif own.endswith(f"/{wanted}"):
                deeper.append(found)
        return self._only(exact or deeper)

    def _only(self, candidates: Iterable[tuple[str, str]]) -> Path | None:
        """The one candidate; copies of one photograph, such as COCO's of 2014 and 2017, are one."""
        paths = [self.folder / path for _, path in sorted(candidates)]
        if not paths:
            return None
        for other in paths[1:]:
            if not filecmp.cmp(paths[0], other, shallow=False):
                some = ", ".join(self.name_of(path) for path in (paths[0], other))
                raise Unreadable(f"expected one photograph of this name in {self.folder}, found different files: {some}")
        return paths[0]


def is_photograph(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in _ENDINGS


def _files(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, relative to it. Each folder is entered once, however many links lead there."""
    entered = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        here = os.path.join(folder, below)
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            # It may not be read, or a link in it leads nowhere: what is missing is named when it is looked for.
            continue
        folders = []
        for entry in listed:
            if entry.name.startswith(".") or entry.name in _OTHERS:
                continue
            path = f"{below}{entry.name}"
            # A link can lead to itself, or to where nobody may look.
            with suppress(OSError):
                if entry.is_file():
                    yield path
                elif entry.is_dir():
                    folders.append((entry.is_symlink(), f"{path}/"))
        # A folder's own name is better than a link's: the last is taken first.
        waiting += [path for _, path in sorted(folders, reverse=True)]


def _form(path: str) -> str:
    """The form in which paths are compared: accents composed, the ending in small letters."""
    stem, ending = os.path.splitext(normalised(path))
    return stem + ending.lower()


def _digits(number: str) -> str:
    return number.lstrip("0") or "0"
