"""Test files in processes of their own: what imports the package with other settings."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent


# What imports torch's compiler, or is short: one process has all of it, since a start takes four seconds.
TOGETHER = [
    *(f"context_attention/test_{name}.py" for name in ("compile", "errors", "interface", "limits", "operators")),
    *(f"context_attention/test_{name}.py" for name in ("transforms", "warmup")),
    "test_backends.py",
    "test_gpu_plan.py",
]


def assert_passes(files: Sequence[str], settings: Mapping[str, str], *options: str) -> None:
    """In a process with these variables each file tests something, and nothing fails; else the last lines are shown."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--durations=5", *options]
    command += [HERE / file for file in files]
    # One thread: several may share the cores. Options of the run that asks are not for it: -n would start more of them.
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", **settings}
    run = subprocess.run(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, end
    # A line of the report is a file and a sign for each test, of which a dot is one that passed.
    for file in files:
        assert re.search(rf"^tests/{file}\S* \S*\.", run.stdout, re.MULTILINE), f"{file}: nothing in it passed\n{end}"
