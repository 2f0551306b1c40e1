"""What the CUDA kernels become, without a GPU: registers, spills, shared memory and tensor-core instructions.

    python benchmarks/cuda_report.py           every architecture of a release; writes results/nvcc_compiled.json and the
                                               tables of docs/cuda.md; about five minutes on two cores
    python benchmarks/cuda_report.py --check   what the installed library was built for; writes nothing

Exit status 0 if no kernel spills, each fits a multiprocessor and those of half precision that should be on tensor cores are there,
else 1.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compiled_tables
from machine_code import TENSOR, disassembled, operations_of, registers_and_spills, resident_warps, tool

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

LIBRARY = ROOT / "caan_kernels" / "_ops.so"
RESULTS = Path(__file__).parent / "results" / "nvcc_compiled.json"
DOCUMENT = ROOT / "docs" / "cuda.md"
# Those of a release (setup.py).
ARCHITECTURES = ["80", "86", "90", "100", "120"]
KERNELS = (
    "plan_kernel",
    "count_schedule_kernel",
    "start_schedule_kernel",
    "place_schedule_kernel",
    "product_kernel",
    "product_tile_kernel",
    "tile_kernel",
    "large_kernel",
    "score_kernel",
    "gradient_kernel",
    "gradient_tile_kernel",
    "search_tiles_kernel",
    "search_kernel",
    "add_kernel",
    "query_gradients_kernel",
    "document_gradients_kernel",
)
ON_TENSOR_CORES = ("product_tile_kernel", "tile_kernel", "large_kernel", "gradient_tile_kernel", "search_tiles_kernel")
# Bytes that a block may have on every GPU since compute capability 8.0.
MOST_SHARED = 99 * 1024


def nvcc_version(nvcc: str) -> str:
    return re.search(r"release ([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)[1]


def compile_for(architectures: list[str], folder: Path, sources: Sequence[str] = ()) -> list[Path]:
    """Machine code of kernel files, all or those of these names, a file an architecture."""
    command = [caan_build.find_nvcc(), *caan_build.NVCC_FLAGS, *caan_build.gencode_flags(architectures), "-fatbin"]

    def compiled(source: Path) -> list[Path]:
        fatbin = folder / f"{source.parents[1].name}_{source.stem}.fatbin"
        subprocess.run([*command, source, "-o", fatbin], check=True, cwd=ROOT)
        return cubins_of(fatbin, folder)

    with ThreadPoolExecutor(2) as pool:
        files = sorted(ROOT.glob("csrc/*/cuda/*.cu"))
        found = pool.map(compiled, [file for file in files if not sources or file.stem in sources])
    return [cubin for cubins in found for cubin in cubins]


def cubins_of(library: Path, folder: Path) -> list[Path]:
    """Machine code inside a library, or a file of nvcc's."""
    subprocess.run([tool("cuobjdump"), "-xelf", "all", library], check=True, cwd=folder, capture_output=True)
    return sorted(folder.glob(f"{library.stem}.*.cubin"))


def demangled(names: Sequence[str]) -> list[str]:
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()


def described(name: str) -> tuple[str, str, str]:
    """Kernel, shape and dtype from a demangled name."""
    kernel = re.search(r"\w+_kernel\b", name)[0]
    shape = re.search(r"(?:Shape|Large|Single|Tile)<([^>]*)>", name)
    dtype = re.search(r"\b(bfloat16|float16|AnyType)\b", name)
    # Numbers and truths come as (int)5 and (bool)1 from some demanglers.
    text = re.sub(r"\(\w+\)", "", shape[1]) if shape else ""
    return kernel, text, dtype[1].replace("AnyType", "any") if dtype else "float32"


def by_function(text: str, start: str) -> dict[str, str]:
    """What follows each line that matches `start`, by its group."""
    _, *parts = re.split(rf"^[ \t]*{start}\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def kernels_of(cubin: Path) -> list[dict[str, Any]]:
    """Each kernel's counts."""
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
        kernels.append(counts)
    return kernels


def launches(folder: Path) -> dict[tuple[str, str, str], dict[str, int]]:
    """The warps of a block and the most shared memory that each kernel is launched with, by name, shape and dtype, for 36 or 64
    regions and 32 words, from the host's code compiled without CUDA."""
    program = folder / "launches"
    sources = ["benchmarks/launches.cpp", *sorted(ROOT.glob("csrc/*/cuda/*.cu")), "csrc/core/cuda/emulator.cpp"]
    flags = ["-x", "c++", "-std=c++20", "-Icsrc", "-Wno-unknown-pragmas", "-pthread"]
    subprocess.run([*caan_build.find_cxx(), *flags, *sources, "-o", program], check=True, cwd=ROOT)
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for launch in subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines():
        name, threads, shared = launch.split("\t")
        known = found.setdefault(described(name), {"warps": int(threads) // 32, "shared_bytes": 0})
        known["shared_bytes"] = max(known["shared_bytes"], int(shared))
    return found


def measure(cubins: Sequence[Path], launched: dict[tuple[str, str, str], dict[str, int]]) -> dict[str, Any]:
    """The counts of every kernel."""
    with ThreadPoolExecutor(2) as pool:
        found = [kernel for kernels in pool.map(kernels_of, cubins) for kernel in kernels]
    for row in found:
        row |= launched[row["kernel"], row["shape"], row["dtype"]]
        row["resident_warps"] = resident_warps(row["architecture"], row["warps"], row["registers"], row["shared_bytes"])
    rows = sorted(found, key=lambda row: [row[x] for x in ("kernel", "dtype", "shape")])
    return {"kernels": rows}


def line(row: dict[str, Any]) -> str:
    """A row of the report on a terminal."""
    return (
        f"{row['architecture']:8}{row['dtype']:9} {row['kernel']:24} {row['shape']:20} {row['registers']:4} registers, "
        f"{row['spilled_bytes']} bytes spilled, {row['warps']:2} warps, {row['shared_bytes']:6,} bytes shared, "
        f"{row['tensor_instructions']:3} tensor instructions"
    )


def faults(report: dict[str, Any]) -> list[str]:
    """Kernels that spill, that no multiprocessor has room for, and those for tensor cores without such an instruction."""

    def wrong(row: dict[str, Any]) -> bool:
        return (
            row["spilled_bytes"] > 0
            or row["resident_warps"] == 0
            or row["shared_bytes"] > MOST_SHARED
            or (row["kernel"] in ON_TENSOR_CORES and not row["tensor_instructions"])
        )

    return [line(row) for row in report["kernels"] if wrong(row)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the installed library; writes nothing")
    options = parser.parse_args(arguments)
    nvcc = caan_build.find_nvcc()
    if not options.check and nvcc is None:
        parser.error("there is no nvcc, on the PATH or in CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        cubins = cubins_of(LIBRARY, Path(folder)) if options.check else compile_for(ARCHITECTURES, Path(folder))
        report = measure(cubins, launches(Path(folder)))
    for row in report["kernels"]:
        print(line(row))
    if not options.check:
        facts = {"nvcc": nvcc_version(nvcc), "date": datetime.date.today().isoformat()}
        report = {**facts, **report}
        compiled_tables.write(report, RESULTS)
        compiled_tables.render(RESULTS, DOCUMENT)
    wrong = faults(report)
    print("\n".join(["", "Not as it should be:", *wrong]) if wrong else f"{len(report['kernels'])} kernels, none spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
