"""Tile sizes, warps and pipeline stages of every kernel, by dtype, size and architecture."""

from typing import NamedTuple

import torch
import triton

from ...core.gpu.plan import size_of

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
        if self.registers and torch.version.hip is None:
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


def pairs(gradient: bool, regions: int, precision: str, capability: tuple[int, int]) -> Configuration:
    """For `pair_kernel`: panels that leave no register to spill."""
    warps = warps_of(regions, precision, capability)
    if precision == "ieee":
        tile = SHORTEST if gradient and regions > 64 else 16
        return Configuration({"TILE": tile, "WIDTH_BLOCK": 16, "HIDDEN_BLOCK": 16}, warps, 1, 255)
    return Configuration({"TILE": 16, "WIDTH_BLOCK": 32, "HIDDEN_BLOCK": 16 if gradient else 32}, warps, 1, 255)


def warps_of(regions: int, precision: str, capability: tuple[int, int]) -> int:
    """Of a program that multiplies as many rows as an image has regions.

    On Hopper four warps multiply 64 rows. Eight would share the columns of 64, and Triton pads a product of eight columns with
    shared memory that it has not allocated (triton-lang/triton issues 7981 and 10629).
    """
    return 4 if capability[0] == 9 and precision == "tf32" and size_of(regions) == 64 else 8


def items(dtype: torch.dtype, precision: str, regions: int, capability: tuple[int, int]) -> Configuration:
    """For the kernels that sum gradients over the pairs of an image or of a caption, with images of up to `regions` regions."""
    if dtype == torch.float32:
        blocks = {"TILE": 16, "WIDTH_BLOCK": 64 if regions <= 64 else 16, "HIDDEN_BLOCK": 16}
        return Configuration(blocks, warps_of(regions, precision, capability), 1, 255)
    narrow = capability < (9, 0) or regions > 64
    blocks = {"TILE": 16, "WIDTH_BLOCK": 64 if regions <= 128 else 32, "HIDDEN_BLOCK": 16 if narrow else 32}
    return Configuration(blocks, 4 if regions <= 128 else 8, 1, 255)
