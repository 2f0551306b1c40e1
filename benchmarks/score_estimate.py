"""What the kernels of CUDA C++ that score a pair do for it: instructions of their machine code, as often as they run."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from code_loops import Code, Loop, alternatives, jumped_over, loop_around, loops_of, memory_operations, own_code, products_of
from gpu_pipes import L2_BYTES, Estimate, Pipes, count, estimate_of, scaled


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
