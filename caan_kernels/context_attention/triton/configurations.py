"""Tile sizes, warps and pipeline stages of every kernel, by dtype and size."""

from typing import NamedTuple

import torch
import triton

# The least that a float32 product sums over. Older versions take no less than 16, and some registers of long items spill.
SHORTEST = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 16

# Programs of two warps that share a multiprocessor: a thread has up to 255 registers.
PROGRAMS = 4


class Configuration(NamedTuple):
    """How a kernel is compiled.

    Attributes:
        blocks: the kernel's tile sizes, by name.
        warps: of a program.
        stages: of the software pipeline.
        registers: of a thread at most; None leaves it to NVIDIA's assembler, which may rather spill than lose a program.
    """

    blocks: dict[str, int]
    warps: int
    stages: int
    registers: int | None = None

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        # Threads that hold the same sum would fuse different products into it, and which of them is written is chance.
        arguments = {**self.blocks, "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        if self.registers:
            arguments["maxnreg"] = self.registers
        return arguments


def product(dtype: torch.dtype, exact: bool) -> Configuration:
    """For `product_kernel`."""
    if exact:
        return Configuration({"ROW_BLOCK": 32, "COLUMN_BLOCK": 64, "DEPTH_BLOCK": 16}, 4, 1, 255)
    # Two warps: products.py.
    if dtype == torch.float32:
        return Configuration({"ROW_BLOCK": 64, "COLUMN_BLOCK": 64, "DEPTH_BLOCK": 16}, 2, 2, 255)
    return Configuration({"ROW_BLOCK": 64, "COLUMN_BLOCK": 64, "DEPTH_BLOCK": 32}, 2, 3, 255)


def tiles(regions: int, words: int) -> Configuration:
    """For `tile_kernel` on pairs of up to `regions` regions and `words` words."""
    together = (32 if regions > 48 else 64) // words
    blocks = {"TOGETHER": together, "HIDDEN_BLOCK": 16, "DEPTH_BLOCK": 32, "DEPTH_STAGES": 3, "WIDTH_BLOCK": 16}
    return Configuration(blocks, 2, 1, 255)


def gram(dtype: torch.dtype, words: int) -> bool:
    """Whether Hᵘ of captions of up to `words` words is made once a pair: registers hold it."""
    return words <= (32 if dtype == torch.float32 else 64)


def large(dtype: torch.dtype, precision: str, words: int) -> Configuration:
    """For `large_kernel` on captions of up to `words` words."""
    blocks = {**_products(dtype, precision, words), "FACTOR_BLOCK": 32 if words == 16 else 16, "WIDTH_BLOCK": 16, "WORD_PARTS": 1}
    # With larger blocks of long captions, or more columns of IEEE products, registers spill.
    if dtype != torch.float32:
        blocks |= {"REGION_BLOCK": max(16, min(64, 2048 // words)), "HIDDEN_BLOCK": 16 if words > 64 else 32}
        blocks |= {"FACTOR_BLOCK": 8} if words > 64 else {}
        return Configuration(blocks, 2, 2, 255)
    if words > 64:
        blocks |= {"REGION_BLOCK": SHORTEST, "HIDDEN_BLOCK": 8, "WORD_PARTS": 2, "FACTOR_BLOCK": 4, "TILE_REGIONS": 32}
    else:
        blocks |= {"REGION_BLOCK": 32 if words == 16 else 16, "HIDDEN_BLOCK": 8 if precision == "ieee" else 16}
    return Configuration(blocks, 2, 1, 255)


def _products(dtype: torch.dtype, precision: str, words: int) -> dict[str, int]:
    """Tiles of S and X in `large_kernel`."""
    if dtype == torch.float32 and precision == "ieee":
        return {"TILE_WORDS": 16, "TILE_REGIONS": 32, "DEPTH_BLOCK": 16, "DEPTH_STAGES": 1}
    if dtype == torch.float32:
        return {"TILE_WORDS": 16, "TILE_REGIONS": 64, "DEPTH_BLOCK": 16, "DEPTH_STAGES": 2}
    # With more words registers spill.
    return {"TILE_WORDS": min(words, 32), "TILE_REGIONS": 64, "DEPTH_BLOCK": 32, "DEPTH_STAGES": 3}


def gradients(regions: int, precision: str) -> Configuration:
    """For `gradient_kernel` on images of up to `regions` regions: panels that leave no register to spill.

    WIDTH_BLOCK and HIDDEN_BLOCK are what a pair takes at a time, WIDTH_SUMS and HIDDEN_SUMS what a sum over pairs does.
    """
    ieee = precision == "ieee"
    if regions > 128:
        blocks = {"TILE": SHORTEST, "WIDTH_BLOCK": 16, "HIDDEN_BLOCK": SHORTEST, "WIDTH_SUMS": 16, "HIDDEN_SUMS": SHORTEST}
        return Configuration(blocks, 8, 1, 255)
    blocks = {"TILE": SHORTEST if ieee and regions > 64 else 16, "WIDTH_BLOCK": 16 if ieee else 32, "HIDDEN_BLOCK": 16}
    blocks |= {"WIDTH_SUMS": 64 if regions <= 64 else 32, "HIDDEN_SUMS": 16}
    return Configuration(blocks, 4 if regions <= 32 else 8, 1, 255)


def maps(regions: int, precision: str) -> Configuration:
    """For `map_kernel` on images of up to `regions` regions."""
    ieee = precision == "ieee"
    return Configuration(
        {"TILE": 16, "WIDTH_BLOCK": 16 if ieee else 32, "HIDDEN_BLOCK": 16 if ieee else 32}, 4 if regions <= 64 else 8, 1, 255
    )
