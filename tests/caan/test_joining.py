"""Joining a job: who is waited for is said, nothing is waited for once a signal comes, and what is wrong is one line."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from caan.processes import JoinError, joined

# A wait is told sooner than in a real job.
SCRIPT = """
import sys, time, torch
from caan import processes
from caan.commands import main
import caan.commands.evaluate as command

def run(arguments):
    with processes.joined(torch.device("cpu")) as job:
        processes._SILENCE = 0.3
        print("joined", flush=True)
        if not job.first:
            time.sleep(100)
        job.wait()

processes._SILENCE = float(sys.argv[1])
command.run = run
sys.exit(main(["evaluate", "run", "--data", "data"]))
"""


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(port, number, silence=0.3):
    """A process of two, which tells of joining after so many seconds, and of a collective after 0.3."""
    job = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(silence)],
        env={**os.environ, **job},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def first_line(process):
    line = process.stdout.readline()
    assert line, process.wait(10)
    return line


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_process_alone_says_whom_it_waits_for_and_ends(port, number, rank):
    process = start(port, rank)
    line = first_line(process)
    assert f"process {rank} of 2, counted from 0: waiting for process {1 - rank} at 127.0.0.1:{port}" in line
    assert "unset WORLD_SIZE" in line
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and output.endswith("caan evaluate: stopped\n") and "Traceback" not in output


def test_a_collective_is_not_waited_for(port):
    jobs = [start(port, rank, silence=60) for rank in (0, 1)]
    try:
        while "waiting for the others" not in (line := first_line(jobs[0])):
            assert "joined" in line or "waiting for process 1" in line
        jobs[0].send_signal(signal.SIGTERM)
        output, _ = jobs[0].communicate(timeout=60)
        assert jobs[0].returncode == 130 and output.endswith("caan evaluate: stopped\n")
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(JoinError, match=f"listening at 127.0.0.1:{port}: expected to succeed: .*address already in use"),
            joined(torch.device("cpu")),
        ):
            pass


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number from 1 on, as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a whole number from 0 on, as torchrun sets it, got ''"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: expected less than WORLD_SIZE, 2, got 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT: expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT: expected a whole number from 1 to 65535"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR: expected the address of process 0"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "GLOO_SOCKET_IFNAME": "lo,no-such"},
            "GLOO_SOCKET_IFNAME: expected an interface of this machine .*, got 'no-such'",
        ),
    ],
)
def test_variables_that_are_wrong(monkeypatch, variables, message):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), joined(torch.device("cpu")):
        pass


def test_one_process_needs_no_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(torch.device("cpu")) as processes:
        assert processes.count == 1


def test_whoever_listens_and_never_answers_is_not_waited_for(port):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(port)))
        listener.listen()
        process = start(port, 1)
        assert f"process 1 of 2, counted from 0: connecting at 127.0.0.1:{port}" in first_line(process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "caan evaluate: stopped\n" in output
