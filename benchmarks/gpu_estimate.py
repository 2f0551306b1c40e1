"""What a pair would cost on an H100, from the machine code of the CUDA kernels; an estimate, nothing of it measured.

    python benchmarks/gpu_estimate.py     for sm_90a; writes results/gpu_estimate.json and the table of docs/cuda.md

Instructions are counted as often as they run: those of a loop with tensor-core products as many times as the widths and the rows
ask. Each takes its pipe for as long as RATES says. Two numbers bound a pair: with full overlap the largest sum over all phases of
one pipe; without, the sum over phases of each one's largest pipe. Phases are what barriers part: products, weights, contexts.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cuda_report
from machine_code import disassembled, instructions
from workloads import CAPTION_LENGTHS

RESULTS = Path(__file__).parent / "results" / "gpu_estimate.json"
SOURCES = ("tiles", "large", "pair", "gradients")
MULTIPROCESSORS, GIGAHERTZ = 132, 1.755

# Clocks of a multiprocessor for a warp's instruction, by pipe. Rates of benchmarks/gpu_rates.cu on an H200
# (results/cuda_nvidia_h200.json, "rates"), whose multiprocessor is an H100's; those marked * are NVIDIA's throughput tables.
RATES: list[tuple[str, str, float]] = [
    (r"HMMA\.16816", "tensor", 16 * 8 * 16 / 1355.5),
    (r"HMMA\.1688", "tensor", 16 * 8 * 8 / 677.78),
    (r"MUFU", "special", 32 / 15.998),
    (r"LDSM", "shared", 512 / 125.92),
    (r"LDGSTS", "shared", 512 / 123.22),
    (r"LDS\.128", "shared", 512 / 126.19),
    (r"(LDS|STS)\.64", "shared", 256 / 126.19),
    (r"LDS|STS", "shared", 128 / 63.977),
    (r"SHFL|MOVM", "shared", 32 / 32.021),
    (r"LDG\.E\.128|STG\.E\.128", "shared", 512 / 126.19),
    (r"LDG|STG|LD|ST", "shared", 128 / 63.977),
    (r"F2FP|LOP3|SHF|PRMT|SEL|FSEL|ISETP|FSETP|FMNMX|IMNMX|IADD3|LEA|IABS|VIADD|PLOP3|R2P|P2R", "integer", 32 / 63.434),  # *
    (r"FFMA|FMUL|FADD|IMAD|HFMA2|MOV", "multiply", 32 / 124.83),  # *
]
ISSUE = 1 / 4
# Bytes a clock and multiprocessor: 8.1 TB/s from the L2 cache.
L2_BYTES = 8.1e12 / MULTIPROCESSORS / (GIGAHERTZ * 1e9)


Code = list[tuple[int, str]]  # addresses and instructions
Kernels = dict[tuple[str, str], Code]
Pipes = Counter  # clocks of a multiprocessor by the pipe's name


class Loop(NamedTuple):
    """Addresses of a loop's first and last instruction."""

    first: int
    last: int

    def holds(self, address: int) -> bool:
        return self.first <= address <= self.last

    def inside(self, other: Loop) -> bool:
        return self != other and other.first <= self.first and self.last <= other.last


