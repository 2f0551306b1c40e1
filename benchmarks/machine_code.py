"""What NVIDIA's machine code says of a kernel: registers, spills and instructions."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import triton

# Instructions of the tensor cores: of Ampere's kind, Hopper's and Blackwell's.
TENSOR = ("HMMA", "HGMMA", "UTCHMMA")
# Warps, blocks and KiB of shared memory that a multiprocessor has, by NVIDIA's cuda_occupancy.h and programming guide.
LIMITS = {
    "80": (64, 32, 164),
    "86": (48, 16, 100),
    "87": (48, 16, 164),
    "89": (48, 24, 100),
    "90": (64, 32, 228),
    "100": (64, 32, 228),
    "103": (64, 32, 228),
    "120": (48, 24, 100),
    "121": (48, 24, 100),
}


def tool(name: str) -> Path:
    """A program of NVIDIA's that Triton brings."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def disassembled(cubin: Path) -> tuple[str, str]:
    """Machine code and resource usage, of every function in a file."""
    outputs = [
        subprocess.run([tool("cuobjdump"), flag, cubin], capture_output=True, text=True, check=True).stdout
        for flag in ("-sass", "--dump-resource-usage")
    ]
    return outputs[0], outputs[1]


def registers_and_spills(usage: str) -> tuple[int, int]:
    """Registers of a thread, and the bytes that it keeps elsewhere, from a function's resource usage."""
    registers, stack, local = (int(re.search(rf"\b{x}:(\d+)", usage)[1]) for x in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def resident_warps(architecture: str, warps: int, registers: int, shared: int) -> int:
    """The warps that a multiprocessor has at once, of blocks of so many warps, registers a thread and bytes of shared memory.

    Registers are 16,384 in each of four parts, and a warp gets them in steps of 8 a thread. A block takes another KiB of shared
    memory.
    """
    most_warps, most_blocks, shared_kib = LIMITS[re.sub(r"\D", "", architecture)]
    with_registers = 4 * (16384 // (32 * round_up(registers, 8)))
    with_shared = shared_kib * 1024 // (round_up(shared, 128) + 1024)
    return warps * min(most_blocks, min(most_warps, with_registers) // warps, with_shared)


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def instructions(code: str) -> Iterator[tuple[int, str]]:
    """Address and text of each."""
    for address, text in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+([^;]+);", code, re.MULTILINE):
        # Triton 3.6 brings a disassembler that writes behind sm_120's what an instruction waits for: "&req={1} ?trans2".
        yield int(address, 16), re.split(r"\s+[&?]", text)[0]


def operations_of(code: str) -> Counter[str]:
    """How many instructions there are of each kind."""
    # A predicate may stand before the operation, its variants after.
    return Counter(re.match(r"(?:@\S+\s+)?(\w+)", text)[1] for _, text in instructions(code))
