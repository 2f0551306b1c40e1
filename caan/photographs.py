"""Photographs of a data set's images, in a folder of the user's."""

from pathlib import Path

from .errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class PhotoFolder:
    """Finds the photographs of images by what the data set calls them.

    An id may be the file's name, with or without folders and ending, or a number that its name ends in, as COCO's ids are:
    391895 is found as `val2014/COCO_val2014_000000391895.jpg`.

    Args:
        folder: searched once, its folders included.

    Raises:
        DataError: there is no such folder, or no photograph in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: expected a folder of photographs, found none")
        self._by_name: dict[str, Path] = {}
        self._by_number: dict[int, Path] = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in _ENDINGS):
            for name in (path.relative_to(self.folder).as_posix(), path.name, path.stem):
                self._by_name.setdefault(name, path)
            number = path.stem.rsplit("_", 1)[-1]
            if number.isdecimal():
                self._by_number.setdefault(int(number), path)
        if not self._by_name:
            raise DataError(f"{folder}: expected photographs ({', '.join(_ENDINGS)}), found none")

    def find(self, image_id: str) -> Path | None:
        """The photograph of an image; None where there is none."""
        for name in (image_id, Path(image_id).name):
            if name in self._by_name:
                return self._by_name[name]
        return self._by_number.get(int(image_id)) if image_id.isdecimal() else None

    def examples(self) -> list[str]:
        """The names of some photographs that are there."""
        return list(dict.fromkeys(path.name for path in self._by_name.values()))[:3]
