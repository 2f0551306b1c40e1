"""Images as a program has them: photographs, or features of their regions."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from ..data import records
from ..errors import MissingFileError

if TYPE_CHECKING:
    from ..extraction import MapBackbone

# A photograph, by its file or in memory, or (R, F) features of its regions.
Image: TypeAlias = str | Path | Pillow.Image | np.ndarray | Tensor
Images: TypeAlias = Image | Iterable[Image]


class Backbone:
    """What turns photographs into features: loaded when the first photograph comes.

    Args:
        settings: {"backbone": its name, "size": pixels along a side, or None}, as `caan extract` notes them; None where no backbone
            is known.
        width: F, of the features that the model takes.
        device: where it runs.
    """

    def __init__(self, settings: dict[str, Any] | None, width: int, device: torch.device):
        self.settings, self._width, self._device = settings, width, device
        self._loaded: MapBackbone | None = None

    def features(self, images: list, called: str | None = None) -> list[np.ndarray]:
        """(R, F) features of each image.

        Args:
            images: photographs, or features of their regions.
            called: what errors call each of them; None: "images[0]" and so on.

        Raises:
            TypeError, ValueError: an image is none of those that `Image` names, its features do not fit, or no backbone is known.
            DataError: a photograph cannot be read.
        """
        given = [self._given(image, called or f"images[{number}]") for number, image in enumerate(images)]
        photographs = [image for image, features in zip(images, given, strict=True) if features is None]
        made = iter(self._made(photographs, called or "images") if photographs else ())
        return [next(made) if features is None else features for features in given]

    def _given(self, image: Any, called: str) -> np.ndarray | None:
        """Features that are given; None for a photograph."""
        if isinstance(image, (str, Path, Pillow.Image)):
            return None
        if isinstance(image, Tensor):
            image = image.detach().cpu().numpy() if image.dtype != torch.bfloat16 else image.detach().cpu().float().numpy()
        if not isinstance(image, np.ndarray):
            raise TypeError(f"{called}: expected a photograph or features (R, F), got {type(image).__name__}")
        if image.ndim != 2 or not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"{called}: expected floating-point features (R, F), got {image.dtype} {image.shape}")
        if image.shape[1] != self._width:
            raise ValueError(f"{called}: expected features of width {self._width}, the model's, got shape {image.shape}")
        if not np.isfinite(image).all():
            raise ValueError(f"{called}: expected finite features, got NaN or infinity")
        return image if image.dtype == np.float16 else image.astype(np.float32, copy=False)

    def _made(self, photographs: list, called: str) -> np.ndarray:
        from ..extraction import extract_images, load_backbone

        if self.settings is None:
            raise ValueError(
                f"{called}: expected features (R, F), since it is not known which backbone made those of the training, got a "
                "photograph; caan.load(..., backbone=NAME or the data folder of caan extract) says it"
            )
        if self._loaded is None:
            self._loaded = load_backbone(self.settings["backbone"], self.settings.get("size"), self._device)
        if self._loaded.width != self._width:
            raise ValueError(
                f"backbone: expected features of width {self._width}, the model's, got {self._loaded.width} from "
                f"{self.settings['backbone']}"
            )
        return extract_images(photographs, self._loaded)


def as_list(items: Any, single: tuple[type, ...]) -> list:
    """Several items as a list; one alone, of a type in `single` or an array of two dimensions, as a list of one."""
    alone = isinstance(items, single) or (isinstance(items, (np.ndarray, Tensor)) and items.ndim == 2)
    return [items] if alone else list(items)


def noted_backbone(backbone: str | Path) -> dict[str, Any]:
    """The settings of a backbone, by its name or by a data folder that `caan extract` has made.

    Raises:
        MissingFileError, FormatError: the folder does not say which backbone made its features.
    """
    folder = Path(backbone)
    if not folder.is_dir():
        return {"backbone": str(backbone), "size": None}
    for record in records(folder).values():
        if record.settings:
            return record.settings
    raise MissingFileError(f"{folder}: expected the record of a backbone, *_extract.json of caan extract, found none")
