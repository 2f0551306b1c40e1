"""What a pair would cost on an H100, from the machine code of the CUDA kernels; an estimate, nothing of it measured.

    python benchmarks/gpu_estimate.py     for sm_90; writes results/gpu_estimate.json and the table of docs/cuda.md

Instructions are counted as often as they run: those of a loop with tensor-core products as many times as the widths and the rows
ask (score_estimate.py, gradient_estimate.py). Each takes its pipe for as long as gpu_pipes.py says.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cuda_report
from code_loops import Code
from documents import replace_between
from gpu_pipes import GIGAHERTZ, MULTIPROCESSORS, Estimate
from gradient_estimate import gradient, tile_loops
from machine_code import disassembled, instructions
from score_estimate import float_tile, large, tile
from workloads import CAPTION_LENGTHS

RESULTS = Path(__file__).parent / "results" / "gpu_estimate.json"
SOURCES = ("tiles", "large", "gradients")
Kernels = dict[tuple[str, str], Code]


@functools.cache
def functions_of(cubin: Path) -> list[tuple[tuple[str, str, str], Code]]:
    """Kernel, shape and dtype of each function of a file, with its machine code."""
    code, _ = disassembled(cubin)
    parts = cuda_report.by_function(code, r"Function : (\S+)")
    names = cuda_report.demangled(list(parts))
    return [(cuda_report.described(name), tuple(instructions(part))) for name, part in zip(names, parts.values(), strict=True)]


def codes(cubins: Iterable[Path], wanted: str = "bfloat16") -> Kernels:
    """Machine code of a dtype's kernels, by kernel and shape."""
    every = [function for cubin in cubins for function in functions_of(cubin)]
    return {(kernel, shape): code for (kernel, shape, dtype), code in every if dtype == wanted}


def pair(kernels: Kernels, regions: int, words: int, width: int, hidden: int, single: bool = False) -> Estimate:
    """Of the kernel that scores such a pair, in float32 where `single`."""
    sizes = regions, words, width, hidden
    if single and regions <= 40 and words <= 16:
        return float_tile(kernels["tile_kernel", "false"], *sizes)
    if regions <= 64 and words <= 32 and not single:
        shape = f"{5 if regions <= 40 else 8}, {1 if words <= 16 else 2}, false, true"
        return tile(kernels["tile_kernel", shape], *sizes)
    strips = next(x for x in (1, 2, 4, 8) if words <= 16 * x)
    return large(kernels["large_kernel", str(strips)], *sizes, single=single)


# Words up to which tensor cores score pairs in float32; the few longer captions are counted as if they had so many.
MOST_SINGLE_WORDS = 64


def workload(kernels: Kernels, histogram: dict[int, int], hidden: int, single: bool = False) -> dict[str, float]:
    """The mean over a data set's captions, 36 regions and a width of 1,024."""
    most = MOST_SINGLE_WORDS if single else max(histogram)
    every = {n: pair(kernels, 36, min(n, most), 1024, hidden, single) for n in histogram if n}
    captions = sum(histogram.values())
    mean = {x: sum(getattr(every[n], x) * many for n, many in histogram.items() if n) / captions for x in ("overlapped", "apart")}
    multiply_adds = sum(many * (2 * 36 * n * 1024 + (4 * 36 * n + n * n) * hidden) for n, many in histogram.items() if n) / captions
    return {**mean, "multiply_adds": multiply_adds}


TRAINING_BATCH = 128
# Multiply-adds a clock and multiprocessor (results/cuda_nvidia_h200.json) of wgmma, what torch.mm should reach, and in float32.
WGMMA, FMA = 2042, 125


def training_step(kernels: Kernels, scores: dict[str, float], hidden: int, single: bool = False) -> dict[str, float]:
    """Milliseconds of a step with hardest negatives, 36 regions, Flickr30K's captions and a width of 1,024: all pairs' `scores`,
    derivatives of three pairs an image, and projections with their derivatives at the rates of products alone. A lower bound: so
    are both of these."""
    batch, width, histogram = TRAINING_BATCH, 1024, CAPTION_LENGTHS["f30k"]
    captions = sum(histogram.values())
    loops = tile_loops(kernels["gradient_tile_kernel", ""])
    gradients = {n: gradient(loops, 36, n, width, hidden) for n in histogram}
    words = sum(n * many for n, many in histogram.items()) / captions
    multiply_adds = batch * width * (36 * 2 * hidden + words * (width + 2 * hidden))
    clocks = multiply_adds / MULTIPROCESSORS * (3 / FMA if single else 1 / 1355.5 + 2 / WGMMA)
    projections = clocks / GIGAHERTZ
    parts = {
        x: {
            "scores": batch**2 * scores[x],
            "gradients": 3 * batch * sum(getattr(gradients[n], x) * many for n, many in histogram.items()) / captions,
            "projections": projections,
        }
        for x in ("overlapped", "apart")
    }
    return {
        **{x: sum(parts[x].values()) / 1e6 for x in parts},
        "parts": {x: {name: ns / 1e6 for name, ns in of.items()} for x, of in parts.items()},
    }


