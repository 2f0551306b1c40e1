"""Attention over regions as an image that can lie over a photograph of any size."""

import numpy as np

SIDE = 180


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
