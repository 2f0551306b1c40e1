"""What `caan extract` has noted of how it made a split: `{split}_extract.json`, which other commands read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..files import parse_json, read_text


@dataclass(frozen=True)
class ExtractRecord:
    """How a split was made; None for what does not apply to it.

    Attributes:
        path: of the record.
        width: F, of a region's features.
        photos: the folder that the photographs were in.
        backbone: what made the features, as on the command line.
        size: side, in pixels, of the square that photographs were scaled to.
        captions_per_image: how many captions each image has; 0 where it was made without captions.
        images: how many it was made of, those included that were skipped.
    """

    path: Path
    width: int
    photos: Path | None
    backbone: str | None
    size: int | None
    captions_per_image: int
    images: int | None = None

    @property
    def settings(self) -> dict[str, Any] | None:
        """The backbone with its size, in types that JSON has; None where the features were given."""
        return None if self.backbone is None else {"backbone": self.backbone, "size": self.size}

    @property
    def made_by(self) -> dict[str, Any] | None:
        """The photographs' folder and the backbone, in types that JSON has; None where the features were given."""
        if self.settings is None:
            return None
        return {**self.settings, "photos": None if self.photos is None else str(self.photos)}


def with_named(noted: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """What is noted of how a split was made, as `ExtractRecord.made_by`, with what a user names in its place. A size is of one
    backbone: another one that is named has its own."""
    if "backbone" in named and named["backbone"] != noted.get("backbone"):
        noted = {**noted, "size": None}
    return noted | named


def read_record(folder: str | Path, split: str) -> ExtractRecord | None:
    """Read the record of a split; None where there is none.

    `caan extract` writes it before the split's arrays are whole: after a kill between the two it is of a split to be finished.

    Raises:
        FormatError: the file is none that `caan extract` has written.
    """
    path = Path(folder) / f"{split}_extract.json"
    if not path.is_file():
        return None
    expected = "expected what caan extract writes"
    content = parse_json(path, read_text(path), "what caan extract writes")
    try:
        settings = content["settings"]
        kinds = {"width": int, "captions_per_image": int, "photos": str | None, "backbone": str | None, "size": int | None}
        values = {name: settings[name] if kind is int else settings.get(name) for name, kind in kinds.items()}
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"{name} {values[name]!r}")
        images = content["images"] + len(content["skipped"]) if {"images", "skipped"} <= set(content) else None
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: {expected}: {type(error).__name__}: {error}") from None
    photos = values.pop("photos")
    return ExtractRecord(path, photos=None if photos is None else Path(photos), images=images, **values)


def records(folder: str | Path) -> dict[str, ExtractRecord]:
    """The records of all splits of a folder, by the splits' names.

    Raises:
        FormatError: a file is none that `caan extract` has written.
    """
    ending = "_extract.json"
    names = sorted(path.name.removesuffix(ending) for path in Path(folder).glob(f"*{ending}"))
    return {name: record for name in names if (record := read_record(folder, name)) is not None}
