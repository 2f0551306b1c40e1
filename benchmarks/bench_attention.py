"""Context-aware attention against the ways it is usually written: one table, in under four minutes on two cores.

    python benchmarks/bench_attention.py
    python benchmarks/bench_attention.py --workload train-128 --json results.json
    python benchmarks/bench_attention.py --features DIR     real features: DIR/{split}_ims.npy and DIR/{split}_caps.txt

Entrants take turns, so that a noisy machine is unkind to all of them. Each is held against float64, and no ratio is
printed for one that disagrees. A slow one scores a part of the workload; rates are per pair, the table says which part.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest import Clock, Contest
from measure import Neighbours
from peers import REFERENCE
from report import Report, plot
from scaling import measure_scaling
from workloads import CAPTION_LENGTHS, SPECS, RandomSource, ScanSource

import caan_kernels as ck

# Seconds for all workloads together. The last call of each may overrun its share, and start and floor take some: the
# whole stays under four minutes.
BUDGET = 190.0
# A workload left with less than this part of its share is not begun.
LEAST_SHARE = 0.3
# Part of the cores' time that other processes may take before the figures are called unreliable. The compiler's own
# processes count as others, too.
BUSY = 0.15
# A workload measured alone gets at most this many times its share.
STRETCH = 3.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device, help="torch device (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    compiled = [name for name in ck.available_backends() if name != REFERENCE]
    parser.add_argument("--backend", choices=compiled, nargs="+", help="backends of ours (default: all that can run)")
    parser.add_argument("--workload", choices=SPECS, nargs="+", default=list(SPECS), help="(default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, for render_readme.py")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="time and memory by number of pairs; +2 minutes")
    parser.add_argument("--features", type=Path, metavar="DIR", help="real features in SCAN layout instead of random ones")
    return parser.parse_args(arguments)


def usable_backends(asked: Sequence[str] | None, device: torch.device, dtype: torch.dtype) -> tuple[list[str], list[str]]:
    """Names of our compiled backends that can run here, and a note on each that was wanted and cannot."""
    usable, notes = [], []
    for name in ck.available_backends():
        if name == REFERENCE or (asked and name not in asked):
            continue
        items, matrix, vector = (torch.ones(*s, device=device, dtype=dtype) for s in ((1, 2, 8), (8, 8), (8,)))
        weights = ck.ContextAttentionWeights(*[matrix] * 5, vector, vector)
        try:
            ck.context_attention(items, items, weights, backend=name)
            usable.append(name)
        except (RuntimeError, ValueError, TypeError) as error:
            notes.append(str(error))
    return usable, notes


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checked-out commit, "+" if files differ from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version() -> str:
    try:
        return importlib.metadata.version("caan_kernels")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def header(device: torch.device, dtype: str, features: str) -> dict[str, Any]:
    """What the figures depend on."""
    compiled = ck.available_backends()["cpu"][0]
    return {
        "device": device_name(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "caan_kernels": version(),
        "commit": commit(),
        "instruction_set": torch.ops.caan_kernels.cpu_isa() if compiled else "no compiled kernels",
        "dtype": dtype,
        "features": features,
        "date": datetime.date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    dtype: torch.dtype = getattr(torch, options.dtype)
    scan = None if options.features is None else ScanSource(options.features)
    sources = {name: scan or RandomSource(table) for name, table in CAPTION_LENGTHS.items()}
    report = Report(header(options.device, options.dtype, scan.name if scan else RandomSource.name))
    backends, report.notes = usable_backends(options.backend, options.device, dtype)
    specs = [SPECS[name] for name in dict.fromkeys(options.workload)]
    if scan:
        # The two slices differ in their caption lengths only, which now are those of DIR.
        specs = list({s.kind + str(s.captions): s for s in reversed(specs)}.values())[::-1]
        specs = [s._replace(name=s.kind.replace(" ", "-")) if s.kind == "all pairs" else s for s in specs]
    stretch = min(BUDGET / sum(spec.seconds for spec in specs), STRETCH)
    status = 0
    clock, neighbours = Clock(), Neighbours()
    contest = Contest(report, clock, options.device, dtype, backends)
    start = clock.now()
    try:
        for place, spec in enumerate(specs):
            # What earlier workloads left or overran is divided among those that remain.
            left = stretch * sum(s.seconds for s in specs) - (clock.now() - start)
            share = left * spec.seconds / sum(s.seconds for s in specs[place:])
            if share < LEAST_SHARE * spec.seconds:
                report.notes.append(f"{spec.name}: left out, earlier workloads took its time")
                continue
            contest.measure(spec, sources[spec.lengths], share)
        if options.plot:
            measure_scaling(contest, sources["f30k"])
    except KeyboardInterrupt:
        report.notes.append("interrupted: what was finished until then")
        status = 130
    others = neighbours.share()
    report.header["others"] = "unknown" if others is None else f"{others:.0%} of all cores' time went to other processes"
    if others is not None and others > BUSY:
        report.notes.insert(0, f"not to be relied on: {report.header['others']} during this run")
    report.floor = {
        "flops_per_second": contest.probe.best.flops,
        "tanh_per_second": contest.probe.best.tanh,
        "tanh": contest.probe.tanh_name,
    }
    print(report.text())
    if options.json:
        report.save(options.json)
    if options.plot and report.scaling:
        plot(report, options.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
