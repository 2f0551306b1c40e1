"""A synthetic data set of photographs and captions: coloured shapes on a soft background, and what can be said of them.

A scene is two to four items, each a shape in a colour and a size, in different places of a grid of three by three. All of
it follows from (seed, split, index); nothing is read and nothing is downloaded.

Held out. Eight of the 64 pairs of colour and shape, `HELD_OUT`, occur in no scene of train or dev, and at least one of
them in every scene of test. Each colour and each shape is in exactly one of the pairs, so train shows red things and
stars, and test asks for a red star. No caption of train or dev has a held-out pair either: a caption says only what is
there.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..files import replacing

SPLITS = ("train", "dev", "test")
SIDE = 192
"""Height and width of a photograph, in pixels."""
CAPTIONS_FILE = "captions.csv"
MARGIN = 6
"""Pixels at each edge that no item reaches."""

COLOURS = {
    "red": (214, 40, 48),
    "orange": (245, 130, 20),
    "yellow": (250, 214, 40),
    "green": (34, 150, 74),
    "blue": (28, 92, 214),
    "purple": (124, 52, 168),
    "black": (34, 34, 40),
    "white": (252, 252, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
SIZES = {"small": (13, 15), "large": (23, 28)}
"""Least and greatest radius of each size, in pixels."""
BACKGROUNDS = {
    "grey": (172, 176, 182),
    "sand": (214, 190, 150),
    "rose": (222, 168, 172),
    "mint": (156, 206, 178),
    "sky": (150, 192, 222),
    "lilac": (190, 174, 218),
}
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("orange", "cross"),
        ("yellow", "heart"),
        ("green", "moon"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("black", "ring"),
        ("white", "square"),
    }
)
"""The pairs (colour, shape) that only test has."""
PLACES = (
    (("in the top left corner", "at the top left"), ("at the top",), ("in the top right corner", "at the top right")),
    (("on the left",), ("in the middle", "in the centre"), ("on the right",)),
    (
        ("in the bottom left corner", "at the bottom left"),
        ("at the bottom",),
        ("in the bottom right corner", "at the bottom right"),
    ),
)
"""PLACES[r][c]: what the place in row r and column c is called."""

_KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_SEEN = tuple(kind for kind in _KINDS if kind not in HELD_OUT)
_HELD_OUT = tuple(kind for kind in _KINDS if kind in HELD_OUT)
_CELL = (SIDE - 2 * MARGIN) // 3
_MAX_TILT = 12
_MAX_SHIFT = 9
# Shapes are drawn this much larger and reduced, which smooths their edges.
_OVERSAMPLING = 4
_SHADOW_COLOUR = (20, 20, 40)
_SHADOW_BLUR = 3
_SHADOW_OPACITY = 0.45
_SHADOW_OFFSET = 3


@dataclass(frozen=True)
class Item:
    """A shape of a scene.

    Attributes:
        shape: one of SHAPES.
        colour: one of COLOURS.
        size: one of SIZES.
        x, y: its centre in pixels from the left and from the top.
        radius: in pixels; nothing of the shape is further than this from its centre in x or in y.
        tilt: degrees by which it is turned, anticlockwise.
    """

    shape: str
    colour: str
    size: str
    x: int
    y: int
    radius: int
    tilt: int

    @property
    def row(self) -> int:
        """0 at the top to 2 at the bottom."""
        return 3 * self.y // SIDE

    @property
    def column(self) -> int:
        """0 on the left to 2 on the right."""
        return 3 * self.x // SIDE


@dataclass(frozen=True)
class Scene:
    """What a photograph shows.

    Attributes:
        background: one of BACKGROUNDS.
        items: two to four, no two of the same colour and shape, each within a place of its own.
    """

    background: str
    items: tuple[Item, ...]


def make_split(split: str, count: int, seed: int = 0) -> list[Scene]:
    """The scenes of a split. A smaller count gives the first scenes of a greater one.

    Args:
        split: "train", "dev" or "test".
        count: how many.
        seed: at least 0.

    Raises:
        ValueError: split or seed is none of these.
    """
    return [_make_scene(split, _generator(seed, split, index, "scene")) for index in range(count)]


def write_split(folder: str | Path, split: str, count: int, seed: int = 0) -> Path:
    """Write the photographs of a split and its captions, five a photograph, in the layout that `caan extract` reads.

    Args:
        folder: is made where it is not there; gets `00000.png` and so on, and `captions.csv` with the columns image and
            caption, which is written last.
        split, count, seed: as for `make_split`.

    Returns:
        The path of `captions.csv`.

    Raises:
        ValueError: as for `make_split`.
    """
    scenes = make_split(split, count, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / CAPTIONS_FILE
    with replacing(table) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("image", "caption"))
        for index, scene in enumerate(scenes):
            name = f"{index:05}.png"
            render(scene).save(folder / name, compress_level=1)
            captions = describe(scene, _generator(seed, split, index, "captions"))
            rows.writerows((name, caption) for caption in captions)
    return table


def render(scene: Scene) -> Image.Image:
    """Draw a scene: (SIDE, SIDE) pixels, RGB. The pixels are the same on every machine for a given Pillow."""
    image = _background(scene.background).copy()
    masks = [_mask(item.shape, item.radius, item.tilt) for item in scene.items]
    for item, mask in zip(scene.items, masks, strict=True):
        image.paste(_SHADOW_COLOUR, _corner(item, mask, _SHADOW_OFFSET), _shadow(item.shape, item.radius, item.tilt))
    for item, mask in zip(scene.items, masks, strict=True):
        image.paste(_paint(item.colour, mask.width), _corner(item, mask), mask)
    return image


def describe(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions, in this order: all items; the places of two; how two stand to each other; numbers; a rough survey.

    Each is true of the scene, and each mention in a caption is of another item. Places are meant exactly: what is "at the
    top" is in no corner.

    Args:
        scene: which.
        rng: gives wording and content.
    """
    return [writer(scene, rng) for writer in (_list, _place, _relate, _count, _survey)]


