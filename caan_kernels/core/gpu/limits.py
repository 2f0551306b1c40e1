"""How much one launch does at most: nothing interrupts a launch, and a display's watchdog ends a long one.

Seconds are an H100's, by estimate (docs/cuda.md, "Launches").
"""

from torch import dtype, float32

# Seconds that a launch takes at most, where it can be split. Estimates leave things out.
LONGEST = 0.04
MULTIPROCESSORS, CLOCK = 132, 1.755e9
# Multiply-adds a clock and multiprocessor that kernels reach: half of what tensor cores do alone, a quarter in float32 arithmetic.
TENSOR_CORES, ARITHMETIC = 600, 31
# Bytes a second from memory, and seconds of a step that waits for it.
MEMORY, LATENCY = 3e12, 5e-7


def steps(count: int, size: int) -> int:
    """Pieces of `size` that hold `count`."""
    return -(-count // size)


def whole(count: int, size: int) -> int:
    """`count` rounded up to a multiple of `size`."""
    return steps(count, size) * size


def times(seconds: float, before: float = 0.0) -> int:
    """How many repetitions of `seconds` fit a launch after `before` seconds; at least 1."""
    return max(1, int((LONGEST - before) / seconds))


def seconds_of(clocks: float) -> float:
    """Seconds of `clocks` of one multiprocessor, spread over all multiprocessors."""
    return clocks / (MULTIPROCESSORS * CLOCK)


def rate(kind: dtype, *widths: int) -> int:
    """Multiply-adds a clock of products of rows of such widths: of others tensor cores copy nothing."""
    return TENSOR_CORES if kind != float32 and all(width % 8 == 0 for width in widths) else ARITHMETIC


def product(item_rows: int, depth: int, columns: int, kind: dtype) -> float:
    """Seconds of the product of one item's rows with (depth, columns)."""
    return seconds_of(item_rows * whole(depth, 64) * whole(columns, 128) / rate(kind, depth, columns))
