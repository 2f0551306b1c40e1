"""Small data sets on disk, in the field's formats."""

import json

import numpy as np
import pytest
from averages import averaging
from models import make_model

from caan import checkpoint
from caan.data import load_scan_split


@pytest.fixture
def features():
    """(7, 4, 6) float32 region features, all different."""
    return np.random.default_rng(0).standard_normal((7, 4, 6)).astype(np.float32)


@pytest.fixture
def captions():
    """35 captions, five for each of seven images."""
    return [f"image {image} is seen {'very ' * number}well ." for image in range(7) for number in range(5)]


@pytest.fixture
def write_split():
    """Writes one split of the SCAN layout."""

    def write(folder, split, features, captions, ids=None):
        np.save(folder / f"{split}_ims.npy", features)
        (folder / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
        if ids is not None:
            (folder / f"{split}_ids.txt").write_text("\n".join(ids))

    return write


@pytest.fixture
def scan_folder(tmp_path, write_split, features, captions):
    """The split "dev" of the SCAN layout."""
    write_split(tmp_path, "dev", features, captions, [f"{image}.jpg" for image in range(7)])
    return tmp_path


@pytest.fixture
def karpathy_file(tmp_path):
    """Four images of train (one of them restval) and two of val, with 5, 6, 5, 1, 5 and 2 captions."""
    splits = ["train", "val", "restval", "train", "val", "train"]
    counts = [5, 5, 6, 5, 2, 1]
    images = [
        {
            "filename": f"{number}.jpg",
            "filepath": "photos",
            "cocoid": 100 + number,
            "split": split,
            "sentences": [{"raw": f" caption {caption}\nof {number} ."} for caption in range(count)],
        }
        for number, (split, count) in enumerate(zip(splits, counts, strict=True))
    ]
    path = tmp_path / "dataset_small.json"
    path.write_text(json.dumps({"images": images, "dataset": "small"}))
    return path


@pytest.fixture
def data(tmp_path, write_split, features, captions):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        write_split(folder, split, features, captions)
    return folder


@pytest.fixture
def split(tmp_path, write_split):
    """24 images of 1 to 5 regions, and their captions."""
    generator = np.random.default_rng(0)
    words = [f"word{number}" for number in range(12)]
    captions = [" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(120)]
    write_split(tmp_path, "test", generator.standard_normal((24, 5, 6)).astype(np.float32), captions)
    np.save(tmp_path / "test_num_boxes.npy", generator.integers(1, 6, 24))
    return load_scan_split(tmp_path, "test")


@pytest.fixture
def model_file(split, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, *make_model(split, 0))
    return path


@pytest.fixture
def backbone():
    """Pixels of a photograph squeezed to 4 x 4, averaged over a grid of 2 x 2."""
    return averaging("tiny")


COLOURS = "red green blue white black yellow".split()


THINGS = "dog cat bird horse tree boat".split()


@pytest.fixture
def world(tmp_path, write_split):
    """36 images, each a colour and a thing in noise, of regions and words that tell them."""
    generator = np.random.default_rng(0)
    codes = generator.standard_normal((12, 10))
    images, captions = [], []
    for colour in range(6):
        for thing in range(6):
            regions = generator.standard_normal((4, 10)) * 0.3
            regions[0] += codes[colour] * 2
            regions[1] += codes[6 + thing] * 2
            images.append(regions * [1, 50, 0.1, *[1] * 7])
            captions += [f"a {COLOURS[colour]} {THINGS[thing]} {'very ' * extra}near" for extra in range(5)]
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev"):
        write_split(folder, split, np.array(images, dtype=np.float32), captions)
    return folder
