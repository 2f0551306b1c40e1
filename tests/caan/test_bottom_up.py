"""Features of bottom-up attention, TSV and .npz: what is converted, and what is said of records that cannot be."""

import base64
import json
import re

import numpy as np
import pytest

from caan import errors
from caan.commands import main
from caan.data import load_scan_split
from caan.extraction import CaptionedImage, Unreadable, open_features

COUNTS = (3, 2, 4)


@pytest.fixture
def regions():
    """Features (R, 5) and boxes (R, 4) in pixels of a photograph of 40 x 20, of three images with 3, 2 and 4 regions."""
    random = np.random.default_rng(1)
    # x1 y1 x2 y2: a corner, and one below and to the right of it.
    corners = [np.sort(random.uniform(0, 20, (count, 2, 2)), axis=1).reshape(count, 4) for count in COUNTS]
    return [(random.standard_normal((len(own), 5)).astype(np.float32), own.astype(np.float32)) for own in corners]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.1, 0.1, 0.9, 1.0), "expected boxes in pixels of 40 x 20, found fractions: none is above 1"),
        ((9, 3, 5, 7), "expected boxes x1 y1 x2 y2 in pixels of 40 x 20, found 9, 3, 5, 7"),
        ((-9, 3, 5, 7), "found -9, 3, 5, 7"),
        ((9, 3, 50, 7), "found 9, 3, 50, 7"),
        ((-1, -1, 41, 21), None),
    ],
)
def test_boxes_are_pixels_of_the_photograph(tmp_path, regions, box, message):
    features, _ = regions[1]
    (tmp_path / "x.tsv").write_text(line("1", features, np.array([box, box], np.float32)))
    source = open_features([tmp_path / "x.tsv"])
    _, key = source.find(CaptionedImage("1.jpg", []))
    if message is None:
        assert len(source.load(key).boxes) == 2
    else:
        with pytest.raises(Unreadable, match=message):
            source.load(key)


def test_float64_is_read_as_it_is_or_named(tmp_path, regions):
    features, boxes = regions[1]
    for name, given in (("1", features), ("2", features.astype(np.float64))):
        (tmp_path / f"{name}.tsv").write_text(line(name, given, boxes.astype(given.dtype)))
    loaded = []
    for name in ("1", "2"):
        source = open_features([tmp_path / f"{name}.tsv"])
        loaded.append(source.load(source.find(CaptionedImage(f"{name}.jpg", []))[1]))
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(*loaded, strict=True))
    # Of float32 numbers, of others, whose second halves are not mostly zeros, and of float16, whose second halves are zero.
    mixed = [(double.astype(np.float64), boxes) for double in (features, features / 3 + np.pi, features.astype(np.float16))]
    for given, own_boxes in [*mixed, (np.tile(features, 2), boxes.astype(np.float64))]:
        (tmp_path / "x.tsv").write_text(line("1", features, boxes) + line("3", given, own_boxes))
        source = open_features([tmp_path / "x.tsv"])
        kinds = f"of {own_boxes.dtype}, as the boxes are, found what looks like {given.dtype}"
        with pytest.raises(Unreadable, match=f"line 2: expected features {kinds}"):
            source.load(source.find(CaptionedImage("3.jpg", []))[1])


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
    assert "000301.jpg: x.tsv, line 2: expected features of width 5, as in the first record, found 8" in out
    assert "000042.jpg: x.tsv, line 3: its features are not finite numbers in float32" in out


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
    expected = "found no record that can be read: x.tsv, line 1: expected the columns image_id, .*, found 3 columns"
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


def found(path, *ids):
    """The features of images as they are found; None where a record cannot be read, "" where there is none."""
    source, result = open_features(path if isinstance(path, list) else [path]), []
    for id in ids:
        there = source.find(CaptionedImage(f"{id}.jpg", [], str(id)))
        try:
            result.append("" if there is None else source.load(there[1]).features)
        except Unreadable:
            result.append(None)
    return result


