"""The retrieval page: queries, what was found for each, and the words and regions that decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..extraction import read_photograph
from ..photographs import Unreadable
from .heat import heat_image
from .rendering import embedded, write_page

_THUMBNAIL = 320
# So opaque are the strongest word's colour, and the shadow over the weakest region.
_OPAQUE = 0.6
_COLOUR = (255, 106, 0)


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        name: what the gallery calls the item: an image's id, or a caption's text.
        score: by which it was found.
        right: whether it is a right answer; None where that is not known.
        photograph: shown where there is one; an error says on the page why there is none.
        words: the pair's words in order, each with its attention; these sum to 1.
        regions: boxes x1 y1 x2 y2 as fractions of the photograph, each with its attention; the photograph
            is darker where they have less.
    """

    name: str
    score: float
    right: bool | None = None
    photograph: Path | Unreadable | None = None
    words: Sequence[tuple[str, float]] = ()
    regions: Sequence[tuple[Sequence[float], float]] = ()


@dataclass(frozen=True)
class Answer:
    """A query, and the items found for it, the best first.

    Attributes:
        query: a text, or an image's id.
        hits: what was found.
        photograph: of an image that is the query, likewise.
        note: a line under the query, for instance how it was searched.
    """

    query: str
    hits: Sequence[Hit]
    photograph: Path | Unreadable | None = None
    note: str = ""


def write_retrieval_page(path: str | Path, title: str, answers: Sequence[Answer]) -> None:
    """Write a page that one file holds: thumbnails inside, no scripts, nothing from a network; light or dark as the reader's
    system is.

    A photograph that cannot be read is replaced by a line that says why.

    Args:
        path: the HTML file; it is replaced whole or not at all.
        title: the heading.
        answers: the queries, in the page's order.

    Raises:
        OSError: the file cannot be written.
    """
    known = [answer for answer in answers if any(hit.right is not None for hit in answer.hits)]
    answered = sum(any(hit.right for hit in answer.hits) for answer in known)
    write_page(
        path,
        "retrieval.html",
        title=title,
        answers=answers,
        known=len(known),
        answered=answered,
        thumbnail_of=cache(_thumbnail),
        shadow=_shadow,
        shades=lambda words: list(_shades(words)),
        colour=_COLOUR,
    )


class _Thumbnail(NamedTuple):
    """A photograph in the page, or why there is none."""

    url: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def _thumbnail(path: Path | Unreadable) -> _Thumbnail:
    if isinstance(path, Unreadable):
        return _Thumbnail(reason=str(path))
    try:
        image = read_photograph(path)
    except Unreadable as error:
        return _Thumbnail(reason=str(error))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _Thumbnail(embedded(image, "jpeg"), *image.size)


def _shadow(regions: Sequence[tuple[Sequence[float], float]]) -> str:
    """An image to lie over the photograph: the less attention a place has, the darker. A colour would hide the photograph's own."""
    boxes, values = zip(*regions, strict=True)
    least, most = min(values), max(values)
    heat = np.nan_to_num(heat_image(np.array(boxes), np.array(values)), nan=least)
    pixels = np.zeros((*heat.shape, 4), dtype=np.uint8)
    pixels[..., 3] = np.rint(255 * _OPAQUE * (most - heat) / max(most - least, 1e-12))
    return embedded(Image.fromarray(pixels), "png")


def _shades(words: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float, float]]:
    """Words with their attention and how opaque their colour is."""
    most = max((attention for _, attention in words), default=0)
    for word, attention in words:
        yield word, attention, _OPAQUE * attention / max(most, 1e-12)
