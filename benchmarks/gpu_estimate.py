"""What a pair would cost on an H100, from the machine code of the CUDA kernels; an estimate, nothing of it measured.

    python benchmarks/gpu_estimate.py     for sm_90; writes results/gpu_estimate.json and the table of docs/cuda.md

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
from code_loops import Code, Loop, alternatives, jumped_over, loop_around, loops_of, memory_operations, own_code, products_of
from documents import replace_between
from machine_code import disassembled, instructions
from workloads import CAPTION_LENGTHS

RESULTS = Path(__file__).parent / "results" / "gpu_estimate.json"
SOURCES = ("tiles", "large", "gradients")
MULTIPROCESSORS, GIGAHERTZ = 132, 1.755

# Clocks of a multiprocessor for a warp's instruction, by pipe. Rates of benchmarks/gpu_rates.cu on an H200
# (results/cuda_nvidia_h200.json, "rates"), whose multiprocessor is an H100's; those marked * are NVIDIA's throughput tables.
RATES: list[tuple[str, str, float]] = [
    (r"HMMA\.16816", "tensor", 16 * 8 * 16 / 1355.5),
    (r"HMMA\.1688\.F32\.TF32", "tensor", 16 * 8 * 8 / 677.78),
    (r"HMMA\.1688", "tensor", 16 * 8 * 8 / 1011.2),
    (r"MUFU", "special", 32 / 15.998),
    (r"LDSM\S*\.2", "shared", 256 / 125.92),  # as many bytes a clock as of four matrices
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


Kernels = dict[tuple[str, str], Code]
Pipes = Counter  # clocks of a multiprocessor by the pipe's name


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


def largest(parts: Iterable[Loop], address: int) -> Loop:
    """Of those that hold an address."""
    return max((x for x in parts if x.holds(address)), key=lambda x: x.last - x.first)


def by_tanh(loops: Iterable[Loop], code: Code) -> list[Loop]:
    """Those with the fewest tanh first."""
    return sorted(loops, key=lambda x: sum("MUFU" in text for address, text in code if x.holds(address)))


@functools.cache
def out_of_line(code: Code) -> list[Loop]:
    """What runs where the lanes of a warp have gone apart, which they never do here: it lies behind the kernel's end."""
    begins = [int(found[1], 16) for _, text in code if (found := re.match(r"BRA\.DIV \w+, 0x([0-9a-f]+)", text))]
    backwards = [a for a, text in code if (found := re.match(r"BRA 0x([0-9a-f]+)", text)) and int(found[1], 16) < a]
    return [Loop(min(begins), max(backwards))] if begins else []


def products_in(code: Iterable[tuple[int, str]], part: Loop, kind: str = "HMMA") -> int:
    return sum(kind in text for address, text in code if part.holds(address))


def without(code: Code, parts: Iterable[Loop]) -> Code:
    left_out = list(parts)
    return tuple((a, t) for a, t in code if not any(x.holds(a) for x in left_out))


def sides_with_products(code: Code) -> list[list[Loop]]:
    """The two sides of branches that have products on both, that with fewer first."""
    sides = [sorted(x, key=lambda side: products_in(code, side)) for x in alternatives(code)]
    return [x for x in sides if products_in(code, x[0])]


def context_code(body: Code, tiles: int, strips: int, words: int) -> Code:
    """Of the loop over a context's pieces what runs for such a pair."""
    if strips == 2:
        # The last tile of 8 words is there only for captions of more than 24. Without it more of the products are of 8 rows.
        sides = max(sides_with_products(body), key=lambda sides: max(x.last for x in sides) - min(x.first for x in sides))
        whole, lacking = sorted(sides, key=lambda x: products_in(body, x, "HMMA.1688") / products_in(body, x))
        body = without(body, [whole if words <= 24 else lacking])
    # Where there are more than 40 regions, products of 8 of them are of other images, which have no more.
    return without(body, [few for few, _ in sides_with_products(body)]) if tiles == 8 else body


