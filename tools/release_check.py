"""The proofs that take too long for CI, and a committed log of them: tools/release_log.json.

    tools/release_check.sh                  every stage whose log is not of today's sources
    tools/release_check.sh wheel torch-2.11 these stages
    tools/release_check.sh --stale          only note in the log which stages are stale

A stage's entry carries a hash of the files that it depends on. CI fails while an entry claims to be of today's sources and is not:
after a change of these files the stage is run again, or the log says that it is stale. A release has no stale stage.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "tools" / "release_log.json"
BUILT = ROOT / "build" / "release"
# What a log keeps of a stage's output.
LAST_LINES = 5

PACKAGING = ("setup.py", "pyproject.toml", "MANIFEST.in", "build_backend/*.py", "tools/*wheel.sh", "tools/smoke.py")
WHEEL = (*PACKAGING, "csrc/**/*", "caan_kernels/**/*.py")
CUDA = ("csrc/core/cuda/*", "csrc/*/cuda/*", "csrc/*/*.h")
REPORTS = ("benchmarks/compile_report.py", "benchmarks/cuda_report.py", "benchmarks/machine_code.py")
TRITON = ("caan_kernels/core/**/*.py", "caan_kernels/*/triton/*.py", "caan_kernels/*/gpu/*.py", "caan_kernels/*/*.py", *REPORTS)
JUDGES = ("tests/cases.py", "tests/conftest.py", "tests/context_attention/conftest.py", "benchmarks/comparison.py")
GOLDEN = (*JUDGES, "tests/context_attention/*accuracy.py", "tests/data/*.npz", "caan_kernels/**/*.py")


class Stage(NamedTuple):
    about: str
    command: str
    files: tuple[str, ...]


TRY = "tools/try_wheel.sh build/release/cpu/*.whl"
PYTEST = "python -m pytest -q -n 0 tests/context_attention/test_accuracy.py -k golden"
# Before a command a failure of $(...) would not count.
EMULATED = "library=$(python tests/emulated_library.py) && export CAAN_CUDA_EMULATED=$library"
STAGES = {
    "wheel": Stage(
        "the CPU wheel is built from the sdist, and works with torch 2.13 where there is no compiler",
        f"rm -rf build/release/cpu && tools/build_wheel.sh build/release/cpu && {TRY}",
        WHEEL,
    ),
    "torch-2.11": Stage("the same wheel works with the lowest torch", f"{TRY} torch==2.11.0", WHEEL),
    "torch-newest": Stage("the same wheel works with the newest torch of PyPI", f"PIP_CONSTRAINT=/dev/null {TRY} torch", WHEEL),
    "cuda-wheel": Stage(
        "the wheel with CUDA code for all architectures is built; its CPU kernels work where there is no GPU",
        f"rm -rf build/release/cuda && tools/build_wheel.sh --cuda build/release/cuda && {TRY.replace('cpu', 'cuda')}",
        WHEEL,
    ),
    "hub-kernel": Stage(
        "the layout of the Hugging Face hub loads with the published kernels package, beside the installed package",
        "python tools/build_kernel.py build/release/kernel"
        " && python -m pip install --quiet --upgrade --target build/release/hub kernels"
        " && PYTHONPATH=build/release/hub python tools/try_kernel.py build/release/kernel",
        (*WHEEL, "tools/*kernel.py", "build.toml"),
    ),
    "cuda-compile": Stage(
        "CUDA kernels compile for all architectures",
        "python benchmarks/cuda_report.py",
        (*CUDA, "setup.py", "build_backend/*.py", *REPORTS),
    ),
    "triton-compile": Stage(
        "Triton kernels compile for all architectures, at every shape that can run",
        "python benchmarks/compile_report.py",
        TRITON,
    ),
    "triton-3.6": Stage(
        "Triton kernels compile with the lowest Triton, at the field's sizes",
        "python -m pip install --quiet --upgrade --no-deps --target build/release/triton-3.6 triton==3.6.0"
        " && PYTHONPATH=build/release/triton-3.6 python benchmarks/compile_report.py --check",
        TRITON,
    ),
    "races": Stage(
        "ThreadSanitizer finds no race in the CUDA kernels, with a thread of the system for each of theirs",
        "python -m pytest -q -n 0 -m release tests/test_emulated.py",
        (*CUDA, "tests/sanitize/*", "tests/emulated_library.py", "tests/test_emulated.py"),
    ),
    "ptx": Stage(
        "the PTX of every kernel at every class of shapes and in every dtype, in the interpreter, as far as CI leaves it out",
        f"{EMULATED} && command -v nvcc && python -m pytest -q -n 0 -m release tests/context_attention/ptx"
        " tests/max_similarity/test_ptx*.py",
        (
            *(
                "csrc/**/*",
                "caan_kernels/**/*.py",
                "tests/support/ptx/*.py",
                "tests/context_attention/ptx/*.py",
                "tests/data/*.npz",
            ),
            *("tests/max_similarity/*ptx*.py", "tests/max_similarity/problems.py", "tests/max_similarity/conftest.py"),
            *(
                "tests/cases.py",
                "tests/conftest.py",
                "tests/context_attention/conftest.py",
                "tests/emulated_library.py",
                "build_backend/*.py",
            ),
        ),
    ),
    "golden-triton": Stage(
        "every golden case in Triton's interpreter", f"TRITON_INTERPRET=1 {PYTEST} -W ignore::RuntimeWarning", GOLDEN
    ),
    "golden-cuda": Stage(
        "every golden case in the emulated CUDA kernels",
        f"{EMULATED} && {PYTEST}",
        (*GOLDEN, "csrc/**/*", "tests/emulated_library.py"),
    ),
}


def digest(patterns: tuple[str, ...], root: Path = ROOT) -> str:
    """A hash of the names and contents of all files that match."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file() and path.suffix not in (".pyc", ".so")}
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def read_log() -> dict[str, dict]:
    return json.loads(LOG.read_text()) if LOG.exists() else {}


