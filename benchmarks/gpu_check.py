"""Everything a GPU can say about this package, in under ten minutes, what matters most first.

    python benchmarks/gpu_check.py                 writes benchmarks/results/cuda_DEVICE.json
    python benchmarks/render_readme.py             puts it into README and docs/benchmarks.md

Stages: one golden case a backend and dtype; the GPU's own rates; benchmark; tests; graphs, streams and compilations; batch
invariance and bits from run to run; what Nsight Compute sees of the main kernels; compute-sanitizer; Triton's golden cases
by the CUDA toolkit's assembler; other dtypes; other configurations of Triton's kernels.

Uses the interpreter and the package at hand and installs nothing. A stage that runs out of time is stopped, and the next
one begins. The file is written after every stage, and all that a stage printed is in build/gpu_check/. A second run of the
same sources on the same GPU runs the stages that have not passed; `--stages` and `--seconds` spread them over calls. Exit status
0: every stage in the file passed, save the optional ones (all but cases, benchmark bfloat16, tests, graphs, invariance) that are
recorded as not run, and a sweep that was stopped; 1: something else; 2: no GPU, or no package, and nothing written.
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
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_profile import rows_of
from gpu_record import FAILED, GRACE, NOT_RUN, OUT_OF_TIME, PASSED, ROOT, TOTAL, Judge, Outcome, Record, cuda_program, environment

# Seconds of a test. Triton takes up to 20 s of a core to compile a case's kernels, while 16 processes import torch and reach for
# the GPU; a process that repeats a call 500 times shares the GPU with five others.
ONE_TEST = 60
# Seconds that this process itself takes at most before the first stage: torch is imported twice.
START = 15.0
# Seconds for each stage, until it is killed: of tests, a test that hangs and what comes before and after it. A stage also ends with
# the whole. The required ones come first, and all of them fit into it, even if each is stopped.
LIMITS = {
    "cases": 85.0,
    "rates": 20.0,
    "benchmark": 120.0,
    "tests": 120.0,
    "graphs": 85.0,
    "invariance": 85.0,
    "profile": 40.0,
    "memcheck": 45.0,
    "racecheck": 45.0,
    "newer ptxas": 95.0,
    "sweep": 210.0,
}
OTHER_DTYPES = ("float16", "float32")
REQUIRED = ("cases", "benchmark bfloat16", "tests", "graphs", "invariance")
# What a benchmark needs beside its workloads; another dtype is begun with no less than the least, and gets no more than the most.
START_UP = 35.0 + GRACE
LEAST_BENCHMARK, MOST_BENCHMARK = 90.0, 110.0

INSTALL = "bash tools/setup.sh && .venv/bin/python benchmarks/gpu_check.py"

ON_GPU = "(triton or cuda)"
OPERATOR, SIMILARITY = "tests/context_attention", "tests/max_similarity"
# Of what operators share.
SHARED = ["tests/test_gpu_plan.py", "tests/test_backends.py"]
ACCURACY = f"{OPERATOR}/test_accuracy.py"
# COCO's usual size.
FIRST_CASE = "golden and full_36x13"
ALONE = [f"{OPERATOR}/test_gpu.py", f"{OPERATOR}/test_triton_gpu.py", f"{SIMILARITY}/test_graphs.py"]
ALIKE = f"{ON_GPU} and (invariance or widths_of_the_paper)"
INVARIANCE = [f"{folder}/test_invariance.py" for folder in (OPERATOR, SIMILARITY)]
# The rest of its tests is of the CPU's memory, or says the same of every backend.
OF_SIMILARITY = [f"{SIMILARITY}/test_{name}.py" for name in ("scores", "gradients")]
RATES = "benchmarks/gpu_rates.cu"
PROFILED, SWEPT = "benchmarks/gpu_profile.py", "benchmarks/gpu_sweep.py"
SANITIZED = "tests/sanitize/gpu_small_cases.py"
# What Nsight Compute tells of a kernel: pipes, caches and shared memory, what warps wait for, warps at a time.
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy")
# What the last line of a finished `SANITIZED` says, and what compute-sanitizer says where it watched nothing.
FINISHED = re.compile(r"^all (\d+) cases done$", re.MULTILINE)
REFUSED = re.compile(
    r"^=+ .*(Device not supported|No attachable process|terminated before first instrumented|Internal Sanitizer Error|"
    r"injection library|Failed to initialize).*$",
    re.MULTILINE,
)
UNWATCHED = re.compile(r"^==(?:ERROR|WARNING)== .*$", re.MULTILINE)
SUMMARY = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((?P<race>\d+) errors?|ERROR SUMMARY: (?P<memory>\d+) errors?")
PYTEST_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped|deselected|xfailed|xpassed|warning)s?\b")


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


def judge_profile(found: list[dict[str, Any]]) -> Judge:
    """For what Nsight Compute printed; the kernels are added to `found`. A tool that may not watch says nothing of them."""

    def judge(status: int | None, output: str) -> Outcome:
        found[:] = rows_of(output)
        if found:
            return Outcome(PASSED, {"kernels": len(found)})
        told = UNWATCHED.search(output)
        return Outcome(NOT_RUN, {}, told[0] if told else f"no kernel was watched; ended with exit status {status}")

    return judge


def judge_sweep(found: list[dict[str, Any]]) -> Judge:
    """For the rows that the sweep printed until its end, or until it was stopped, after those of an earlier call."""
    before = list(found)

    def judge(status: int | None, output: str) -> Outcome:
        found[:] = before + [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        counts = {"configurations": len(found), "faster": sum(row["faster"] for row in found)}
        return Outcome(FAILED, counts, f"ended with exit status {status}") if status else Outcome(PASSED, counts)

    return judge


def agrees(row: dict[str, Any]) -> bool:
    return all(error <= row["tolerances"][name] for name, error in row["errors"].items())


def run_pytest(record: Record, name: str, which: str, *arguments: str, **variables: str) -> None:
    # A log of names tells where a run was stopped.
    options = ["-k", which, "-v", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
    command = [sys.executable, "-m", "pytest", *arguments, *options]
    # Most of the time goes to compiling kernels, which processes share through Triton's cache.
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(16, os.cpu_count() or 1))]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(ONE_TEST), "--timeout-method", "thread"]
    missing = [module for module in ("pytest", "hypothesis") if importlib.util.find_spec(module) is None]
    if missing:
        record.keep(name, command, Outcome(NOT_RUN, {}, f"not installed: {', '.join(missing)}"))
    else:
        record.run(name, command, LIMITS[name], judge_pytest, **variables)


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


def run_profile(record: Record) -> None:
    """What Nsight Compute sees of one call of each backend."""
    program = cuda_program("ncu")
    options = ["--profile-from-start", "off", "--csv", "--page", "details"]
    options += [word for section in SECTIONS for word in ("--section", section)]
    command = [program or "ncu", *options, sys.executable, PROFILED]
    if program is None:
        record.keep("profile", command, Outcome(NOT_RUN, {}, "ncu is not installed"))
    else:
        record.run("profile", command, LIMITS["profile"], judge_profile(record.content["profile"]))


def run_newer_ptxas(record: Record) -> None:
    """Triton's golden cases again, by the CUDA toolkit's assembler where that is newer than the one that Triton brings. Not every
    test: all kernels are compiled anew for it, which takes as long as the tests did at first."""
    name, program = "newer ptxas", cuda_program("ptxas")
    own = triton_ptxas()
    versions = [assembler_version(path) if path else (0,) for path in (program, own)]
    if program is None or versions[0] <= versions[1]:
        there, brought = (".".join(map(str, version)) for version in versions)
        record.keep(name, [], Outcome(NOT_RUN, {}, f"the CUDA toolkit's is {there}, Triton's {brought}"))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {"TRITON_PTXAS_PATH": program, "TRITON_PTXAS_BLACKWELL_PATH": program, "TRITON_CACHE_DIR": folder}
        run_pytest(record, name, "golden and triton", ACCURACY, **paths)


def triton_ptxas() -> str | None:
    found = importlib.util.find_spec("triton")
    path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / "ptxas" if found and found.origin else None
    return str(path) if path and path.exists() else None


def assembler_version(program: str) -> tuple[int, ...]:
    """Of a ptxas; (0,) where it does not tell."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
        if match := re.search(r"\bV(\d+(?:\.\d+)+)", told):
            return tuple(map(int, match[1].split(".")))
    return (0,)


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


