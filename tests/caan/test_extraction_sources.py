"""Captions files and bottom-up-attention features: what is read, and what is said of files that cannot be."""

import base64
import json
import os
import re

import numpy as np
import pytest

from caan import errors
from caan.commands import main
from caan.data import load_scan_split
from caan.extraction import CaptionedImage, open_features, read_captions, read_names

TWO = [CaptionedImage("a.jpg", ["one , two", "three"]), CaptionedImage("b.jpg", ["four"])]
COCO = {
    "images": [{"id": 17, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 17, "caption": "one ,\n two "},
        {"image_id": 4, "caption": "four"},
        {"image_id": 17, "caption": "three"},
    ],
}


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("flickr", "a.jpg#0\tone , two \nb.jpg#0\tfour\r\na.jpg#1\tthree\n\n"),
        ("flickr", "\ufeffa.jpg#0\tone , two\na.jpg#1\tthree\nb.jpg#0\tfour"),
        ("csv", 'image,caption\na.jpg,"one , two"\na.jpg,three\nb.jpg,four\n'),
        ("csv", 'caption,number,image\n"one ,\n two",0,a.jpg\nthree,1,a.jpg\nfour,0,b.jpg\n'),
        ("bars", "image_name| comment_number| comment\na.jpg| 0| one , two\na.jpg| 1| three\nb.jpg| 0   four\n"),
        ("coco", json.dumps(COCO)),
    ],
)
@pytest.mark.parametrize("told", [False, True])
def test_captions_without_splits(tmp_path, format, text, told):
    path = tmp_path / "captions"
    path.write_text(text, encoding="utf-8", newline="")
    expected = TWO
    if format == "coco":
        expected = [CaptionedImage(image.name, image.captions, id) for image, id in zip(TWO, ("17", "4"), strict=True)]
    assert read_captions(path, format if told else None) == {None: expected}


def test_karpathy(karpathy_file):
    for format in (None, "karpathy"):
        splits = read_captions(karpathy_file, format)
        assert {split: [image.id for image in images] for split, images in splits.items()} == {
            "train": ["100", "102", "103", "105"],
            "dev": ["101", "104"],
        }
        assert splits["dev"][1] == CaptionedImage("photos/4.jpg", ["caption 0 of 4 .", "caption 1 of 4 ."], "104")


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        (None, "", "expected `name.jpg#0` and a tab, .* found ''"),
        (None, "a caption and nothing else\n", "found 'a caption and nothing else'; if its format is known, say --format"),
        (None, "a.jpg#0\tone\na.jpg#1 two\n", "expected `name.jpg#0`, a tab and a caption in line 2, found 'a.jpg#1 two'"),
        (None, "image_name| comment_number| comment\na.jpg one\n", "expected `name.jpg. 0. caption` in line 2, found 'a.jpg one'"),
        (None, "image_name| comment_number| comment\n", "expected captions in the format 'bars', found none"),
        ("csv", "a.jpg,one\n", r"expected a header with `image` and `caption`, found \['a.jpg', 'one'\]"),
        ("csv", "", "expected a header with `image` and `caption`, found None"),
        ("csv", "image,caption\na.jpg,one\nb.jpg,two, three\n", r"2 fields in line 3, found \[' three'\] beyond them: quote"),
        ("csv", 'image,caption\na.jpg,"one\nb.jpg,two\n', "expected quotes in pairs after line 1, found: unexpected end"),
        (None, "image,caption\na.jpg,one\nb.jpg\n", "expected an image and a caption in line 3"),
        (None, '{"images": [', "expected JSON: Expecting value"),
        (None, '{"images": [{"id": 1}], "annotations": []}', "expected .*: KeyError: 'file_name'"),
        (None, json.dumps({**COCO, "images": COCO["images"][:1]}), 'an "image_id" of these .*: KeyError: 4'),
        (None, '{"annotations": [], "images": []}', "expected captions in the format 'coco', found none"),
        ("coco", "[]", "TypeError"),
        (None, '{"words": []}', 'expected JSON with a list "images"'),
    ],
)
def test_broken_captions(tmp_path, format, text, message):
    path = tmp_path / "captions"
    path.write_text(text)
    with pytest.raises(errors.FormatError, match=f"captions: .*{message}"):
        read_captions(path, format)


