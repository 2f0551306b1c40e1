"""Captions files: what is read, and what is said of files that cannot be."""

import json
import os

import pytest

from caan import errors
from caan.extraction import CaptionedImage, read_captions, read_names

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
        ("bars", "IMAGE_NAME|Comment_Number|comment\na.jpg|0|one , two\na.jpg| 1 | three\nb.jpg| 0|four\n"),
        ("bars", "a.jpg| 0| one , two\nb.jpg| 0| four\na.jpg| 1| three\n"),
        # Line ends of an old Mac; others within a caption are white space.
        ("flickr", "a.jpg#0\tone , two\rb.jpg#0\tfour\ra.jpg#1\tthree\r"),
        ("flickr", "a.jpg#0\tone\u2028,\x85 two\na.jpg#1\tthree\rb.jpg#0\tfour".replace("\rb", "\nb")),
        ("csv", 'image,caption\ra.jpg,"one , two"\ra.jpg,three\rb.jpg,four\r'),
        ("csv", "image;caption\na.jpg;one , two\na.jpg;three\nb.jpg;four\n"),
        ("csv", "Image\tCaption\r\na.jpg\tone , two\r\na.jpg\tthree\r\nb.jpg\tfour\r\n"),
        ("csv", "image|caption\na.jpg|one , two\na.jpg|three\nb.jpg|four\n"),
        ("csv", '\n"image", "caption"\na.jpg, "one , two"\n\na.jpg, three\nb.jpg, four\n'),
        ("csv", 'image_name,comment_number,comment\na.jpg,0,"one , two"\na.jpg,1,three\nb.jpg,0,four\n'),
        ("coco", json.dumps(COCO)),
        ("coco", json.dumps(COCO).replace('"image_id": 17', '"image_id": "17"').replace('"image_id": 4', '"image_id": 4.0')),
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
        (None, "a.jpg#0\tone\n\nb.jpg\ttwo #1\tx\n", "a tab and a caption in line 3, found 'b.jpg"),
        (None, "a.jpg#0\tone\nb.jpg#0\t \n", "expected a caption of b.jpg in line 2: found none"),
        (None, "a.jpg#0\tone\rb.jpg#0 two\r", "expected .* a tab and a caption in line 2, found 'b.jpg#0 two'"),
        (None, "a.jpg#0\tone\nb.j\0pg#0\ttwo\n", "expected text in UTF-8, found a NUL character in line 2"),
        (None, "a.jpg#0\tone\n".encode("utf-16-le").decode(), "expected text in UTF-8, found a NUL character in line 1"),
        (None, "image_name| comment_number| comment\na.jpg one\n", "expected `name.jpg. 0. caption` in line 2, found 'a.jpg one'"),
        (None, "image_name| comment_number| comment\na.jpg| 12 dogs\n", "in line 2, found 'a.jpg. 12 dogs'"),
        (None, "image_name| comment_number| comment\na.jpg| 0|\n", "expected a caption of a.jpg in line 2: found none"),
        (None, "image_name| comment_number| comment\n", "expected captions in the format 'bars', found none"),
        (
            "csv",
            "a.jpg,one\n",
            "expected a header with one column `image`, one `caption` and at most one `split`, found 'a.jpg,one'",
        ),
        ("csv", "image,caption,caption\na.jpg,one,two\n", "one `caption` and at most one `split`, found 'image,caption,caption'"),
        ("csv", "", "expected a header with one column `image`, one `caption` and at most one `split`, found ''"),
        (
            "csv",
            "image,caption\na.jpg,one\nb.jpg,two, three\n",
            r"expected 2 fields in line 3, found .* beyond them: quote",
        ),
        ("csv", "image;caption\na.jpg;one; two\n", "beyond them: quote a caption that has a semicolon"),
        ("csv", 'image,caption\na.jpg,"one\nb.jpg,two\n', "expected quotes in pairs after line 1, found: unexpected end"),
        (
            "csv",
            'image,caption\na.jpg,one\nb.jpg,"two\nc.jpg,three"\nd.jpg,four\n',
            "in pairs after line 2, found a row inside a field",
        ),
        pytest.param(
            "csv",
            f'image,caption\na.jpg,one\nb.jpg,"{"two " * 50000}"\n',
            "expected fields of a usual length after line 2, found: field larger than",
            id="large",
        ),
        (None, "image,caption\na.jpg,one\nb.jpg\n", "expected an image and a caption in line 3"),
        (None, "image,caption\na.jpg,one\n,two\n", "expected an image's name in line 3: found none"),
        (None, 'image,caption\na.jpg,"one\ntwo"\nb.jpg,\n', "expected a caption of b.jpg in line 4: found none"),
        (None, 'image,caption\n"a\nb.jpg",one\n', r"expected an image's name in line 2: found U\+000A in"),
        (None, '{"images": [', "expected JSON .*Expecting value"),
        ("coco", '{"images": [', "expected JSON: Expecting value"),
        pytest.param("coco", "[" * 200000, "expected JSON: maximum recursion depth", id="deep"),
        pytest.param("karpathy", "[" * 200000, "expected JSON .*: maximum recursion depth", id="deep too"),
        (None, '{"images": [{"id": 1}], "annotations": []}', "expected 'file_name' in image 0, found {'id': 1}"),
        (None, '{"images": [{"id": 1, "id": 2, "file_name": "a"}], "annotations": []}', "found a key twice among .'id', 'id'"),
        (None, json.dumps({**COCO, "images": COCO["images"][:1]}), 'an "image_id" of "images" in annotation 1, found 4'),
        (None, json.dumps({**COCO, "images": COCO["images"] * 2 + [{"id": 4, "file_name": "c"}]}), "found 4 again in image 4, c"),
        (None, json.dumps(COCO).replace('"id": 17', '"id": NaN'), "number or a name as the image's id in image 0, found nan"),
        (None, json.dumps(COCO).replace('"id": 17', '"id": 17.5'), "number or a name as the image's id in image 0, found 17.5"),
        (None, json.dumps(COCO).replace('"id": 17', '"id": [17]'), r"name as the image's id in image 0, found \[17\]"),
        (None, json.dumps(COCO).replace('"four"', "NaN"), "expected a caption of b.jpg in annotation 1: found nan"),
        (None, json.dumps(COCO).replace('"four"', "null"), "expected a caption of b.jpg in annotation 1: found None"),
        (None, json.dumps(COCO).replace('"four"', '" "'), "expected a caption of b.jpg in annotation 1: found none"),
        (None, json.dumps(COCO).replace("four", r"\ud83d four"), "of b.jpg in annotation 1: .* found half of a character, U.D83D"),
        (None, json.dumps(COCO).replace("four", r"fo\u0000ur"), r"of b.jpg in annotation 1: found U\+0000"),
        (None, json.dumps(COCO).replace("b.jpg", r"b\n.jpg"), r"expected a file's name in image 1: found U\+000A"),
        (None, '{"annotations": [], "images": []}', "expected captions in the format 'coco', found none"),
        ("coco", "[]", 'expected JSON with lists "images" and "annotations", found .list'),
        (None, '{"words": []}', 'expected JSON with a list "images"'),
    ],
)
def test_broken_captions(tmp_path, format, text, message):
    path = tmp_path / "captions"
    path.write_text(text, newline="")
    with pytest.raises(errors.FormatError, match=f"captions: .*{message}") as found:
        read_captions(path, format)
    assert "\n" not in str(found.value) and len(str(found.value)) < 400


