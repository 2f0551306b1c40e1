"""Photographs: found, decoded and put through a backbone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..photographs import PhotoFolder, Unreadable
from .backbones import Backbone
from .pixels import as_rgb, read_photograph
from .regions import Regions
from .sources import CaptionedImage


class FoundPhotographs:
    """A folder of photographs that has been looked through: of a `RegionSource`, what needs no backbone.

    Args:
        folder: where they are; or what has looked through it.

    Raises:
        DataError: there is no such folder, or no photograph in it.
    """

    def __init__(self, folder: str | Path | PhotoFolder):
        self.photographs = folder if isinstance(folder, PhotoFolder) else PhotoFolder(folder)
        self.place = self.photographs.folder

    def find(self, image: CaptionedImage) -> tuple[str, Path] | None:
        """The photograph's name in the folder, by which `PhotoFolder` finds it again, and its file."""
        path = self.photographs.find(image.name)
        return None if path is None else (self.photographs.name_of(path), path)

    def images(self) -> list[CaptionedImage]:
        """All photographs of the folder."""
        return [CaptionedImage(name, []) for name in self.photographs.names()]

    def examples(self) -> list[str]:
        """The names of some photographs that are there."""
        return self.photographs.examples()


class Photographs(FoundPhotographs):
    """A folder of photographs as a source of regions, float16; see `RegionSource`.

    Args:
        folder: where they are; or what has looked through it.
        backbone: what turns them into regions.

    Raises:
        DataError: there is no such folder, or no photograph in it.
    """

    dtype = np.dtype(np.float16)

    def __init__(self, folder: str | Path | PhotoFolder, backbone: Backbone):
        super().__init__(folder)
        self._backbone = backbone
        self._boxes = grid_boxes(*backbone.grid)
        self.settings = {
            "photos": str(self.place.resolve()),
            "backbone": backbone.name,
            "size": backbone.size,
            "grid": list(backbone.grid),
            "width": backbone.width,
        }

    def load(self, key: Path) -> Tensor:
        """One photograph as the backbone's input."""
        return self._backbone.preprocess(read_photograph(key))

    def encode(self, loaded: Sequence[Tensor]) -> list[Regions]:
        """The regions of photographs."""
        return [Regions(features, self._boxes) for features in self._backbone(torch.stack(list(loaded))).numpy()]


def extract_images(images: Sequence[Image.Image | str | Path], backbone: Backbone, batch_size: int = 8) -> np.ndarray:
    """The region features of a few images, as `caan extract` would store them.

    Args:
        images: I images in memory, or their files.
        backbone: see `load_backbone`.
        batch_size: how many go through the backbone at once.

    Returns:
        (I, R, F) float16; the regions' places are `grid_boxes(*backbone.grid)`.

    Raises:
        DataError: an image cannot be read; the message names its file.
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
    try:
        return as_rgb(image) if isinstance(image, Image.Image) else read_photograph(image)
    except Unreadable as error:
        name = "images" if isinstance(image, Image.Image) else image
        raise DataError(f"{name}: expected a photograph: {error}") from None