def test_captions_that_cannot_be_opened(tmp_path):
    with pytest.raises(errors.MissingFileError, match="nothing.txt"):
        read_captions(tmp_path / "nothing.txt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(errors.FormatError, match="photo.jpg: expected UTF-8"):
        read_captions(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match="format: expected one of flickr, karpathy, coco, csv, bars, got 'xml'"):
        read_captions(tmp_path / "photo.jpg", "xml")


def test_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("b.jpg\r\n\na.jpg\nb.jpg\n", newline="")
    assert read_names(path) == ["b.jpg", "a.jpg"]
    path.write_text("\n\n")
    with pytest.raises(errors.FormatError, match="names.txt: expected names of images, one a line, found none"):
        read_names(path)


COUNTS = (3, 2, 4)


@pytest.fixture
def regions():
    """Features (R, 5) and boxes (R, 4) in pixels of a photograph of 40 x 20, of three images with 3, 2 and 4 regions."""
    random = np.random.default_rng(1)
    return [
        (random.standard_normal((count, 5)).astype(np.float32), random.uniform(0, 20, (count, 4)).astype(np.float32))
        for count in COUNTS
    ]


@pytest.fixture
def coco_file(tmp_path):
    """Captions of three images of COCO, two captions each."""
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in (7, 301, 42)]
    annotations = [{"image_id": image["id"], "caption": f"{n} of {image['id']}"} for image in images for n in range(2)]
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def line(name, features, boxes, width=40, height=20, count=None):
    fields = (name, width, height, len(features) if count is None else count, encoded(boxes), encoded(features))
    return "\t".join(map(str, fields)) + "\n"


def encoded(array):
    return base64.b64encode(array.tobytes()).decode()


def convert(features, captions, out, *more):
    arguments = ["extract", "--features", *map(str, features), "--captions", str(captions), "--out", str(out), *more]
    return main([*arguments, "--captions-per-image", "2"])


def check(out, regions, which=(0, 1, 2)):
    split = load_scan_split(out, "test", captions_per_image=2, width=5)
    boxes = np.load(out / "test_boxes.npy")
    assert split.num_images == len(which) and split.regions.dtype == np.float32 and boxes.dtype == np.float32
    ids = (7, 301, 42)
    for row, image in enumerate(which):
        features, pixels = regions[image]
        assert split.ids[row] == f"COCO_val2014_{ids[image]:012}.jpg" and split.captions[2 * row] == f"0 of {ids[image]}"
        np.testing.assert_array_equal(split.read_regions(row), features)
        np.testing.assert_allclose(boxes[row, : len(features)], pixels / [40, 20, 40, 20], rtol=1e-6)
        assert not boxes[row, len(features) :].any() and not np.load(out / "test_ims.npy")[row, len(features) :].any()


