"""Everything a GPU can say about this package, in under ten minutes: golden cases, the GPU's own rates, benchmark, tests,
compute-sanitizer, bit-for-bit repeats.

    python benchmarks/gpu_check.py                 writes benchmarks/results/cuda_DEVICE.json
    python benchmarks/render_readme.py             puts it into the README

Uses the interpreter and the package at hand and installs nothing. A stage that runs out of time is stopped, and the next
one begins. The file is written after every stage, and all that a stage printed is in build/gpu_check/. A second run of the
same sources on the same GPU runs the stages that have not passed; `--stages` and `--seconds` spread them over calls. Exit status
0: every stage in the file passed, save that rates without nvcc, a sanitizer that is absent, refuses the device or is too slow,
and dtypes that there is no time for, are recorded as not run; 1: something else; 2: no GPU, or no package, and nothing written.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
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
SCHEMA = 2
# Seconds for each stage, and for everything. A stage also ends with the whole.
LIMITS = {
    "golden": 60.0,
    "rates": 30.0,
    "benchmark": 120.0,
    "tests": 210.0,
    "memcheck": 40.0,
    "racecheck": 40.0,
    "invariance": 30.0,
}
TOTAL = sum(LIMITS.values())
# What a benchmark needs beside its workloads; another dtype is begun with no less than the least, and gets no more than the most.
START_UP = 35.0
LEAST_BENCHMARK, MOST_BENCHMARK = 80.0, 100.0
# Compiling a Triton kernel can take most of it.
ONE_TEST = 120
# A stage with less is not begun.
LEAST_STAGE = 1.0
# What a stopped stage has to say what it found until then.
GRACE = 10.0
TAIL_LINES = 40

PASSED, FAILED, NOT_RUN, OUT_OF_TIME = "passed", "failed", "not run", "ran out of time"
INSTALL = "bash tools/setup.sh && .venv/bin/python benchmarks/gpu_check.py"

ALL_TESTS = "tests/context_attention"
INVARIANCE = "tests/context_attention/test_invariance.py"
RATES = "benchmarks/gpu_rates.cu"
SANITIZED = "tests/sanitize/gpu_small_cases.py"
# What the last line of a finished `SANITIZED` says, and what compute-sanitizer says where it watched nothing.
FINISHED = re.compile(r"^all (\d+) cases done$", re.MULTILINE)
REFUSED = re.compile(
    r"^=+ .*(Device not supported|No attachable process|terminated before first instrumented|Internal Sanitizer Error|"
    r"injection library|Failed to initialize).*$",
    re.MULTILINE,
)
SUMMARY = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((?P<race>\d+) errors?|ERROR SUMMARY: (?P<memory>\d+) errors?")
PYTEST_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped|deselected|xfailed|xpassed|warning)s?\b")


class Outcome(NamedTuple):
    """How a stage ended, what it counted, and why it did not pass."""

    status: str
    counts: Mapping[str, int]
    reason: str = ""


# From the exit status, None for a stage that was stopped, and everything printed.
Judge = Callable[[int | None, str], Outcome]


def pytest_counts(output: str) -> dict[str, int]:
    """{"passed": .., "failed": .., ...} of pytest's last line; empty if there is none."""
    for line in reversed(output.splitlines()):
        if re.search(r" in [\d.]+s\b", line):
            return {word: int(count) for count, word in PYTEST_COUNT.findall(line)}
    return {}


def judge_pytest(status: int | None, output: str) -> Outcome:
    counts = pytest_counts(output)
    if status == 0 and counts.get("passed"):
        return Outcome(PASSED, counts)
    return Outcome(FAILED, counts, f"pytest ended with exit status {status}" if status else "no test ran")


def judge_sanitizer(status: int | None, output: str) -> Outcome:
    """Passed only if the sanitizer gave a clean summary of a program that reached its end; one that was too slow says nothing."""
    finished, refused, summary = FINISHED.search(output), REFUSED.search(output), SUMMARY.search(output)
    counts = {"cases": int(finished[1])} if finished else {}
    if refused or not summary:
        return Outcome(NOT_RUN, counts, refused[0].strip("= ") if refused else "compute-sanitizer gave no summary")
    errors = int(summary["race"] or summary["memory"] or 0)
    counts["errors"] = errors
    if status is None and not errors:
        return Outcome(NOT_RUN, counts, "did not come to its end")
    if status == 0 and finished and not errors:
        return Outcome(PASSED, counts)
    return Outcome(FAILED, counts, f"{errors} errors reported" if errors else f"the cases ended with exit status {status}")