def _generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    return np.random.default_rng((seed, SPLITS.index(split), index, ("scene", "captions").index(purpose)))


def _make_scene(split: str, rng: np.random.Generator) -> Scene:
    count = int(rng.integers(2, 5))
    if split == "test":
        first = _pick(_HELD_OUT, rng)
        kinds = [first, *(kind for kind in _shuffled(_KINDS, rng) if kind != first)][:count]
    else:
        kinds = _shuffled(_SEEN, rng)[:count]
    cells = rng.permutation(9)[:count].tolist()
    items = tuple(_make_item(*kind, *divmod(cell, 3), rng) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(_pick(tuple(BACKGROUNDS), rng), items)


def _make_item(colour: str, shape: str, row: int, column: int, rng: np.random.Generator) -> Item:
    size = _pick(tuple(SIZES), rng)
    least, greatest = SIZES[size]
    radius = int(rng.integers(least, greatest + 1))
    # One pixel is left free, so that items in neighbouring places never touch.
    shift = min(_CELL // 2 - 1 - radius, _MAX_SHIFT)
    x, y = (MARGIN + _CELL * cell + _CELL // 2 + int(rng.integers(-shift, shift + 1)) for cell in (column, row))
    return Item(shape, colour, size, x, y, radius, int(rng.integers(-_MAX_TILT, _MAX_TILT + 1)))


def _corner(item: Item, mask: Image.Image, offset: int = 0) -> tuple[int, int]:
    return item.x - mask.width // 2 + offset, item.y - mask.height // 2 + offset


def _list(scene: Scene, rng: np.random.Generator) -> str:
    listed = _join([_noun(item, rng) for item in _shuffled(scene.items, rng)])
    return _pick(("{}", "there is {}", "a picture of {}", "{} on {} background"), rng).format(listed, _article(scene.background))


def _place(scene: Scene, rng: np.random.Generator) -> str:
    parts = [part for item in _shuffled(scene.items, rng)[:2] for part in (_noun(item, rng), _where(item, rng))]
    wordings = ("{} {} and {} {}", "there is {} {} and {} {}", "{} is {}, {} is {}", "on {4} background, {0} {1} and {2} {3}")
    return _pick(wordings, rng).format(*parts, _article(scene.background))


def _relate(scene: Scene, rng: np.random.Generator) -> str:
    first, second = _shuffled(scene.items, rng)[:2]
    relations = []
    if abs(first.column - second.column) >= abs(first.row - second.row):
        side = "left" if first.column < second.column else "right"
        relations += [f"to the {side} of", f"{side} of"]
    if abs(first.row - second.row) >= abs(first.column - second.column):
        relations += ["above", "over"] if first.row < second.row else ["below", "under"]
    wordings = ("{} {} {}", "{} is {} {}", "there is {} {} {}", "{} {} {} on {} background")
    parts = _noun(first, rng), _pick(relations, rng), _noun(second, rng)
    return _pick(wordings, rng).format(*parts, _article(scene.background))


def _count(scene: Scene, rng: np.random.Generator) -> str:
    numbers = ("none", "one", "two", "three", "four")
    count = len(scene.items)
    size = _pick(tuple(SIZES), rng)
    of_size = sum(item.size == size for item in scene.items)
    mentioned = _join([_pick((_shape, _colour), rng)(item) for item in _shuffled(scene.items, rng)])
    wordings = (
        "{0} shapes, {1} of them {2}: {3}",
        "{0} things on {4} background, {1} of them {2}: {3}",
        "{3}, {0} shapes on {4} background",
    )
    chosen = "all" if of_size == count else numbers[of_size]
    return _pick(wordings, rng).format(numbers[count], chosen, size, mentioned, _article(scene.background))


def _survey(scene: Scene, rng: np.random.Generator) -> str:
    name = _pick((_shape, _colour), rng)
    seen = _join([f"{name(item)} {_where(item, rng)}" for item in _shuffled(scene.items, rng)])
    return _pick(("{}", "one can see {}", "{} on {} background"), rng).format(seen, _article(scene.background))


def _noun(item: Item, rng: np.random.Generator) -> str:
    size = _pick({"small": ("small", "little"), "large": ("large", "big")}[item.size], rng)
    return _article(f"{size} {item.colour} {item.shape}")


def _shape(item: Item) -> str:
    return _article(item.shape)


def _colour(item: Item) -> str:
    return f"something {item.colour}"


def _where(item: Item, rng: np.random.Generator) -> str:
    return _pick(PLACES[item.row][item.column], rng)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pick(options: Sequence, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _shuffled(items: Sequence, rng: np.random.Generator) -> list:
    return [items[index] for index in rng.permutation(len(items))]


@lru_cache
def _background(name: str) -> Image.Image:
    """Light falls from the upper left."""
    down, across = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    light = 1.1 - 0.16 * across - 0.2 * down
    pixels = np.array(BACKGROUNDS[name]) * light[..., None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


@lru_cache
def _paint(colour: str, side: int) -> Image.Image:
    """A square of a colour, a little lighter at the top."""
    fall = np.linspace(0.16, -0.12, side)[:, None, None]
    end = np.where(fall > 0, 255, 0)
    pixels = np.array(COLOURS[colour]) * (1 - abs(fall)) + end * abs(fall)
    return Image.fromarray(np.broadcast_to(pixels.round().astype(np.uint8), (side, side, 3)))


# All shapes in all radii and tilts are some 1,800, of a few kilobytes each.
@lru_cache(maxsize=2048)
def _mask(shape: str, radius: int, tilt: int) -> Image.Image:
    """A shape in white on black, its centre in the middle, with room for its shadow around it."""
    side = 2 * (radius + 2 * _SHADOW_BLUR)
    large = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    turn = math.radians(tilt)

    def outline(points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        # From a unit square with y upwards. Whole pixels are the same on every machine, sines to the last bit are not.
        turned = [(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in points]
        return [(round((side / 2 + radius * x) * _OVERSAMPLING), round((side / 2 - radius * y) * _OVERSAMPLING)) for x, y in turned]

    _DRAWING[shape](large, outline)
    return large.reduce(_OVERSAMPLING)


@lru_cache(maxsize=2048)
def _shadow(shape: str, radius: int, tilt: int) -> Image.Image:
    blurred = _mask(shape, radius, tilt).filter(ImageFilter.GaussianBlur(_SHADOW_BLUR))
    return blurred.point(lambda value: round(value * _SHADOW_OPACITY))


Outline = Callable[[Sequence[tuple[float, float]]], list[tuple[int, int]]]


def _polygon(points: Sequence[tuple[float, float]]) -> Callable[[Image.Image, Outline], None]:
    return lambda image, outline: ImageDraw.Draw(image).polygon(outline(points), fill=255)


def _disc(image: Image.Image, outline: Outline, radius: float, x: float = 0.0, y: float = 0.0, fill: int = 255) -> None:
    ImageDraw.Draw(image).polygon(outline([(x + radius * a, y + radius * b) for a, b in _regular(96)]), fill=fill)


def _ring(image: Image.Image, outline: Outline) -> None:
    _disc(image, outline, 0.98)
    _disc(image, outline, 0.54, fill=0)


def _moon(image: Image.Image, outline: Outline) -> None:
    _disc(image, outline, 0.98)
    _disc(image, outline, 0.82, 0.46, 0.12, fill=0)


def _regular(corners: int, radius: float = 1.0, first: float = 90.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first of them at an angle in degrees."""
    angles = [math.radians(first + 360 * corner / corners) for corner in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


_STAR = [point for pair in zip(_regular(5), _regular(5, 0.45, 126.0), strict=True) for point in pair]
_CROSS = [(0.32, 0.9), (0.32, 0.32), (0.9, 0.32), (0.9, -0.32), (0.32, -0.32), (0.32, -0.9)]
_HEART_ANGLES = [2 * math.pi * step / 96 for step in range(96)]
_DRAWING = {
    "circle": lambda image, outline: _disc(image, outline, 0.94),
    "square": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "triangle": _polygon([(-0.88, -0.7), (0.88, -0.7), (0.0, 0.9)]),
    "star": _polygon(_STAR),
    "heart": _polygon(
        [
            (0.95 * math.sin(t) ** 3, (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 17.5)
            for t in _HEART_ANGLES
        ]
    ),
    "ring": _ring,
    "cross": _polygon([*_CROSS, *((-x, -y) for x, y in _CROSS)]),
    "moon": _moon,
}