SHAPES = [(36, 13), (49, 20), (196, 32), (576, 64), (1030, 32)]
# Of float32: in tiles, and with a block each.
FLOAT_SHAPES = [(36, 13), (49, 13)]


def report(kernels: Kernels, in_float32: Kernels) -> dict[str, Any]:
    shapes = {f"{m} x {n}, H = {h}": pair(kernels, m, n, 1024, h)._asdict() for m, n in SHAPES for h in (1024, 64)}
    sets = {f"{name}, H = {h}": workload(kernels, CAPTION_LENGTHS[name], h) for name in ("coco", "f30k") for h in (1024, 64)}
    plain = {
        f"{m} x {n}, H = {h}": pair(in_float32, m, n, 1024, h, single=True)._asdict() for m, n in FLOAT_SHAPES for h in (1024, 64)
    }
    in_step = {h: workload(in_float32, CAPTION_LENGTHS["f30k"], h, single=True) for h in (1024, 64)}
    return {
        "unit": "nanoseconds a pair, bfloat16, H100",
        "sets": sets,
        "shapes": shapes,
        "float32": plain,
        "training": {f"B = {TRAINING_BATCH}, H = {h}, ms": training_step(kernels, sets[f"f30k, H = {h}"], h) for h in (1024, 64)},
        "training in float32": {
            f"B = {TRAINING_BATCH}, H = {h}, ms": training_step(in_float32, scores, h, single=True) for h, scores in in_step.items()
        },
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown: nanoseconds a pair, at both hidden widths."""
    lines = ["| bfloat16, H100, nanoseconds a pair | H = 1024, full overlap | without overlap | H = 64, full overlap | without |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    names = {"coco": "COCO captions, 36 regions", "f30k": "Flickr30K captions, 36 regions"}
    rows = {**{name: (key, found["sets"]) for key, name in names.items()}}
    rows |= {f"{m} regions, {n} words": (f"{m} x {n}", found["shapes"]) for m, n in SHAPES}
    for name, (key, part) in rows.items():
        numbers = [part[f"{key}, H = {h}"][x] for h in (1024, 64) for x in ("overlapped", "apart")]
        lines.append(f"| {name} | {' | '.join(f'{x:,.1f}' for x in numbers)} |")
    step = f"B = {TRAINING_BATCH}, H = {{}}, ms"
    for name, key, row, digits in (
        *((f"float32, {m} regions, {n} words", "float32", f"{m} x {n}, H = {{}}", 0) for m, n in FLOAT_SHAPES),
        (f"training step, B = {TRAINING_BATCH}, milliseconds", "training", step, 1),
        (f"training step in float32, B = {TRAINING_BATCH}, milliseconds", "training in float32", step, 1),
    ):
        numbers = [found[key][row.format(h)][x] for h in (1024, 64) for x in ("overlapped", "apart")]
        lines.append(f"| {name} | {' | '.join(f'{x:,.{digits}f}' for x in numbers)} |")
    lines += [
        "",
        "An estimate from machine code for sm_90, by benchmarks/gpu_estimate.py, over the rates of the table below.",
    ]
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        cubins = cuda_report.compile_for(["90"], Path(folder), SOURCES)
        found = report(codes(cubins), codes(cubins, "float32"))
    in_float32 = {f"{name}, float32": row for name, row in found["float32"].items()}
    for name, row in {**found["sets"], **found["shapes"], **in_float32}.items():
        print(f"{name:26} {row['overlapped']:8.1f} ns with overlap, {row['apart']:8.1f} without")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    document, marks = cuda_report.DOCUMENT, ("<!-- estimated: begin -->", "<!-- estimated: end -->")
    document.write_text(replace_between(document.read_text(), tables(found), *marks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
