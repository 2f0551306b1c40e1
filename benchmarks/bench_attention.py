"""Context-aware attention against the ways it is usually written: one table, in under four minutes on two cores.

    python benchmarks/bench_attention.py
    python benchmarks/bench_attention.py --device cuda      whole test sets in bfloat16
    python benchmarks/bench_attention.py --workload train-128 --json results.json
    python benchmarks/bench_attention.py --features DIR     real features: DIR/{split}_ims.npy and DIR/{split}_caps.txt

Implementations take turns, so that a noisy machine is unkind to all of them. Each is held against float64, and no ratio is
printed for one that disagrees. A slow one scores a part of the workload; rates are per pair, the table says which part.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from baselines import REFERENCE
from machine import commit, cpu_name, gpu_facts
from measure import Neighbours
from measuring import Benchmark, Clock, first_line
from report import Report, plot
from scaling import measure_scaling
from workloads import CAPTION_LENGTHS, GPU_SPECS, HIDDEN, LENGTHS, SPECS, RandomSource, ScanSource

import caan_kernels as ck

# Seconds for all workloads together, unless told otherwise. The last call of each may overrun its share, and start and
# floor take some: the whole stays under four minutes.
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
    dtypes = ("float32", "float64", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="(default: float32, bfloat16 on a GPU)")
    compiled = [name for name in ck.available_backends() if name != REFERENCE]
    parser.add_argument("--backend", choices=compiled, nargs="+", help="backends of ours (default: all that can run)")
    parser.add_argument("--workload", choices=GPU_SPECS, nargs="+", help="(default: all; patches are for a GPU)")
    parser.add_argument("--seconds", type=float, default=BUDGET, metavar="N", help=f"for all workloads ({BUDGET:.0f})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, for render_readme.py")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="time and memory by number of pairs; +2 minutes")
    parser.add_argument("--features", type=Path, metavar="DIR", help="real features in SCAN layout instead of random ones")
    options = parser.parse_args(arguments)
    on_gpu = options.device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    specs = GPU_SPECS if on_gpu else SPECS
    options.workload = options.workload or list(specs)
    if missing := [name for name in options.workload if name not in specs]:
        parser.error(f"--workload {' '.join(missing)}: only with --device cuda")
    return options


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
        except Exception as error:  # whatever a compiler of kernels can raise
            notes.append(first_line(error))
    return usable, notes


def header(device: torch.device, dtype: str, features: str) -> dict[str, Any]:
    """What the figures depend on."""
    package = {"caan_kernels": ck.__version__, "commit": commit()}
    measured = {"dtype": dtype, "features": features, "date": datetime.date.today().isoformat()}
    if device.type == "cuda":
        return gpu_facts(device) | package | measured
    return {
        "device": cpu_name(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "torch": torch.__version__,
        **package,
        "instruction_set": ck.build_info()["cpu_instruction_set"],
        **measured,
    }


def keep(report: Report, benchmark: Benchmark, path: Path | None) -> None:
    """Judge what has been measured so far by the rates seen so far, and write it, if anywhere."""
    report.see_rates(benchmark.probe)
    if path:
        report.save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    dtype: torch.dtype = getattr(torch, options.dtype)
    scan = None if options.features is None else ScanSource(options.features)
    report = Report(header(options.device, options.dtype, scan.name if scan else RandomSource.name))
    backends, report.notes = usable_backends(options.backend, options.device, dtype)
    on_gpu = options.device.type == "cuda"
    specs = [(GPU_SPECS if on_gpu else SPECS)[name] for name in dict.fromkeys(options.workload)]
    if scan and on_gpu:
        specs = [scan.within(spec) if spec.kind == "all pairs" else spec for spec in specs]
    if scan:
        specs = [spec for spec in specs if spec.lengths in CAPTION_LENGTHS]
        # The two slices of H = 1024 differ in their caption lengths only, which now are those of DIR.
        specs = list({(s.kind, s.captions, s.hidden): s for s in reversed(specs)}.values())[::-1]
        named = {HIDDEN: "all-pairs"}
        specs = [s._replace(name=named.get(s.hidden, f"all-pairs-h{s.hidden}")) if s.kind == "all pairs" else s for s in specs]
    stretch = min(options.seconds / sum(spec.seconds for spec in specs), STRETCH)
    status = 0
    clock, neighbours = Clock(), Neighbours()
    benchmark = Benchmark(report, clock, options.device, dtype, backends)
    start = clock.now()
    try:
        for place, spec in enumerate(specs):
            # What earlier workloads left or overran is divided among those that remain.
            left = stretch * sum(s.seconds for s in specs) - (clock.now() - start)
            share = left * spec.seconds / sum(s.seconds for s in specs[place:])
            if share < LEAST_SHARE * spec.seconds:
                report.notes.append(f"{spec.name}: left out, earlier workloads took its time")
                continue
            try:
                benchmark.measure(spec, scan or RandomSource(LENGTHS[spec.lengths], spec.regions), share)
            except torch.OutOfMemoryError as error:
                report.notes.append(f"{spec.name}: left out, {first_line(error)}")
            keep(report, benchmark, options.json)
        if options.plot:
            measure_scaling(benchmark, scan or RandomSource(CAPTION_LENGTHS["f30k"]))
    except KeyboardInterrupt:
        report.notes.append("interrupted: what was finished until then")
        status = 130
    if not on_gpu:
        others = neighbours.share()
        report.header["others"] = "unknown" if others is None else f"{others:.0%} of all cores' time went to other processes"
        if others is not None and others > BUSY:
            report.notes.insert(0, f"not to be relied on: {report.header['others']} during this run")
    keep(report, benchmark, options.json)
    print(report.text())
    if options.plot and report.scaling:
        plot(report, options.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