def tile(code: Code, regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of a pair in `tile_kernel` for all pairs, captions of its block alike."""
    strips, tiles = -(-words // 16), 5 if regions <= 40 else 8
    # Shape of csrc/context_attention/cuda/tiles.h: a warp's pairs, the warps of an image, and the images a warp multiplies by.
    pairs, beside, images = (2 if (tiles, strips) == (5, 1) else 1), (6 if (tiles, strips) == (8, 1) else 4), 2
    at_once = images if tiles == 5 else 1
    depths, held, captions = -(-tiles // 2), pairs * strips, pairs * beside
    of_words = 3 if 16 < words <= 24 else 2 * strips
    loops = loops_of(code)
    of_width, of_hidden = -(-width // 64), -(-hidden // 64)
    # Pieces, and a warp's products of 16 columns of one.
    expected = {
        "products": (of_width, held * tiles * 2),
        "words": (of_hidden, pairs * of_words * (depths + strips)),
        "regions": (of_hidden, pairs * (of_words * depths + 2 * strips * tiles)),
    }
    products, *contexts, cosine = products_of(code)
    every = [pieces_around(x, loops, code) for x in (products, *contexts, cosine)]
    # Of two pairs each of the contexts is there twice: a shared last tile has fewer tanh.
    each = list(dict.fromkeys(every[1:-1]))
    shared_words, shared_regions = pairs == 2 and words <= 12, pairs == 2 and regions <= 36
    outer = {
        "products": every[0],
        "words": by_tanh(each[: len(each) // 2], code)[0 if shared_words else -1],
        "regions": by_tanh(each[len(each) // 2 :], code)[0 if shared_regions else -1],
    }
    # Packed words leave warps without any. That helps what a multiprocessor has one of: of the rest each quarter has its own, and
    # such warps are of the same quarters always.
    used = -(-captions * words // (16 * held)) / beside
    phases = {}
    for name, (pieces, in_step) in expected.items():
        body = tuple((a, t) for a, t in code if outer[name].holds(a))
        body = body if name == "products" else context_code(body, tiles, strips, words)
        loop = next((x for x in products_of(code) if x.inside(outer[name]) and products_in(body, x)), outer[name])
        # The assembler takes a loop's first turn out of some.
        taken_out = products_in(body, outer[name]) - products_in(body, loop)
        trips = pieces * (4 * in_step - taken_out) / products_in(body, loop)
        phases[name] = count(body, lambda a, x=loop, n=trips, p=pieces: n if x.holds(a) else p)
        if name == "products":
            shared = count(body, lambda a, x=loop, n=trips * used, p=pieces: n if x.holds(a) else p)["shared"]
            phases[name]["shared"] = shared
    # What is there for the cosine alone, and for the sums of packed words.
    left_out = [largest(jumped_over(code, every[-2].last, code[-1][0]), every[-1].first)]
    between = jumped_over(code, every[0].last, every[1].first)
    if at_once == 1 and used == 1:
        left_out.append(largest(between, next(a for a, t in code if a > every[0].last and "BAR.SYNC" in t)))
    rest = without(code, (*every, *left_out, *out_of_line(code)))
    # Half the warps multiply, and write sums.
    written = next(a for a, t in rest if a > every[0].last and "STS" in t) if at_once > 1 else 0
    halved = largest(between, written) if at_once > 1 else Loop(0, -1)
    phases["weights"] = count(rest, lambda a: 1 / at_once if halved.holds(a) else 1)
    phases = {name: scaled(clocks, 1 / pairs) for name, clocks in phases.items()}
    bytes_of = {
        "products": 2 * width * (regions / captions + 2 * words / images),
        "words": 2 * hidden * (regions / captions + words / images),
        "regions": 2 * hidden * (regions / captions + words / images),
    }
    for name, clocks in phases.items():
        clocks["L2"] = bytes_of.get(name, 0) / L2_BYTES
    return estimate_of(phases)


def float_tile(code: Code, regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of a pair in `tile_kernel` in float32, for all pairs, up to 40 regions and 16 words; captions of its block alike."""
    # Shape of csrc/context_attention/cuda/float_tiles.h: 32 columns a piece, and a warp's loops have 16 of them a turn.
    images, captions, columns = 2, 4, 32
    pieces = {"products": -(-width // columns), "words": -(-hidden // columns), "regions": -(-hidden // columns)}
    loops = loops_of(code)
    inner = dict(zip(pieces, products_of(code), strict=True))
    outer = {name: pieces_around(loop, loops, code) for name, loop in inner.items()}
    phases = {}
    for name, loop in inner.items():
        body = [(a, t) for a, t in code if outer[name].holds(a)]
        phases[name] = count(body, lambda a, x=loop, n=pieces[name]: n * columns / 16 if x.holds(a) else n)
    phases["weights"] = count([(a, t) for a, t in code if not any(x.holds(a) for x in outer.values())], lambda a: 1)
    items = regions / captions + words / images
    phases["products"]["L2"] = 4 * width * (items + words / images) / L2_BYTES
    phases["words"]["L2"] = phases["regions"]["L2"] = 4 * hidden * items / L2_BYTES
    return estimate_of(phases)


class LargeShape(NamedTuple):
    """Of csrc/context_attention/cuda/large.h, by the bytes of a number: warps of a block, columns of a piece and of a sweep, and
    rows of a sweep's step."""

    strips: int
    warps: int
    columns: int
    sweep: int
    depth: int

    @classmethod
    def of(cls, words: int, single: bool) -> LargeShape:
        strips = next(x for x in (1, 2, 4, 8) if words <= 16 * x)
        warps, wide = (4, 2 if strips < 4 else 1) if single else (8, 1)
        return cls(strips, warps, 32 if single else 64, 16 * wide * warps, 16 if strips == 8 or wide == 2 else 32)


def large_runs(
    code: Code, shape: LargeShape, regions: int, words: int, width: int, hidden: int, shared_out: int
) -> dict[Loop, tuple[str, float]]:
    """Each loop's phase, and how often a warp of the block goes through it, all warps together; `shared_out` strips of
    regions among them where each has its own."""
    strips, warps, columns, sweep, depth = shape
    of_regions, of_words = -(-regions // 16), min(strips, -(-words // depth) * depth // 16)
    region_steps, word_steps, sweeps = -(-regions // depth), -(-words // depth), -(-hidden // sweep)
    loops = loops_of(code)
    products, affinity, sums, logits = products_of(code)
    piece = loop_around(products, loops)
    chunk = loop_around(piece, loops)
    strip_of_logits = loop_around(logits, loops)
    of_sweep, pair = loop_around(strip_of_logits, loops), loop_around(chunk, loops)
    chunks, pieces = -(-regions // 64), -(-width // columns)
    # Of the three products in the loop over steps, and the copies for it, two are of regions and one is of words.
    mixed = (2 * of_regions + of_words) / 3
    runs = {
        products: ("products", shared_out * warps / 4 * pieces * columns / 16),
        piece: ("products", warps * chunks * pieces),
        chunk: ("products", shared_out * warps / 4),
        affinity: ("weights", shared_out * strips),
        sums: ("sums", warps * sweeps * mixed),
        # Columns of a turn: 64 in float32, else 16.
        logits: ("regions", shared_out * sweeps * sweep / (64 if columns == 32 else 16)),
        strip_of_logits: ("regions", shared_out * sweeps),
        of_sweep: ("sums", warps * sweeps),
        pair: ("weights", warps),
    }
    step = loop_around(sums, loops)
    if step != of_sweep:
        runs[step] = ("sums", warps * sweeps * (region_steps + word_steps))
    step = sums if step == of_sweep else step
    for loop in loops:
        if loop in runs or not loop.inside(pair) or any(x.inside(loop) for x in loops if x in runs):
            continue
        found = memory_operations(own_code(code)[loop])
        if loop.inside(piece) or loop.inside(chunk):
            # Of more than two steps a copy makes two a turn, and has four.
            runs[loop] = ("products", 2 * warps * chunks * (pieces if loop.inside(piece) else 1))
        elif found["LDGSTS.128"] and loop.inside(of_sweep):
            # Three copies are those of a step; two are of many words.
            copied = (2 * (region_steps - 1) + word_steps if loop.inside(step) else 2) / 3 if found["LDGSTS.128"] == 3 else 2
            runs[loop] = ("sums", warps * sweeps * (sweep / columns) * copied)
        elif products.last < loop.first and loop.last < affinity.first:
            runs[loop] = ("weights", shared_out if found["LDG.128"] else strips)
        elif affinity.last < loop.first and loop.last < of_sweep.first:
            runs[loop] = ("weights", strips**2)
        elif of_sweep.last < loop.first and found["LDG.128"]:
            runs[loop] = ("weights", shared_out)
    return runs


def large(code: Code, regions: int, words: int, width: int, hidden: int, single: bool = False) -> Estimate:
    """Of a pair in `large_kernel`, a block to itself; in float32 (`single`) of more than 40 regions and up to 16 words. Softmax,
    and what only the cosine's loops do, is left out."""
    shape, sizes = LargeShape.of(words, single), (regions, words, width, hidden)
    own = own_code(code)
    phases: dict[str, Pipes] = {"products": Counter(), "weights": Counter(), "sums": Counter(), "regions": Counter()}
    of_regions = -(-regions // 16)
    # All pipes but those of memory are there four times, for every fourth warp each: the one with most strips decides.
    for shared_out, is_counted in ((of_regions, "shared".__eq__), (-(-of_regions // 4) * 4, "shared".__ne__)):
        runs = large_runs(code, shape, *sizes, shared_out)
        of_sweep = max((x for x, (phase, _) in runs.items() if phase == "sums"), key=lambda x: x.last - x.first)
        # It has the words' tanh twice, the second time for pairs with one context.
        alone = [otherwise for _, otherwise in alternatives(own[of_sweep])]
        for loop, (phase, times) in runs.items():
            body = [(a, t) for a, t in own[loop] if loop != of_sweep or not any(x.holds(a) for x in alone)]
            clocks = count(body, lambda a, n=times: n)
            phases[phase] += Counter({pipe: value for pipe, value in clocks.items() if is_counted(pipe)})
    sweeps, bytes_of = -(-hidden // shape.sweep), 4 if single else 2
    phases["products"]["L2"] = bytes_of * width * (regions + 2 * words * -(-regions // 64)) / L2_BYTES
    phases["sums"]["L2"] = bytes_of * (2 * hidden * (regions + words) + 2 * regions * words * sweeps) / L2_BYTES
    phases["regions"]["L2"] = bytes_of * 2 * regions * words * sweeps / L2_BYTES
    return estimate_of(phases)


# Loops of `gradient_tile_kernel`. Innermost ones with products, by their products and the matrices that they read: a turn is a
# factor of 16 x 16 times a strip of features or of numbers made of them, or 16 columns of a product of rows. In float32 all have
# three parts, and one cost.
TILE_PRODUCTS = {
    (4, 1): ("times_features",),
    (6, 2): ("times_made",),
    (2, 2): ("rows_of_features",),
    (4, 3): ("rows_of_both",),
    (6, 4): ("rows_made",),
    (12, 3): ("times_features", "times_made"),
    (12, 6): ("rows_of_features", "rows_of_both", "rows_made"),
}
# Of loops that bring features 16 bytes at a time: what they write and read, in bfloat16 and in float32.
FEATURE_LOADS = (1, 1), (3, 2)


def strip_kind(found: Counter[str]) -> str:
    """What a turn of the loop around products does with a strip."""
    if found["I2F"]:
        return "update"
    if found["MUFU"]:
        return "logits" if found["SHFL"] else "gradient"
    if found["STS"]:
        return "store"
    return {8: "add", 24: "add_image_features", 32: "add_caption_features"}[found["LDG"]]


def tile_loops(code: Code) -> dict[str, list[Pipes]]:
    """Clocks of a warp's turn of each of the loops of `gradient_tile_kernel` that make most of it, by what they do."""
    loops, own = loops_of(code), own_code(code)
    found: dict[str, list[Pipes]] = {}
    hot = products_of(code)
    for loop in hot:
        operations = memory_operations(own[loop])
        for kind in TILE_PRODUCTS[operations["HMMA"], operations["LDSM"]]:
            found.setdefault(kind, []).append(count(own[loop], lambda a: 1))
    for loop in {loop_around(x, loops) for x in hot}:
        # Sums that wait in shared memory are those of more regions than lie there at once.
        body = tuple((a, t) for a, t in own[loop] if not re.search(r"\b(LDS|STS)\.128", t))
        found.setdefault(strip_kind(memory_operations(body)), []).append(count(body, lambda a: 1))
    for loop in loops:
        operations = memory_operations(own[loop])
        if any(x.inside(loop) for x in loops):
            continue
        if (operations["STS.128"], operations["LDG.128"]) in FEATURE_LOADS:
            # Rows that cannot be copied 16 bytes at a time are not there.
            single = re.compile(r"LDG\.E(?!\.128)")
            apart = [one for one, _ in alternatives(own[loop]) if any(single.search(t) for a, t in own[loop] if one.holds(a))]
            body = [(a, t) for a, t in own[loop] if not any(x.holds(a) for x in apart)]
            found.setdefault("load", []).append(count(body, lambda a: 1))
        elif operations["LDG"] == 2 * operations["FFMA"] > 0:
            found.setdefault("vectors", []).append(count(own[loop], lambda a, n=operations["FFMA"]: 1 / n))
    return found


def gradient_turns(regions: int, words: int, width: int, hidden: int) -> dict[str, Counter[str]]:
    """Turns of these loops for a pair, all four warps together, and for what its image and its caption add up of it: up to 64
    regions, both contexts (csrc/context_attention/cuda/tiled_pair.h, tiled_sums.h)."""
    of_regions, of_words, of_width, of_hidden = -(-regions // 16), -(-words // 16), -(-width // 64), -(-hidden // 64)
    cells, rows = of_regions * of_words, of_regions + of_words

    def warps(columns: int, **turns: int) -> Counter[str]:
        return Counter({kind: 4 * columns * many for kind, many in turns.items()})

    # Both contexts, Y and X, in a warp's 16 columns.
    contexts = {"load": 2 * rows, "times_features": 4 * cells, "times_made": 2 * cells, "store": rows}
    made = {**contexts, "gradient": rows, "times_made": 4 * cells, "store": 2 * rows}
    added = {x: 2 * contexts[x] for x in contexts} | {"gradient": 2 * rows, "add": 2 * rows}
    added |= {"times_made": 2 * contexts["times_made"] + 6 * cells, "store": 3 * rows}
    return {
        "alignment": warps(of_width, load=rows, rows_of_features=cells) + Counter({"update": of_width * cells}),
        "logits": warps(of_hidden, **contexts, logits=rows),
        "vectors": Counter({"vectors": 2 * -(-(regions + words) * width // 32)}),
        "derivatives": warps(of_hidden, **made),
        "weights": warps(of_hidden, rows_of_both=4 * cells, rows_made=2 * cells) + Counter({"update": of_hidden * 6 * cells}),
        "sums": warps(of_hidden, **added),
        "sums of features": warps(
            of_width, load=rows, times_features=2 * cells, add_image_features=of_regions, add_caption_features=of_words
        ),
    }


def gradient(loops: dict[str, list[Pipes]], regions: int, words: int, width: int, hidden: int) -> Estimate:
    """Of a pair's derivatives, from the mean over its `tile_loops` of a kind; a lower bound, without what is (m, n), softmax,
    turns of the counter, barriers and waiting for memory."""
    cost = {kind: scaled(sum(of, Counter()), 1 / len(of)) for kind, of in loops.items()}
    turns = gradient_turns(regions, words, width, hidden)
    return estimate_of({x: sum((scaled(cost[kind], n) for kind, n in of.items()), Counter()) for x, of in turns.items()})


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
