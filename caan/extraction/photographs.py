"""Photographs: found, decoded and put through a backbone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DataError
from .backbones import Backbone
from .run import Regions, Unreadable
from .sources import CaptionedImage


class Photographs:
    """A folder of photographs as a source of regions, float16; see `RegionSource`.

    Args:
        folder: where they are.
        backbone: what turns them into regions.

    Raises:
        DataError: there is no such folder.
    """

    dtype = np.dtype(np.float16)

    def __init__(self, folder: str | Path, backbone: Backbone):
        self.place = Path(folder)
        if not self.place.is_dir():
            raise DataError(f"photos: expected a folder of photographs, found none at {self.place}")
        self._backbone = backbone
        self._boxes = grid_boxes(*backbone.grid)
        self.settings = {
            "photos": str(self.place.resolve()),
            "backbone": backbone.name,
            "size": backbone.size,
            "grid": list(backbone.grid),
            "width": backbone.width,
        }

    def find(self, image: CaptionedImage) -> tuple[str, Path] | None:
        """The photograph's name relative to the folder, and its file; a folder in the name may be missing on the disk."""
        for name in (image.name, Path(image.name).name):
            if (self.place / name).is_file():
                return name, self.place / name
        return None

    def load(self, key: Path) -> Tensor:
        """One photograph as the backbone's input."""
        return self._backbone.preprocess(read_photograph(key))

    def encode(self, loaded: Sequence[Tensor]) -> list[Regions]:
        """The regions of photographs."""
        return [Regions(features, self._boxes) for features in self._backbone(torch.stack(list(loaded))).numpy()]

    def examples(self) -> list[str]:
        """Some of the files that are there."""
        return sorted(path.name for path, _ in zip(self.place.iterdir(), range(3), strict=False))


def extract_images(images: Sequence[Image.Image | str | Path], backbone: Backbone, batch_size: int = 8) -> np.ndarray:
    """The region features of a few images, as `caan extract` would store them.

    Args:
        images: I images in memory, or their files.
        backbone: see `load_backbone`.
        batch_size: how many go through the backbone at once.

    Returns:
        (I, R, F) float16; the regions' places are `grid_boxes(*backbone.grid)`.

    Raises:
        DataError: a file cannot be read; the message names it.
    """
    features = np.empty((len(images), backbone.grid[0] * backbone.grid[1], backbone.width), dtype=np.float16)
    for start in range(0, len(images), batch_size):
        batch = torch.stack([backbone.preprocess(_opened(image)) for image in images[start : start + batch_size]])
        features[start : start + batch_size] = backbone(batch).numpy()
    return features


def grid_boxes(rows: int, columns: int) -> np.ndarray:
    """The cells of a grid, row by row: (rows · columns, 4) float32, x1 y1 x2 y2 as fractions of width and height."""
    top, left = np.divmod(np.arange(rows * columns), columns)
    return np.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], axis=1).astype(np.float32)


def _opened(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    try:
        return read_photograph(Path(image))
    except Unreadable as error:
        raise DataError(f"{image}: expected a photograph: {error}") from None


def read_photograph(path: Path) -> Image.Image:
    """A photograph, upright and in RGB.

    Raises:
        Unreadable: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("it is not an image" if path.stat().st_size else "the file is empty") from None
    except OSError as error:
        raise Unreadable(str(error)) from None
    # Pillow's decoders raise whatever they stumble over: SyntaxError, struct.error and more.
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None