def same(left, right):
    return all(a is b if isinstance(b, str | None) else np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("shards", [False, True])
def test_the_last_record_that_can_be_read_counts(tmp_path, regions, shards):
    (first, boxes), (second, other_boxes), _ = regions
    whole, newer = line(301, first, boxes), line("000301", second, other_boxes)
    cut, wild = whole[:-20] + "\n", line(301, np.full_like(first, np.nan), boxes)
    wide = line(301, np.ones((3, 9), np.float32), boxes)
    other = line(7, *regions[2])
    for records, expected in (
        ((other, whole, newer), second),
        ((other, cut, whole), first),
        ((other, whole, cut), first),
        ((other, whole, newer, cut, wild, wide), second),
        ((other, cut, wild), None),
    ):
        paths = [tmp_path / f"{number}.tsv" for number in range(len(records) if shards else 1)]
        for number, path in enumerate(paths):
            path.write_text(records[number] if shards else "".join(records))
        assert same(found(paths, 7, 301), [regions[2][0], expected])
    source = open_features(paths)
    where = "2.tsv, line 1" if shards else "0.tsv, line 3"
    with pytest.raises(Unreadable, match=f"{where}: its features are not finite numbers in float32"):
        source.load(source.find(CaptionedImage("301.jpg", []))[1])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("names", [(300104, 147295, 581929), ("COCO_7_0001.png", "COCO_7_0002.png", "COCO_7_0003.png")])
@pytest.mark.parametrize("cut", [1, 2, 3, *range(5, 160, 7)])
def test_a_record_behind_one_that_was_cut(tmp_path, regions, end, names, cut):
    path = tmp_path / "x.tsv"
    one, two, three = (line(name, *own).rstrip("\n") for name, own in zip(names, regions, strict=True))
    if cut >= len(one):
        pytest.skip("that much of the record was written")
    path.write_text(three + end + one[: len(one) - cut] + two + end, newline="")
    ids = [str(name).removesuffix(".png") + (".png" if "png" in str(name) else "") for name in names]
    source = open_features([path])
    for id, (features, _) in zip(ids[1:], regions[1:], strict=True):
        there = source.find(CaptionedImage(id, []))
        if there is None:
            # So little was written of the first record that the two are one with a wrong id.
            assert "\t" not in one[: len(one) - cut]
        else:
            np.testing.assert_array_equal(source.load(there[1]).features, features)
    there = source.find(CaptionedImage(ids[0], []))
    if there is not None:
        with pytest.raises(Unreadable, match=r"x.tsv, line 2: expected the columns image_id"):
            source.load(there[1])


def test_an_id_behind_a_digit_of_base64(tmp_path, regions):
    path = tmp_path / "x.tsv"
    one, two, three = (line(id, *own).rstrip("\n") for id, own in zip((300104, 147295, 581929), regions, strict=True))
    cut = one[:-10] + "47"
    path.write_text(f"{three}\n{cut}{two}\n")
    assert same(found(path, 147295, 300104, 7147295), [regions[1][0], None, ""])
    # What is less certain never comes before a record of its own line, whichever is later.
    other = line(147295, np.ones((2, 5), np.float32), regions[1][1])
    path.write_text(f"{three}\n{other}{cut}{two}\n")
    assert same(found(path, 147295), [np.ones((2, 5), np.float32)])


def test_shards_put_together_without_a_line_end(tmp_path, regions):
    path = tmp_path / "x.tsv"
    one, two, three = (line(id, *own).rstrip("\n") for id, own in zip((7, 301, 42), regions, strict=True))
    every = [features for features, _ in regions]
    for text in (f"{one}{two}{three}", f"{one}{two}\n{three}\n", f"\ufeff{one}\n{two}{three}\n"):
        path.write_text(text, encoding="utf-8")
        assert same(found(path, 7, 301, 42), every)
    path.write_text(f"{one}{two[:-9]}\n{three}\n")
    assert same(found(path, 7, 301, 42), [every[0], None, every[2]])
    # Such a record is as certain as any, and the last counts.
    path.write_text(f"{line(301, *regions[0])}{one}{two}\n{three}\n")
    assert same(found(path, 301), [every[1]])


def test_lines_with_other_columns_are_no_joined_records(tmp_path, regions):
    path = tmp_path / "x.tsv"
    rest = "\t".join(["40", "20", *["AAAA"] * 4, line(7, *regions[0]).split("\t", 3)[3]])
    path.write_text("".join(f"{id}\t{rest}" for id in range(30)))
    with pytest.raises(errors.FormatError, match=r"x.tsv, line 30: expected the columns image_id, .* found 10 columns"):
        open_features([path])


def test_ids_with_composed_and_decomposed_accents(tmp_path, regions):
    (tmp_path / "x.tsv").write_text(line("cafe\u0301", *regions[0]), encoding="utf-8")
    source = open_features([tmp_path / "x.tsv"])
    assert source.find(CaptionedImage("caf\u00e9.jpg", [])) is not None


def test_a_header_is_no_record(tmp_path, regions):
    header = "\t".join(("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")) + "\r\n"
    (tmp_path / "x.tsv").write_text(f"\ufeff{header}" + line(7, *regions[0]), encoding="utf-8")
    source = open_features([tmp_path / "x.tsv"])
    assert source.examples() == ["7"]


@pytest.mark.parametrize("name", ["7", "007", "7.jpg", "7.JPG", "7.png"])
def test_an_id_may_have_an_ending(tmp_path, regions, name):
    (tmp_path / "x.tsv").write_text(line(name, *regions[0]))
    assert open_features([tmp_path / "x.tsv"]).find(CaptionedImage("COCO_val2014_000000000007.jpg", [], "7"))
