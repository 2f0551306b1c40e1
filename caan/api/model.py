"""A trained model, for programs: texts and images in, scores and rankings out."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

import caan_kernels as ck

from .. import checkpoint
from ..data import CaptionBatch, LengthBatches
from ..data import Images as SplitImages
from ..isolation import integers, isolated
from ..model import CAAN
from ..model import Encoded as Features
from ..scorer import tile_of
from ..unknown import nothing_known
from ..vocabulary import PAD, Vocabulary
from .images import Backbone, Image, Images, as_list, noted_backbone

_BATCH = 128


@dataclass(frozen=True)
class EncodedImages:
    """Images ready to be scored with any number of texts, from `Model.encode_images`; `len` is their number.

    Attributes:
        side: what the operator takes.
    """

    side: ck.ProjectedRegions | Features

    def __len__(self) -> int:
        return len(self.side.features)


@dataclass(frozen=True)
class EncodedTexts:
    """Texts ready to be scored with any number of images, from `Model.encode_texts`; `len` is their number.

    Attributes:
        side: what the operator takes.
        texts: as they were given.
    """

    side: ck.ProjectedWords | Features
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


class Hit(NamedTuple):
    """One item of a ranking.

    Attributes:
        item: its place among the candidates, from 0.
        score: the operator's.
    """

    item: int
    score: float


class Model:
    """A trained CAAN with its vocabulary, from `caan.load`.

    Args:
        network: the encoders and the operator; left in evaluation mode, on the device.
        vocabulary: its words.
        backbone: {"backbone": name, "size": pixels or None}, what turns photographs into the features that the model takes; None:
            images are given as features.
        device: where all of it runs.

    Examples:
        >>> import caan
        >>> model = caan.load("runs/pets", backbone="efficientnet-lite0")
        >>> images = model.encode_images(["photos/dog.png", "photos/cat.png", "photos/bird.png"])
        >>> texts = model.encode_texts(["a dog runs", "two cats"])
        >>> model.score(images, texts).shape
        torch.Size([3, 2])
        >>> best, *others = model.rank("a dog runs", images)
        >>> best.score >= others[0].score
        True
    """

    def __init__(
        self,
        network: CAAN,
        vocabulary: Vocabulary,
        *,
        backbone: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.network, self.vocabulary = network.to(self.device).eval(), vocabulary
        self._backbone = Backbone(backbone, network.config.region_width, self.device)

    @property
    def backbone(self) -> dict[str, Any] | None:
        """What turns photographs into features, if that is known."""
        return self._backbone.settings

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        backbone: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> "Model":
        """Read a model that `save_pretrained` wrote.

        Args:
            name: a folder; or OWNER/NAME of a model on the Hugging Face Hub, for which huggingface_hub must be installed.
            revision: of the Hub's model: a branch, tag or commit.
            backbone: as for `load`; None takes the one that was saved.
            device: where the model runs.

        Returns:
            What `load` gives.

        Raises:
            MissingFileError, FormatError: there is no such folder or model, or it is not a model of caan.
            ModuleNotFoundError: the name is not a folder, and huggingface_hub is not installed.
        """
        return load(checkpoint.pretrained_folder(name, revision), backbone=backbone, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a folder: `model.safetensors`, and `config.json` with the settings, the backbone and the vocabulary.

        `from_pretrained`, `load` and every command that takes a run read it.

        Args:
            folder: it is made if it is missing.

        Raises:
            ValueError: the folder holds a run.
            OSError: a file cannot be written.
        """
        checkpoint.save_pretrained(folder, self.network, self.vocabulary, {"backbone": self.backbone})

    def features(self, images: Iterable[Image]) -> list[np.ndarray]:
        """The region features of images, (R, F) each, float32 or float16: those of photographs are made by the backbone.

        Raises:
            TypeError, ValueError, DataError: as `encode_images`.
        """
        return self._backbone.features(list(images))

    @isolated()
    def encode_images(self, images: Images) -> EncodedImages:
        """Encode and project images once, for any number of texts.

        Args:
            images: one or several, each a photograph (its file, or a Pillow image) or its (R, F) region features; (I, R, F)
                features are I images.

        Returns:
            The images, in their order: (I, R, D + 2H) float32 numbers in memory, R the largest number of regions.

        Raises:
            TypeError, ValueError: an image is none of these, or has features of another width than the model's.
            DataError: a photograph cannot be read; the message names it.
        """
        features = self.features(as_list(images, (str, Path, Pillow.Image)))

        def encoded() -> Iterator[tuple[slice, Any]]:
            for first in range(0, len(features), _BATCH):
                places = slice(first, first + _BATCH)
                batch = SplitImages.collate(list(enumerate(features[places])))
                yield places, self.network.prepare_images(batch.to(self.device))

        if not features:
            raise ValueError("images: expected at least one, got none")
        return EncodedImages(_joined(encoded(), len(features), max(map(len, features))))

    @isolated()
    def encode_texts(self, texts: str | Iterable[str]) -> EncodedTexts:
        """Encode and project texts once, for any number of images.

        Args:
            texts: one or several. A word that the model does not know counts as <unk>; `unknown_words` names them.

        Returns:
            The texts, in their order: (T, N, 2D + 2H) float32 numbers in memory, N the largest number of words, marks
                included.

        Raises:
            ValueError: a text has no words, or no text is given.
        """
        texts = as_list(texts, (str,))
        ids = [self.vocabulary.encode(text) for text in texts]
        for text, own in zip(texts, ids, strict=True):
            # Beside the marks for start and end.
            if len(own) == 2:
                raise ValueError(f"texts: expected texts with words, got {text!r}")
        if not texts:
            raise ValueError("texts: expected at least one, got none")
        lengths = np.array([len(own) for own in ids])

        def encoded() -> Iterator[tuple[list[int], Any]]:
            for places in LengthBatches(lengths, _BATCH):
                longest = int(lengths[places].max())
                words = integers([ids[place] + [PAD] * (longest - len(ids[place])) for place in places])
                batch = CaptionBatch(words, integers(lengths[places].tolist()), integers(places))
                yield places, self.network.prepare_captions(batch.to(self.device))

        return EncodedTexts(_joined(encoded(), len(texts), int(lengths.max())), texts)

    @isolated()
    def score(self, images: Images | EncodedImages, texts: str | Iterable[str] | EncodedTexts) -> Tensor:
        """Score every image with every text.

        Args:
            images: encoded, or as for `encode_images`.
            texts: encoded, or as for `encode_texts`.

        Returns:
            (I, T) float32 on the CPU; a larger score is a better match.

        Raises:
            TypeError, ValueError, DataError: as `encode_images` and `encode_texts`.
        """
        images = images if isinstance(images, EncodedImages) else self.encode_images(images)
        texts = texts if isinstance(texts, EncodedTexts) else self.encode_texts(texts)
        rows, columns = tile_of([self.network], self.device)
        scores = torch.empty(len(images), len(texts), dtype=torch.float32, device="cpu")
        for i in range(0, len(images), rows):
            for t in range(0, len(texts), columns):
                tile = self.network.attention(_part(images.side, i, i + rows), _part(texts.side, t, t + columns))
                scores[i : i + rows, t : t + columns] = tile.cpu()
        return scores

    def rank(
        self,
        query: str | Image | EncodedImages | EncodedTexts,
        candidates: Images | Iterable[str] | EncodedImages | EncodedTexts,
        top: int = 10,
    ) -> list[Hit]:
        """The best images for a text, or the best texts for an image.

        Args:
            query: a text (a string), or an image: a `pathlib.Path`, a Pillow image or (R, F) features; or one encoded before.
            candidates: images for a text, texts for an image; encoded before, or as for `encode_images` and `encode_texts`.
            top: how many; fewer where there are fewer.

        Returns:
            The best first; of equal scores the first among the candidates comes first.

        Raises:
            TypeError, ValueError, DataError: as `encode_images` and `encode_texts`; the query is not a single one; top is below 1.
        """
        if top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        of_text = isinstance(query, (str, EncodedTexts))
        if isinstance(candidates, EncodedTexts if of_text else EncodedImages):
            wanted, got = ("images", "texts") if of_text else ("texts", "images")
            hint = "; a string is a text, name a photograph's file by a pathlib.Path" if isinstance(query, str) else ""
            raise TypeError(f"candidates: expected {wanted} for {'a text' if of_text else 'an image'}, got {got}{hint}")
        if isinstance(query, str):
            self.check_known(query)
        elif not isinstance(query, (EncodedImages, EncodedTexts)):
            query = self.encode_images(self._asked(query))
        scores = self.score(candidates, query) if of_text else self.score(query, candidates)
        if scores.shape[1 if of_text else 0] != 1:
            raise ValueError(f"query: expected one, got {scores.shape[1 if of_text else 0]}")
        best = scores.flatten().argsort(descending=True, stable=True)[:top]
        return [Hit(item, scores.flatten()[item].item()) for item in best.tolist()]

    def _asked(self, query: Any) -> list[np.ndarray]:
        """The features of the one image that is a query."""
        images = as_list(query, (Path, Pillow.Image)) if isinstance(query, Iterable) else [query]
        if len(images) != 1:
            raise ValueError(f"query: expected one, got {len(images)}")
        return self._backbone.features(images, "query")

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model does not know, in their order."""
        return self.vocabulary.unknown(text)

    def check_known(self, query: str) -> None:
        """See that the model knows a word of a query.

        Raises:
            ValueError: it knows no word.
        """
        if not self.vocabulary.knows(query):
            # Path.is_file raises where a text is too long for a file's name.
            if os.path.isfile(query):
                raise ValueError(f"query: expected a text, got the file {query!r}: name a photograph by a pathlib.Path")
            raise ValueError(f"query: {nothing_known(self.vocabulary, query)}")


def load(run: str | Path, *, backbone: str | Path | None = None, device: torch.device | str = "cpu") -> Model:
    """Read a trained model.

    Args:
        run: the folder of a run of `caan train`, a checkpoint, or a folder of `Model.save_pretrained`.
        backbone: what turns photographs into features: a name as `caan extract` takes it, or the data folder that
            `caan extract` has made, whose record names it; None: the backbone that the run recorded in training, if any.
        device: where the model runs.

    Raises:
        MissingFileError, FormatError: there is no model, or the data folder names no backbone.

    Examples:
        >>> import caan
        >>> model = caan.load("runs/pets")
        >>> len(model.vocabulary) > 4
        True
    """
    network, vocabulary, facts = checkpoint.load_model(run)
    settings = facts.get("backbone") if backbone is None else noted_backbone(backbone)
    return Model(network, vocabulary, backbone=settings, device=device)


def _joined(parts: Iterator[tuple[Any, Any]], count: int, longest: int) -> Any:
    """Sides of some items each as one of all: `count` items of `longest` rows; a part is its items' places and their side."""
    whole: Any = None
    for places, side in parts:
        *tensors, lengths = side
        if whole is None:
            whole = type(side)(*(x.new_zeros(count, longest, x.shape[2]) for x in tensors), lengths.new_zeros(count))
        for x, of_part in zip(whole, side, strict=True):
            if x.dim() == 3:
                x[places, : of_part.shape[1]] = of_part
            else:
                x[places] = of_part
    return whole


def _part(side: Any, first: int, end: int) -> Any:
    """Some items of a side."""
    return type(side)(*(x[first:end] for x in side))
