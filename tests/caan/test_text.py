"""Texts are compared in one form, and what is no text is refused in one line wherever it comes in."""

import json
import os
import subprocess
import sys

import pytest
from command_lines import SMALL
from PIL import Image

from caan.commands import main
from caan.text import normalised, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog\t on grass", "a dog\t on grass"),
        ("cafe\u0301", "caf\u00e9"),
        ("caf\u00e9", "caf\u00e9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        # Signs that only look like others stay what they are.
        ("\ufb01ne \u00b2", "\ufb01ne \u00b2"),
        ("\U0001f436 a dog", "\U0001f436 a dog"),
        ("cafe\u0301".encode().decode("ascii", "surrogateescape"), "caf\u00e9"),
        ("", ""),
    ],
)
def test_texts_are_composed(text, expected):
    assert normalised(text) == expected
    assert normalised(expected) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\ud83d a dog", "half of a character, U\\+D83D, at position 0"),
        ("a dog \udc36", "half of a character, U\\+DC36, at position 6"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "the byte 0xE9, at byte 3"),
    ],
)
def test_what_is_no_character_is_refused(text, found):
    with pytest.raises(ValueError, match=f"expected text in UTF-8, found {found}"):
        normalised(text)
    assert "\ufffd" in shown(text) and shown(text).encode()


@pytest.fixture
def index(data, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert main(["index", str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    return tmp_path / "index"


# As Python hands on bytes that are no UTF-8.
BYTES = os.fsdecode(b"image \xff")


def test_command_lines(index, data, tmp_path, capsys):
    pair = ["show", "pair", str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "pair.png"), "--image"]
    for arguments, line in (
        (["search", str(index), BYTES], "caan search: error: text: expected text in UTF-8, found the byte 0xFF, at byte 6"),
        ([*pair, BYTES], "caan show: error: --image: expected an id of test in "),
        ([*pair, "0", "--text", BYTES], "caan show: error: --text: expected text in UTF-8, found the byte 0xFF, at byte 6"),
        (["search", str(index), "--image", BYTES], f"caan search: error: --image: expected an id of {index}, "),
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(line)
    queries = tmp_path / "queries.txt"
    queries.write_bytes(b"image 1\nimage \xff\n")
    assert main(["search", str(index), "--queries", str(queries)]) == 1
    assert capsys.readouterr().err == f"caan search: error: {queries}: expected UTF-8, found other bytes in line 2\n"


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_session_goes_on_after_what_is_no_text(index, locale):
    asked = b"image \xff\nimage 1\n"
    run = subprocess.run(
        [sys.executable, "-m", "caan", "search", str(index), "--interactive"],
        input=asked,
        stdout=subprocess.PIPE,
        env={**os.environ, "LC_ALL": locale},
    )
    lines = run.stdout.decode()
    assert run.returncode == 0 and lines.count(" scored in ") == 1
    assert "expected text in UTF-8, found the byte 0xFF, at byte 6" in lines


def test_folders_whose_names_are_no_text(data, index, tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    (tmp_path / "run").rename(folder)
    refused = f"expected text in UTF-8, found the byte 0xE9, at byte {len(str(tmp_path)) + 4}"
    for arguments, name in (
        (["train", "--data", str(data), "--out", str(folder), *SMALL], "--out"),
        (["evaluate", str(folder), "--data", str(data)], "checkpoint"),
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"caan {arguments[0]}: error: {name}: {refused}"
    run = tmp_path / "run"
    run.symlink_to(folder)
    (folder / "again").symlink_to(folder)
    again = folder / "index"
    assert main(["index", str(run), "--data", str(data), "--out", str(again)]) == 0
    assert main(["search", str(again), "image 1", "--html", str(folder / "x.html"), "--json", str(folder / "hits.json")]) == 0
    assert json.loads((folder / "hits.json").read_text())["hits"]
    for name in ("training.png", "training.html"):
        assert main(["show", "training", str(folder), str(folder / "again"), "--out", str(folder / name)]) == 0
    assert main(["evaluate", str(run), "--data", str(data), "--json", str(folder / "figures.json")]) == 0


def test_photographs_in_a_folder_whose_name_is_no_text(tmp_path):
    photos, captions = tmp_path / os.fsdecode(b"ph\xff"), tmp_path / os.fsdecode(b"c\xff.csv")
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "x.jpg")
    captions.write_text("image,caption\nx.jpg,a dog\n")
    extract = ["extract", "--photos", str(photos), "--captions", str(captions), "--captions-per-image", "1", "--size", "64"]
    for _ in range(2):
        assert main([*extract, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "test_caps.txt").read_text() == "a dog\n"
