"""Tile sizes, warps and pipeline stages: what is shipped, and the small space that can be measured instead."""

from typing import NamedTuple

import torch

from ...core.gpu.plan import parts_of, size_of


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
    if dtype == torch.float32:
        return Configuration({"ROW_BLOCK": 64, "COLUMN_BLOCK": 64, "DEPTH_BLOCK": 16}, 8, 2)
    return Configuration({"ROW_BLOCK": 128, "COLUMN_BLOCK": 128, "DEPTH_BLOCK": 32}, 8, 3)


class TileLimits(NamedTuple):
    """What a tile of `scores_kernel` holds; (0, 0) where nothing goes by tiles.

    Attributes:
        words: of a caption, rounded up to a power of two.
        cells: regions times words, both rounded up.
    """

    words: int
    cells: int

    def hold(self, regions: int, words: int) -> bool:
        return words <= self.words and size_of(regions) * words <= self.cells


def tile_limits(dtype: torch.dtype, width: int, hidden: int, capability: tuple[int, int] | None) -> TileLimits:
    """Of calls with these widths, on a GPU of this capability; None is for the interpreter."""
    # Without tensor cores Triton keeps the whole of both factors of a product in registers, which spill.
    if dtype == torch.float32:
        return TileLimits(0, 0)
    # Where the loop over panels is not pipelined, since there is but one panel, or rows begin at odd places, ptxas 12.8 builds
    # wrong descriptors of shared memory for Hopper's products. Triton 3.6 brings it; ptxas 12.9 does not.
    if capability and capability[0] == 9 and (hidden <= 32 or width % 2 or hidden % 2):
        return TileLimits(0, 0)
    return TileLimits(64, 128 * 64)


def score_candidates(regions: int, words: int, capability: tuple[int, int]) -> list[Configuration]:
    """For `scores_kernel` on pairs of up to `regions` regions and `words` words: the shipped configuration first, then what
    `CAAN_TRITON_TUNE=1` measures beside it.

    Captions of a tile, and the panel of the hidden width, trade what is read again against registers, and so against the
    programs that a multiprocessor holds; stages hide what reading still costs. Sums have the same order in all of them.
    """
    # Each caption has a warp to itself while there are several; a longer one is shared by all. With four warps a
    # multiprocessor's registers hold two programs of 36 regions, one at the tensor cores while the other waits for tanh; with
    # eight, which read an image once for twice the captions, they hold one.
    most = max(1, min(128, 8192 // size_of(regions)) // words) if words <= 32 else 1
    # Ampere's tensor cores take both factors from registers, and a large tile leaves few of them.
    panels = [16] if capability < (9, 0) or regions > 64 or words > 32 else [32, 16]
    candidates = []
    for captions in dict.fromkeys((max(1, most // 2), most)):
        # On Hopper four warps multiply 64 rows. Eight would share the columns of 64, and Triton pads a product of eight columns
        # with shared memory that it has not allocated (triton-lang/triton issues 7981 and 10629).
        narrow = capability[0] == 9 and 64 in (captions * rows for rows in (words, *parts_of(regions)))
        for panel in panels:
            for stages in (2, 3):
                blocks = {"TOGETHER": captions, "WIDTH_BLOCK": 64, "HIDDEN_BLOCK": panel, "POOL_BLOCK": 64, "IMAGE_GROUP": 32}
                # Without a limit the assembler may rather spill than lose a program.
                limit = 255 if captions == 1 or capability[0] >= 10 else None
                warps = 8 if captions == most and not narrow else 4
                candidates.append(Configuration(blocks, warps, stages, limit))
    return candidates


def pairs(dtype: torch.dtype, gradient: bool, regions: int, precision: str, capability: tuple[int, int]) -> Configuration:
    """For `pair_kernel`: panels that leave no register to spill."""
    # As in `score_candidates`: eight warps would have products of eight columns.
    warps = 4 if capability[0] == 9 and precision == "tf32" and size_of(regions) == 64 else 8
    if dtype == torch.float32:
        return Configuration({"TILE": 16, "WIDTH_BLOCK": 16, "HIDDEN_BLOCK": 16}, warps, 1, 255)
    return Configuration({"TILE": 16, "WIDTH_BLOCK": 32, "HIDDEN_BLOCK": 16 if gradient else 32}, warps, 1, 255)


def items(dtype: torch.dtype, capability: tuple[int, int]) -> Configuration:
    """For the kernels that sum gradients over the pairs of an image or of a caption."""
    if dtype == torch.float32:
        return Configuration({"TILE": 16, "WIDTH_BLOCK": 64, "HIDDEN_BLOCK": 16}, 8, 1, 255)
    return Configuration({"TILE": 16, "WIDTH_BLOCK": 64, "HIDDEN_BLOCK": 16 if capability < (9, 0) else 32}, 4, 1, 255)