def is_current(name: str, log: dict[str, dict]) -> bool:
    """The stage passed with the files that are here."""
    entry = log.get(name, {})
    return entry.get("result") == "passed" and entry.get("sources") == digest(STAGES[name].files)


def faults(log: dict[str, dict]) -> list[str]:
    """What the log claims and should not, a line each; an empty list where it may be believed."""
    found = [f"{name}: there is no such stage" for name in log if name not in STAGES]
    for name in STAGES:
        if name not in log:
            found.append(f"{name}: the log does not have it")
        elif log[name]["result"] == "passed" and not log[name]["stale"] and not is_current(name, log):
            found.append(f"{name}: its files have changed since it passed")
    return found


def write_log(log: dict[str, dict]) -> None:
    # In the order of STAGES, each with whether it still holds.
    entries = {name: log.get(name, {"result": "not run"}) for name in STAGES}
    for name, entry in entries.items():
        entry["stale"] = not is_current(name, log)
    LOG.write_text(json.dumps(entries, indent=1) + "\n")


def run(name: str) -> dict:
    """Run a stage; its entry in the log."""
    stage = STAGES[name]
    print(f"== {name}: {stage.about}\n+ {stage.command}", flush=True)
    output = BUILT / f"{name}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    before, start = digest(stage.files), time.monotonic()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", stage.command]
    with output.open("w") as file:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    # pip's warnings are about this machine.
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("WARNING: ")]
    result = "passed" if code == 0 else f"failed with exit code {code}"
    print("\n".join(lines[-LAST_LINES:]), f"== {name}: {result}, all of it in {output}", sep="\n", flush=True)
    if digest(stage.files) != before:
        result = "its files changed while it ran"
    return {
        "result": result,
        "sources": before,
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - start),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "last_lines": [line[:300].replace(str(ROOT), ".") for line in lines[-LAST_LINES:]],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"one of {', '.join(STAGES)}")
    parser.add_argument("--stale", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"there is no stage {unknown[0]}: expected some of {', '.join(STAGES)}")
    log = read_log()
    chosen = options.stages or [name for name in STAGES if not is_current(name, log)]
    for name in [] if options.stale else chosen:
        log[name] = run(name)
        write_log(log)
    write_log(log)
    failed = [name for name in chosen if not is_current(name, log)]
    print(f"not proved for today's sources: {', '.join(failed)}" if failed else "all of it is proved for today's sources")
    return bool(failed) and not options.stale


if __name__ == "__main__":
    sys.exit(main())
