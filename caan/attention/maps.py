"""What the operator attends to in a pair: its maps, with the words' texts and the regions' places."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import caan_kernels as ck

from ..data import Captions, Images, Split
from ..errors import FormatError, MissingFileError
from ..extraction import grid_boxes
from ..isolation import isolated
from ..model import CAAN
from ..vocabulary import Vocabulary, tokenize

_BATCH = 32
# Boxes of other tools may stick out of their photograph by a rounding.
_SLACK = 0.01


@dataclass(frozen=True)
class PairAttention:
    """One pair of an image with R real regions and a caption of N words; float32, maps as in `caan_kernels.AttentionMaps`.

    Attributes:
        image: which image of the split.
        image_id: what the data set calls it.
        caption: the caption's text.
        words: the N words as the model sees them, from <start> to <end>; one that it does not know is <unk:word>.
        right: whether the caption is one of the image's own; None for a text that is not in the split.
        score: of the pair.
        boxes: (R, 4), x1 y1 x2 y2 as fractions of the photograph.
        region_attention: (R,), f.
        word_attention: (N,), g.
        alignment: (R, N), A.
        word_to_region: (R, N), C: column j says where word j looks.
        region_to_word: (N, R), Rᵀ: column r says which words region r looks at.
        region_affinity: (R, R), Hᵛ.
        word_affinity: (N, N), Hᵘ.
    """

    image: int
    image_id: str
    caption: str
    words: list[str]
    right: bool | None
    score: float
    boxes: np.ndarray
    region_attention: np.ndarray
    word_attention: np.ndarray
    alignment: np.ndarray
    word_to_region: np.ndarray
    region_to_word: np.ndarray
    region_affinity: np.ndarray
    word_affinity: np.ndarray


class RegionBoxes:
    """Where the regions of a split's images are.

    They are read from `{split}_boxes.npy` beside the features, (N, R, 4) fractions x1 y1 x2 y2. Without that file regions are
    taken for the cells of a square grid, row by row, if their number is a square.

    Attributes:
        assumed: the side of the grid where it is assumed; None where boxes are read.

    Raises:
        MissingFileError: there is no such file, and the regions cannot be a square grid.
        FormatError: the file is not such an array.
    """

    def __init__(self, split: Split):
        regions = split.regions
        self._split = split
        self.path = regions.path.with_name(f"{regions.path.stem.removesuffix('_ims')}_boxes.npy")
        self.assumed = None
        if self.path.is_file():
            self._boxes = _read_boxes(self.path, (len(regions), regions.max_regions, 4))
            return
        side = math.isqrt(regions.max_regions)
        if side**2 != regions.max_regions or (split.region_counts != regions.max_regions).any():
            counts = np.unique(split.region_counts)
            found = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            raise MissingFileError(
                f"{self.path}: expected the regions' boxes, found no such file; only images whose regions are a square grid can "
                f"be shown without, and these have {found} regions"
            )
        self.assumed = side
        self._boxes = np.broadcast_to(grid_boxes(side, side), (len(regions), side**2, 4))

    def __getitem__(self, image: int) -> np.ndarray:
        """(R, 4) float32 of one image's real regions.

        Raises:
            FormatError: a box is not in fractions of the photograph.
        """
        boxes = np.array(self._boxes[self._split.rows[image], : self._split.region_counts[image]], dtype=np.float32)
        ordered = (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)
        # NaN is not in range either.
        wrong = np.flatnonzero(~(((boxes >= -_SLACK) & (boxes <= 1 + _SLACK)).all(axis=1) & ordered))
        if wrong.size:
            box = ", ".join(f"{number:g}" for number in boxes[wrong[0]])
            raise FormatError(
                f"{self.path}: expected boxes x1 y1 x2 y2 as fractions of the photograph, found {box} for region {wrong[0]} of "
                f"image {self._split.ids[image]}"
            )
        return boxes.clip(0, 1)


def explain(
    model: CAAN,
    vocabulary: Vocabulary,
    split: Split,
    pairs: Sequence[tuple[int, int | str]],
    *,
    device: torch.device | str = "cpu",
    boxes: RegionBoxes | Sequence[np.ndarray] | None = None,
) -> Iterator[PairAttention]:
    """The operator's maps of some pairs, in their order; memory is that of one batch of pairs, however many there are.

    Args:
        model, vocabulary: the model is left on the device, in evaluation mode.
        split: what the images, and captions given by number, are of.
        pairs: of each the image's number, and the caption's number in the split or a text of one's own.
        device: where.
        boxes: of each image of the split; None opens them.

    Raises:
        ValueError: an image or a caption is not there.
        DataError: the features cannot be used, or have another width than the model's; no boxes are known.
    """
    split.regions.require_width(model.config.region_width)
    for image, caption in pairs:
        for name, number, count in (("image", image, split.num_images), ("caption", caption, len(split.captions))):
            if not isinstance(number, str) and not 0 <= number < count:
                raise ValueError(f"pairs: expected {name}s from 0 to {count - 1}, got {number}")
    boxes = RegionBoxes(split) if boxes is None else boxes
    model = model.to(device).eval()
    return _explained(model, vocabulary, split, pairs, torch.device(device), boxes)


def _explained(
    model: CAAN,
    vocabulary: Vocabulary,
    split: Split,
    pairs: Sequence[tuple[int, int | str]],
    device: torch.device,
    boxes: RegionBoxes | Sequence[np.ndarray],
) -> Iterator[PairAttention]:
    images = Images(split)
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        texts = [caption if isinstance(caption, str) else split.captions[caption] for _, caption in batch]
        ids = [np.array(vocabulary.encode(text)) for text in texts]
        with isolated():
            regions = model.prepare_images(images.collate([images[image] for image, _ in batch]).to(device))
            words = model.prepare_captions(Captions.collate(list(enumerate(ids))).to(device))
            diagonal = torch.arange(len(batch), device="cpu").repeat(2, 1).T.contiguous()
            maps = model.attention.maps(regions, words, diagonal)
        maps = ck.AttentionMaps(*(part.float().cpu().numpy() for part in maps))
        for number, (image, caption) in enumerate(batch):
            r, n = int(split.region_counts[image]), len(ids[number])
            yield PairAttention(
                image=image,
                image_id=split.ids[image],
                caption=texts[number],
                words=_shown(texts[number], vocabulary),
                right=_right(split, image, caption),
                score=float(maps.scores[number]),
                boxes=boxes[image],
                region_attention=maps.region_attention[number, :r],
                word_attention=maps.word_attention[number, :n],
                alignment=maps.alignment[number, :r, :n],
                word_to_region=maps.word_to_region[number, :r, :n],
                region_to_word=maps.region_to_word[number, :n, :r],
                region_affinity=maps.region_affinity[number, :r, :r],
                word_affinity=maps.word_affinity[number, :n, :n],
            )


def _shown(text: str, vocabulary: Vocabulary) -> list[str]:
    return ["<start>", *(word if word in vocabulary else f"<unk:{word}>" for word in tokenize(text)), "<end>"]


def _right(split: Split, image: int, caption: int | str) -> bool | None:
    if isinstance(caption, str):
        return True if caption in (split.captions[own] for own in np.flatnonzero(split.image_of_caption == image)) else None
    return bool(split.image_of_caption[caption] == image)


def _read_boxes(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        boxes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: expected a .npy file of boxes: {error}") from None
    if not isinstance(boxes, np.ndarray) or boxes.shape != shape or boxes.dtype.kind != "f":
        found = f"shape {boxes.shape}, {boxes.dtype}" if isinstance(boxes, np.ndarray) else type(boxes).__name__
        raise FormatError(f"{path}: expected {shape} floating point, four numbers a region, found {found}")
    return boxes
