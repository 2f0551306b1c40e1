"""From photographs to a search on one data folder: what is remembered, how images are named, what a search says."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from averages import averaging
from PIL import Image
from terminals import open_terminal

from caan import CAAN, ModelConfig, Vocabulary, checkpoint, errors, extract
from caan.commands import images, main, options, search, show
from caan.data import load_scan_split, read_record, records
from caan.extraction import CaptionedImage, backbones, usual_captions
from caan.gallery import Contents, Searcher

ROOT = Path(__file__).parents[2]
WORDS = "dog cat horse snow beach street".split()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Backbones that average pixels."""
    monkeypatch.setattr(backbones, "load_backbone", averaging)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve photographs, three captions of each, and two more photographs."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(14):
        path = Path("photos" if number < 12 else "more", "b" if number == 5 else "", f"p{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
    rows = [f"{'b/' if n == 5 else ''}p{n}.png,a {WORDS[n % 6]} {word}" for n in range(12) for word in ("here", "there", "runs")]
    Path("captions.csv").write_text("\n".join(["image,caption", *rows]))
    return tmp_path


def caan(*arguments):
    return main([*map(str, arguments)])


EXTRACT = ("extract", "--photos", "photos", "--out", "data")


@pytest.fixture
def gallery(folder, capsys):
    """The splits test and more in a gallery, of a model that nobody has trained."""
    assert caan(*EXTRACT, "--captions", "captions.csv", "--hold-out", 3) == 0
    assert caan("extract", "--photos", "more", "--out", "data", "--split", "more") == 0
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_captions([*WORDS, "a here there runs"], 1)
    checkpoint.save_model("model", CAAN(ModelConfig(3, len(vocabulary), width=8, word_width=4)), vocabulary)
    for name in ("test", "more"):
        assert caan("index", "model", "--data", "data", "--split", name, "--out", "gallery") == 0
    assert "more: no captions: only its images can be found\n" in capsys.readouterr().out
    return Path("gallery")


@pytest.mark.long
def test_the_readme_can_be_walked(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    walk = subprocess.run(["bash", ROOT / "tools" / "walk.sh", tmp_path / "walk"], env=environment, capture_output=True, text=True)
    assert walk.returncode == 0, walk.stderr
    commands = re.findall(r"^\+ caan (\w+)", walk.stdout, re.MULTILINE)
    assert commands[:6] == ["extract", "train", "evaluate", "index", "search", "show"] and "%|" not in walk.stderr
    scores = [float(line.split()[0]) for line in walk.stdout.split("+ python\n")[1].splitlines()]
    # Of a model's ranking, and of a gallery's search.
    parts = scores[:3], scores[3:]
    assert len(scores) == 6 and all(part == sorted(part, reverse=True) for part in parts)
    again = subprocess.run(["bash", ROOT / "tools" / "walk.sh", tmp_path / "walk"], env=environment, capture_output=True, text=True)
    assert again.returncode == 1 and "FOLDER: expected a new or empty folder" in again.stderr


def test_photographs_without_captions(folder, capsys):
    assert caan(*EXTRACT) == 0
    assert "test: 12 images in data, without captions; 3 numbers a region\n" in capsys.readouterr().out
    names = {path.name for path in Path("data").iterdir()}
    assert names == {f"test_{name}" for name in ("ims.npy", "ids.txt", "boxes.npy", "extract.json")}
    record = read_record("data", "test")
    assert (record.captions_per_image, record.width, record.backbone, record.size) == (0, 3, backbones.DEFAULT_BACKBONE, 4)
    split = load_scan_split("data", "test", need_captions=False)
    assert split.ids == sorted(["b/p5.png", *(f"p{n}.png" for n in range(12) if n != 5)]) and split.captions == []
    with pytest.raises(errors.MissingFileError, match="expected captions, found none: caan extract made test without"):
        load_scan_split("data", "test")
    capsys.readouterr()
    assert caan(*EXTRACT) == 0 and "everything is there already, 12 images" in capsys.readouterr().out
    assert caan(*EXTRACT, "--captions", "captions.csv") == 1
    assert "captions was None, and is 'captions.csv'" in capsys.readouterr().err
    assert caan(*EXTRACT, "--captions", "captions.csv", "--overwrite") == 0 and len(load_scan_split("data", "test").captions) == 36
    assert caan(*EXTRACT, "--overwrite") == 0 and not Path("data/test_caps.txt").exists()
    Path("names").write_text("p3\nnobody\n")
    assert caan("extract", "--photos", "photos", "--out", "some", "--images", "names") == 0
    assert load_scan_split("some", "test", need_captions=False).ids == ["p3.png"]
    for given in (["--format", "csv"], ["--captions-per-image", 2], ["--hold-out", 1]):
        assert caan("extract", "--photos", "photos", "--out", "none", *given) == 1
        assert f"{given[0]}: expected with --captions only" in capsys.readouterr().err


def test_held_out_images_are_in_one_split(folder, capsys):
    assert caan(*EXTRACT, "--captions", "captions.csv", "--hold-out", 3) == 0
    splits = [load_scan_split("data", name) for name in ("train", "dev", "test")]
    assert [split.num_images for split in splits] == [6, 3, 3]
    assert sorted(name for split in splits for name in split.ids) == sorted(load_ids())
    # Evenly spread over the file.
    assert splits[1].ids == ["p0.png", "p4.png", "p8.png"] and splits[2].ids == ["p2.png", "p6.png", "p10.png"]
    for given, message in (
        (["--hold-out", 5], "--hold-out: expected 1 to 4, a third of the 12 images, got 5"),
        (["--hold-out", 0], "--hold-out: expected 1 to 4"),
        (["--hold-out", 2, "--split", "dev"], "--hold-out: expected without --split"),
    ):
        assert caan("extract", "--photos", "photos", "--out", "none", "--captions", "captions.csv", *given) == 1
        assert message in capsys.readouterr().err
    assert caan(*EXTRACT, "--captions", "captions.csv", "--hold-out", 2) == 1
    error = capsys.readouterr().err
    assert "--hold-out: expected 3, the images of dev in data, got 2; another --out makes another folder, --overwrite" in error
    assert caan(*EXTRACT, "--captions", "captions.csv", "--hold-out", 3) == 0
    assert caan(*EXTRACT, "--captions", "captions.csv", "--hold-out", 2, "--overwrite") == 0


def test_a_failed_extract_leaves_no_empty_folder(folder):
    Path("there").mkdir()
    for out in ("new", "there"):
        assert caan("extract", "--photos", "nowhere", "--out", out) == 1
    assert not Path("new").exists() and Path("there").is_dir()


def test_a_forgotten_split_is_named(folder, capsys):
    assert caan(*EXTRACT) == 0
    assert caan("extract", "--photos", "more", "--out", "data") == 1
    error = capsys.readouterr().err
    assert "the split 'test' was begun with other settings: photos was" in error
    assert "; --split NAME makes another split (without it, the split is test), another --out" in error
    assert error.endswith("; --overwrite makes this split anew\n")
    with pytest.raises(ValueError, match=r"; split=NAME makes another split .*, another out .*; overwrite=True makes this split"):
        extract("more", "data")
    with pytest.raises(ValueError, match="^hold_out: expected with captions only"):
        extract("more", "none", hold_out=1)


def load_ids():
    return [line.split(",")[0] for line in Path("captions.csv").read_text().splitlines()[1::3]]


def test_captions_per_image_are_remembered(folder):
    assert caan(*EXTRACT, "--captions", "captions.csv") == 0
    split = load_scan_split("data", "test")
    assert len(split.captions) == 36 and split.image_of_caption[:4].tolist() == [0, 0, 0, 1]
    arguments = argparse.Namespace(data=Path("data"), karpathy=None, captions_per_image=None)
    assert options.load_splits(arguments, "test")[0].num_images == 12
    arguments.captions_per_image = 5
    with pytest.raises(errors.CaptionMismatchError, match="expected 60 captions, 5 for each"):
        options.load_splits(arguments, "test")


@pytest.mark.parametrize(
    ("counts", "expected"), [([5] * 3, 5), ([7, 6, 1], 5), ([1, 1, 5], 1), ([2, 3], 3), ([0, 0, 2], 2), ([], 5)]
)
def test_the_usual_number_of_captions(counts, expected):
    assert usual_captions([CaptionedImage("x", ["y"] * count) for count in counts]) == expected


def test_a_folder_has_features_of_one_kind(folder, capsys):
    assert caan(*EXTRACT, "--captions", "captions.csv", "--backbone", "other", "--size", 6) == 0
    # Another split takes what the first had.
    assert caan("extract", "--photos", "more", "--out", "data", "--split", "more") == 0
    record = read_record("data", "more")
    assert (record.backbone, record.size) == ("other", 6)
    capsys.readouterr()
    third = ("extract", "--photos", "more", "--out", "data", "--split", "third")
    assert caan(*third, "--backbone", "wide") == 1
    expected = (
        "--out: expected features as those of more in data, 3 numbers a region from other at 6 pixels, got 3 numbers a region "
    )
    assert f"{expected}from wide at 8 pixels" in capsys.readouterr().err
    assert caan(*third, "--backbone", "wide", "--overwrite") == 0


def test_splits_of_other_photographs_have_the_same_backbone(folder, capsys):
    """As COCO's train2014 and val2014: each folder has the photographs of some of the file's splits."""
    rows = [(f"p{number}.png", "train" if number < 12 else "val") for number in (0, 1, 12, 13)]
    karpathy = [{"filename": name, "split": split, "sentences": [{"raw": "a dog"}]} for name, split in rows]
    Path("karpathy.json").write_text(json.dumps({"images": karpathy}))
    given = ("extract", "--captions", "karpathy.json", "--out", "data", "--photos")
    assert caan(*given, "photos", "--backbone", "other", "--size", 6) == 0
    assert caan(*given, "more") == 0
    assert [(record.backbone, record.size) for record in records("data").values()] == [("other", 6)] * 2
    Path("data/dev_extract.json").unlink()
    assert caan(*given, "more", "--backbone", "wide") == 1
    assert "expected features as those of train in data" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", '{"settings": {"width": "3", "captions_per_image": 5}}', '{"settings": 1}', "x"])
def test_a_record_of_others_is_named(tmp_path, content):
    (tmp_path / "test_extract.json").write_text(content)
    with pytest.raises(errors.FormatError, match="test_extract.json: expected what caan extract writes"):
        read_record(tmp_path, "test")


def found(capsys, *arguments):
    """What a search finds, as JSON."""
    assert caan("search", "gallery", *arguments, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


def pictures(path):
    return path.read_text().count("data:image/jpeg")


def test_photographs_are_where_they_were(gallery, capsys):
    page = Path("page.html")
    assert caan("search", gallery, "a dog", "--html", page) == 0 and pictures(page) == 5
    assert caan("search", gallery, "--image", "p2.png", "--find", "images", "--html", page) == 0 and pictures(page) == 5
    assert caan("show", "retrieval", "model", "--data", "data", "--queries", 1, "--top", 3, "--out", page) == 0
    # Plain, and under attention.
    assert pictures(page) == 6
    shutil.move("photos", "moved")
    capsys.readouterr()
    assert caan("search", gallery, "a dog", "--html", page) == 0 and pictures(page) == 2
    assert "photos: no photographs any more, where caan extract found them" in capsys.readouterr().err
    assert caan("search", gallery, "a dog", "--html", page, "--photos", "moved") == 0 and pictures(page) == 3
    assert caan("show", "pair", "model", "--data", "data", "--image", "p2", "--out", "pair.png") == 0
    assert "--photos names the folder in which they are now" in capsys.readouterr().err
    # The gallery has it all already, and takes the folder's new place.
    assert caan("index", "model", "--data", "data", "--out", gallery, "--photos", "moved") == 0
    assert [Path(source.backbone["photos"]).name for source in Contents.read(gallery).sources] == ["moved", "more"]
    assert caan("search", gallery, "a dog", "--html", page) == 0 and pictures(page) == 5
    # What has been named once stays.
    assert caan("index", "model", "--data", "data", "--out", gallery, "--size", 6) == 0
    record, source = read_record("data", "test"), Contents.read(gallery).sources[0]
    assert source.backbone == {**record.settings, "size": 6, "photos": str(Path("moved").resolve())}
    # Until the record has another place.
    shutil.move("moved", "again")
    file = Path("data/test_extract.json")
    file.write_text(file.read_text().replace(str(Path("photos").resolve()), str(Path("again").resolve())))
    assert caan("index", "model", "--data", "data", "--out", gallery) == 0
    assert Contents.read(gallery).sources[0].backbone == {**source.backbone, "photos": str(Path("again").resolve())}


def test_what_an_index_was_told_without_a_record(gallery):
    Path("data/test_extract.json").unlink()
    index = ("index", "model", "--data", "data", "--out", "other", "--captions-per-image", 3)
    assert caan(*index, "--backbone", "wide") == caan(*index, "--photos", "more") == caan(*index) == 0
    [source] = Contents.read(Path("other")).sources
    assert source.backbone == {"backbone": "wide", "size": None, "photos": str(Path("more").resolve())}


def test_an_image_has_the_same_names_everywhere(gallery, capsys):
    ids = ["p2.png", "p6.png", "p10.png", "p12.png", "p13.png"]
    for name, number in (("test:p6.png", 1), ("p6.png", 1), ("p6", 1), ("test:p6", 1), ("test:1", 1), ("1", 1), ("more:0", 3)):
        assert found(capsys, "--image", name)["number"] == number
        asked = argparse.Namespace(image=name, data=Path("data"), split="test", karpathy=None, captions_per_image=None, photos=None)
        with show._asked(asked) as (split, image, photograph):
            assert (split.ids[image], split.name) == (ids[number], "test" if number < 3 else "more") and photograph.size == (40, 30)
    assert [found(capsys, "--image", name)["number"] for name in ("p12", "more:p12", "4")] == [3, 3, 4]
    assert caan("show", "pair", "model", "--data", "data", "--image", "more:1", "--text", "a dog", "--out", "pair.html") == 0
    assert "p13.png: a dog" in Path("pair.html").read_text()


def test_an_images_name():
    ids, splits = ["a/x.jpg", "b/x.jpg", "7.jpg", "y", "0", "a/x.jpg", "a/z.JPG", "z.jpg"], [("one", 5), ("two", 3)]

    def find(name):
        return images.find_image(name, ids, splits, "here")

    names = ("b/x.jpg", "b/x", "7.jpg", "7", "y.png", "0", "3", "two:x", "two:0", "one:a/x", "z", "a/z.jpg")
    assert [find(name) for name in names] == [1, 1, 2, 2, 3, 4, 3, 5, 5, 0, 7, 6]
    for name, places in (("x", "one:a/x.jpg, one:b/x.jpg, two:a/x.jpg"), ("a/x.jpg", "one:a/x.jpg, two:a/x.jpg")):
        with pytest.raises(ValueError, match=f"--image: '{name}' names . images: {places}; write one of them"):
            find(name)
    for name in ("w", "9", "three:y", "two:3", "z.png"):
        numbered = r"a number below 8, SPLIT:ID, SPLIT:NUMBER \(images are numbered from 0: 5 in one, 3 in two\)"
        with pytest.raises(ValueError, match=f"expected an id of here, such as a/x.jpg, .*, {numbered}, .* got '{name}'"):
            find(name)


def test_a_photographs_file_is_an_image(gallery, capsys):
    """One of the gallery, elsewhere: it finds what it finds by its id."""
    shutil.copy("photos/p6.png", "copy of it.jpg")
    for what in ("captions", "images"):
        own, file = (found(capsys, "--image", name, "--find", what, "--exact") for name in ("p6", "copy of it.jpg"))
        assert file["image"] == "copy of it.jpg" and "number" not in file
        hits = [(hit["number"], round(hit["score"], 5)) for hit in file["hits"]]
        if what == "images":
            # Itself first, which is left out where it is known to be itself.
            assert hits[0] == (1, 1.0)
            hits = hits[1:]
        assert hits == [(hit["number"], round(hit["score"], 5)) for hit in own["hits"]]
    pair = ("show", "pair", "model", "--data", "data", "--out", "pair.html", "--image")
    assert caan(*pair, "copy of it.jpg") == 1
    assert "--text: expected a caption of your own for a photograph's file, copy of it.jpg" in capsys.readouterr().err
    assert caan(*pair, "copy of it.jpg", "--text", "a dog") == 0
    file = Path("pair.html").read_text()
    assert caan(*pair, "p6", "--text", "a dog") == 0
    # But for the picture, which has the name in it.
    file, own = (re.sub('base64,[^"]*', "", page) for page in (file, Path("pair.html").read_text()))
    assert file.replace("copy of it.jpg", "p6.png") == own and own.count("<td>") > 20
    assert caan(*pair, "more:0") == 1 and "since more has no captions" in capsys.readouterr().err


def test_what_is_named_counts_more_than_what_is_noted(gallery, monkeypatch, capsys):
    loaded, load = [], backbones.load_backbone
    monkeypatch.setattr(backbones, "load_backbone", lambda name, size: loaded.append((name, size)) or load(name, size))
    shutil.copy("photos/p6.png", "file.png")
    given = (["--backbone", "wide"], ["--size", 6], ["--backbone", backbones.DEFAULT_BACKBONE], [])
    for own in given:
        found(capsys, "--image", "file.png", *own)
    pair = ("show", "pair", "model", "--data", "data", "--image", "file.png", "--text", "a dog", "--out", "pair.html")
    assert caan(*pair, "--backbone", "wide") == 0
    noted = backbones.DEFAULT_BACKBONE
    assert loaded == [("wide", None), (noted, 6), (noted, 4), (noted, 4), ("wide", None)]
    assert caan("index", "model", "--data", "data", "--out", gallery, "--backbone", "wide") == 0
    source = Contents.read(gallery).sources[0]
    assert source.backbone == {"backbone": "wide", "size": None, "photos": str(Path("photos").resolve())}
    # A folder of features that nothing is known of.
    Path("data/test_extract.json").unlink()
    capsys.readouterr()
    pair = (*pair, "--captions-per-image", 3)
    assert caan(*pair) == 1 and "expected to know which backbone made its features" in capsys.readouterr().err
    assert caan("index", "model", "--data", "data", "--out", "other", "--captions-per-image", 3) == 0
    assert caan("search", "other", "--image", "file.png") == 1 and "--backbone names it" in capsys.readouterr().err
    assert caan("search", "other", "--image", "file.png", "--backbone", "wide") == 0


def test_images_are_found_by_mean_vectors(gallery, capsys):
    result = found(capsys, "--image", "p2", "--find", "images")
    assert result["by"] == "mean vectors" and 0 not in [hit["number"] for hit in result["hits"]]
    vectors = Searcher(gallery).gallery.image_vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose([hit["score"] for hit in result["hits"]], np.sort(unit[1:] @ unit[0])[::-1], atol=1e-6)
    assert caan("search", gallery, "--image", "p2", "--find", "images") == 0
    out = capsys.readouterr().out
    assert "images compared by the cosine of their mean vectors (the operator scores no image against an image)" in out
    assert found(capsys, "--image", "p2")["by"] == "operator" and found(capsys, "a dog")["by"] == "operator"
    # Where nothing has captions there is nothing else to find.
    assert caan("index", "model", "--data", "data", "--split", "more", "--out", "bare", "--check", 2) == 0
    assert capsys.readouterr().out.count("not checked, the gallery has no captions") == 2
    assert caan("search", "bare", "--image", 0, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["by"] == "mean vectors"
    assert caan("search", "bare", "--image", 0, "--find", "captions") == 1
    assert "expected a gallery with captions, found none" in capsys.readouterr().err


def test_options_stand_anywhere(gallery, capsys):
    expected = found(capsys, "a dog runs", "--top", 1)["hits"]
    for arguments in (["--top", 1, "a dog runs"], ["a", "dog", "--top", 1, "runs"], ["a", "dog", "runs", "--top=1"]):
        assert found(capsys, *arguments)["hits"] == expected and len(expected) == 1
    assert caan("search", "--top", 1, "--json", "-", gallery, "a dog runs") == 0
    assert json.loads(capsys.readouterr().out)["hits"] == expected
    for arguments, message in (
        ([], "expected one of TEXT, --image, --queries and --interactive"),
        (["a", "--interactive"], "expected one of TEXT, --image, --queries and --interactive, got several"),
        (["a", "--find", "images"], "argument --find: expected with --image"),
        (["a", "--nothing"], "unrecognized arguments: --nothing"),
        (["--image", "1", "--interactive"], "not allowed with argument"),
    ):
        with pytest.raises(SystemExit) as ended:
            caan("search", gallery, *arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_words_that_nobody_knows(gallery, capsys):
    page = Path("page.html")
    for text in ("a hrose zzyzx", "a hrose zzyzx hrose"):
        result = found(capsys, text, "--html", page)
        assert result["unknown"] == ["hrose", "zzyzx"] and result["near"] == {"hrose": ["horse"], "zzyzx": []}
    line = "Words that the model does not know: hrose (near it: horse), zzyzx (nothing near it)"
    assert line in page.read_text() and "&lt;unk:hrose&gt;" in page.read_text()
    assert caan("search", gallery, "a hrose zzyzx") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == line and out.splitlines()[2].split() == ["score", "image"] and err == ""
    assert out.splitlines()[3].startswith("   1 ")
    words = len(Searcher(gallery).vocabulary) - 4
    for text, expected in (
        ("hrose .", f"got hrose (near it: horse); it knows {words} words, by default those that occur four times or more"),
        (". !", "got only marks: . !"),
    ):
        page.unlink(missing_ok=True)
        with pytest.raises(SystemExit) as ended:
            caan("search", gallery, text, "--html", page)
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and f"text: expected a word that the model knows, {expected}" in err
        assert err.count("\n") == 1 and not page.exists()


def terminal(command, **streams):
    """A command's process, and the end of a terminal that it has for the streams that are not named."""
    ours, theirs = open_terminal()
    streams = {name: streams.get(name, theirs) for name in ("stdin", "stdout", "stderr")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-m", "caan", *map(str, command)], **streams, env=environment)
    os.close(theirs)
    return process, ours


def read_until(ours, text=None):
    """What the process writes, up to a text or to its end."""
    seen, until = b"", time.monotonic() + 120
    while time.monotonic() < until and not (text and text in seen):
        try:
            part = os.read(ours, 10000)
        except OSError:
            break
        if not part:
            break
        seen += part
    return seen.decode()


def test_a_line_can_be_edited_and_had_again(gallery, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    history = tmp_path / "state" / "caan" / "history"
    history.parent.mkdir(parents=True)
    history.write_text("of another session\n")
    process, ours = terminal(["search", gallery, "--interactive", "--top", 1])
    read_until(ours, b"text> ")
    os.write(ours, b"a dg\x1b[Do\n")  # Cursor left, and the letter that was missing.
    first = read_until(ours, b"text> ")
    os.write(ours, b"\x1b[A\n")  # The line before.
    second = read_until(ours, b"text> ")
    os.write(ours, b"zzyzx\n")
    assert "expected a word that the model knows, got zzyzx" in read_until(ours, b"text> ")
    os.write(ours, b"quit\n")
    read_until(ours)
    assert process.wait(60) == 0
    os.close(ours)
    hits = [re.findall(r"   1 +(\S+)  (\S+)", seen) for seen in (first, second)]
    assert hits[0] == hits[1] and len(hits[0]) == 1 and "does not know" not in first
    assert history.read_text().splitlines() == ["of another session", "a dog", "zzyzx", "quit"]


def test_progress_and_results_are_apart(gallery, tmp_path, monkeypatch):
    Path("queries").write_text("a dog\na cat zzyzx\n\nzzyzx\n")
    with open("out", "w") as out:
        process, ours = terminal(["search", gallery, "--queries", "queries"], stdout=out)
        seen = read_until(ours)
        assert process.wait(60) == 0
    os.close(ours)
    lines = [json.loads(line) for line in Path("out").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a dog", "a cat zzyzx", "zzyzx"] and lines[2]["hits"] == []
    assert (
        "3/3" in seen
        and "queries, line 4: text: expected a word that the model knows, got zzyzx (nothing near it)" in seen
        and "hits" not in seen
    )
    # On one screen results tell by themselves how far it is.
    given = argparse.Namespace(queries=Path("queries"), json=None)
    monkeypatch.setattr(sys, "stdout", argparse.Namespace(isatty=lambda: True))
    assert not search._is_apart(given)
    given.json = Path("found.jsonl")
    assert search._is_apart(given)
