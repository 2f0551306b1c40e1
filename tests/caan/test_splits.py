"""Data sets on disk: what is read, and what is said of files that cannot be."""

import json
import pickle

import numpy as np
import pytest

from caan import errors
from caan.data import RegionFile, load_karpathy_split, load_scan_split, read_karpathy


def test_one_row_an_image(scan_folder, features, captions):
    split = load_scan_split(scan_folder, "dev", width=6)
    assert split.num_images == 7 and split.captions == captions
    assert split.ids == [f"{image}.jpg" for image in range(7)]
    np.testing.assert_array_equal(split.image_of_caption, np.repeat(np.arange(7), 5))
    for image in range(7):
        np.testing.assert_array_equal(split.read_regions(image), features[image])


@pytest.mark.parametrize("with_ids", ["none", "one an image", "one a caption"])
def test_one_row_a_caption(tmp_path, write_split, features, captions, with_ids):
    names = [f"{image}.jpg" for image in range(7)]
    ids = {"none": None, "one an image": names, "one a caption": [name for name in names for _ in range(5)]}[with_ids]
    write_split(tmp_path, "test", features.repeat(5, axis=0), captions, ids)
    split = load_scan_split(tmp_path, "test")
    assert split.num_images == 7 and len(split.captions) == 35
    np.testing.assert_array_equal(split.image_of_caption, np.repeat(np.arange(7), 5))
    for image in range(7):
        np.testing.assert_array_equal(split.read_regions(image), features[image])
    assert split.ids == ([str(5 * image) for image in range(7)] if with_ids == "none" else names)


def test_one_caption_an_image_is_not_taken_for_the_legacy_layout(tmp_path, write_split, features):
    write_split(tmp_path, "test", features[:5], ["one"] * 5)
    with pytest.raises(errors.CaptionMismatchError, match=r"rows 0 and 1 to differ.*captions_per_image=1"):
        load_scan_split(tmp_path, "test")
    assert load_scan_split(tmp_path, "test", captions_per_image=1).num_images == 5


@pytest.mark.parametrize(("alike", "first", "other"), [(range(2), 0, 2), (range(5), 5, 6), (range(9), 5, 9)])
def test_rows_that_are_alike_here_and_there_are_not_the_legacy_layout(tmp_path, write_split, alike, first, other):
    features = np.arange(10 * 6, dtype=np.float32).reshape(10, 1, 6)
    # Photographs that could not be had.
    features[list(alike)] = 0
    write_split(tmp_path, "test", features, [f"caption {row}" for row in range(10)])
    with pytest.raises(errors.CaptionMismatchError, match=rf"rows {first} and {other} to differ.*captions_per_image=1"):
        load_scan_split(tmp_path, "test")
    assert load_scan_split(tmp_path, "test", captions_per_image=1).num_images == 10


def test_ids_of_captions_are_not_taken_for_ids_of_images(scan_folder, captions):
    (scan_folder / "dev_ids.txt").write_text("".join(f"{number // 5}.jpg\n" for number in range(34)) + "annotation-34\n")
    with pytest.raises(errors.CaptionMismatchError, match=r"dev_ids.txt: .* found '6.jpg' and 'annotation-34' for image 6"):
        load_scan_split(scan_folder, "dev")


def test_texts_are_composed(tmp_path, write_split, features):
    write_split(tmp_path, "test", features[:1], ["Cafe\u0301"] * 5, ["e\u0301.jpg"])
    split = load_scan_split(tmp_path, "test")
    assert split.captions == ["Caf\u00e9"] * 5 and split.ids == ["\u00e9.jpg"]


@pytest.mark.parametrize("legacy", [False, True])
def test_limit_takes_the_first_images(tmp_path, write_split, features, captions, legacy):
    write_split(tmp_path, "dev", features.repeat(5, axis=0) if legacy else features, captions)
    split = load_scan_split(tmp_path, "dev", limit=3)
    assert split.num_images == len(split.ids) == len(split.region_counts) == 3
    assert split.captions == captions[:15] and split.image_of_caption.max() == 2
    np.testing.assert_array_equal(split.read_regions(2), features[2])
    for limit in (0, 8):
        with pytest.raises(ValueError, match=r"limit: expected 1 to 7"):
            load_scan_split(tmp_path, "dev", limit=limit)