def run_dtype(record: Record, dtype: str) -> None:
    """Benchmark another dtype where there is time."""
    if record.left() >= LEAST_BENCHMARK:
        run_benchmark(record, dtype, min(record.left(), MOST_BENCHMARK), "--workload", "f30k-1k", "train-64")
    elif f"benchmark {dtype}" not in record.content["stages"]:
        record.keep(f"benchmark {dtype}", [], Outcome(NOT_RUN, {}, "no time left"))


def run_all(record: Record, wanted: Sequence[str]) -> int:
    """The wanted stages, in the order of what must not be missing; the exit status."""
    every = [OPERATOR, *OF_SIMILARITY, *SHARED, *(f"--ignore={path}" for path in (*ALONE, INVARIANCE[0]))]
    swept = [sys.executable, SWEPT, str(len(record.content["sweep"]))]
    stages: dict[str, Callable[[], object]] = {
        "cases": lambda: run_pytest(record, "cases", f"{FIRST_CASE} and {ON_GPU}", ACCURACY),
        "rates": lambda: run_rates(record),
        "benchmark": lambda: run_benchmark(record, "bfloat16", LIMITS["benchmark"]),
        "tests": lambda: run_pytest(record, "tests", f"not ({FIRST_CASE}) and {ON_GPU}", *every),
        "graphs": lambda: run_pytest(record, "graphs", "not widths_of_the_paper", *ALONE),
        "invariance": lambda: run_pytest(record, "invariance", ALIKE, *INVARIANCE, *ALONE),
        "profile": lambda: run_profile(record),
        "memcheck": lambda: run_sanitizer(record, "memcheck", "--padding", "2048", "--report-api-errors", "no"),
        "racecheck": lambda: run_sanitizer(record, "racecheck"),
        "newer ptxas": lambda: run_newer_ptxas(record),
    }
    for name, run in stages.items():
        if name in wanted:
            run()
    for dtype in OTHER_DTYPES if "benchmark" in wanted else ():
        run_dtype(record, dtype)
    if "sweep" in wanted:
        record.run("sweep", swept, LIMITS["sweep"], judge_sweep(record.content["sweep"]))
    return exit_status(record.content["stages"])


def exit_status(stages: Mapping[str, Mapping[str, Any]]) -> int:
    def fine(name: str, status: str) -> bool:
        return status == PASSED or (name not in REQUIRED and status == NOT_RUN) or (name == "sweep" and status == OUT_OF_TIME)

    return 0 if all(fine(name, stage["status"]) for name, stage in stages.items()) else 1


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
    print(f"{path} is written; python benchmarks/render_readme.py puts it into README and docs/benchmarks.md")
    return status


if __name__ == "__main__":
    sys.exit(main())