def loops_of(code: Code) -> list[Loop]:
    """What lies between a branch backwards and its target."""
    found = set()
    for address, text in code:
        branch = re.search(r"\bBRA(?:\.\w+)* (?:!?\w+, )*(?:`\()?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            found.add(Loop(int(branch[1], 16), address))
    return sorted(found)


def products_of(code: Code, loops: list[Loop]) -> list[Loop]:
    """Innermost loops with tensor-core products, by address."""
    hot = [loop for loop in loops if any("HMMA" in text for address, text in code if loop.holds(address))]
    return [loop for loop in hot if not any(other.inside(loop) for other in hot)]


def loop_around(loop: Loop, loops: list[Loop]) -> Loop:
    """The smallest that holds it."""
    return min((x for x in loops if loop.inside(x)), key=lambda x: x.last - x.first)


@functools.cache
def pipe_of(text: str) -> tuple[str, float] | None:
    # What never runs: the assembler puts it before asynchronous copies.
    if text.startswith("@!PT"):
        return None
    operation = re.sub(r"^@\S+\s+", "", text)
    return next(((pipe, clocks) for pattern, pipe, clocks in RATES if re.match(rf"(?:{pattern})\b", operation)), None)


def count(code: Iterable[tuple[int, str]], times: Callable[[int], float]) -> Pipes:
    """Clocks of one warp, each instruction as often as `times` says of its address."""
    clocks: Pipes = Counter()
    for address, text in code:
        runs = times(address)
        clocks["issue"] += runs * ISSUE
        if found := pipe_of(text):
            clocks[found[0]] += runs * found[1]
    return clocks


def scaled(clocks: Pipes, by: float) -> Pipes:
    return Counter({pipe: value * by for pipe, value in clocks.items()})


class Estimate(NamedTuple):
    """Nanoseconds of a pair.

    Attributes:
        overlapped: all phases side by side: the largest pipe.
        apart: phases one after another: the largest pipe of each.
        phases: clocks of a multiprocessor, by phase and pipe.
    """

    overlapped: float
    apart: float
    phases: dict[str, dict[str, float]]


def estimate_of(phases: dict[str, Pipes]) -> Estimate:
    total: Pipes = sum(phases.values(), Counter())
    to_ns = 1 / MULTIPROCESSORS / GIGAHERTZ
    apart = sum(max(clocks.values()) for clocks in phases.values())
    rounded = {phase: {pipe: round(value, 1) for pipe, value in clocks.items()} for phase, clocks in phases.items()}
    return Estimate(max(total.values()) * to_ns, apart * to_ns, rounded)


def pieces_around(loop: Loop, loops: list[Loop], code: Code) -> Loop:
    """The loop over pieces of columns, which has the barrier: the smallest around this one, or itself."""
    around = [x for x in loops if x == loop or loop.inside(x)]
    with_barrier = [x for x in around if any("BAR.SYNC" in text for address, text in code if x.holds(address))]
    return min(with_barrier, key=lambda x: x.last - x.first)


def tile(code: Code, regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of a pair in `tile_kernel` for all pairs, captions of its block alike."""
    strips, tiles = -(-words // 16), 5 if regions <= 40 else 8
    # Shape of csrc/context_attention/cuda/tiles.h: a warp's pairs, and the warps of an image.
    pairs, beside, images = (2 if (tiles, strips) == (5, 1) else 1), (6 if (tiles, strips) == (8, 1) else 4), 2
    depths, held, captions = -(-tiles // 2), pairs * strips, pairs * beside
    loops = loops_of(code)
    of_width, of_hidden = -(-width // 64), -(-hidden // 64)
    # Pieces, and products of 16 columns of one.
    expected = {
        "products": (of_width, held * tiles * 2),
        "words": (of_hidden, pairs * 2 * strips * (depths + strips)),
        "regions": (of_hidden, pairs * 2 * strips * (depths + tiles)),
    }
    inner = dict(zip([*expected, "cosine"], products_of(code, loops), strict=True))
    outer = {name: pieces_around(loop, loops, code) for name, loop in inner.items()}
    # Words are packed: warps whose strips have none do not multiply.
    used = -(-captions * words // (16 * held)) / beside
    phases = {}
    for name, (pieces, products) in expected.items():
        loop = inner[name]
        trips = pieces * 4 * products / sum("HMMA" in text for address, text in code if loop.holds(address))
        trips *= used if name == "products" else 1
        body = [(a, t) for a, t in code if outer[name].holds(a)]
        phases[name] = count(body, lambda a, x=loop, n=trips, p=pieces: n if x.holds(a) else p)
    rest = [(a, t) for a, t in code if not any(x.holds(a) for x in outer.values())]
    phases["weights"] = count(rest, lambda a: 1)
    phases = {name: scaled(clocks, 1 / pairs) for name, clocks in phases.items()}
    bytes_of = {
        "products": 2 * width * (regions / captions + 2 * words / images),
        "words": 2 * hidden * (regions / captions + words / images),
        "regions": 2 * hidden * (regions / captions + words / images),
    }
    for name, clocks in phases.items():
        clocks["L2"] = bytes_of.get(name, 0) / L2_BYTES
    return estimate_of(phases)


def large(code: Code, regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of a pair in `large_kernel`, a block to itself."""
    strips = next(x for x in (1, 2, 4, 8) if words <= 16 * x)
    region_strips, sweeps, depth = -(-regions // 16), -(-hidden // 128), 16 if strips == 8 else 32
    loops = loops_of(code)
    products, affinity, sums, of_regions = products_of(code, loops)
    steps = -(-regions // depth) + -(-words // depth)
    trips = {products: 4 * -(-width // 64) * -(-regions // 64), affinity: region_strips / (8 / strips)}
    trips |= {sums: sweeps * (region_strips + -(-words // 16)), of_regions: 8 * sweeps * -(-region_strips // 8)}
    phases: dict[str, Pipes] = {"products": Counter(), "weights": Counter(), "sums": Counter(), "regions": Counter()}
    names = {products: "products", affinity: "weights", sums: "sums", of_regions: "regions"}
    outer_trips = {"products": -(-width // 64) * -(-regions // 64), "sums": sweeps * steps}
    outer_trips["regions"] = sweeps * -(-region_strips // 8)
    for loop, name in names.items():
        body = [(a, t) for a, t in code if loop.holds(a)]
        phases[name] += count(body, lambda a, x=loop: trips[x])
    seen: set[int] = {a for loop in names for a, _ in code if loop.holds(a)}
    for loop, name in names.items():
        if name in outer_trips:
            outer = loop_around(loop, loops)
            body = [(a, t) for a, t in code if outer.holds(a) and a not in seen]
            seen |= {a for a, _ in body}
            phases[name] += count(body, lambda a, n=name: outer_trips[n])
    # Scales and factors, each strip of regions by one of eight warps.
    weights = [x for x in loops if products.last < x.first and x.last < affinity.first]
    for loop in weights:
        body = [(a, t) for a, t in code if loop.holds(a) and a not in seen]
        seen |= {a for a, _ in body}
        phases["weights"] += count(body, lambda a: -(-region_strips // 8))
    phases["weights"] += count(((a, t) for a, t in code if a not in seen), lambda a: 1)
    # Eight warps have one pair.
    phases = {name: scaled(clocks, 8) for name, clocks in phases.items()}
    phases["products"]["L2"] = 2 * width * (regions + 2 * words * -(-regions // 64)) / L2_BYTES
    phases["sums"]["L2"] = (4 * hidden * (regions + words) + 4 * regions * words * sweeps) / L2_BYTES
    phases["regions"]["L2"] = 4 * regions * words * sweeps / L2_BYTES
    return estimate_of(phases)


# Innermost loops of the kernels with one pair a block (csrc/context_attention/cuda/panels.h): what tells them by their
# instructions, and the steps that a turn of the loop makes: a row of the depth, 32 cells, a row.
PANEL_LOOPS: dict[str, tuple[Callable[[Counter[str]], bool], Callable[[Counter[str]], int]]] = {
    "times_panel": (lambda x: x["LDG"] == x["FFMA"] == 4 * x["LDS"] > 0, lambda x: x["LDS"]),
    "transposed_times_panel": (lambda x: x["LDG.128"] == x["LDS"] > 0 == x["LDG"], lambda x: x["LDS"]),
    "add_products": (lambda x: x["LDS.128"] == 16 and x["FFMA"] == 32, lambda x: 1),
    "load_panel": (lambda x: x["LDG"] == x["STS"] > 0 == x["FFMA"], lambda x: x["STS"]),
    "tanh": (lambda x: x["SHFL"] == 20 and x["FFMA"] > 20, lambda x: 4),
}


def memory_operations(code: Code) -> Counter[str]:
    """How many there are of each, with its width where that is 16 bytes."""
    found: Counter[str] = Counter()
    for _, text in code:
        operation = re.sub(r"^@\S+\s+", "", text).split()[0]
        found[operation.split(".")[0] + (".128" if ".128" in operation else "")] += 1
    return found


def panel_steps(code: Code) -> dict[str, Pipes]:
    """Clocks of a step of a warp in each kind of loop: the mean over the loops of a kernel."""
    loops = loops_of(code)
    found: dict[str, list[Pipes]] = {}
    for loop in loops:
        if any(other.inside(loop) for other in loops):
            continue
        body = [(a, t) for a, t in code if loop.holds(a)]
        operations = memory_operations(body)
        for name, (matches, steps) in PANEL_LOOPS.items():
            if matches(operations):
                found.setdefault(name, []).append(scaled(count(body, lambda a: 1), 1 / steps(operations)))
    return {name: scaled(sum(of, Counter()), 1 / len(of)) for name, of in found.items()}


def one_pair(cost: dict[str, Pipes], regions: int, words: int, width: int, hidden: int, gradient: bool) -> Estimate:
    """Of a pair in `score_kernel`, or in `gradient_kernel` with what it adds to shared gradients, from its `panel_steps`: what the
    innermost loops take, and nothing of what lies around them, of barriers and of waiting for memory."""
    by_width, by_hidden = -(-width // 32), -(-hidden // 32)
    times, transposed = -(-regions // 4) * words, -(-words // 4) * regions
    # Of a panel of the hidden width, of one of the width; scores alone and with derivatives (pair.h, sums.h).
    of_hidden = {"times_panel": (3, 16), "transposed_times_panel": (3, 16), "add_products": (0, 6)}
    of_hidden |= {"load_panel": (2, 8), "tanh": (1, 4)}
    of_width = {"times_panel": (0, 1), "transposed_times_panel": (0, 1), "add_products": (1, 1), "load_panel": (1, 2)}
    steps = {"times_panel": times, "transposed_times_panel": transposed, "add_products": -(-regions * words // 32)}
    steps |= {"load_panel": regions + words, "tanh": regions + words}
    passes = {x: by_hidden * of_hidden[x][gradient] + by_width * of_width.get(x, (0, 0))[gradient] for x in steps}
    return estimate_of({x: scaled(cost[x], steps[x] * passes[x]) for x in steps})


@functools.cache
def functions_of(cubin: Path) -> list[tuple[tuple[str, str, str], Code]]:
    """Kernel, shape and dtype of each function of a file, with its machine code."""
    code, _ = disassembled(cubin)
    parts = cuda_report.by_function(code, r"Function : (\S+)")
    names = cuda_report.demangled(list(parts))
    return [(cuda_report.described(name), list(instructions(part))) for name, part in zip(names, parts.values(), strict=True)]


def codes(cubins: Iterable[Path], wanted: str = "bfloat16") -> Kernels:
    """Machine code of a dtype's kernels, by kernel and shape."""
    every = [function for cubin in cubins for function in functions_of(cubin)]
    return {(kernel, shape): code for (kernel, shape, dtype), code in every if dtype == wanted}


def pair(kernels: Kernels, regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of the kernel that scores such a pair."""
    sizes = regions, words, width, hidden
    if regions <= 64 and words <= 32:
        shape = f"{5 if regions <= 40 else 8}, {1 if words <= 16 else 2}, false, true"
        return tile(kernels["tile_kernel", shape], *sizes)
    strips = next(x for x in (1, 2, 4, 8) if words <= 16 * x)
    return large(kernels["large_kernel", str(strips)], *sizes)


def workload(kernels: Kernels, histogram: dict[int, int], hidden: int) -> dict[str, float]:
    """The mean over a data set's captions, 36 regions and a width of 1,024."""
    every = {n: pair(kernels, 36, n, 1024, hidden) for n in histogram if n}
    captions = sum(histogram.values())
    mean = {x: sum(getattr(every[n], x) * many for n, many in histogram.items() if n) / captions for x in ("overlapped", "apart")}
    multiply_adds = sum(many * (2 * 36 * n * 1024 + (4 * 36 * n + n * n) * hidden) for n, many in histogram.items() if n) / captions
    return {**mean, "multiply_adds": multiply_adds}


TRAINING_BATCH = 128
# Multiply-adds a clock and multiprocessor of wgmma (results/cuda_nvidia_h200.json): what torch.mm is taken to reach.
WGMMA = 2042


def training_step(kernels: Kernels, hidden: int) -> dict[str, float]:
    """Milliseconds of a step with hardest negatives, 36 regions, Flickr30K's captions and a width of 1,024: scores of all pairs,
    derivatives of three pairs an image, and projections with their derivatives at the rates of products alone."""
    batch, width, histogram = TRAINING_BATCH, 1024, CAPTION_LENGTHS["f30k"]
    captions = sum(histogram.values())
    scores = workload(kernels, histogram, hidden)
    steps = panel_steps(kernels["gradient_kernel", ""])
    gradients = {n: one_pair(steps, 36, n, width, hidden, True) for n in histogram}
    words = sum(n * many for n, many in histogram.items()) / captions
    multiply_adds = batch * width * (36 * 2 * hidden + words * (width + 2 * hidden))
    clocks = multiply_adds / MULTIPROCESSORS * (1 / 1355.5 + 2 / WGMMA)
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


def report(kernels: Kernels, in_float32: Kernels) -> dict[str, Any]:
    shapes = {f"{m} x {n}, H = {h}": pair(kernels, m, n, 1024, h)._asdict() for m, n in SHAPES for h in (1024, 64)}
    sets = {f"{name}, H = {h}": workload(kernels, CAPTION_LENGTHS[name], h) for name in ("coco", "f30k") for h in (1024, 64)}
    steps = panel_steps(in_float32["score_kernel", ""])
    plain = {h: one_pair(steps, 36, 13, 1024, h, False)._asdict() for h in (1024, 64)}
    return {
        "unit": "nanoseconds a pair, bfloat16, H100",
        "sets": sets,
        "shapes": shapes,
        "float32": {f"36 x 13, H = {h}": found for h, found in plain.items()},
        "training": {f"B = {TRAINING_BATCH}, H = {h}, ms": training_step(kernels, h) for h in (1024, 64)},
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
    for name, key, row, digits in (
        ("float32, 36 regions, 13 words: inner loops alone", "float32", "36 x 13, H = {}", 0),
        (f"training step, B = {TRAINING_BATCH}, milliseconds", "training", f"B = {TRAINING_BATCH}, H = {{}}, ms", 1),
    ):
        numbers = [found[key][row.format(h)][x] for h in (1024, 64) for x in ("overlapped", "apart")]
        lines.append(f"| {name} | {' | '.join(f'{x:,.{digits}f}' for x in numbers)} |")
    lines += [
        "",
        "An estimate from machine code for sm_90a, by benchmarks/gpu_estimate.py, over the rates of the table below.",
    ]
    return "\n".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        cubins = cuda_report.compile_for("90a", Path(folder), SOURCES)
        found = report(codes(cubins), codes(cubins, "float32"))
    for name, row in {**found["sets"], **found["shapes"], **found["float32"]}.items():
        print(f"{name:24} {row['overlapped']:8.1f} ns with overlap, {row['apart']:8.1f} without")
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    begin, end = "<!-- estimated: begin -->", "<!-- estimated: end -->"
    before, after = cuda_report.DOCUMENT.read_text().split(begin)[0], cuda_report.DOCUMENT.read_text().split(end)[1]
    cuda_report.DOCUMENT.write_text(f"{before}{begin}\n{tables(found)}\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