@pytest.mark.parametrize("legacy", [False, True])
def test_region_counts(tmp_path, write_split, features, captions, legacy):
    counts = np.array([3, 1, 2, 3, 4, 0, 2], dtype=np.int32)
    for image, count in enumerate(counts):
        features[image, count:] = np.nan
    repeat = 5 if legacy else 1
    write_split(tmp_path, "dev", features.repeat(repeat, axis=0), captions)
    np.save(tmp_path / "dev_num_boxes.npy", counts.repeat(repeat))
    split = load_scan_split(tmp_path, "dev")
    assert split.region_counts.tolist() == counts.tolist()
    for image, count in enumerate(counts):
        np.testing.assert_array_equal(split.read_regions(image), features[image, :count])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.array([1, 2]), r"expected \(7,\) integers.*found shape \(2,\)"),
        (np.ones(7), r"expected \(7,\) integers.*float64"),
        (np.array([1, 2, 5, 1, 1, 1, 1]), "expected counts from 0 to 4, found 5 in row 2"),
        (np.array([1, 2, 1, -1, 1, 1, 1]), "expected counts from 0 to 4, found -1 in row 3"),
    ],
)
def test_wrong_region_counts(scan_folder, counts, message):
    np.save(scan_folder / "dev_num_boxes.npy", counts)
    with pytest.raises(errors.FormatError, match=f"dev_num_boxes.npy: {message}"):
        load_scan_split(scan_folder, "dev")


def test_region_counts_that_are_no_array(scan_folder):
    (scan_folder / "dev_num_boxes.npy").write_text("4 4 4")
    with pytest.raises(errors.FormatError, match=r"dev_num_boxes.npy: expected a \.npy file"):
        load_scan_split(scan_folder, "dev")


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f4", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_orders(tmp_path, features, dtype, order):
    np.save(tmp_path / "x.npy", np.array(features, dtype=dtype, order=order))
    file = RegionFile(tmp_path / "x.npy")
    assert (len(file), file.max_regions, file.width) == (7, 4, 6)
    row = file.read(3)
    assert row.dtype.isnative and row.dtype.itemsize == np.dtype(dtype).itemsize and row.flags.owndata and row.flags.writeable
    np.testing.assert_array_equal(row, features[3].astype(dtype))


def test_a_pickled_file_is_opened_anew(scan_folder, features):
    split = load_scan_split(scan_folder, "dev")
    split.read_regions(0)
    data = pickle.dumps(split.regions)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).read(6), features[6])


def test_missing_files(scan_folder):
    with pytest.raises(
        errors.MissingFileError, match=r"train_ims.npy: .*splits there: dev\); caan extract --hold-out N makes train"
    ):
        load_scan_split(scan_folder, "train")
    with pytest.raises(FileNotFoundError, match=r"there is no split at all\); caan extract makes a data folder"):
        load_scan_split(scan_folder / "nowhere", "train")
    (scan_folder / "dev_caps.txt").unlink()
    with pytest.raises(errors.MissingFileError, match=r"dev_caps.txt"):
        load_scan_split(scan_folder, "dev")
    (scan_folder / "dev_ims.npy").unlink()
    with pytest.raises(errors.MissingFileError, match=r"dev_ims.npy"):
        RegionFile(scan_folder / "dev_ims.npy")


def test_truncated_features(scan_folder, features):
    path = scan_folder / "dev_ims.npy"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - features.nbytes // 2])
    expected = f"expected {features.nbytes} bytes .*found {features.nbytes // 2}: 50% of it is there"
    with pytest.raises(errors.TruncatedFileError, match=f"dev_ims.npy: {expected}"):
        load_scan_split(scan_folder, "dev")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not an array", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'", b"\x93NUMPY\x09\x00\x00\x00"]
)
def test_features_that_are_no_array(scan_folder, content):
    (scan_folder / "dev_ims.npy").write_bytes(content)
    with pytest.raises(errors.FormatError, match=r"dev_ims.npy: expected a \.npy file"):
        load_scan_split(scan_folder, "dev")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((7, 6), np.float32),
        np.zeros((7, 4, 6), np.float64),
        np.zeros((7, 4, 6), np.int32),
        np.zeros((0, 4, 6), np.float32),
        np.array([[[None]]]),
    ],
)
def test_arrays_that_are_no_features(scan_folder, array):
    np.save(scan_folder / "dev_ims.npy", array)
    with pytest.raises(errors.FormatError, match=r"dev_ims.npy: expected float32 or float16 of shape \(N, R, F\).*found"):
        load_scan_split(scan_folder, "dev")


