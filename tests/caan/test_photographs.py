"""Photographs: found by what data sets call them, and read in any mode, whatever is wrong with what stands beside the pixels."""

import os
import struct
import threading
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from caan import errors
from caan.extraction import CaptionedImage, Photographs, Unreadable, extract_images, read_photograph
from caan.extraction.photographs import grid_boxes
from caan.photographs import PhotoFolder

RAMP = np.tile(np.arange(0, 65536, 257), (8, 1))
GREY = (RAMP // 257).astype(np.uint8)
ORIENTATION = 0x0112


def levels(path):
    """The grey levels of a photograph that has no colours."""
    image = read_photograph(path)
    pixels = np.asarray(image)
    assert image.mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


def test_region_values(tmp_path, backbone):
    Image.new("RGB", (9, 5), (255, 127, 63)).save(tmp_path / "plain.png")
    features = extract_images([tmp_path / "plain.png", Image.new("L", (3, 3), 255)], backbone)
    np.testing.assert_allclose(features[0], np.broadcast_to([1, 0, -0.5], (4, 3)))
    np.testing.assert_allclose(features[1], np.ones((4, 3)))


def test_grid_boxes_are_row_by_row():
    boxes = grid_boxes(2, 3)
    np.testing.assert_allclose(boxes[1], [1 / 3, 0, 2 / 3, 0.5])
    np.testing.assert_allclose(boxes[3], [0, 0.5, 1 / 3, 1])
    assert boxes.shape == (6, 4)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("16.png", RAMP.astype(np.uint16), GREY),
        ("16.tif", RAMP.astype(np.uint16), GREY),
        ("16-other-order.tif", RAMP.astype(">u2"), GREY),
        ("16.pgm", RAMP.astype(np.uint16), GREY),
        ("16-of-15.png", (RAMP // 2).astype(np.uint16), RAMP / 514),
        ("16-of-12.png", (RAMP // 16).astype(np.uint16), GREY),
        ("16-of-10.tif", (RAMP // 64).astype(np.uint16), GREY),
        ("16-of-8.png", GREY.astype(np.uint16), GREY),
        ("16-dark.png", (GREY // 16).astype(np.uint16), GREY // 16),
        ("32-of-16.tif", RAMP.astype(np.int32), GREY),
        ("32-of-8.tif", GREY.astype(np.int32), GREY),
        ("32-of-12.tif", (RAMP // 16).astype(np.int32), GREY),
        ("32.tif", RAMP.astype(np.int32) * 30000, GREY),
        ("signed.tif", RAMP.astype(np.int32) - 32768, GREY),
        ("float.tif", (RAMP / 65535).astype(np.float32), GREY),
        ("float-dark.tif", (RAMP / 65535 / 50).astype(np.float32), GREY / 50),
        ("float-of-8.tif", GREY.astype(np.float32) * 0.9, GREY * 0.9),
        ("float-wide.tif", (RAMP / 65535 * 3.5).astype(np.float32), GREY),
        ("float-signed.tif", (RAMP / 65535 * 2 - 1).astype(np.float32), GREY),
        ("float.pfm", (RAMP / 65535).astype(np.float32), GREY),
        ("black.tif", np.zeros((8, 256), np.float32), np.zeros((8, 256))),
        ("1.png", RAMP > 32767, 255 * (RAMP > 32767)),
    ],
)
def test_values_of_other_types_are_scaled(tmp_path, backbone, name, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / name)
    np.testing.assert_allclose(levels(tmp_path / name), expected, atol=1)
    with Image.open(tmp_path / name) as in_memory:
        np.testing.assert_array_equal(extract_images([in_memory], backbone), extract_images([tmp_path / name], backbone))


def tiff(path, pixels, bits, format, width, height, black_is_zero=True):
    """A TIFF file of one channel, as Pillow does not write it."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, int(black_is_zero))]
    entries += [(273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(pixels)), (339, 3, 1, format)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)


def test_types_that_tiff_alone_has(tmp_path):
    bits = "".join(format(value, "012b") for value in (0, 4095, 2048, 1024))
    tiff(tmp_path / "12.tif", int(bits, 2).to_bytes(6, "big"), 12, 1, 4, 1)
    np.testing.assert_allclose(levels(tmp_path / "12.tif"), [[0, 255, 128, 64]], atol=1)
    tiff(tmp_path / "32.tif", np.array([0, 2**31, 2**32 - 1], "<u4").tobytes(), 32, 1, 3, 1)
    np.testing.assert_allclose(levels(tmp_path / "32.tif"), [[0, 128, 255]], atol=1)
    for black_is_zero, expected in ((True, [0, 128, 255]), (False, [255, 127, 0])):
        tiff(tmp_path / "16.tif", np.array([0, 2**15, 2**16 - 1], "<u2").tobytes(), 16, 1, 3, 1, black_is_zero)
        np.testing.assert_allclose(levels(tmp_path / "16.tif"), [expected], atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, backbone, value):
    image = Image.fromarray(np.array([[0, value]], np.float32))
    image.save(tmp_path / "wild.tif")
    with pytest.raises(Unreadable, match="expected finite numbers as pixels, found NaN or infinity"):
        read_photograph(tmp_path / "wild.tif")
    with pytest.raises(errors.DataError, match="images: expected a photograph: expected finite numbers"):
        extract_images([image], backbone)


def test_white_lies_behind_what_is_transparent(tmp_path):
    colours = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    image = Image.fromarray(colours)
    image.save(tmp_path / "rgba.png")
    image.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    for name in ("rgba.png", "rgba.webp"):
        assert np.asarray(read_photograph(tmp_path / name)).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert levels(tmp_path / "la.png").tolist() == [[9, 255]]
    for mode in ("P", "L", "RGB", "I;16"):
        # One colour of these is the transparent one.
        deep = np.array([[257 * 9, 257 * 8, 65535]], np.uint16)
        grey = Image.fromarray(deep if mode == "I;16" else np.array([[9, 8, 255]], np.uint8))
        hidden = {"RGB": (9, 9, 9), "I;16": 257 * 9}.get(mode, 9)
        (grey if mode == "I;16" else grey.convert(mode)).save(tmp_path / "one.png", transparency=hidden)
        assert levels(tmp_path / "one.png").tolist() == [[255, 8, 255]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "PA", "La", "RGBa", "RGBX", "HSV", "I;16N", "I;16L"])
def test_modes_of_images_in_memory(backbone, mode):
    image = Image.new(mode, (4, 4))
    assert np.isfinite(extract_images([image], backbone)).all() and image.mode == mode


def test_the_first_of_several_frames(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.tif", "x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "webp" in name else {}))
        assert read_photograph(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)


def test_photographs_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("RGB", (50, 50)).save(path)
    data = path.read_bytes()
    for content, reason in ((b"", "the file is empty"), (b"<html>", "it is not an image"), (data[:60], "[Tt]runcated")):
        path.write_bytes(content)
        with pytest.raises(Unreadable, match=reason) as found:
            read_photograph(path)
        assert "\n" not in str(found.value)
    with pytest.raises(Unreadable, match="there is no such file"):
        read_photograph(tmp_path / "nothing.png")
    path.write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Unreadable, match="it is too large: Image size .2500 pixels. exceeds limit of 2000 pixels"):
        read_photograph(path)
    # Of more than once the limit Pillow only warns.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photograph(path).size == (50, 50)


def block(*entries):
    """An EXIF block: (tag, type, count, value), where bytes lie behind the entries."""
    begin, rest, directory = 8 + 2 + 12 * len(entries) + 4, b"", struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        if isinstance(value, bytes):
            value, rest = begin + len(rest), rest + value
        directory += struct.pack("<HHII", tag, kind, count, value)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4) + rest


TURNED = (ORIENTATION, 3, 1, 6)
BLOCKS = {
    "sound": (block(TURNED), True),
    "empty": (b"Exif\0\0", False),
    "no block": (b"Exif\0\0" + b"\x00\x08\x00\x02\x01\x12" * 6, False),
    "a text that is a rational": (block(TURNED, (0x0131, 5, 1, struct.pack("<II", 1, 0))), True),
    "a text that is a number": (block((0x010F, 4, 1, 7), TURNED), True),
    "a number that is a text": (block(TURNED, (0x011A, 2, 4, 0x00363636)), True),
    "a value outside the block": (block((0x010E, 2, 5000, 60000), TURNED), True),
    "a type that there is not": (block((0x0131, 99, 4, 0), TURNED), True),
    "a pointer that is a text": (block(TURNED, (0x8769, 2, 4, 0x00363636)), True),
    "a pointer outside the block": (block(TURNED, (0x8825, 4, 1, 0x7FFFFFFF)), True),
    "two orientations in one": (block((ORIENTATION, 3, 2, 0x00060006)), True),
    "an orientation that is a text": (block((ORIENTATION, 2, 2, 0x36)), True),
    "an orientation that is another text": (block((ORIENTATION, 2, 4, 0x00787878)), False),
    "an orientation that there is not": (block((ORIENTATION, 3, 1, 77)), False),
    "cut": (block(TURNED, (0x010F, 2, 200, b"x" * 200))[:60], True),
}


@pytest.mark.parametrize("strict", [False, True], ids=["", "warnings are errors"])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("exif", "turned"), BLOCKS.values(), ids=BLOCKS)
def test_malformed_exif_loses_no_photograph(tmp_path, backbone, exif, turned, ending, strict):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = 255
    path = tmp_path / f"x.{ending}"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_270) if turned else Image.fromarray(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        found = read_photograph(path)
        threads = [threading.Thread(target=read_photograph, args=(path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        in_file = extract_images([path], backbone)
    assert found.size == expected.size
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            np.testing.assert_array_equal(extract_images([image], backbone), in_file)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("broken", [False, True])
def test_tags_of_tiff(tmp_path, compression, broken):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ORIENTATION] = 6
    if broken:
        # A pointer for whose target Pillow looks in another that is not there.
        tags[0xA005] = 4
        tags.tagtype[0xA005] = 4
    path = tmp_path / "x.tif"
    Image.fromarray(GREY).save(path, tiffinfo=tags, compression=compression)
    np.testing.assert_array_equal(levels(path), np.rot90(GREY, -1))
    path.write_bytes(path.read_bytes()[:-3000] if compression == "raw" else path.read_bytes()[:200])
    with pytest.raises(Unreadable):
        read_photograph(path)


def test_orientation_in_xmp(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(GREY).save(path, xmp=b'<x:xmpmeta tiff:Orientation="6"/>')
    assert read_photograph(path).size == (8, 256)


FILES = (
    "val2014/COCO_val2014_000000391895.jpg",
    "b.png",
    "deep/er/c.JPG",
    "one/same.jpg",
    "two/same.jpg",
    "one/twice.jpg",
    "two/twice.jpg",
    "one/b.png",
    "stem.jpg",
    "stem.png",
    "bare",
    "._b.png",
    "__MACOSX/only.jpg",
    "@eaDir/only.jpg",
    "$RECYCLE.BIN/only.jpg",
    ".trash/only.jpg",
    "notes.txt",
    "odd.raw",
)


@pytest.fixture
def folder(tmp_path):
    """Photographs in folders; their bytes differ, but for twice.jpg's."""
    root = tmp_path / "photos"
    for name in (*FILES, unicodedata.normalize("NFD", "é/café.jpg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("copy" if "twice" in name else name)
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b.png", "b.png"),
        ("./b.png", "b.png"),
        ("b", "b.png"),
        ("b.PNG", "b.png"),
        ("elsewhere/b.png", "b.png"),
        ("else\\where\\b.png", "b.png"),
        ("/data/photos/b.png", "b.png"),
        ("b.jpg", None),
        ("391895", "val2014/COCO_val2014_000000391895.jpg"),
        ("000000391895", "val2014/COCO_val2014_000000391895.jpg"),
        ("91895", None),
        ("9" * 5000, None),
        ("x" * 5000 + ".jpg", None),
        ("COCO_val2014_000000391895", "val2014/COCO_val2014_000000391895.jpg"),
        ("COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg"),
        ("coco/val2014/COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg"),
        ("er/c.jpg", "deep/er/c.JPG"),
        ("c", "deep/er/c.JPG"),
        ("two/same.jpg", "two/same.jpg"),
        ("two/same", "two/same.jpg"),
        ("elsewhere/two/same.jpg", "two/same.jpg"),
        ("same.jpg", Unreadable),
        ("three/same", Unreadable),
        ("twice.jpg", "one/twice.jpg"),
        ("stem.png", "stem.png"),
        ("stem", Unreadable),
        ("bare", "bare"),
        ("elsewhere/bare", "bare"),
        ("odd.raw", "odd.raw"),
        ("odd", None),
        ("notes", None),
        ("only.jpg", None),
        ("._b", None),
        ("é/café.jpg", "é/café.jpg"),
        (unicodedata.normalize("NFD", "café"), "é/café.jpg"),
        ("\ud83d", None),
        ("a\0b", None),
        ("", None),
        (".", None),
        ("deep", None),
    ],
)
def test_photographs_are_found(folder, backbone, name, expected):
    photographs = PhotoFolder(folder)
    source = Photographs(folder, backbone)
    if expected is Unreadable:
        with pytest.raises(Unreadable, match="expected one photograph of this name in .*photos, found different files: "):
            photographs.find(name)
        assert isinstance(photographs.look_up(name), Unreadable)
        return
    found = photographs.find(name)
    assert (found and photographs.name_of(found)) == expected and photographs.look_up(name) == found
    # What extraction calls it is how every other command finds it again.
    assert source.find(CaptionedImage(name, [])) == (found and (expected, found))
    assert found is None or photographs.find(expected) == found


def test_links_to_folders_are_followed_once(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.jpg").write_bytes(b"")
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "deep" / "loop").symlink_to(folder / "deep")
    (folder / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "nowhere").symlink_to(tmp_path / "nothing")
    photographs = PhotoFolder(folder)
    assert photographs.name_of(photographs.find("linked")) == "link/linked.jpg"
    assert photographs.name_of(photographs.find("c")) == "deep/er/c.JPG"
    assert photographs.find("broken.jpg") is None
    (tmp_path / "shortcut").symlink_to(folder)
    assert PhotoFolder(tmp_path / "shortcut").find("c") == tmp_path / "shortcut" / "deep" / "er" / "c.JPG"


def test_folders_without_photographs(folder, tmp_path):
    for path, reason in ((tmp_path / "nothing", "a folder of photographs"), (folder / "@eaDir" / "empty", r"photographs \(.jpg")):
        if "empty" in path.name:
            path.mkdir()
            (path / "notes.txt").write_text("")
        with pytest.raises(errors.DataError, match=f"{path.name}: expected {reason}.*, found none"):
            PhotoFolder(path)
    assert PhotoFolder(folder).examples() == ["b.png", "bare", "deep/er/c.jpg"]


def test_names_that_are_no_text(folder):
    name = os.fsencode(folder) + b"/caf\xe9.jpg"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert PhotoFolder(folder).find("b").name == "b.png"


def test_a_link_to_itself_is_no_photograph(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    folder = PhotoFolder(tmp_path)
    assert folder.find("a") == tmp_path / "a.jpg" and folder.find("loop") is None
