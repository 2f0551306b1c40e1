"""Photographs to the SCAN layout: what is written, what is skipped, and that a killed run ends in the same bytes."""

import errno
import fcntl
import json
import os
import re
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from caan import errors
from caan.commands import main
from caan.data import load_scan_split
from caan.extraction import CaptionedImage, MapBackbone, Photographs, extract_images, extract_split
from caan.extraction import backbones as backbones_module
from caan.extraction import run as run_module

NAMES = [f"{number}.jpg" for number in range(7)]
FINAL = {f"dev_{name}" for name in ("ims.npy", "caps.txt", "ids.txt", "boxes.npy", "extract.json")}


class Killed(BaseException):
    """The end of a process, as far as Python code can be stopped from within."""


@pytest.fixture
def photos(tmp_path):
    """Seven small photographs of different sizes and modes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        pixels = random.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if number == 3 else "RGB").save(folder / name)
    return folder


@pytest.fixture
def token_file(tmp_path, captions):
    """The captions of the seven photographs in Flickr8k's format."""
    path = tmp_path / "tokens.txt"
    path.write_text("".join(f"{number // 5}.jpg#{number % 5}\t{caption}\n" for number, caption in enumerate(captions)))
    return path


@pytest.fixture
def images(captions):
    """The images of `token_file`."""
    return [CaptionedImage(name, captions[5 * number : 5 * number + 5]) for number, name in enumerate(NAMES)]


@pytest.fixture
def with_backbone(backbone, monkeypatch):
    """Lets `caan extract` find the tiny backbone, under any name."""
    monkeypatch.setattr(backbones_module, "load_backbone", lambda *_: backbone)