@pytest.mark.parametrize("as_folder", [False, True])
def test_tsv_shards(tmp_path, regions, coco_file, as_folder):
    shards = tmp_path / "shards"
    shards.mkdir()
    # In another order than the captions, with zeros before a number, and an image of which nothing is said.
    (shards / "1.tsv").write_text(line("000000000042", *regions[2]) + line("99", *regions[0]))
    (shards / "2.tsv").write_text(line("7", *regions[0]) + line("COCO_val2014_000000000301", *regions[1]).rstrip("\n"))
    assert convert([shards] if as_folder else sorted(shards.iterdir()), coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", regions)
    assert np.load(tmp_path / "out" / "test_num_boxes.npy").tolist() == list(COUNTS)
    assert json.loads((tmp_path / "out" / "test_extract.json").read_text())["settings"]["width"] == 5


def test_equal_counts_need_no_file_of_them(tmp_path, regions, coco_file):
    same = [(features[:2], boxes[:2]) for features, boxes in regions]
    (tmp_path / "x.tsv").write_text("".join(line(id, *same[row]) for row, id in enumerate((7, 301, 42))))
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", same)
    assert not (tmp_path / "out" / "test_num_boxes.npy").exists()


def test_a_conversion_continues(tmp_path, regions, coco_file, monkeypatch):
    (tmp_path / "x.tsv").write_text("".join(line(id, *regions[row]) for row, id in enumerate((7, 301, 42))))
    features = open_features([tmp_path / "x.tsv"])
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "undisturbed", "--batch-size", "1") == 0
    encode, calls = type(features).encode, []

    def stop(self, loaded):
        calls.append(loaded)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, loaded)

    with monkeypatch.context() as patch:
        patch.setattr(type(features), "encode", stop)
        assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out", "--batch-size", "1") == 130
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out", "--batch-size", "1") == 0
    for path in (tmp_path / "undisturbed").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    check(tmp_path / "out", regions)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[: len(text) // 2], "found 5 columns|Incorrect padding|expected 8 numbers of boxes"),
        (lambda text: text[:-9] + "\n", "Incorrect padding|multiple of 4|a multiple of 2"),
        (lambda text: text.replace("\t2\t", "\t3\t"), "num_boxes is 3: expected 12 numbers of boxes .* found 8"),
        (lambda text: text.replace("\t2\t", "\t0\t"), "num_boxes is 0"),
        (lambda text: text.replace("\t2\t", "\ttwo\t"), "invalid literal"),
        (lambda text: text.replace("\t40\t", "\t0\t"), "expected finite boxes in a photograph, found a size of 0.0 x 20.0"),
        (lambda text: "\t".join([*text.split("\t")[:5], "!" + text.split("\t")[5][1:]]), "expected numbers and base64"),
    ],
)
def test_spoilt_records_are_skipped(tmp_path, regions, coco_file, capsys, spoil, reason):
    text = spoil(line(301, *regions[1])).rstrip("\n") + "\n"
    (tmp_path / "x.tsv").write_text(line(7, *regions[0]) + text + line(42, *regions[2]))
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", regions, which=(0, 2))
    ((name, found),) = json.loads((tmp_path / "out" / "test_extract.json").read_text())["skipped"]
    assert name == "COCO_val2014_000000000301.jpg"
    assert re.search(reason, found)
    out = capsys.readouterr().out
    assert f"test: skipped {name}: {found}" in out and "2 images" in out and "1 skipped" in out


def test_other_widths_and_wild_numbers_are_skipped(tmp_path, regions, coco_file, capsys):
    regions[2][0][1, 1] = np.nan
    wide = np.ones((2, 8), np.float32)
    (tmp_path / "x.tsv").write_text(line(7, *regions[0]) + line(301, wide, regions[1][1]) + line(42, *regions[2]))
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", regions, which=(0,))
    out = capsys.readouterr().out
    assert "000301.jpg: expected features of width 5, as in the first record, found 8" in out
    assert "000042.jpg: its features are not finite numbers in float32" in out


NPZ_NAMES = (
    {"x": "x", "bbox": "bbox", "count": "num_bbox"},
    {"x": "features", "bbox": "boxes", "count": "num_boxes"},
    {"x": "x", "bbox": "bbox", "count": None},
)


