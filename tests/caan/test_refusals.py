"""Where the machine has too little for the work, commands say so in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import SMALL

from caan.commands import main
from caan.commands.refusals import refused
from caan.errors import MissingFileError
from caan.processes import LostProcessError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "the memory is not enough"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
            "the processes of --workers need more shared memory than /dev/shm has; --workers 0 needs none",
        ),
        (
            RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"),
            "the processes of --workers need more shared memory than /dev/shm has; --workers 0 needs none",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "a process of --workers was killed, as happens where the memory is not enough",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
            "the GPU's memory is not enough (Tried to allocate 2.50 GiB)",
        ),
        (RuntimeError("CUDA error: unspecified launch failure\nmore"), "the GPU failed (unspecified launch failure)"),
        (RuntimeError("can't start new thread"), "the system gives this process no more threads"),
        (EOFError(), "a process of --workers was killed, as happens where the memory is not enough"),
        (ConnectionResetError(104, "..."), "a process of --workers was killed, as happens where the memory is not enough"),
        (LostProcessError("process 1 ..."), None),
        (RuntimeError("an error of ours"), None),
        (MissingFileError("shared memory/none: expected a checkpoint, found no such file"), None),
        (
            RuntimeError("unable to open shared memory object </torch_7>: Too many open files (24)"),
            "this process may not open as many files as --workers need; fewer --workers, or a higher `ulimit -n`",
        ),
    ],
)
def test_lines(error, line):
    assert refused(error) == line


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: np.empty(1 << 60, dtype=np.uint8)])
def test_memory_that_is_not_there(ask):
    with pytest.raises((RuntimeError, MemoryError)) as found:
        ask()
    assert refused(found.value).startswith("the memory is not enough (1")


def test_a_model_too_large_for_the_memory(data, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL, "--width", "100000000"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caan train: error: ")]
    assert "the memory is not enough" in line


def train_with_a_worker(data, tmp_path):
    """A training that has a row in metrics.csv, and its worker.

    In the first step torch imports modules of its own, and prints a traceback of what a killed worker raises there.
    """
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL, "--workers", "1", "--epochs", "10000"]
    process = subprocess.Popen([sys.executable, "-m", "caan", *train], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children, metrics = Path(f"/proc/{process.pid}/task/{process.pid}/children"), tmp_path / "run" / "metrics.csv"
    # A run writes the header before its first step.
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 1 and children.read_text()):
        time.sleep(0.05)
    return process, int(children.read_text().split()[0])


def test_a_worker_that_is_killed(data, tmp_path):
    process, worker = train_with_a_worker(data, tmp_path)
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output
    assert output.splitlines()[-1].startswith("caan train: error: a process of --workers was killed")


def test_a_worker_that_hangs_is_not_waited_for(data, tmp_path):
    process, worker = train_with_a_worker(data, tmp_path)
    os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "caan train: stopped; " in output


def test_closed_streams(data, tmp_path):
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *SMALL]) == 0
    assert main(["index", str(run), "--data", str(data), "--out", str(tmp_path / "index")]) == 0
    for closed, asked in (("<&-", "--interactive"), (">&-", "'image 1'"), ("2>&-", "'image 1'")):
        command = f"{sys.executable} -m caan search {tmp_path / 'index'} {asked} --top 1 {closed}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, closed