def judge_benchmark(report: dict[str, Any] | None) -> Judge:
    """For a benchmark that wrote `report`: whether our backends were measured and agree with float64."""

    def judge(status: int | None, output: str) -> Outcome:
        ours = [row for row in (report or {}).get("rows", []) if row["ours"]]
        wrong = [f"{row['implementation']} on {row['workload']}" for row in ours if not agrees(row)]
        counts = {"rows": len(ours)}
        if wrong:
            return Outcome(FAILED, counts, f"disagrees with float64: {', '.join(dict.fromkeys(wrong))}")
        if status or not ours:
            return Outcome(FAILED, counts, f"ended with exit status {status}" if status else "no backend of ours was measured")
        return Outcome(PASSED, counts)

    return judge


def agrees(row: dict[str, Any]) -> bool:
    return all(error <= row["tolerances"][name] for name, error in row["errors"].items())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is at no moment half written."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def run_for(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a command in the checkout.

    One that is not through in time is interrupted, as from the keyboard, and killed `GRACE` seconds later, with all that
    it started.

    Returns:
        (exit status, or None if it was stopped; what it printed).
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        status = None
        try:
            status = process.wait(seconds)
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
        facts: what stands in it beside `stages`, `bench` and `rates`.
        seconds: for all stages together.
        start: what `time.monotonic()` was when the clock started; by default now.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], seconds: float = TOTAL, start: float | None = None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"schema": SCHEMA, **facts, "stages": {}, "bench": {}, "rates": []}
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
        if limit < LEAST_STAGE:
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
            ended = outcome.status if outcome.status == NOT_RUN or outcome.counts.get("errors") else OUT_OF_TIME
            reason = f"{outcome.reason}; " if outcome.counts.get("errors") else ""
            outcome = Outcome(ended, outcome.counts, f"{reason}stopped after {limit:.0f} s")
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
    results = ("stages", "bench", "rates")
    same = all(found.get(name) == value for name, value in content.items() if name not in (*results, "date"))
    return {name: found[name] for name in results} if same else {}


