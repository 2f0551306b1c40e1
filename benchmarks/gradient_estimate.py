"""What `gradient_tile_kernel` of CUDA C++ does for the derivatives of a pair: the loops that make most of it."""

from __future__ import annotations

import re
from collections import Counter

from code_loops import Code, alternatives, loop_around, loops_of, memory_operations, own_code, products_of
from gpu_pipes import Estimate, Pipes, count, estimate_of, scaled

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
