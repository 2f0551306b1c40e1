"""Test files in processes of their own, as many at once as there are cores: what imports the package with other settings."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def started(request: pytest.FixtureRequest, settings: Mapping[str, str], *options: str) -> dict[str, Future]:
    """Begin the files that the requesting module's tests, those of this session, have as their parameter `file`."""
    items = [item for item in request.session.items if item.path == request.path]
    files = [item.callspec.params["file"] for item in items if hasattr(item, "callspec")]
    # One thread each: the processes share the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def run(file: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--color=no",
            "--durations=5",
            *options,
            HERE / file,
        ]
        return subprocess.run(
            command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return {file: pool.submit(run, file) for file in files}


def assert_passed(run: subprocess.CompletedProcess) -> None:
    """The process tested something, and nothing failed; else its last lines are shown."""
    end = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, end
    assert re.search(r"\d+ passed", end), end
