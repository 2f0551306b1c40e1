"""Loops of machine code, and what lies in them."""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import NamedTuple

Code = tuple[tuple[int, str], ...]  # addresses and instructions


class Loop(NamedTuple):
    """Addresses of a loop's first and last instruction."""

    first: int
    last: int

    def holds(self, address: int) -> bool:
        return self.first <= address <= self.last

    def inside(self, other: Loop) -> bool:
        return self != other and other.first <= self.first and self.last <= other.last


@functools.cache
def loops_of(code: Code) -> list[Loop]:
    """What lies between a branch backwards and its target. Branches from beyond a loop into it are those of blocks out of line,
    which run where a warp's lanes have gone apart: they make no loop."""
    found = set()
    for address, text in code:
        branch = re.search(r"\bBRA(?:\.\w+)* (?:!?\w+, )*(?:`\()?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            found.add(Loop(int(branch[1], 16), address))
    return sorted(x for x in found if not any(y.first < x.first <= y.last < x.last for y in found))


@functools.cache
def own_code(code: Code) -> dict[Loop, Code]:
    """What lies in each loop and in none of its inner ones."""
    inner_first = sorted(loops_of(code), key=lambda x: x.last - x.first)
    own: dict[Loop, list[tuple[int, str]]] = {x: [] for x in inner_first}
    for address, text in code:
        if smallest := next((x for x in inner_first if x.holds(address)), None):
            own[smallest].append((address, text))
    return {loop: tuple(body) for loop, body in own.items()}


def alternatives(code: Code) -> list[tuple[Loop, Loop]]:
    """The two sides of each branch that has both: what comes first, and what the branch jumps to."""
    jumps = {a: re.match(r"(@\S+ )?BRA (?:!?\w+, )?0x([0-9a-f]+)", text) for a, text in code}
    targets = {a: (bool(found[1]) or "," in found[0], int(found[2], 16)) for a, found in jumps.items() if found}
    sides = []
    for address, (conditional, to) in targets.items():
        unconditional, end = targets.get(to - 16, (True, 0))
        if conditional and address < to - 16 and not unconditional and end > to:
            sides.append((Loop(address + 16, to - 16), Loop(to, end - 16)))
    return sides


@functools.cache
def jumped_over(code: Code, first: int, last: int) -> list[Loop]:
    """What each conditional jump forwards may leave out, within these addresses."""
    jumps = ((a, re.match(r"@\S+ BRA 0x([0-9a-f]+)", text)) for a, text in code)
    over = (Loop(a + 16, int(found[1], 16) - 16) for a, found in jumps if found)
    return [x for x in over if first <= x.first < x.last <= last]


@functools.cache
def products_of(code: Code) -> list[Loop]:
    """Innermost loops with tensor-core products, by address."""
    loops, products = loops_of(code), [address for address, text in code if "HMMA" in text]
    hot = [loop for loop in loops if any(loop.holds(address) for address in products)]
    return [loop for loop in hot if not any(other.inside(loop) for other in hot)]


def loop_around(loop: Loop, loops: list[Loop]) -> Loop:
    """The smallest that holds it."""
    return min((x for x in loops if loop.inside(x)), key=lambda x: x.last - x.first)


def memory_operations(code: Code) -> Counter[str]:
    """How many there are of each, with its width where that is 16 bytes."""
    found: Counter[str] = Counter()
    for _, text in code:
        operation = re.sub(r"^@\S+\s+", "", text).split()[0]
        found[operation.split(".")[0] + (".128" if ".128" in operation else "")] += 1
    return found
