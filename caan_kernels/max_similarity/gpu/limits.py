"""Seconds on an H100, by estimate, from which follows how much a launch does (core/gpu/limits.py)."""

from torch import dtype

from ...core.gpu.limits import LATENCY, MEMORY, rate, seconds_of, whole

# Rows of queries of a tile, and what holds those of a document in both backends.
TILE_ROWS = 128


def largest(query_rows: int, rows: int, width: int, kind: dtype) -> float:
    """Of all query rows and a document: what a tile holds is multiplied as a whole."""
    return seconds_of(whole(query_rows, TILE_ROWS) * whole(rows, TILE_ROWS) * whole(width, 64) / rate(kind, width))


def largest_of_pair(query_rows: int, rows: int, width: int, kind: dtype) -> float:
    """Of a listed pair: its rows are not shared, and small blocks reach half the rate."""
    products = 2 * whole(query_rows, 64) * whole(rows, 64) * whole(width, 64) / rate(kind, width)
    return seconds_of(products) + kind.itemsize * width * (query_rows + rows) / MEMORY


def step_of_sum(query_rows: int) -> float:
    """Of a pair in the sum of a row: every query row of the pair may have found it, and they come one after another."""
    return (2 + query_rows) * LATENCY