@pytest.mark.parametrize("keys", NPZ_NAMES)
@pytest.mark.parametrize("transposed", [False, True])
def test_npz(tmp_path, regions, coco_file, keys, transposed):
    folder = tmp_path / "npz"
    folder.mkdir()
    for name, (features, boxes) in zip(("7", "COCO_val2014_000000000301", "COCO_val2014_000000000042.jpg"), regions, strict=True):
        content = {keys["x"]: features.T if transposed else features, keys["bbox"]: boxes, "image_w": 40, "image_h": 20}
        # It comes with pickled information, which need not be looked at.
        content["info"] = np.array({"objects_id": [1]}, dtype=object)
        if keys["count"]:
            content[keys["count"]] = len(features)
        np.savez_compressed(folder / f"{name}.npz", **content)
    assert convert([folder], coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", regions)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"image_w": None, "info": np.array({"image_w": 40}, object)}, "`info` would have to be unpickled, which can run code"),
        ({"image_w": None}, "expected `image_w`, found only x, bbox, image_h"),
        ({"bbox": None}, "expected `bbox` or `boxes`, found only"),
        ({"x": None}, "expected `x` or `features`, found only"),
        ({"x": np.array([None, {}], object)}, "expected a .npz file of numbers: Object arrays cannot be loaded"),
        ({"num_bbox": 3}, r"expected features \(3, F\) of floating point and boxes \(3, 4\), found features \(2, 5\)"),
        ({"bbox": np.zeros((4, 4), np.float32)}, r"expected features \(4, F\) .* found features \(2, 5\)"),
        ({"x": np.zeros((2, 5), int)}, "of floating point .* found features .* int64"),
        ({"image_w": np.array([1, 2])}, "expected a .npz file of numbers"),
        ({"image_w": "wide"}, "expected a .npz file of numbers: could not convert string"),
        ({"bbox": np.full((2, 4), "left")}, "and boxes .2, 4., found .* and boxes .2, 4. <U4"),
        (b"PK\x03\x04 cut", "expected a .npz file of numbers"),
        (b"", "expected a .npz file of numbers: No data left in file"),
        ("half", "expected a .npz file of numbers"),
    ],
)
def test_spoilt_npz(tmp_path, regions, coco_file, capsys, content, reason):
    folder = tmp_path / "npz"
    folder.mkdir()
    for name, (features, boxes) in zip(("7", "301", "42"), regions, strict=True):
        entries = {"x": features, "bbox": boxes, "image_w": 40, "image_h": 20}
        path = folder / f"{name}.npz"
        if name == "301" and isinstance(content, dict):
            entries = {key: value for key, value in {**entries, **content}.items() if value is not None}
        np.savez(path, **entries)
        if name == "301" and not isinstance(content, dict):
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if content == "half" else content)
    assert convert([folder], coco_file, tmp_path / "out") == 0
    check(tmp_path / "out", regions, which=(0, 2))
    ((name, found),) = json.loads((tmp_path / "out" / "test_extract.json").read_text())["skipped"]
    assert name == "COCO_val2014_000000000301.jpg" and re.search(reason, found)


def test_features_that_are_not_there(tmp_path, coco_file, regions, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(errors.MissingFileError, match=r"features: expected .npz or .tsv files in .*empty, found none"):
        open_features([folder])
    with pytest.raises(errors.MissingFileError, match=r"found none at .*nothing.tsv"):
        open_features([tmp_path / "nothing.tsv"])
    (tmp_path / "x.tsv").write_text("7\tother\tcolumns\n")
    expected = "found no record that can be read: in x.tsv, expected the columns image_id, .*, found 3 columns"
    with pytest.raises(errors.FormatError, match=expected):
        open_features([tmp_path / "x.tsv"])
    (tmp_path / "x.tsv").write_text("no tab\n")
    with pytest.raises(errors.FormatError, match="found no record that can be read: there is none"):
        open_features([tmp_path / "x.tsv"])

    (tmp_path / "x.tsv").write_text(line(5, *regions[0]))
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out") == 1
    assert "000007.jpg, COCO_val2014_000000000301.jpg, COCO_val2014_000000000042.jpg; found none of the 3; there: 5" in (
        capsys.readouterr().err
    )
    assert convert([tmp_path / "x.tsv"], coco_file, tmp_path / "out", "--size", "224") == 1
    assert "--size: expected with --photos only, got it with --features" in capsys.readouterr().err


@pytest.mark.parametrize("format", [None, "flickr"])
def test_captions_from_a_pipe(format):
    reader, writer = os.pipe()
    os.write(writer, b"a.jpg#0\tone\n")
    os.close(writer)
    assert [image.captions for image in read_captions(f"/dev/fd/{reader}", format)[None]] == [["one"]]
    os.close(reader)
