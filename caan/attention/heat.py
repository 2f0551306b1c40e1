"""Attention relative to an even spread, as colours over a photograph that keeps its own."""

import numpy as np
from PIL import Image

SIDE = 180
# From so many times an even share on, and from its inverse down, colours do not change any more.
LIMIT = 3.0
# Differences from an even share below this are hardly seen as colours.
NEARLY_EVEN = 0.1
# What has more than an even share is covered by the first colour, what has less by black, at most so opaque.
COLOUR = (255, 122, 0)
MOST_OPAQUE = 0.55
MOST_DARK = 0.65
# Stands for a photograph where there is none.
GREY = (185, 191, 199)


def even_share(count: int) -> float:
    """Each of `count` weights that sum to 1, were they all the same."""
    return 1 / max(count, 1)


def even_part(count: int) -> float:
    """Each of `count` weights whose squares sum to 1, as in a column of C, were they all the same."""
    return max(count, 1) ** -0.5


def strength(ratios: np.ndarray) -> np.ndarray:
    """How much more or less than an even share attention is.

    Args:
        ratios: of any shape, attention over an even share; 0 and more.

    Returns:
        The same shape: 0 for an even share, 1 for `LIMIT` times as much or more, -1 for so many times less or less.
    """
    return np.clip(np.log(np.maximum(ratios, 1e-12)) / np.log(LIMIT), -1, 1)


def evenness(ratios: np.ndarray) -> str:
    """How far attention is from an even share at most, as a percentage; an empty string where colours show the difference.

    Args:
        ratios: as in `strength`.
    """
    most = float(np.abs(np.asarray(ratios) - 1).max(initial=0))
    return f"{100 * most:.2g}%" if most < NEARLY_EVEN else ""


def heat_image(boxes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Paint boxes, stronger ones over weaker ones.

    Args:
        boxes: (R, 4), x1 y1 x2 y2 as fractions of the photograph's width and height.
        values: (R,).

    Returns:
        (SIDE, SIDE) float32, to be stretched to the photograph: at each place the largest value of the boxes over it, NaN
        where there is none.
    """
    heat = np.full((SIDE, SIDE), np.nan, dtype=np.float32)
    edges = np.clip(np.rint(np.asarray(boxes) * SIDE), 0, SIDE).astype(int)
    for region in np.argsort(values, kind="stable"):
        left, top, right, bottom = edges[region]
        heat[top : max(bottom, top + 1), left : max(right, left + 1)] = values[region]
    return heat


def painted(photograph: Image.Image, boxes: np.ndarray, ratios: np.ndarray) -> Image.Image:
    """A photograph under attention: as it is where regions have an even share, orange over what has more, darker where there is
    less, or no region.

    Args:
        photograph: in RGB.
        boxes: (R, 4), as in `heat_image`.
        ratios: (R,), the regions' attention over an even share.

    Returns:
        A new picture in RGB, of the photograph's size.
    """
    heat = np.nan_to_num(heat_image(boxes, ratios), nan=0.0)
    heat = np.asarray(Image.fromarray(heat).resize(photograph.size, Image.Resampling.NEAREST))
    return Image.fromarray(_covered(np.asarray(photograph.convert("RGB")), heat))


def scale(ratios: np.ndarray) -> np.ndarray:
    """The colours of some ratios, over grey: (N,) to (1, N, 3) uint8."""
    return _covered(np.full((1, len(ratios), 3), GREY, dtype=np.uint8), ratios[None])


def _covered(pixels: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    more = strength(ratios)[..., None]
    dark = 1 + MOST_DARK * np.minimum(more, 0)
    opaque = MOST_OPAQUE * np.maximum(more, 0)
    return np.rint(pixels * dark * (1 - opaque) + np.array(COLOUR) * opaque).astype(np.uint8)