def test_more_than_one_array_in_a_file(scan_folder, features):
    with (scan_folder / "dev_ims.npy").open("ab") as file:
        np.save(file, features)
    with pytest.raises(errors.FormatError, match=r"dev_ims.npy: expected 672 bytes .*: more lies in it than one array"):
        load_scan_split(scan_folder, "dev")


def test_wrong_width(scan_folder):
    with pytest.raises(errors.WidthError, match=r"dev_ims.npy: expected region features of width 2048, found 6"):
        load_scan_split(scan_folder, "dev", width=2048)


@pytest.mark.parametrize("count", [34, 36, 6, 0])
def test_captions_that_do_not_match(scan_folder, captions, count):
    (scan_folder / "dev_caps.txt").write_text("\n".join([*captions, "more"][:count]))
    with pytest.raises(errors.CaptionMismatchError, match=f"dev_caps.txt: expected 35 captions, .*or 7, .*found {count}"):
        load_scan_split(scan_folder, "dev")


def test_an_empty_line_is_a_caption(scan_folder, captions):
    captions[7] = ""
    captions[-1] = "  "
    (scan_folder / "dev_caps.txt").write_text("".join(f"{caption}\r\n" for caption in captions), newline="")
    split = load_scan_split(scan_folder, "dev")
    assert split.captions[7] == split.captions[-1] == "" and split.captions[8] == captions[8]


def test_a_line_separator_inside_a_caption_is_no_new_line(scan_folder, captions):
    captions[3] = "before\x85after\u2028all"
    (scan_folder / "dev_caps.txt").write_text("\n".join(captions), encoding="utf-8")
    assert load_scan_split(scan_folder, "dev").captions == captions


def test_captions_in_another_encoding(scan_folder, captions):
    captions[3] = "caf\xe9"
    (scan_folder / "dev_caps.txt").write_text("\n".join(captions), encoding="latin-1")
    with pytest.raises(errors.FormatError, match=r"dev_caps.txt: expected UTF-8, found other bytes in line 4"):
        load_scan_split(scan_folder, "dev")


def test_ids_that_do_not_match(scan_folder):
    (scan_folder / "dev_ids.txt").write_text("1\n2\n")
    with pytest.raises(errors.CaptionMismatchError, match=r"dev_ids.txt: expected 7 ids, one an image, or 35.*found 2"):
        load_scan_split(scan_folder, "dev")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numbers_that_are_not_finite(scan_folder, features, value, dtype):
    features[4, 2, 5] = value
    np.save(scan_folder / "dev_ims.npy", features.astype(dtype))
    split = load_scan_split(scan_folder, "dev")
    split.read_regions(3)
    message = rf"dev_ims.npy: expected finite features, found {value} in row 4, image 4\.jpg, region 2, column 5"
    with pytest.raises(errors.NonFiniteError, match=message):
        split.read_regions(4)


def test_every_error_is_a_data_error():
    assert all(issubclass(error, errors.DataError) for name, error in vars(errors).items() if name.endswith("Error"))


def test_karpathy(karpathy_file):
    images = read_karpathy(karpathy_file)
    assert [image.id for image in images] == [str(number) for number in range(100, 106)]
    assert images[2].path == "photos/2.jpg" and images[2].split == "restval" and len(images[2].captions) == 6
    assert images[5].captions == ["caption 0 of 5 ."]


