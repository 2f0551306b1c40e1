"""The drawn data set: what is in it, and captions read back by a reader that knows nothing of how they were written."""

import csv
import itertools
import re

import numpy as np
import pytest
from PIL import Image, ImageChops

from caan.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MARGIN,
    SHAPES,
    SIDE,
    SIZES,
    Item,
    Scene,
    describe,
    make_split,
    render,
    write_split,
)

NUMBERS = {"none": 0, "one": 1, "two": 2, "three": 3, "four": 4}
SIZE_WORDS = {"small": "small", "little": "small", "large": "large", "big": "large"}
MENTION = re.compile(
    rf"\b(?:an?|something) (?:({'|'.join(SIZE_WORDS)}) )?(?:({'|'.join(COLOURS)}|{'|'.join(SHAPES)})\b)(?: ({'|'.join(SHAPES)})\b)?"
)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1), "below": (0, 1), "under": (0, 1)}
RELATION = re.compile(r"^ (?:is )?(?:to the )?(?:(left|right) of|(above|over|below|under)) $")
PLACE = re.compile(r"^ (?:is )?(?:in|at|on) the (top|bottom)?(?: )?(left|right|middle|centre)?")


def fits(item, words):
    size, first, second = words
    return (not size or SIZE_WORDS[size] == item.size) and all(word in ("", item.colour, item.shape) for word in (first, second))


def in_place(item, down, across):
    """Whether an item is where two words say, each a third of the photograph; no word, or another, is the middle third."""
    row, column = {"top": 0, "bottom": 2}.get(down, 1), {"left": 0, "right": 2}.get(across, 1)
    return row < 3 * item.y / SIDE < row + 1 and column < 3 * item.x / SIDE < column + 1


def read(caption):
    """A caption as a function that tells whether it is true of a scene; every word must have been understood."""
    mentions = list(MENTION.finditer(caption))
    words = [[group or "" for group in mention.groups()] for mention in mentions]
    ends = [mention.start() for mention in mentions[1:]] + [len(caption)]
    gaps = [caption[mention.end() : end] for mention, end in zip(mentions, ends, strict=True)]
    places = [PLACE.match(gap) for gap in gaps]
    relations = [RELATION.match(gap) for gap in gaps]
    background = re.search(r"on an? (\w+) background", caption)
    count = re.search(r"\b(two|three|four) (?:shapes|things)\b", caption)
    of_size = re.search(r"\b(all|none|one|two|three|four) of them (small|large)\b", caption)

    def agrees(items):
        for number, item in enumerate(items):
            place, relation = places[number], relations[number]
            if not fits(item, words[number]):
                return False
            if place and not in_place(item, place[1], place[2]):
                return False
            if relation:
                across, down = DIRECTIONS[relation[1] or relation[2]]
                other = items[number + 1]
                if (item.x - other.x) * across + (item.y - other.y) * down < SIDE / 6:
                    return False
        return True

    def true_of(scene):
        if background and scene.background != background[1]:
            return False
        if count and len(scene.items) != NUMBERS[count[1]]:
            return False
        if of_size:
            number = len(scene.items) if of_size[1] == "all" else NUMBERS[of_size[1]]
            if sum(item.size == of_size[2] for item in scene.items) != number:
                return False
        return any(map(agrees, itertools.permutations(scene.items, len(words))))

    rest = caption
    for pattern in (
        r"on an? \w+ background",
        r"\b\w+ (shapes|things)\b",
        r"\b\w+ of them (small|large)\b",
        r"(to the )?\b(left|right) of\b|\b(above|over|below|under)\b",
        r"(in|at|on) the (top|bottom|left|right|middle|centre)( left| right)?( corner)?",
        MENTION.pattern,
        r"\b(there is|is|and|a picture of|one can see)\b|[,: ]",
    ):
        rest = re.sub(pattern, "", rest)
    assert rest == "", f"{caption!r}: {rest!r} was not understood"
    return true_of


def pairs(scene):
    return {(item.colour, item.shape) for item in scene.items}


def captions(split, count):
    return [describe(scene, np.random.default_rng(index)) for index, scene in enumerate(make_split(split, count))]


def test_a_reader_that_can_say_no():
    scene = Scene("mint", (Item("star", "red", "large", 36, 30, 26, 0), Item("ring", "blue", "small", 96, 160, 14, 3)))
    for caption, expected in (
        ("a big red star and a little blue ring", True),
        ("a big blue star and a little red ring", False),
        ("a large red star and a large red star", False),
        ("a large red star is at the top left, a small blue ring is at the bottom", True),
        ("a large red star is at the top, a small blue ring is at the bottom", False),
        ("something blue in the middle and a star in the top left corner", False),
        ("a small blue ring right of a big red star", True),
        ("a small blue ring is to the left of a big red star", False),
        ("there is a large red star above a small blue ring", True),
        ("a large red star under a small blue ring", False),
        ("two shapes, one of them small: something red and a ring", True),
        ("two shapes, all of them small: something red and a ring", False),
        ("three shapes, one of them small: something red and a ring", False),
        ("something red and a ring, two shapes on a mint background", True),
        ("something red and a ring, two shapes on a rose background", False),
    ):
        assert read(caption)(scene) == expected, caption


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_captions_are_true(split):
    for scene, described in zip(make_split(split, 300), captions(split, 300), strict=True):
        assert len(described) == 5
        for caption in described:
            assert read(caption)(scene), (caption, scene)


