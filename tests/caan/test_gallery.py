"""Index and search: the scores and order of the whole matrix; kills lose nothing; what cannot be used is refused."""

import errno
import io
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import make_model, whole_matrix
from PIL import Image

from caan import CAAN, ModelConfig, Vocabulary, checkpoint, errors
from caan.commands import main
from caan.data import load_scan_split
from caan.files import locked
from caan.gallery import Contents, Searcher, build, build_index, shortlist_recall


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """24 images are four segments, the last of 3."""
    monkeypatch.setattr(build, "_SEGMENT", 7)
    monkeypatch.setattr(build, "_BATCH", 4)


@pytest.fixture
def run_folder(split, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.save_model(tmp_path / "run" / "best.safetensors", *make_model(split, 0))
    return tmp_path / "run"


@pytest.fixture
def index(split, run_folder, tmp_path):
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    build_index(tmp_path / "index", model, vocabulary, run_folder, split)
    return tmp_path / "index"


def test_exact_search_is_the_whole_matrix(split, index):
    scores = whole_matrix([make_model(split, 0)], split).numpy()
    searcher = Searcher(index)
    for number in (0, 57, 119):
        for query in (searcher.caption(number), searcher.text(split.captions[number])):
            hits = searcher.search(query, 24, None)
            np.testing.assert_allclose(hits.scores, scores[hits.items, number], atol=2e-6)
            assert sorted(hits.items) == list(range(24)) and (np.diff(hits.scores) <= 0).all()
    for number in (0, 8, 23):
        features = split.read_regions(number)
        for query in (searcher.image(number), searcher.features(features)):
            hits = searcher.search(query, 120, None)
            np.testing.assert_allclose(hits.scores, scores[number, hits.items], atol=2e-6)
            assert sorted(hits.items) == list(range(120))
    gallery = searcher.gallery
    assert gallery.ids == split.ids and gallery.captions == split.captions
    assert (gallery.image_of_caption == split.image_of_caption).all()


def test_a_shortlist_is_in_the_exact_order_bit_for_bit(index):
    searcher = Searcher(index)
    for query in (searcher.caption(3), searcher.image(3)):
        exact = searcher.search(query, 24, None)
        score = dict(zip(exact.items.tolist(), exact.scores.tolist(), strict=True))
        everything = searcher.search(query, 120, None)
        score |= dict(zip(everything.items.tolist(), everything.scores.tolist(), strict=True))
        hits = searcher.search(query, 5, 9)
        assert hits.scores.tolist() == [score[item] for item in hits.items.tolist()] and len(hits.items) == 5
        # The nearest nine by mean vectors, and no other, are scored.
        vectors = searcher.gallery.image_vectors if query.wants_images else searcher.gallery.caption_vectors
        nearest = np.argsort(-(vectors @ query.vector[0]), kind="stable")[:9]
        assert set(hits.items) == set(sorted(nearest, key=lambda item: -score[item])[:5])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_shortlist_compares_as_the_model_scores(split, tmp_path, similarity):
    """With uniform attention the mean vectors are all that a score depends on, lengths included where it is a dot product."""
    options = {"similarity": similarity, "inter": False, "intra": None, "unit_length": False}
    model, vocabulary = make_model(split, 0, **options)
    checkpoint.save_model(tmp_path / "model.safetensors", model, vocabulary)
    build_index(tmp_path / "index", model, vocabulary, tmp_path / "model.safetensors", split)
    searcher = Searcher(tmp_path / "index")
    for query in (
        searcher.caption(3),
        searcher.text(split.captions[3]),
        searcher.image(3),
        searcher.features(split.read_regions(3)),
    ):
        exact = searcher.search(query, 120, None)
        vectors = searcher.gallery.image_vectors if query.wants_images else searcher.gallery.caption_vectors
        np.testing.assert_allclose((vectors @ query.vector[0])[exact.items], exact.scores, atol=2e-6)
        assert searcher.search(query, 5, 5).items.tolist() == exact.items[:5].tolist()
    norms = np.linalg.norm(searcher.gallery.image_vectors, axis=1)
    assert np.allclose(norms, 1) == (similarity == "cosine")


def test_an_image_without_regions_has_no_direction(split, run_folder, tmp_path):
    np.save(tmp_path / "test_num_boxes.npy", np.where(np.arange(24) == 3, 0, 5))
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    build_index(tmp_path / "index", model, vocabulary, run_folder, load_scan_split(tmp_path, "test"))
    vectors = Searcher(tmp_path / "index").gallery.image_vectors
    assert not vectors[3].any() and np.isfinite(vectors).all() and vectors[2].any()


def test_recall_of_shortlists(index):
    searcher = Searcher(index)
    queries = [searcher.caption(number) for number in range(20)]
    found = shortlist_recall(searcher, queries, (3, 24), (1, 5))
    assert found[24] == {1: pytest.approx(100), 5: pytest.approx(100)}
    expected = 0
    for query in queries:
        best = searcher.search(query, 1, None).items[0]
        nearest = np.argsort(-(searcher.gallery.image_vectors @ query.vector[0]))[:3]
        expected += 100 * (best in nearest) / 20
    assert found[3][1] == pytest.approx(expected) and 0 < found[3][5] < 100


def files(folder):
    """What is in the segments; the last part of their names is drawn anew each time."""
    found = sorted(folder.glob("segment-*/*"))
    return {(path.parent.name.rpartition("-")[0], path.name): path.read_bytes() for path in found}


BUILD = """
import os, signal, sys
from pathlib import Path
from caan.commands import main
from caan.files import locked
from caan.gallery import build, store
build._SEGMENT, build._BATCH = 7, 4
out, when, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def counted(function):
    def call(*arguments, **options):
        global count
        result = function(*arguments, **options)
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
if when == "file":
    build._to_disk = counted(build._to_disk)
elif when == "segment":
    store.Contents.write = counted(store.Contents.write)
sys.exit(main(["index", str(out.parent / "run"), "--data", str(out.parent), "--out", str(out)]))
"""


@pytest.mark.parametrize(("when", "count", "left"), [("file", 13, 7), ("segment", 3, 21)])
def test_a_killed_index_continues(index, tmp_path, when, count, left):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", BUILD, str(out)]
    assert subprocess.run([*command, when, str(count)], capture_output=True).returncode == -signal.SIGKILL
    with pytest.raises(errors.TruncatedFileError, match=f"expected a finished gallery, found {left} of the 24 images of test"):
        Searcher(out)
    run = subprocess.run([*command, "never", "0"], capture_output=True, text=True)
    assert run.returncode == 0 and f"test: continues after {left} of 24 images" in run.stdout
    assert files(out) == files(index)
    run = subprocess.run([*command, "never", "0"], capture_output=True, text=True)
    assert "all of its 24 images are in" in run.stdout


def test_another_split_is_added(split, index, run_folder, tmp_path, write_split):
    before = files(index)
    more = np.random.default_rng(1).standard_normal((9, 3, 6)).astype(np.float32)
    write_split(tmp_path, "more", more, [f"word{number % 12} word3" for number in range(45)], [f"m{number}" for number in range(9)])
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    build_index(index, model, vocabulary, run_folder, load_scan_split(tmp_path, "more"))
    assert before.items() <= files(index).items()
    searcher = Searcher(index)
    assert len(searcher.gallery.ids) == 33 and searcher.gallery.ids[24:26] == ["m0", "m1"]
    assert searcher.gallery.image_of_caption[120:126].tolist() == [24] * 5 + [25]
    alone = tmp_path / "alone"
    build_index(alone, model, vocabulary, run_folder, load_scan_split(tmp_path, "more"))
    whole, expected = (other.search(other.text("word3"), 33, None) for other in (searcher, Searcher(alone)))
    assert len(whole.items) == 33 and len(expected.items) == 9
    ours = whole.items >= 24
    assert (whole.items[ours] - 24).tolist() == expected.items.tolist() and (whole.scores[ours] == expected.scores).all()


def test_what_is_refused(split, index, run_folder, tmp_path):
    other = tmp_path / "other.safetensors"
    checkpoint.save_model(other, *make_model(split, 1))
    with pytest.raises(
        errors.StaleIndexError, match=r"expected a gallery of the model in .*other.safetensors, found one of another"
    ):
        Searcher(index, other)
    model, vocabulary, _ = checkpoint.load_model(other)
    with pytest.raises(errors.StaleIndexError):
        build_index(index, model, vocabulary, other, split)
    [path] = index.glob("segment-00001-*/regions.npy")
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(errors.TruncatedFileError, match=rf"regions.npy: expected {len(data):,} bytes, found {len(data) - 10:,}"):
        Searcher(index)
    path.write_bytes(data)
    facts = json.loads((index / "index.json").read_text())
    without_bytes = json.loads(json.dumps(facts["sources"][0]))
    del without_bytes["segments"][1]["bytes"]
    for change, message in (
        ({"format": "caan-index-9"}, "format caan-index-2, found caan-index-9; caan index makes it anew elsewhere"),
        (
            {"format": "caan-index-1"},
            "found caan-index-1, from before the operator followed the paper's equations, .*: train the model",
        ),
        ({"model": None}, "KeyError"),
        ({"sources": [without_bytes]}, "KeyError: 'bytes'"),
    ):
        changed = {**facts, **change}
        changed = {name: value for name, value in changed.items() if value is not None}
        (index / "index.json").write_text(json.dumps(changed))
        with pytest.raises(errors.FormatError, match=message):
            Searcher(index)
    (index / "index.json").write_text("")
    with pytest.raises(errors.FormatError, match="index.json: expected what caan index writes"):
        Searcher(index)
    (index / "index.json").write_text(json.dumps(facts))
    path.write_bytes(bytes(len(data)))
    with pytest.raises(errors.FormatError, match="regions.npy: expected an array of a gallery"):
        Searcher(index)
    path.write_bytes(data)
    texts = path.with_name("texts.json")
    texts.write_bytes(b"[" + texts.read_bytes()[1:])
    with pytest.raises(errors.FormatError, match="texts.json: expected the texts of a gallery"):
        Searcher(index).gallery.ids  # noqa: B018


def test_what_is_no_gallery_is_told_with_the_command_that_makes_one(run_folder, index, tmp_path):
    nowhere = tmp_path / "nowhere"
    for folder, message in (
        (nowhere, f"found none; caan index RUN --data DATA --out {nowhere} makes it"),
        (tmp_path, f"found no index.json in it; caan index RUN --data DATA --out {tmp_path} makes it"),
        (run_folder, f"found a model; caan index {run_folder} --data DATA --out GALLERY makes a gallery with it"),
    ):
        with pytest.raises(errors.MissingFileError, match=f"^{folder}: expected a gallery, {message}$"):
            Contents.read(folder)
    with pytest.raises(errors.MissingFileError, match="no such file; this is a gallery, and a run is expected"):
        checkpoint.load_model(index)


def test_a_gallery_says_which_option_names_a_model_that_has_moved(run_folder, index, tmp_path, capsys):
    run_folder.rename(tmp_path / "moved")
    assert main(["search", str(index), "dog"]) == 1
    assert f"{run_folder}: expected the model of {index}, found none; --run (run= in Python) names it" in capsys.readouterr().err
    assert main(["search", str(index), "word1", "--run", str(tmp_path / "moved")]) == 0


def changed(split, tmp_path, write_split):
    """The split with another number in a row that no sample would show."""
    features = np.stack([split.regions.read(row) for row in range(24)])
    features[13, 2, 1] += 0.25
    write_split(tmp_path, "test", features, split.captions, split.ids)
    return load_scan_split(tmp_path, "test")


def test_a_split_that_has_changed_does_not_stand_beside_itself(split, index, run_folder, tmp_path, write_split):
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    again = changed(split, tmp_path, write_split)
    before = files(index)
    with pytest.raises(errors.StaleSplitError, match="expected test of .* as it was when it went in, found other features"):
        build_index(index, model, vocabulary, run_folder, again)
    assert files(index) == before
    build_index(index, model, vocabulary, run_folder, again, replace=True)
    alone = tmp_path / "alone"
    build_index(alone, model, vocabulary, run_folder, again)
    assert files(index) == files(alone) != before and len(Searcher(index).gallery.ids) == 24


def test_a_split_that_is_half_in_is_left_out_and_can_be_dropped(index, run_folder, tmp_path, write_split, capsys):
    more = np.random.default_rng(1).standard_normal((9, 3, 6)).astype(np.float32)
    write_split(tmp_path, "more", more, [f"word{number % 12} word3" for number in range(45)], ["7", *"abcdefgh"])
    options = ["--data", str(tmp_path), "--out", str(index)]
    assert main(["index", str(run_folder), *options, "--split", "more"]) == 0
    found = [main(["search", str(index), "--image", name, "--top", "2"]) for name in ("7", "more:7", "a", "none:7")]
    out, err = capsys.readouterr()
    assert found == [1, 0, 0, 1] and "--image: '7' names 2 images: test:7, more:7; write one of them" in err
    assert len(re.findall(r" (?:test|more):\w+  word", out)) == 4
    assert main(["search", str(index), "word3", "--exact", "--top", "33", "--json", "-"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(hit["number"] for hit in hits) == list(range(33))
    assert all((hit["split"] == "more") == (hit["number"] >= 24) and hit["data"] for hit in hits)

    facts = json.loads((index / "index.json").read_text())
    facts["sources"][1]["segments"].pop()
    (index / "index.json").write_text(json.dumps(facts))
    assert main(["search", str(index), "word3", "--exact", "--top", "33", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["hits"]) == 24 and "left out, the gallery has 7 of its 9 images" in err and err.count("\n") == 1
    write_split(tmp_path, "third", more, [f"word{number}" for number in range(45)], None)
    assert main(["index", str(run_folder), *options, "--split", "third"]) == 1
    assert "expected all of more in" in capsys.readouterr().err
    assert main(["index", str(run_folder), *options, "--split", "more", "--drop"]) == 0
    assert [source.split for source in Contents.read(index).sources] == ["test"]
    assert main(["index", str(run_folder), *options, "--split", "more", "--drop"]) == 1
    assert "split: expected one that is in" in capsys.readouterr().err
    assert main(["index", str(run_folder), *options, "--split", "third"]) == 0
    # Four of test's, two of third's, in the place of what was left of the other.
    assert sorted(path.name[:13] for path in index.glob("segment-*")) == [f"segment-0000{number}" for number in range(6)]


def test_a_full_disk_leaves_no_half_segment(split, run_folder, tmp_path, monkeypatch):
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    to_disk, written = build._to_disk, []

    def full(file):
        written.append(file.name)
        if len(written) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(file)

    monkeypatch.setattr(build, "_to_disk", full)
    with pytest.raises(OSError, match=r"segment-00001-\w+/\w+.npy: expected .* write it: No space left"):
        build_index(tmp_path / "index", model, vocabulary, run_folder, split)
    assert len(list((tmp_path / "index").glob("segment-*"))) == 1


def test_the_command(split, index, run_folder, tmp_path, capsys, monkeypatch):
    def search(*arguments):
        code = main(["search", str(index), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, err = search("word1 word2 zebra", "--top", 3, "--shortlist", 5)
    assert (
        code == 0
        and err == ""
        and "\nWords that the model does not know: zebra (nothing near it)\n        score  image\n   1 " in out
    )
    assert len(re.findall(r"^ +\d +-?\d\.\d{4}  \d+$", out, re.MULTILINE)) == 3 and "5 of 24 scored in" in out
    code, out, _ = search("word1 word2", "--json", "-", "--exact", "--top", 2)
    found = json.loads(out)
    searcher = Searcher(index)
    hits = searcher.search(searcher.text("word1 word2"), 2, None)
    assert [(hit["image"], hit["score"]) for hit in found["hits"]] == [
        (split.ids[item], float(score)) for item, score in zip(hits.items, hits.scores, strict=True)
    ]
    assert (found["gallery"], found["scored"]) == (24, 24)
    code, out, _ = search("--image", split.ids[4], "--top", 120, "--exact", "--json", tmp_path / "hits.json")
    assert {hit["caption"] for hit in json.loads((tmp_path / "hits.json").read_text())["hits"]} == set(split.captions)
    queries = tmp_path / "queries.txt"
    queries.write_text("word1\n\nword2 word3\n")
    code, out, err = search("--queries", queries)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["word1", "word2 word3"] and err == ""
    queries.write_text("word1\u2028word2\nzebra\n", encoding="utf-8")
    code, out, err = search("--queries", queries, "--top", 500)
    found = [json.loads(line) for line in out.strip().split("\n")]
    assert [query.get("unknown") for query in found] == [None, ["zebra"]] and found[0]["scored"] == 24
    assert (
        "hits" not in found[0].keys() - found[1].keys()
        and found[1]["hits"] == []
        and "queries.txt, line 2: text: expected a word that" in err
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("word1\n  \nword2\n"))
    code, out, _ = search("--interactive", "--top", 1)
    assert code == 0 and out.count("scored in") == 2
    # What a pipe gives is shown, as what is typed is.
    assert "text> word1\n" in out

    page = tmp_path / "page.html"
    assert search("word1 word2", "--html", page, "--top", 2)[0] == 0
    text = page.read_text()
    assert text.count('class="hit') - text.count('class="hits') == 2 and "word1" in text and "24 of 24 scored" in text
    assert search("--image", split.ids[4], "--html", page, "--top", 1, "--exact")[0] == 0
    assert split.captions[searcher.search(searcher.image(4), 1, None).items[0]] in page.read_text()

    for arguments, message in (
        (["x", "--html", tmp_path / "no" / "page.html"], "--html: expected a file in a folder that is there"),
        (["x", "--top", 0], "--top: expected at least 1, got 0"),
        (["x", "--shortlist", 5], "--shortlist: expected at least the 10 of --top, got 5"),
        ([" "], "text: expected words, got none"),
        (["--image", "nobody.jpg"], "index, such as 0, 1, 2, a number below 24, SPLIT:ID"),
        (["--queries", tmp_path / "none"], "none: expected a text file, found no such file"),
        (["--interactive", "--json", "-"], "--json: expected without --interactive"),
    ):
        code, _, err = search(*arguments)
        assert code == 1 and message in err and err.count("\n") == 1


def test_check_is_printed(split, run_folder, tmp_path, capsys):
    assert main(["index", str(run_folder), "--data", str(tmp_path), "--out", str(tmp_path / "index"), "--check", "6"]) == 0
    out = capsys.readouterr().out
    assert "24 images, 120 captions" in out and "text → image, 6 queries" in out and "image → text, 6 queries" in out
    # No shortlist is longer than what it is of.
    assert re.findall(r"shortlist of +(\d+)(?: +\d+\.\d%){3}", out) == ["24", "50", "100", "120"]
    assert "shortlist of   24   100.0%   100.0%   100.0%" in out


def test_search_with_a_photograph(tmp_path, capsys):
    """Features from the backbone that made the gallery's: an image of the gallery finds its own captions as by its id."""
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).resize((200, 200)).save(photos / f"{number}.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"{n}.png,picture {n} {w}\n" for n in range(3) for w in "abcde"))
    extract = ["extract", "--photos", photos, "--captions", captions, "--out", tmp_path, "--split", "test"]
    assert main([*map(str, extract)]) == 0
    scanned = load_scan_split(tmp_path, "test")
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_captions(scanned.captions, 1)
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, CAAN(ModelConfig(scanned.regions.width, len(vocabulary), width=8, word_width=4)), vocabulary)
    assert main(["index", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    found = []
    for image in ("1.png", photos / "1.png"):
        assert main(["search", str(tmp_path / "index"), "--image", str(image), "--json", "-", "--exact"]) == 0
        found.append([(hit["caption"], round(hit["score"], 5)) for hit in json.loads(capsys.readouterr().out)["hits"]])
    assert found[0] == found[1]


def test_two_processes_do_not_write_one_index(split, index, run_folder, tmp_path, capsys):
    model, vocabulary, _ = checkpoint.load_model(run_folder)
    with locked(index, "a gallery"), pytest.raises(BlockingIOError, match="expected a gallery that no other process uses"):
        build_index(index, model, vocabulary, run_folder, split)
    command = ["index", str(run_folder), "--data", str(tmp_path), "--out"]
    with locked(index, "a gallery"):
        assert main([*command, str(index)]) == 1
    (tmp_path / "file.txt").write_text("")
    assert main([*command, str(tmp_path / "file.txt")]) == 1
    locked_out, no_folder = capsys.readouterr().err.splitlines()
    assert locked_out.startswith("caan index: error: --out: expected a gallery that no other process uses")
    assert no_folder.startswith("caan index: error: --out: expected a folder, or a name for a new one")


def test_an_open_gallery_is_mapped(index):
    segment = Searcher(index).gallery._segments[0]
    assert isinstance(segment.regions, np.memmap) and isinstance(segment.word_products, np.memmap)
