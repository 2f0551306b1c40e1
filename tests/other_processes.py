"""Test files in processes of their own: what imports the package with other settings."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent


def assert_passes(files: str, settings: Mapping[str, str], *options: str) -> None:
    """In a process with these variables the files, spaces between their names, test something, and nothing fails; else the last
    lines are shown."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--durations=5", *options]
    command += [HERE / file for file in files.split()]
    # One thread: several may share the cores. Options of the run that asks are not for it: -n would start more of them.
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", **settings}
    run = subprocess.run(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, end
    assert re.search(r"\d+ passed", end), end