def test_most_captions_fit_one_scene_only():
    scenes = make_split("test", 200)
    texts = [caption for described in captions("test", 200) for caption in described]
    ambiguous = [caption for caption in texts if sum(map(read(caption), scenes)) > 1]
    assert len(ambiguous) < 0.1 * len(texts)
    assert len(texts) - len(set(texts)) < 0.01 * len(texts)


def test_held_out_pairs_are_in_every_test_scene_and_in_no_other():
    for split in ("train", "dev"):
        assert not any(pairs(scene) & HELD_OUT for scene in make_split(split, 1000))
        for described in captions(split, 300):
            assert not any(f"{colour} {shape}" in caption for caption in described for colour, shape in HELD_OUT)
    assert all(pairs(scene) & HELD_OUT for scene in make_split("test", 1000))


def test_train_shows_every_other_pair_and_all_parts_of_the_held_out_ones():
    scenes = make_split("train", 1000)
    assert set().union(*map(pairs, scenes)) == set(itertools.product(COLOURS, SHAPES)) - HELD_OUT
    assert sorted(colour for colour, _ in HELD_OUT) == sorted(COLOURS) and sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.items) for scene in scenes} == {2, 3, 4}
    assert {item.size for scene in scenes for item in scene.items} == set(SIZES)
    assert {(item.row, item.column) for scene in scenes for item in scene.items} == set(itertools.product(range(3), range(3)))


def test_items_lie_inside_and_apart():
    for scene in make_split("test", 500):
        assert len(pairs(scene)) == len(scene.items)
        for item in scene.items:
            assert SIZES[item.size][0] <= item.radius <= SIZES[item.size][1]
            assert all(centre - item.radius >= MARGIN and centre + item.radius < SIDE - MARGIN for centre in (item.x, item.y))
        for a, b in itertools.combinations(scene.items, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


def test_the_same_scenes_every_time():
    star, moon = Item("star", "red", "large", 97, 154, 27, -8), Item("moon", "yellow", "small", 155, 40, 13, -12)
    assert make_split("test", 3)[2] == Scene("rose", (star, moon))
    assert make_split("dev", 3, seed=5) == make_split("dev", 7, seed=5)[:3]
    different = [make_split(split, 1, seed)[0] for split in ("train", "dev", "test") for seed in (0, 1)]
    assert len(set(different)) == 6
    scene = different[0]
    assert render(scene).tobytes() == render(scene).tobytes()
    assert describe(scene, np.random.default_rng(1)) == describe(scene, np.random.default_rng(1))


def test_train_and_dev_share_no_scene():
    assert not set(make_split("train", 1000)) & set(make_split("dev", 1000))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_drawn_where_the_scene_says(shape, size):
    radius = SIZES[size][1]
    item = Item(shape, "blue", size, 97, 63, radius, 12)
    drawn, empty = render(Scene("sand", (item,))), render(Scene("sand", ()))
    # A shadow only darkens; the shape alone is bluer than sand.
    blue = np.asarray(ImageChops.subtract(drawn, empty))[..., 2] > 15
    rows, columns = blue.nonzero()
    for found, centre in ((rows, item.y), (columns, item.x)):
        assert centre - radius - 1 <= found.min() and found.max() <= centre + radius
        assert found.max() - found.min() > 1.2 * radius
    assert blue.mean() * SIDE**2 > 0.8 * radius**2


def test_colours_are_those_named():
    for colour, expected in COLOURS.items():
        item = Item("square", colour, "large", 96, 96, 26, 0)
        image = render(Scene("grey", (item,)))
        assert image.size == (SIDE, SIDE) and image.mode == "RGB"
        assert np.abs(np.array(image.getpixel((96, 96))) - expected).max() < 12


def test_write_split(tmp_path):
    table = write_split(tmp_path / "photographs", "dev", 3, seed=2)
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "caption"] and [name for name, _ in rows[::5]] == ["00000.png", "00001.png", "00002.png"]
    scenes = make_split("dev", 3, seed=2)
    for (name, caption), scene in zip(rows, [scene for scene in scenes for _ in range(5)], strict=True):
        assert read(caption)(scene)
        assert Image.open(table.parent / name).tobytes() == render(scene).tobytes()
    before = table.read_bytes()
    assert write_split(tmp_path / "photographs", "dev", 3, seed=2).read_bytes() == before


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="split: expected one of train, dev, test, got 'val'"):
        make_split("val", 1)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        make_split("train", 1, seed=-1)
