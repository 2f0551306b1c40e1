"""What NVIDIA's machine code says of a kernel: registers, spills, instructions, and descriptors that the assembler made up."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
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
# Hopper's with eight columns, which Triton pads with shared memory that it has not allocated.
NARROW = re.compile(r"\bHGMMA\.64x8x")


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


def stray_descriptors(code: str) -> list[str]:
    """Hopper's products that find a factor in shared memory by a descriptor of the assembler's own making.

    The upper half of a descriptor, a uniform register, is a constant of Triton's. Here it has to come from constants, in the
    order of the code; ptxas 12.8 has added half of a global address to it (illegal accesses on an H200).
    """
    constants: dict[str, int | None] = {"URZ": 0}

    def value(operand: str) -> int | None:
        return int(operand, 0) if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", operand) else constants.get(operand)

    def total(operands: Sequence[str]) -> int | None:
        values = [value(x) for x in operands if not re.fullmatch(r"!?UP[T\d]", x)]
        return None if None in values else sum(filter(None, values))

    stray = []
    for _, text in instructions(code):
        operation, rest = re.match(r"(?:@\S+\s+)?(\S+)\s*(.*)", text).groups()
        operands = [x.strip() for x in rest.split(",")]
        if operation.startswith("HGMMA"):
            # Two registers for each factor, the left one's unused where it is in registers.
            first = int(re.search(r"gdesc\[UR(\d+)\]", text)[1])
            used = [first + 3] if re.match(r"R\d+,\s*R", rest) else [first + 1, first + 3]
            if any(constants.get(f"UR{x}") is None for x in used):
                stray.append(text)
        elif re.fullmatch(r"UR\d+", operands[0]):
            target, upper = operands[0], f"UR{int(operands[0][2:]) + 1}"
            if operation == "UMOV":
                constants[target] = value(operands[1])
            elif operation == "UIADD3.64":
                sources = [x for x in operands[1:] if x.startswith("UR")]
                constants[target] = None
                constants[upper] = total(["URZ" if x == "URZ" else f"UR{int(x[2:]) + 1}" for x in sources])
            elif operation.startswith("UIADD3"):
                constants[target] = total(operands[1:])
            else:
                constants[target] = None
                if "64" in operation or "WIDE" in operation:
                    constants[upper] = None
    return stray
