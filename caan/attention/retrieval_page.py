"""The retrieval page: queries, what was found for each, and the words and regions that decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..extraction import read_photograph
from ..photographs import Unreadable
from .heat import COLOUR, GREY, LIMIT, MOST_DARK, MOST_OPAQUE, even_share, evenness, painted, strength
from .rendering import embedded, write_page

_THUMBNAIL = 320
# A word with less than an even share of attention is drawn fainter, at most by so much.
_MOST_FADED = 0.5


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        name: what the gallery calls the item: an image's id, or a caption's text.
        score: by which it was found.
        right: whether it is a right answer; None where that is not known.
        photograph: shown where there is one; an error says on the page why there is none.
        words: the pair's words in order, each with its attention; these sum to 1.
        regions: boxes x1 y1 x2 y2 as fractions of the photograph, each with its attention; these sum to 1. A second picture
            shows the photograph under them.
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
    system is. Words and photographs are orange where attention is more than an even share, fainter and darker where it is less.

    A photograph that cannot be read is replaced by a line that says why.

    Args:
        path: the HTML file; it is replaced whole or not at all.
        title: the heading.
        answers: the queries, in the page's order.

    Raises:
        OSError: the file cannot be written.
    """
    known = [answer for answer in answers if any(hit.right is not None for hit in answer.hits)]
    hits = [hit for answer in answers for hit in answer.hits]
    answered = sum(any(hit.right for hit in answer.hits) for answer in known)
    write_page(
        path,
        "retrieval.html",
        title=title,
        answers=answers,
        known=len(known),
        answered=answered,
        thumbnail_of=cache(_thumbnail),
        under=_under,
        shades=lambda words: list(_shades(words)),
        even=evenness(np.concatenate([[1.0], *(_ratios(side) for hit in hits for side in (hit.words, hit.regions) if side)])),
        legend={"words": any(hit.words for hit in hits), "regions": any(hit.regions for hit in hits)},
        colour=COLOUR,
        grey=GREY,
        most_opaque=MOST_OPAQUE,
        most_dark=MOST_DARK,
        limit=LIMIT,
    )


class _Thumbnail(NamedTuple):
    """A photograph, small and in RGB, and the same for the page; or why there is none."""

    image: Image.Image | None = None
    url: str = ""
    reason: str = ""


def _thumbnail(path: Path | Unreadable) -> _Thumbnail:
    if isinstance(path, Unreadable):
        return _Thumbnail(reason=str(path))
    try:
        image = read_photograph(path)
    except Unreadable as error:
        return _Thumbnail(reason=str(error))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _Thumbnail(image, embedded(image, "jpeg"))


def _ratios(items: Sequence[tuple[Any, float]]) -> np.ndarray:
    """The attention of words or regions over an even share."""
    return np.array([attention for _, attention in items]) / even_share(len(items))


def _under(image: Image.Image, regions: Sequence[tuple[Sequence[float], float]]) -> str:
    """The photograph under its regions' attention, for the page."""
    return embedded(painted(image, np.array([box for box, _ in regions]), _ratios(regions)), "jpeg")


def _shades(words: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float, float, float]]:
    """Words with their attention, how opaque the colour behind them is, and how opaque they are themselves."""
    for (word, attention), more in zip(words, strength(_ratios(words)), strict=True):
        yield word, attention, MOST_OPAQUE * max(more, 0), 1 + _MOST_FADED * min(more, 0)
