"""Files: permissions, locks, and whether a result can be written at all."""

import errno
import fcntl
import os
import stat
import tempfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import SMALL

from caan import checkpoint
from caan.commands import main
from caan.errors import FormatError
from caan.files import check_writable, hold, locked, make_folder, parse_json, replacing


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_are_the_old_files_or_the_umasks(tmp_path, umask):
    for name, write in (
        ("text", lambda path: path.write_text("new")),
        # A library may make the file anew, for its user alone.
        ("private", lambda path: (path.unlink(), os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)))),
    ):
        path = tmp_path / name
        for expected in (0o640, 0o644, 0o664):
            if path.exists():
                path.chmod(expected)
            with replacing(path) as unfinished:
                write(unfinished)
            assert mode(path) == expected


def test_what_a_kill_has_left_gives_no_permissions(tmp_path, umask):
    """safetensors makes a file for its user alone, and a kill can come before its permissions are set."""
    left = tmp_path / "result.unfinished"
    left.touch(0o600)
    with replacing(tmp_path / "result") as unfinished:
        unfinished.write_text("new")
    assert unfinished == left and mode(tmp_path / "result") == 0o640


def test_permissions_of_checkpoints_and_scores(data, tmp_path, umask):
    run, scores = tmp_path / "run", tmp_path / "scores.npy"
    assert main(["train", "--data", str(data), "--out", str(run), *SMALL]) == 0
    evaluate = ["evaluate", str(run), "--data", str(data), "--save-scores", str(scores)]
    assert main(evaluate) == 0
    assert mode(run) == 0o750
    assert {mode(path) for path in [scores, *run.iterdir()]} == {0o640}
    scores.chmod(0o664)
    link = tmp_path / "link.npy"
    link.symlink_to(scores)
    assert main([*evaluate[:-1], str(link)]) == 0
    assert link.is_symlink() and mode(scores) == 0o664


def test_a_checkpoint_keeps_its_permissions(tmp_path):
    path = tmp_path / "tensors.safetensors"
    for expected in (0o660, 0o604):
        checkpoint.write(path, {"x": torch.zeros(1)}, {})
        path.chmod(expected)
        checkpoint.write(path, {"x": torch.ones(1)}, {})
        assert mode(path) == expected


def test_what_cannot_be_written_is_found_out_before(tmp_path, monkeypatch):
    check_writable("--json", tmp_path / "new.json")
    check_writable("--json", tmp_path / os.devnull)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path, "--json: expected a file, got the folder "),
        (tmp_path / "loop", "--json: expected a file that can be written to, got .*: Too many levels of symbolic links"),
        (tmp_path / "none" / "x", "--json: expected a file in a folder that is there, got "),
        (tmp_path / "file" / "x", "--json: expected a file in a folder that is there, got "),
        (tmp_path / ("x" * 250), "--json: expected a file that can be written to, got .*: File name too long"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable("--json", path)


def test_a_file_in_a_folder_of_others_cannot_be_replaced():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        path.write_text("")
        path.chmod(0o666)
        path.parent.chmod(0o555)
        root = os.geteuid() == 0
        # The kernel lets root write everywhere.
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ValueError, match=r"expected a file that can be written to, got .*results.json: Permission denied"):
                check_writable("--json", path)
        finally:
            if root:
                os.seteuid(0)
            path.parent.chmod(0o755)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "file", "--out: expected a folder, or a name for a new one, got the file "),
        (tmp_path / "file" / "x", "--out: expected a folder that can be made, got .*: Not a directory"),
        (tmp_path / ("x" * 300), "--out: expected a folder that can be made, got .*: File name too long"),
    ):
        with pytest.raises(ValueError, match=message):
            make_folder("--out", path)


def test_locks(tmp_path):
    in_use = pytest.raises(BlockingIOError, match="expected a run that no other process uses, found .* in use")
    with locked(tmp_path, "a run"), in_use, locked(tmp_path, "a run"):
        pass
    with locked(tmp_path, "a run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(data, tmp_path, capsys, monkeypatch, number):
    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *SMALL]) == 0
    warning = f"lock: warning: this file system has no locks ({os.strerror(number)}); see that no other process writes there"
    assert f"{run}/{warning}" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", str(data), "--save-scores", str(tmp_path / "scores.npy")]) == 0
    assert "this file system has no locks" in capsys.readouterr().err
    assert main(["index", str(run), "--data", str(data), "--out", str(tmp_path / "index")]) == 0
    assert f"{tmp_path}/index/{warning}" in capsys.readouterr().err
    shard, captions = tmp_path / "shard.tsv", tmp_path / "captions.csv"
    numbers = [b64encode(np.ones((2, width), np.float32).tobytes()).decode() for width in (4, 3)]
    shard.write_text("\t".join(["1", "10", "10", "2", *numbers]) + "\n")
    captions.write_text("image,caption\n1.jpg,a dog\n")
    extract = ["extract", "--features", str(shard), "--captions", str(captions), "--captions-per-image", "1"]
    assert main([*extract, "--out", str(tmp_path / "out")]) == 0
    assert f"{tmp_path}/out/test_extract.journal: warning: this file system has no locks" in capsys.readouterr().err


def test_another_failure_of_a_lock_names_the_file(tmp_path, monkeypatch):
    def no_lock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with (tmp_path / "x").open("w") as file, pytest.raises(OSError, match=r"expected to be able to lock it: '.*/x'"):
        hold(file)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"x": 1}}', '{"x": 1, "x": 1}', ""])
def test_json_that_is_none(tmp_path, text):
    with pytest.raises(FormatError, match="x.json: expected a record: "):
        parse_json(tmp_path / "x.json", text, "a record")


def test_two_results_need_two_files(data, tmp_path, capsys):
    same = str(tmp_path / "x")
    assert main(["evaluate", str(tmp_path), "--data", str(data), "--json", same, "--save-scores", same]) == 1
    assert "--json: expected another file than --save-scores" in capsys.readouterr().err
    assert main(["search", str(tmp_path), "a dog", "--json", same, "--html", same]) == 1
    assert "--json, --html, --queries: expected different files" in capsys.readouterr().err