def environment() -> dict[str, str]:
    """For every stage: this checkout's package, printing without delay, and Triton's compiler, not its interpreter."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def cuda_program(name: str) -> str | None:
    """Where a program of the CUDA toolkit lies, None if it is not installed."""
    cuda = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which(name) or shutil.which(name, path=f"{cuda}/bin")


def run_pytest(record: Record, name: str, which: str, *arguments: str) -> None:
    # A log of names tells where a run was stopped.
    options = ["-k", which, "-v", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
    command = [sys.executable, "-m", "pytest", *arguments, *options]
    # Most of the time goes to compiling kernels, which processes share through Triton's cache.
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(16, os.cpu_count() or 1))]
    # A test that hangs costs a test and not a stage.
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(ONE_TEST), "--timeout-method", "thread"]
    missing = [module for module in ("pytest", "hypothesis") if importlib.util.find_spec(module) is None]
    if missing:
        record.keep(name, command, Outcome(NOT_RUN, {}, f"not installed: {', '.join(missing)}"))
    else:
        record.run(name, command, LIMITS[name], judge_pytest)


def run_rates(record: Record) -> None:
    """Measure the GPU itself: what the estimates of kernels assume."""
    compiler = cuda_program("nvcc")
    number = record.content["compute_capability"].replace(".", "")
    architecture = f"{number}a" if number == "90" else number
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "gpu_rates"
        flags = ["-O3", "-std=c++17", f"-gencode=arch=compute_{architecture},code=sm_{architecture}", RATES, "-o", str(program)]
        command = ["sh", "-c", f"{shlex.join([compiler or 'nvcc', *flags])} >&2 && {program} 2>&1"]

        def judge(status: int | None, output: str) -> Outcome:
            try:
                record.content["rates"] = json.loads(output[output.rindex("[\n") :])
            except ValueError:
                return Outcome(FAILED, {}, f"ended with exit status {status}")
            return Outcome(PASSED, {"rates": len(record.content["rates"])})

        if compiler is None:
            record.keep("rates", command, Outcome(NOT_RUN, {}, "nvcc is not installed"))
        else:
            record.run("rates", command, LIMITS["rates"], judge)


def run_sanitizer(record: Record, tool: str, *options: str) -> None:
    program = cuda_program("compute-sanitizer")
    options = ("--tool", tool, "--error-exitcode", "9", "--launch-timeout", "60", *options)
    command = [program or "compute-sanitizer", *options, sys.executable, SANITIZED]
    if program is None:
        record.keep(tool, command, Outcome(NOT_RUN, {}, "compute-sanitizer is not installed"))
    else:
        paths = record.environment["PYTHONPATH"] + os.pathsep + str(ROOT / "tests")
        # torch's own allocator would hide where a tensor ends.
        record.run(tool, command, LIMITS[tool], judge_sanitizer, PYTHONPATH=paths, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def run_benchmark(record: Record, dtype: str, limit: float, *options: str) -> None:
    """Benchmark one dtype; what was measured is kept however it ends."""
    name = f"benchmark {dtype}"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "report.json"
        seconds = str(round(max(limit - START_UP, 1)))
        command = [sys.executable, "benchmarks/bench_attention.py", "--device", "cuda", "--dtype", dtype, "--seconds", seconds]

        def judge(status: int | None, output: str) -> Outcome:
            report = None
            with contextlib.suppress(OSError, ValueError):
                report = record.content["bench"][dtype] = json.loads(result.read_text(encoding="utf-8"))
            return judge_benchmark(report)(status, output)

        record.run(name, [*command, *options, "--json", str(result)], limit, judge)


def run_all(record: Record, wanted: Sequence[str]) -> int:
    """The wanted stages, in the order of what must not be missing; the exit status."""
    on_gpu = "(triton or cuda)"
    stages: dict[str, Callable[[], None]] = {
        "golden": lambda: run_pytest(record, "golden", f"golden and {on_gpu}", f"{ALL_TESTS}/test_accuracy.py"),
        "rates": lambda: run_rates(record),
        "benchmark": lambda: run_benchmark(record, "bfloat16", LIMITS["benchmark"]),
        "tests": lambda: run_pytest(record, "tests", f"not golden and {on_gpu}", ALL_TESTS, f"--ignore={INVARIANCE}"),
        "memcheck": lambda: run_sanitizer(record, "memcheck", "--padding", "2048", "--report-api-errors", "no"),
        "racecheck": lambda: run_sanitizer(record, "racecheck"),
        "invariance": lambda: run_pytest(record, "invariance", on_gpu, INVARIANCE),
    }
    for name, run in stages.items():
        if name in wanted:
            run()
    for dtype in ("float16", "float32") if "benchmark" in wanted else ():
        if record.left() >= LEAST_BENCHMARK:
            run_benchmark(record, dtype, min(record.left(), MOST_BENCHMARK), "--workload", "f30k-1k", "train-64")
        elif f"benchmark {dtype}" not in record.content["stages"]:
            record.keep(f"benchmark {dtype}", [], Outcome(NOT_RUN, {}, "no time left"))
    return exit_status(record.content["stages"])


def exit_status(stages: Mapping[str, Mapping[str, Any]]) -> int:
    optional = {"rates", "memcheck", "racecheck", "benchmark float16", "benchmark float32"}
    fine = [stage["status"] == PASSED or (stage["status"] == NOT_RUN and name in optional) for name, stage in stages.items()]
    return 0 if all(fine) else 1


def obstacle() -> str:
    """Why nothing can be checked here, or an empty string."""
    try:
        import torch
    except ImportError:
        return f"torch is not installed. Set-up and check in one line: {INSTALL}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU here, and only a GPU can be checked"
    program = [sys.executable, "-c", "import caan_kernels"]
    imported = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if imported.returncode:
        reason = imported.stderr.strip().splitlines()[-1]
        return f"caan_kernels cannot be imported ({reason}). Set-up and check in one line: {INSTALL}"
    return ""


def default_path(device: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"cuda_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="(default: benchmarks/results/cuda_DEVICE.json)")
    parser.add_argument("--commit", help="what to record as the commit (default: asks git)")
    parser.add_argument("--seconds", type=float, default=TOTAL, metavar="N", help=f"for all stages, start included ({TOTAL:.0f})")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS), help="(default: all)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    if reason := obstacle():
        print(f"gpu_check: {reason}", file=sys.stderr)
        return 2
    import torch
    from machine import checks_hash, commit, gpu_facts, source_hash

    facts = gpu_facts(torch.device("cuda"))
    facts |= {"commit": options.commit or commit(), "source_sha256": source_hash(), "checks_sha256": checks_hash()}
    facts["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    path = options.json or default_path(facts["device"])
    path.parent.mkdir(parents=True, exist_ok=True)
    # Started in the background, this process would ignore interrupts, and so would every stage.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record = Record(path, facts, options.seconds, start)
    status = run_all(record, options.stages)
    print(f"{path} is written; python benchmarks/render_readme.py puts it into the README")
    return status


if __name__ == "__main__":
    sys.exit(main())