@pytest.mark.parametrize(
    ("raw", "split", "message"),
    [
        ("\ud83d", "train", ".*in image 0: ValueError: expected text in UTF-8, found half of a character"),
        (" ", "train", "expected a caption of a.jpg in image 0: found none"),
        ("one", ["train"], ".*in image 0: TypeError: a split .'train'"),
    ],
)
def test_broken_captions_of_karpathy(tmp_path, raw, split, message):
    path = tmp_path / "dataset_x.json"
    path.write_text(json.dumps({"images": [{"filename": "a.jpg", "split": split, "sentences": [{"raw": raw}]}]}))
    with pytest.raises(errors.FormatError, match=f"dataset_x.json: {message}"):
        read_captions(path)


@pytest.mark.parametrize("format", ["flickr", "csv", "coco", "names"])
def test_accents_are_composed(tmp_path, format):
    path, plain = tmp_path / "captions", "e\u0301"
    texts = {
        "flickr": f"{plain}.jpg#0\tcaf{plain}\n",
        "csv": f"image,caption\n{plain}.jpg,caf{plain}\n",
        "coco": json.dumps(COCO).replace("b.jpg", f"{plain}.jpg").replace("four", f"caf{plain}"),
        "names": f"{plain}.jpg\n",
    }
    path.write_text(texts[format], encoding="utf-8")
    if format == "names":
        assert read_names(path) == ["\u00e9.jpg"]
        return
    image = read_captions(path)[None][-1]
    assert image.name == "\u00e9.jpg" and image.captions == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",image,text\n0,1.jpg,a dog\n", "in the format|expected a header|expected `name.jpg#0`"),
        (",filename,caption\n0,1.jpg,a dog\n", "expected a header|expected `name.jpg#0`"),
        (
            'image,caption\n1,"a dog sits\n2,a cat 5"\n3,a bird\n',
            "expected quotes in pairs after line 1, found a row",
        ),
        (
            'caption,image\n"a dog,1.jpg\na cat 5",2.jpg\na bird,3.jpg\n',
            "expected quotes in pairs after line 1, found a row",
        ),
    ],
)
def test_csv_that_would_be_read_wrongly(tmp_path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(errors.FormatError, match=message):
        read_captions(tmp_path / "c.csv")


@pytest.mark.parametrize("columns", ["image,caption,split", "split,image,caption"])
def test_csv_with_splits(tmp_path, columns):
    path = tmp_path / "c.csv"

    def write(*rows):
        named = [dict(zip(("image", "caption", "split"), row, strict=True)) for row in rows]
        path.write_text("\n".join([columns, *(",".join(row[column] for column in columns.split(",")) for row in named)]))

    write(("1.jpg", "a dog", "train"), ("2.jpg", "a cat", "val"), ("1.jpg", "a red dog", "train"), ("3.jpg", "a cow", "restval"))
    assert read_captions(path) == {
        "train": [CaptionedImage("1.jpg", ["a dog", "a red dog"]), CaptionedImage("3.jpg", ["a cow"])],
        "dev": [CaptionedImage("2.jpg", ["a cat"])],
    }
    write(("1.jpg", "a dog", "train"), ("1.jpg", "a cat", "test"))
    with pytest.raises(errors.FormatError, match="expected 1.jpg in one split, found test in line 3 and train before"):
        read_captions(path)
    write(("1.jpg", "a dog", " "))
    with pytest.raises(errors.FormatError, match="expected a split in line 2: found none"):
        read_captions(path)
    write(("1.jpg", "a dog", "train"), ("2.jpg", "a cat", "Train"))
    with pytest.raises(errors.FormatError, match="expected each split by one name, found 'train' and 'Train'"):
        read_captions(path)
    path.write_text("image,caption,split,split\n1.jpg,a dog,train,test\n")
    with pytest.raises(errors.FormatError, match="found 'image,caption,split,split'"):
        read_captions(path)


def test_an_index_column_does_no_harm(tmp_path):
    (tmp_path / "c.csv").write_text(",image,caption\n0,1.jpg,a dog\n")
    assert read_captions(tmp_path / "c.csv") == {None: [CaptionedImage("1.jpg", ["a dog"])]}


def test_names_with_several_spaces_stay(tmp_path):
    (tmp_path / "captions").write_text("my  dog.jpg#0\ta  dog\n")
    assert read_captions(tmp_path / "captions") == {None: [CaptionedImage("my  dog.jpg", ["a dog"])]}


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
    path.write_text("b.jpg\ra.jpg\r", newline="")
    assert read_names(path) == ["b.jpg", "a.jpg"]
    for text, message in (("\n\n", "expected names of images, one a line, found none"), ("a\n\0", "found a NUL .* in line 2")):
        path.write_text(text)
        with pytest.raises(errors.FormatError, match=f"names.txt: .*{message}"):
            read_names(path)


@pytest.mark.parametrize("format", [None, "flickr"])
def test_captions_from_a_pipe(format):
    reader, writer = os.pipe()
    os.write(writer, b"a.jpg#0\tone\n")
    os.close(writer)
    assert [image.captions for image in read_captions(f"/dev/fd/{reader}", format)[None]] == [["one"]]
    os.close(reader)
