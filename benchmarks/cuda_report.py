"""What the CUDA kernels become, without a GPU: registers, spills, shared memory, tensor-core instructions, and an estimate of their
time.

    python benchmarks/cuda_report.py           every architecture of a release; writes results/nvcc_compiled.json and the
                                               tables of docs/cuda.md; about five minutes on two cores
    python benchmarks/cuda_report.py --check   what the installed library was built for; writes nothing

Exit status 0 if no kernel spills, each fits a multiprocessor and those of half precision that should be on tensor cores are there,
else 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compile_report import MEANING, Clocks, nanoseconds
from machine_code import TENSOR, disassembled, instructions, operations_of, registers_and_spills, tool

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

LIBRARY = ROOT / "caan_kernels" / "_ops.so"
RESULTS = Path(__file__).parent / "results" / "nvcc_compiled.json"
DOCUMENT = ROOT / "docs" / "cuda.md"
# Those of a release (setup.py).
ARCHITECTURES = ("80", "86", "90a", "100", "120")
# D and H of the paper.
WIDTH = HIDDEN = 1024
KERNELS = (
    "product_kernel",
    "product_tile_kernel",
    "tile_kernel",
    "score_kernel",
    "gradient_kernel",
    "image_features_kernel",
    "image_hidden_kernel",
    "caption_features_kernel",
    "caption_hidden_kernel",
)
# What a block may have on every GPU since compute capability 8.0, in bytes and in numbers.
MOST_SHARED, MOST_REGISTERS = 99 * 1024, 65536
# The tile that the field's sizes take: five 8s of regions, two captions a warp, all pairs, both terms.
USUAL = ("tile_kernel", "5, 2, false, true", "bfloat16")


def nvcc_version(nvcc: str) -> str:
    return re.search(r"release ([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)[1]


def compile_for(architecture: str, folder: Path) -> list[Path]:
    """Machine code of every kernel file for one architecture."""
    nvcc = caan_build.find_nvcc()

    def compiled(source: Path) -> Path:
        cubin = folder / f"{source.stem}.sm_{architecture}.cubin"
        subprocess.run(
            [nvcc, *caan_build.NVCC_FLAGS, f"-arch=sm_{architecture}", "-cubin", source, "-o", cubin], check=True, cwd=ROOT
        )
        return cubin

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sorted(ROOT.glob("csrc/*/cuda/*.cu"))))


def cubins_of(library: Path, folder: Path) -> list[Path]:
    """Machine code inside a library."""
    subprocess.run([tool("cuobjdump"), "-xelf", "all", library], check=True, cwd=folder, capture_output=True)
    return sorted(folder.glob("*.cubin"))


def demangled(names: Sequence[str]) -> list[str]:
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()


def described(name: str) -> tuple[str, str, str]:
    """Kernel, shape and dtype from a demangled name."""
    kernel = re.search(r"(\w+_kernel)<", name)[1]
    shape = re.search(r"Shape<([^>]*)>", name)
    dtype = re.search(r"caan::cuda::(bfloat16|float16)", name)
    # Numbers and truths come as (int)5 and (bool)1 from some demanglers.
    text = re.sub(r"\(\w+\)", "", shape[1]) if shape else ""
    return kernel, text, dtype[1] if dtype else "float32"


def by_function(text: str, start: str) -> dict[str, str]:
    """What follows each line that matches `start`, by its group."""
    _, *parts = re.split(rf"^[ \t]*{start}\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def kernels_of(cubin: Path) -> list[tuple[dict[str, Any], str]]:
    """Each kernel's counts and machine code."""
    architecture = re.search(r"sm_(\d+[af]?)", cubin.name)[0]
    code, usage = disassembled(cubin)
    codes, usages = by_function(code, r"Function : (\S+)"), by_function(usage, r"Function (\S+):")
    kernels = []
    for mangled, name in zip(codes, demangled(list(codes)), strict=True):
        kernel, shape, dtype = described(name)
        registers, spilled = registers_and_spills(usages[mangled])
        operations = operations_of(codes[mangled])
        counts = {
            "kernel": kernel,
            "shape": shape,
            "dtype": dtype,
            "architecture": architecture,
            "registers": registers,
            "spilled_bytes": spilled,
            "tensor_instructions": sum(operations[x] for x in TENSOR),
            "special_instructions": operations["MUFU"],
            "fused_multiply_adds": operations["FFMA"],
            "instructions": operations.total(),
        }
        kernels.append((counts, codes[mangled]))
    return kernels