def extract(images, photos, backbone, folder, **options):
    lines = []
    settings = {"batch_size": 2, "workers": 1, "say": lines.append, **options}
    return extract_split(images, Photographs(photos, backbone), folder, "dev", "tokens.txt", **settings), lines


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_writes_the_scan_layout(photos, token_file, captions, tmp_path, with_backbone, backbone, capsys):
    out = tmp_path / "new" / "out"
    arguments = ["extract", "--photos", str(photos), "--captions", str(token_file), "--out", str(out), "--split", "dev"]
    assert main(arguments) == 0
    assert {path.name for path in out.iterdir()} == FINAL
    split = load_scan_split(out, "dev", width=3)
    assert split.ids == NAMES and split.captions == captions and split.regions.dtype == np.float16
    assert split.region_counts.tolist() == [4] * 7
    expected = extract_images([photos / name for name in NAMES], backbone, batch_size=3)
    for number in range(7):
        np.testing.assert_array_equal(split.read_regions(number), expected[number])
    boxes = np.load(out / "dev_boxes.npy")
    assert boxes.shape == (7, 4, 4) and boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes[6], [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]])
    record = json.loads((out / "dev_extract.json").read_text())
    assert record["images"] == 7 and record["skipped"] == [] and record["versions"]["torch"] == torch.__version__
    settings = {"photos": str(photos), "backbone": "tiny", "size": 4, "grid": [2, 2], "width": 3, "captions": "tokens.txt"}
    assert record["settings"].items() >= settings.items()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "dev: 7 images" in capsys.readouterr().out

    assert main(arguments) == 0
    assert "dev: everything is there already, 7 images; nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_bad_images_are_named_and_skipped(photos, images, backbone, tmp_path, captions):
    (photos / "0.jpg").unlink()
    data = (photos / "2.jpg").read_bytes()
    (photos / "2.jpg").write_bytes(data[: len(data) // 2])
    (photos / "3.jpg").write_text("<html>not found</html>")
    (photos / "4.jpg").write_bytes(b"")
    images[5] = CaptionedImage("5.jpg", images[5].captions[:3])
    summary, lines = extract(images, photos, backbone, tmp_path / "out")
    split = load_scan_split(tmp_path / "out", "dev")
    assert split.ids == ["1.jpg", "6.jpg"] and split.captions == captions[5:10] + captions[30:]
    np.testing.assert_array_equal(split.read_regions(1), extract_images([photos / "6.jpg"], backbone)[0])
    assert summary.images == 2 and [name for name, _ in summary.skipped] == ["5.jpg", "0.jpg", "2.jpg", "3.jpg", "4.jpg"]
    said = "\n".join(lines)
    for words in (
        "5.jpg: expected 5 captions, found 3",
        "0.jpg: it is not in",
        "2.jpg: .*[Tt]runcated",
        "3.jpg: it is not an image",
    ):
        assert re.search(f"dev: skipped {words}", said)
    assert "dev: skipped 4.jpg: the file is empty" in said
    assert json.loads((tmp_path / "out" / "dev_extract.json").read_text())["skipped"] == [list(row) for row in summary.skipped]
    again, _ = extract(images, photos, backbone, tmp_path / "out")
    assert not again.ran and again.skipped == summary.skipped


def test_few_of_many_bad_images_are_named(photos, images, backbone, tmp_path):
    missing = [CaptionedImage(f"missing{number}.jpg", images[0].captions) for number in range(30)]
    summary, lines = extract([*images, *missing], photos, backbone, tmp_path)
    assert len(summary.skipped) == 30 and sum("skipped missing" in line for line in lines) == 20
    assert lines[-1] == "dev: skipped more; dev_extract.json will name them all"


def test_nothing_that_can_be_read_is_an_error(photos, images, backbone, tmp_path):
    for name in NAMES:
        (photos / name).write_text("no image")
    for _ in range(2):
        with pytest.raises(
            errors.DataError, match=r"photos: expected images, found none of 7 that can be read; 6.jpg: it is not an"
        ):
            extract(images, photos, backbone, tmp_path / "out")
        assert not contents(tmp_path / "out")
    with pytest.raises(errors.DataError, match=r"3.jpg: expected a photograph: it is not an image"):
        extract_images([photos / "3.jpg"], backbone)


def test_features_that_float16_cannot_hold(photos, images, tmp_path):
    class Bright(torch.nn.Module):
        def forward(self, batch):
            return torch.where(batch.mean((1, 2, 3), keepdim=True) > 0.9, 1e6, 1.0).expand(-1, 3, 2, 2)

    Image.new("RGB", (9, 5), "white").save(photos / "1.jpg")
    backbone = MapBackbone("bright", Bright(), 4, (127.0,) * 3, (128.0,) * 3)
    summary, _ = extract(images, photos, backbone, tmp_path / "out")
    assert summary.skipped == [("1.jpg", "its features are not finite numbers in float16")] and summary.images == 6


# A run of seven images in batches of two syncs the settings, then features, boxes and journal of each of four batches, and
# then each final file.
@pytest.mark.parametrize("moment", range(1, 20))
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_ends_in_the_same_bytes(photos, images, backbone, tmp_path, monkeypatch, moment, torn):
    (photos / "2.jpg").write_text("no image")
    expected, _ = extract(images, photos, backbone, tmp_path / "undisturbed")
    out = tmp_path / "out"
    syncs, sync = 0, os.fsync

    def kill(descriptor):
        nonlocal syncs
        syncs += 1
        if syncs == moment:
            raise Killed
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        try:
            extract(images, photos, backbone, out)
        except Killed:
            pass
        else:
            assert moment > 18
    if torn and (out / "dev_extract.journal").exists():
        # What a write leaves behind that was under way.
        for name, piece in (("ims.part", b"\x01" * 33), ("boxes.part", b"\x02" * 17), ("extract.journal", b'[["6.jpg", 4')):
            with (out / f"dev_{name}").open("ab") as file:
                file.write(piece)
        (out / "dev_ids.txt.unfinished").write_text("half")
    summary, lines = extract(images, photos, backbone, out)
    leftover = contents(out)
    leftover.pop("dev_ids.txt.unfinished", None)
    assert leftover == contents(tmp_path / "undisturbed") and set(leftover) == FINAL
    assert summary.skipped == expected.skipped
    if 4 <= moment <= 18 and not torn:
        assert lines[0] == f"dev: continues after {min(7, 2 * ((moment - 1) // 3))} of 7 images, where an earlier run was stopped"


def test_a_run_killed_after_its_last_file(photos, images, backbone, tmp_path, monkeypatch):
    extract(images, photos, backbone, tmp_path / "undisturbed")
    replace = os.replace

    def kill(source, target):
        replace(source, target)
        if str(target).endswith("ims.npy"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            extract(images, photos, backbone, tmp_path / "out")
    assert (tmp_path / "out" / "dev_extract.journal").is_file()
    assert not extract(images, photos, backbone, tmp_path / "out")[0].ran
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def interrupted(images, photos, backbone, out, monkeypatch):
    """A run that was stopped in its third batch."""
    calls = 0
    encode = Photographs.encode

    def stop(self, loaded):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(self, loaded)

    with monkeypatch.context() as patch:
        patch.setattr(Photographs, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(images, photos, backbone, out)


def test_a_journal_whose_rows_were_lost(photos, images, backbone, tmp_path, monkeypatch):
    extract(images, photos, backbone, tmp_path / "undisturbed")
    out = tmp_path / "out"
    interrupted(images, photos, backbone, out, monkeypatch)
    os.truncate(out / "dev_ims.part", 128 + 3 * 4 * 3 * 2)
    _, lines = extract(images, photos, backbone, out)
    assert lines == ["dev: continues after 2 of 7 images, where an earlier run was stopped"]
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(photos, images, backbone, tmp_path, monkeypatch, finished):
    out = tmp_path / "out"
    if finished:
        extract(images, photos, backbone, out)
    else:
        interrupted(images, photos, backbone, out, monkeypatch)
    before = contents(out)
    larger = MapBackbone("tiny", torch.nn.AvgPool2d(2), 6, (127.0,) * 3, (128.0,) * 3)
    changed = [CaptionedImage(NAMES[0], ["another"] * 5), *images[1:]]
    where = "dev_extract.json" if finished else "dev_extract.journal"
    for arguments, options, message in (
        ((images, photos, larger), {}, r"settings: size was 4, and is 6; --split NAME makes another split, another --out another"),
        (
            (changed, photos, backbone),
            {},
            r"images or captions: is --hold-out, --images or the captions file another\?; --split NAME",
        ),
        ((images, photos, backbone), {"captions_per_image": 4}, "settings: captions_per_image was 5, and is 4"),
    ):
        with pytest.raises(ValueError, match=f"{where}: the split 'dev' was begun with other {message}"):
            extract(*arguments, out, **options)
        assert contents(out) == before
    extract(changed, photos, larger, out, overwrite=True)
    extract(changed, photos, larger, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_files_of_others_are_kept(scan_folder, photos, images, backbone):
    with pytest.raises(ValueError, match=r"dev_ims.npy: expected no file of the split 'dev' that another program made"):
        extract(images, photos, backbone, scan_folder)
    assert load_scan_split(scan_folder, "dev", width=6).num_images == 7
    for name in ("journal", "json"):
        path = scan_folder / f"dev_extract.{name}"
        path.write_text("shopping: eggs\n")
        with pytest.raises(ValueError, match=f"dev_extract.{name}: expected the .* of an earlier run, found another file"):
            extract(images, photos, backbone, scan_folder)
        path.unlink()


def test_two_runs_do_not_write_one_split(photos, images, backbone, tmp_path):
    with (tmp_path / "dev_extract.journal").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another run is writing dev at this moment"):
            extract(images, photos, backbone, tmp_path)


@pytest.mark.parametrize("option", ["captions_per_image", "batch_size", "workers"])
def test_numbers_out_of_range(photos, images, backbone, tmp_path, option):
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, got 0"):
        extract(images, photos, backbone, tmp_path, **{option: 0})


def test_features_are_never_held_whole(photos, images, backbone, tmp_path, monkeypatch):
    alive = []
    append = run_module._Journal.append
    load = Photographs.load
    begun = []
    monkeypatch.setattr(Photographs, "load", lambda self, key: begun.append(key) or load(self, key))

    def watch(self, batch):
        alive.append(len(begun) - len(self.images))
        append(self, batch)

    monkeypatch.setattr(run_module._Journal, "append", watch)
    many = [CaptionedImage(NAMES[number % 7], images[0].captions) for number in range(40)]
    extract(many, photos, backbone, tmp_path / "out")
    assert max(alive) <= 6 and len(begun) == 40


def test_an_interrupt_waits_for_no_read(photos, images, backbone, tmp_path, monkeypatch):
    """A read that hangs, as on a network disk, keeps neither the run nor the process from its end."""
    hanging, release = threading.Event(), threading.Event()
    load, encode = Photographs.load, Photographs.encode

    def hang(self, key):
        if key.name == "3.jpg":
            hanging.set()
            release.wait(60)
        return load(self, key)

    def stop(self, loaded):
        assert hanging.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(Photographs, "load", hang)
    monkeypatch.setattr(Photographs, "encode", stop)
    before, begin = set(threading.enumerate()), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        extract(images, photos, backbone, tmp_path / "out", workers=2)
    assert time.monotonic() - begin < 20
    left = set(threading.enumerate()) - before
    assert left and all(thread.daemon for thread in left)
    release.set()
    monkeypatch.setattr(Photographs, "encode", encode)
    assert extract(images, photos, backbone, tmp_path / "out")[0].images == 7


@pytest.mark.parametrize("fails", [False, True])
def test_no_reader_outlives_its_run(photos, images, backbone, tmp_path, monkeypatch, fails):
    """A thread that still computes when Python ends is stopped within torch, which aborts the process."""
    load = Photographs.load

    def slow(self, key):
        time.sleep(0.2)
        return load(self, key)

    def full(self, batch):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Photographs, "load", slow)
    if fails:
        monkeypatch.setattr(run_module._Journal, "append", full)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="No space") if fails else nullcontext():
        extract(images, photos, backbone, tmp_path / "out", workers=3)
    assert set(threading.enumerate()) <= before


def test_photographs_that_cannot_be_told_apart_are_skipped(photos, images, backbone, tmp_path):
    for folder, colour in (("one", "red"), ("two", "blue")):
        (photos / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(photos / folder / "z.png")
    images[2] = CaptionedImage("z.png", images[2].captions)
    images[4] = CaptionedImage("elsewhere/two/z", images[4].captions)
    summary, _ = extract(images, photos, backbone, tmp_path / "out")
    assert load_scan_split(tmp_path / "out", "dev").ids == ["0.jpg", "1.jpg", "3.jpg", "two/z.png", "5.jpg", "6.jpg"]
    reason = f"expected one photograph of this name in {photos}, found different files: one/z.png, two/z.png"
    assert summary.skipped == [("z.png", reason)]


def test_karpathy_splits(photos, karpathy_file, tmp_path, with_backbone, capsys):
    arguments = ["extract", "--photos", str(photos), "--captions", str(karpathy_file), "--out"]
    assert main([*arguments, str(tmp_path / "all"), "--captions-per-image", "2"]) == 0
    train, dev = (load_scan_split(tmp_path / "all", split, captions_per_image=2) for split in ("train", "dev"))
    assert train.ids == ["0.jpg", "2.jpg", "3.jpg"] and dev.ids == ["1.jpg", "4.jpg"]
    assert train.captions[2:4] == ["caption 0 of 2 .", "caption 1 of 2 ."]
    assert "train: skipped photos/5.jpg: expected 2 captions, found 1" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "one"), "--split", "dev"]) == 0
    assert sorted(path.name for path in (tmp_path / "one").glob("*_ims.npy")) == ["dev_ims.npy"]
    for name in ("0.jpg", "2.jpg", "3.jpg", "5.jpg"):
        (photos / name).unlink()
    assert main([*arguments, str(tmp_path / "some")]) == 0
    assert "train: none of its 4 images is in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "some").glob("*_ims.npy")) == ["dev_ims.npy"]


def test_a_list_of_images(photos, token_file, tmp_path, with_backbone, capsys):
    names = tmp_path / "names.txt"
    names.write_text("4.jpg\n1\n\nunknown.jpg\n4.jpg\n")
    assert main(f"extract --photos {photos} --captions {token_file} --images {names} --out {tmp_path / 'out'}".split()) == 0
    assert load_scan_split(tmp_path / "out", "test").ids == ["4.jpg", "1.jpg"]
    out = capsys.readouterr().out
    assert "test: skipped unknown.jpg: expected 5 captions, found 0" in out
    assert f"test: 2 images in {tmp_path / 'out'}, 5 captions each; 3 numbers a region; 1 skipped, listed in test_extract" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--photos": "nowhere"}, "--photos: expected a folder of photographs, found none at nowhere"),
        ({"--captions": "nowhere.txt"}, "nowhere.txt: expected a text file, found no such file"),
        ({"--out": "names.txt"}, "--out: expected a folder, or a name for a new one, got the file names.txt"),
        ({"--out": "taken"}, "--out: expected a file, got the folder taken/test_ids.txt"),
        (
            {"--photos": "others"},
            "others: expected images that tokens.txt has captions for, such as 0.jpg, 1.jpg, 2.jpg; found none of the 7; there: x",
        ),
        ({"--format": "xml"}, "--format: expected one of flickr, karpathy, coco, csv, bars, got 'xml'"),
        ({"--images": "names.txt"}, "names.txt: expected names of images that tokens.txt has captions for, such as 0.jpg; found 1"),
        ({"--split": "a/b"}, "--split: expected the first part of file names, got 'a/b'"),
        ({"--captions-per-image": "6"}, "tokens.txt: expected 6 captions for an image of test, found at most 5"),
        (
            {"--captions": "dataset_small.json", "--split": "test"},
            "--split: expected one of train, dev, the splits of dataset_small.json",
        ),
        (
            {"--captions": "dataset_small.json", "--images": "names.txt"},
            "--images: expected captions of one split, found train, dev",
        ),
    ],
)
def test_wrong_command_lines(photos, token_file, karpathy_file, with_backbone, monkeypatch, tmp_path, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("other.jpg\n")
    (tmp_path / "taken" / "test_ids.txt").mkdir(parents=True)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.jpg").write_bytes(b"")
    options = {"--photos": "photos", "--captions": "tokens.txt", "--out": "out", **change}
    assert main(["extract", *(word for option in options.items() for word in option)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"caan extract: error: {message}") and error.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Make features of a folder of photographs" in out and all(
        option in out for option in ("--photos", "--features", "--overwrite")
    )
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--photos", "x", "--features", "y", "--captions", "z", "--out", "o"])
    assert ended.value.code == 2
