"""The file that a check of a GPU writes stage by stage, and how a stage is run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu_check"
SCHEMA = 3
# For all stages, start included. Ten minutes are what one gets of a GPU, start and end included.
TOTAL = 530.0
# A stage with less beside `GRACE` is not begun.
LEAST_STAGE = 1.0
# What a stopped stage has to say what it found until then; it is a part of the stage's limit.
GRACE = 10.0
TAIL_LINES = 40

PASSED, FAILED, NOT_RUN, OUT_OF_TIME = "passed", "failed", "not run", "ran out of time"
# What stands in the file beside facts.
RESULTS = ("stages", "bench", "rates", "profile", "sweep")


class Outcome(NamedTuple):
    """How a stage ended, what it counted, and why it did not pass."""

    status: str
    counts: Mapping[str, int]
    reason: str = ""


# From the exit status, None for a stage that was stopped, and everything printed.
Judge = Callable[[int | None, str], Outcome]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is at no moment half written."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def run_for(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a command in the checkout.

    One that is not through `GRACE` seconds before the end is interrupted, as from the keyboard, and killed at the end, with all
    that it started.

    Returns:
        (exit status, or None if it was stopped; what it printed).
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        status = None
        try:
            status = process.wait(seconds - GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that waits for a kernel without end may survive even that.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        log.seek(0)
        return status, log.read().decode(errors="replace")


class Record:
    """The stages of one run and the file that they are kept in.

    Args:
        path: the file. What is there already is kept, and a stage that passed is not run again, if all `facts` but the date are the
            same.
        facts: what stands in it beside `RESULTS`.
        seconds: for all stages together.
        start: what `time.monotonic()` was when the clock started; by default now.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], seconds: float = TOTAL, start: float | None = None) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            **facts,
            "stages": {},
            "bench": {},
            "rates": [],
            "profile": [],
            "sweep": [],
        }
        self.content |= kept_of(path, self.content)
        self.end = (time.monotonic() if start is None else start) + seconds
        self.environment = environment()

    def left(self) -> float:
        return max(self.end - time.monotonic(), 0.0)

    def run(self, name: str, command: Sequence[str], limit: float, judge: Judge, **variables: str) -> Outcome:
        """Run a stage for at most `limit` seconds and keep how it ended; one that is kept already is not run."""
        if self.content["stages"].get(name, {}).get("status") == PASSED:
            print(f"{name}: kept, it passed before", flush=True)
            return Outcome(PASSED, self.content["stages"][name]["counts"])
        limit = min(limit, self.left())
        if limit < LEAST_STAGE + GRACE:
            return self.keep(name, command, Outcome(NOT_RUN, {}, "no time left"))
        print(f"{name}, at most {limit:.0f} s: {shlex.join(command)}", flush=True)
        start = time.monotonic()
        try:
            status, output = run_for(command, limit, self.environment | variables)
        except OSError as error:
            return self.keep(name, command, Outcome(NOT_RUN, {}, str(error)))
        LOGS.mkdir(parents=True, exist_ok=True)
        (LOGS / f"{name.replace(' ', '_')}.log").write_text(output, encoding="utf-8")
        outcome = judge(status, output)
        if status is None:
            # What it found until then stands, and so does a sanitizer that found nothing: it was too slow.
            faults = any(outcome.counts.get(x) for x in ("errors", "error", "failed")) or outcome.reason.startswith("disagrees")
            ended = FAILED if faults else NOT_RUN if outcome.status == NOT_RUN else OUT_OF_TIME
            reason = f"{outcome.reason}; " if faults and outcome.reason else ""
            outcome = Outcome(ended, outcome.counts, f"{reason}stopped after {limit - GRACE:.0f} s")
        return self.keep(name, command, outcome, time.monotonic() - start, output)

    def keep(self, name: str, command: Sequence[str], outcome: Outcome, seconds: float = 0.0, output: str = "") -> Outcome:
        if outcome.status in (NOT_RUN, OUT_OF_TIME) and self.content["stages"].get(name, {}).get("status") == FAILED:
            print(f"{name}: {outcome.status}, {outcome.reason}; it failed before, and that stays", flush=True)
            return outcome
        # Where the interpreter and a temporary folder lie says nothing of a result.
        named = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s]+/", "", shlex.join(command))
        stage = {"command": named.replace(sys.executable, "python"), "seconds": round(seconds, 1), **outcome._asdict()}
        if outcome.status != PASSED:
            stage["tail"] = output.splitlines()[-TAIL_LINES:]
            print("\n".join(f"    {line}" for line in stage["tail"]))
        self.content["stages"][name] = stage
        write_json(self.path, self.content)
        counted = "".join(f", {count} {word}" for word, count in outcome.counts.items())
        print(f"{name}: {outcome.status}{counted}{', ' * bool(outcome.reason)}{outcome.reason} ({seconds:.0f} s)", flush=True)
        return outcome


def kept_of(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same sources on the same GPU found; empty if there was none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = all(found.get(name) == value for name, value in content.items() if name not in (*RESULTS, "date"))
    return {name: found[name] for name in RESULTS} if same else {}


def environment() -> dict[str, str]:
    """For every stage: this checkout's package, printing without delay, and Triton's compiler, not its interpreter."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def cuda_program(name: str) -> str | None:
    """Where a program of the CUDA toolkit lies, None if it is not installed."""
    cuda = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which(name) or shutil.which(name, path=f"{cuda}/bin")