def estimate(code: str, regions: int, words: float) -> Clocks:
    """What an H100 would need for a pair in the usual tile, from its machine code; an estimate, nothing of it measured.

    Assumes of a multiprocessor what `compile_report.estimate` does. A loop with tensor-core instructions and none inside takes 16
    columns; one with copies and nothing else brings a piece's rows, 7 a thread; what lies around those takes a piece of 64
    columns. A block has 8 warps, 2 images and 8 captions.
    """
    text = list(instructions(code))
    loops = []
    for address, instruction in text:
        branch = re.search(r"\bBRA(?:\.\w+)* (?:\w+, )?(?:`\()?0x([0-9a-f]+)", instruction)
        if branch and int(branch[1], 16) < address:
            loops.append((int(branch[1], 16), address))
    trips = {}
    for loop in loops:
        body = [x for address, x in text if loop[0] <= address <= loop[1]]
        innermost = not any(loop != other and loop[0] <= other[0] and other[1] <= loop[1] for other in loops)
        if not innermost:
            trips[loop] = WIDTH // 64
        elif any("HMMA" in x for x in body):
            trips[loop] = 4
        elif any("LDGSTS" in x for x in body):
            trips[loop] = 7
    issued = flops = special = 0.0
    for address, instruction in text:
        times = 1
        for (first, last), count in trips.items():
            times *= count if first <= address <= last else 1
        issued += times
        special += times * 32 * ("MUFU" in instruction)
        flops += times * 2 * 16 * 8 * 16 * ("HMMA.16816" in instruction)
    warps, pairs = 8, 16
    rows = regions * 4 / 8 + words * 4 / 2
    return Clocks(
        issue=issued * warps / pairs / 4,
        tensor=flops * warps / pairs / 2048,
        special=special * warps / pairs / 16,
        memory=rows * WIDTH * 2 / 24,
    )


def launches(folder: Path) -> dict[tuple[str, str, str], dict[str, int]]:
    """The threads of a block and the most shared memory that each kernel is launched with, by name, shape and dtype, for 36 or 64
    regions and 32 words, from the host's code compiled without CUDA."""
    program = folder / "launches"
    sources = ["benchmarks/launches.cpp", *sorted(ROOT.glob("csrc/*/cuda/*.cu")), "csrc/core/cuda/emulator.cpp"]
    flags = ["-x", "c++", "-std=c++20", "-Icsrc", "-Wno-unknown-pragmas", "-pthread"]
    subprocess.run([*caan_build.find_cxx(), *flags, *sources, "-o", program], check=True, cwd=ROOT)
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for launch in subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines():
        name, threads, shared = launch.split("\t")
        known = found.setdefault(described(name), {"threads": int(threads), "shared_bytes": 0})
        known["shared_bytes"] = max(known["shared_bytes"], int(shared))
    return found


def measure(cubins: Sequence[Path], launched: dict[tuple[str, str, str], dict[str, int]]) -> dict[str, Any]:
    """The counts of every kernel, and the estimate for the usual tile on sm_90a where it is among them."""
    estimates = {}
    with ThreadPoolExecutor(2) as pool:
        found = [kernel for kernels in pool.map(kernels_of, cubins) for kernel in kernels]
    for row, code in found:
        row |= launched[row["kernel"], row["shape"], row["dtype"]]
        if (row["kernel"], row["shape"], row["dtype"]) == USUAL and row["architecture"].startswith("sm_90"):
            estimates = estimate(code, regions=36, words=12.5)._asdict()
    rows = sorted((row for row, _ in found), key=lambda row: [row[x] for x in ("kernel", "dtype", "shape")])
    return {"kernels": rows, "estimated_clocks_of_a_pair": estimates}