@pytest.mark.parametrize(
    ("split", "limit", "per_image", "numbers", "counts"),
    [
        ("train", None, None, [0, 2, 3, 5], [5, 6, 5, 1]),
        ("train", 3, None, [0, 2, 3], [5, 6, 5]),
        ("train", None, 5, [0, 2, 3, 5], [5, 5, 5, 1]),
        ("val", None, None, [1, 4], [5, 2]),
        ("dev", 1, 3, [1], [3]),
    ],
)
def test_karpathy_split(karpathy_file, features, split, limit, per_image, numbers, counts):
    path = karpathy_file.with_name("some_ims.npy")
    rows = 4 if split == "train" else 2
    np.save(path, features[:rows])
    np.save(karpathy_file.with_name("some_num_boxes.npy"), np.arange(1, rows + 1))
    loaded = load_karpathy_split(karpathy_file, path, split, captions_per_image=per_image, limit=limit)
    assert loaded.ids == [str(100 + number) for number in numbers]
    assert np.bincount(loaded.image_of_caption).tolist() == counts
    assert loaded.captions == [f"caption {c} of {n} ." for n, count in zip(numbers, counts, strict=True) for c in range(count)]
    for image in range(len(numbers)):
        np.testing.assert_array_equal(loaded.read_regions(image), features[image, : image + 1])


@pytest.mark.parametrize("names", [["101", "104"], ["1.jpg", "4.jpg"], ["photos/1.jpg", "photos/4.jpg"]])
def test_karpathy_ids_in_another_order(karpathy_file, features, names):
    path, ids = karpathy_file.with_name("some_ims.npy"), karpathy_file.with_name("some_ids.txt")
    np.save(path, features[:2])
    for of_others in (names, ["what", "ever"]):
        ids.write_text("\n".join(of_others))
        assert load_karpathy_split(karpathy_file, path, "val").ids == ["101", "104"]
    ids.write_text("\n".join(reversed(names)))
    with pytest.raises(errors.CaptionMismatchError, match=rf"some_ids.txt: .* has photos/1.jpg in place 0, found {names[1]}"):
        load_karpathy_split(karpathy_file, path, "val")


def test_karpathy_errors(karpathy_file, features):
    path = karpathy_file.with_name("some_ims.npy")
    np.save(path, features)
    with pytest.raises(errors.CaptionMismatchError, match=r"some_ims.npy: expected 2 rows, one for each image of 'val'.*found 7"):
        load_karpathy_split(karpathy_file, path, "val")
    with pytest.raises(
        errors.FormatError, match=r"expected images of the split 'test', found only these splits: restval, train, val"
    ):
        load_karpathy_split(karpathy_file, path, "test")
    with pytest.raises(errors.MissingFileError, match=r"dataset_none.json"):
        read_karpathy(karpathy_file.with_name("dataset_none.json"))

    content = json.loads(karpathy_file.read_text())
    for broken, message in (
        (karpathy_file.read_text()[:-20], "Expecting property name"),
        ("[" * 100_000, "maximum recursion depth"),
        ("[1, 2]", "found list"),
        ('{"image": []}', "found NoneType"),
        (json.dumps({"images": [{**content["images"][0], "split": None}]}), "in image 0: TypeError: a split None"),
        (
            json.dumps({"images": [{**content["images"][0], "sentences": [{"raw": "\ud83d"}]}]}),
            "in image 0: ValueError: expected text in UTF-8, found half of a character",
        ),
        ('{"images": {}}', "found dict"),
        (json.dumps({"images": [*content["images"][:2], {"filename": "x"}]}), "in image 2: KeyError: 'sentences'"),
        (json.dumps({"images": ["x"]}), "in image 0: AttributeError"),
    ):
        karpathy_file.write_text(broken)
        with pytest.raises(errors.FormatError, match=f"dataset_small.json: expected .*{message}"):
            read_karpathy(karpathy_file)


def test_a_digest_is_of_all_there_is(scan_folder, features):
    def digest(**given):
        return load_scan_split(scan_folder, "dev", **given).digest()

    found = {digest(), digest(limit=6)}
    assert digest() in found
    for row in range(7):
        changed = features.copy()
        changed[row, -1, -1] += 1
        np.save(scan_folder / "dev_ims.npy", changed)
        found.add(digest())
    np.save(scan_folder / "dev_ims.npy", features)
    for name in ("ids", "caps"):
        path = scan_folder / f"dev_{name}.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-1], "another"]))
        found.add(digest())
        path.write_text("\n".join(lines))
    np.save(scan_folder / "dev_num_boxes.npy", np.full(7, features.shape[1] - 1))
    found.add(digest())
    assert len(found) == 12
    sampled = load_scan_split(scan_folder, "dev").digest(images=3)
    features[3] += 1
    np.save(scan_folder / "dev_ims.npy", features)
    assert load_scan_split(scan_folder, "dev").digest(images=3) != sampled