def line(row: dict[str, Any]) -> str:
    """A row of the report on a terminal."""
    return (
        f"{row['architecture']:8}{row['dtype']:9} {row['kernel']:24} {row['shape']:20} {row['registers']:4} registers, "
        f"{row['spilled_bytes']} bytes spilled, {row['threads']:3} threads, {row['shared_bytes']:6,} bytes shared, "
        f"{row['tensor_instructions']:3} tensor instructions"
    )


def faults(report: dict[str, Any]) -> list[str]:
    """Kernels that spill, that no multiprocessor has room for, and tiles without a tensor-core instruction."""

    def wrong(row: dict[str, Any]) -> bool:
        # A warp gets registers in steps of 8 a thread.
        registers = -(-row["registers"] // 8) * 8 * row["threads"]
        return (
            row["spilled_bytes"] > 0
            or registers > MOST_REGISTERS
            or row["shared_bytes"] > MOST_SHARED
            or ("tile" in row["kernel"] and not row["tensor_instructions"])
        )

    return [line(row) for row in report["kernels"] if wrong(row)]


def estimate_of(report: dict[str, Any]) -> Clocks:
    """The estimate that a report holds."""
    return Clocks(**report["estimated_clocks_of_a_pair"])


def tables(report: dict[str, Any]) -> str:
    """Markdown: the estimate, and the most that any shape of a kernel takes."""
    clocks = estimate_of(report)
    lines = ["| estimate for a pair on an H100, bfloat16, m = 36, n = 12.5, D = H = 1024 | clocks of a multiprocessor | ns |"]
    lines += ["| --- | ---: | ---: |"]
    for name, value in clocks._asdict().items():
        lines.append(f"| {MEANING[name]} | {value:,.0f} | {nanoseconds(value):.1f} |")
    architectures = list(dict.fromkeys(row["architecture"] for row in report["kernels"]))
    columns = ["kernel", "dtype", "shapes", "threads", "shared KiB", "spilled bytes", "tensor instructions"]
    columns += [f"registers, {architecture}" for architecture in architectures]
    lines += ["", f"| {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * (len(columns) - 2)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["kernels"]:
        groups.setdefault((row["kernel"], row["dtype"]), []).append(row)
    for key, rows in groups.items():
        shapes = len(rows) // len(architectures)
        threads, tensor = (span([row[x] for row in rows]) for x in ("threads", "tensor_instructions"))
        shared, spilled = (max(row[x] for row in rows) for x in ("shared_bytes", "spilled_bytes"))
        registers = [max(row["registers"] for row in rows if row["architecture"] == x) for x in architectures]
        cells = [*key, shapes, threads, f"{shared / 1024:.0f}", spilled, tensor, *registers]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"Compiled with nvcc {report['nvcc']}, {report['date']}, by benchmarks/cuda_report.py. Registers are the most"]
    lines += ["of any shape, and so is shared memory, for 36 or 64 regions and 32 words; each is in"]
    lines += ["benchmarks/results/nvcc_compiled.json."]
    return "\n".join(lines)


def span(numbers: Sequence[int]) -> str:
    """The least and the most, or the only one."""
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)}-{max(numbers)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the installed library; writes nothing")
    options = parser.parse_args(arguments)
    nvcc = caan_build.find_nvcc()
    if not options.check and nvcc is None:
        parser.error("there is no nvcc, on the PATH or in CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        if options.check:
            cubins = cubins_of(LIBRARY, Path(folder))
        else:
            cubins = [cubin for architecture in ARCHITECTURES for cubin in compile_for(architecture, Path(folder))]
        report = measure(cubins, launches(Path(folder)))
    for row in report["kernels"]:
        print(line(row))
    if not options.check:
        facts = {"nvcc": nvcc_version(nvcc), "date": datetime.date.today().isoformat(), "width": WIDTH, "hidden": HIDDEN}
        report = {**facts, **report}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        begin, end = "<!-- compiled: begin -->", "<!-- compiled: end -->"
        before, after = (DOCUMENT.read_text().split(mark)[k] for k, mark in enumerate((begin, end)))
        DOCUMENT.write_text(f"{before}{begin}\n{tables(report)}\n{end}{after}")
    wrong = faults(report)
    print("\n".join(["", "Not as it should be:", *wrong]) if wrong else f"{len(report['kernels'])} kernels, none spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
