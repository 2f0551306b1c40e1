"""What the Triton kernels compile to, for GPUs that need not be here.

    python benchmarks/compile_report.py                   every shape that can run; writes results/triton_compiled.json and the
                                                          tables of docs/triton.md; about an hour on two cores
    python benchmarks/compile_report.py --check           the field's shapes of context_attention; exits with 1 if one is not as it
                                                          should be

The kernels' own launch code runs on small CPU tensors, with kernels that record how they are launched in place of the real
ones; what was recorded is compiled for each architecture and disassembled.

Left out are 14 of the 20 combinations of a block of regions and a block of words that gradient_kernel and map_kernel take, and
widths other than D = H = 1024. Their products take up to 16 words at a time, so a larger block of words means more steps of a loop.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import compiled_tables
import torch
import triton
from machine_code import TENSOR, disassembled, operations_of, registers_and_spills, resident_warps
from specialisation import specialised
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from caan_kernels.context_attention.call import Call, CallGradient, Matrices, Options, Projection, ProjectionGradient, Side, Vectors
from caan_kernels.context_attention.gpu import launch as operators
from caan_kernels.context_attention.triton import configurations, launch
from caan_kernels.core.modes import INTERPRETED
from caan_kernels.core.records import Items
from caan_kernels.max_similarity import call as search_calls
from caan_kernels.max_similarity.gpu import launch as search_operators
from caan_kernels.max_similarity.triton import launch as search_launch

# Compute capabilities, and the shared memory that a program may take there, in bytes.
ARCHITECTURES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
# Kernels of both operators.
ATTENTION = (
    "plan_kernel",
    "product_kernel",
    "tile_kernel",
    "large_kernel",
    "map_kernel",
    "gradient_kernel",
)
SEARCH = ("search_kernel", "add_kernel", "query_gradients_kernel", "document_gradients_kernel")
# The module that launches each.
KERNELS = dict.fromkeys(ATTENTION, launch) | dict.fromkeys(SEARCH, search_launch)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# D and H of the paper.
PAPER = Options(cosine=False, inter=True, intra=True)
WIDTH = HIDDEN = 1024
RESULTS = Path(__file__).parent / "results" / "triton_compiled.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "triton.md"


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched."""

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list]
    warps: int
    stages: int
    registers: int | None
    fusion: bool


class Recorder:
    """Stands where a kernel stands and keeps what a launch would have compiled."""

    def __init__(self, name: str, kernel, launches: list[Launch]):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        return self._record

    def _record(self, *arguments, **named) -> None:
        found = specialised(self.kernel, arguments, named)
        options = found.options
        assert options.keys() <= {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion"}
        compiled = options["num_warps"], options["num_stages"], options.get("maxnreg"), options["enable_fp_fusion"]
        self.launches.append(Launch(self.name, found.signature, found.constants, found.attributes, *compiled))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are kept instead of made."""
    launches: list[Launch] = []
    with ExitStack() as patches:
        for module, name in itertools.product((launch, search_launch), KERNELS):
            if hasattr(module, name):
                patches.enter_context(mock.patch.object(module, name, Recorder(name, getattr(module, name), launches)))
        yield launches


def packed(regions: Side, words: Side, w: torch.Tensor, pairs: torch.Tensor | None = None, options: Options = PAPER) -> Call:
    """A call of the Triton kernels, both score vectors alike."""
    return Call(regions, words, Vectors(w, w), Matrices(), pairs, options, "triton")


def launches_of(
    dtype: torch.dtype,
    regions: int,
    words: int,
    *,
    listed: bool = False,
    gradient: bool = True,
    options: Options = PAPER,
) -> list[Launch]:
    """Every kernel that two images and two captions of one size take, each once."""
    V, U = torch.zeros(2, regions, WIDTH, dtype=dtype), torch.zeros(2, words, WIDTH, dtype=dtype)
    VQ, UQ = torch.zeros(2, regions, 2 * HIDDEN, dtype=dtype), torch.zeros(2, words, WIDTH + 2 * HIDDEN, dtype=dtype)
    w = torch.zeros(HIDDEN, dtype=dtype)
    pairs = torch.zeros(2, 2, dtype=torch.int64) if listed else None
    call = packed(Side(V, VQ, None), Side(U, UQ, None), w, pairs, options)
    with recorded() as launches:
        operators.pair_scores(call)
        if gradient:
            projection = Projection(V, torch.zeros(WIDTH, 2 * HIDDEN, dtype=dtype), None, "triton")
            operators.project(projection)
            operators.project_backward(ProjectionGradient(VQ, projection, True, True))
            operators.pair_scores_backward(CallGradient(torch.ones(2 if listed else (2, 2)), call))
            operators.pair_maps(packed(call.regions, call.words, w, torch.zeros(2, 2, dtype=torch.int64), options))
    return launches


def searches_of(dtype: torch.dtype, width: int) -> list[Launch]:
    """Every kernel that max_similarity takes for rows of one width; none depends on numbers of rows."""
    images, texts = Items(torch.zeros(2, 36, width, dtype=dtype), None), Items(torch.zeros(2, 13, width, dtype=dtype), None)
    with recorded() as launches:
        for over_regions, mean, pairs in itertools.product(
            (False, True), (False, True), (None, torch.zeros(2, 2, dtype=torch.int64))
        ):
            call = search_calls.Call(images, texts, pairs, search_calls.Options(over_regions, mean), "triton")
            search_operators.max_similarity(call)
            grad = torch.ones((2, 2) if pairs is None else (2,))
            search_operators.max_similarity_backward(search_calls.CallGradient(grad, call, True, True))
    return launches


@dataclass(frozen=True)
class Compiled:
    """What a launch became."""

    architecture: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    resident_warps: int
    tensor_instructions: int
    wgmma_products: int
    tcgen05_products: int
    proxy_fences: int
    special_instructions: int
    instructions: int


def compile_for(recorded: Launch, architecture: int) -> Compiled:
    """Compile, disassemble and count."""
    source = ASTSource(
        getattr(KERNELS[recorded.kernel], recorded.kernel), recorded.signature, recorded.constants, recorded.attributes
    )
    options = {
        "num_warps": recorded.warps,
        "num_stages": recorded.stages,
        "maxnreg": recorded.registers,
        "enable_fp_fusion": recorded.fusion,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code, usage = disassembled(Path(file.name))
    registers, spilled = registers_and_spills(usage)
    operations = operations_of(code)
    return Compiled(
        architecture=f"sm_{architecture}",
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=kernel.metadata.shared,
        resident_warps=resident_warps(f"sm_{architecture}", recorded.warps, registers, kernel.metadata.shared),
        tensor_instructions=sum(operations[x] for x in TENSOR),
        **asynchronous(kernel.asm["ptx"]),
        special_instructions=operations["MUFU"],
        instructions=operations.total(),
    )


def asynchronous(ptx: str) -> dict[str, int]:
    """Hopper's and Blackwell's products in PTX, and the fences before what they read: `mma.sync` is none of them.

    They read by another proxy than `cp.async` writes, and Triton 3.6 leaves out the fence between the two
    (triton-lang/triton issue 10537).
    """
    patterns = {
        "wgmma_products": r"\bwgmma\.mma_async\b",
        "tcgen05_products": r"\btcgen05\.mma\b",
        "proxy_fences": r"\bfence\.proxy\.async\b",
    }
    return {name: len(re.findall(pattern, ptx)) for name, pattern in patterns.items()}


# Classes of pairs that kernels are compiled for, as the sizes of calls that have one each: blocks of small pairs, and blocks
# of words with as many regions as there may be.
SMALL = [(regions, words) for regions in (16, 32, 36, 64) for words in (13, 32)]
LARGE = [(1030, words) for words in (13, 32, 64, 128)]
# Every block of regions that derivatives and maps take, and three of the four blocks of words.
DIFFERENTIATED = [(16, 13), (32, 13), (36, 13), (128, 64), (256, 128)]
# Options other than the paper's: cosine, inter, intra.
OPTIONS = [Options(True, True, True), Options(False, True, False), Options(False, False, True), Options(False, False, False)]
# Widths of rows that max_similarity compares: ColPali's and this model's.
SEARCHED = (128, WIDTH)
# Float32 products of older versions sum over more at a time, and some registers spill (docs/triton.md, "Configurations").
SPILLS_NOTHING = configurations.SHORTEST == 8
# What stands behind float32 products.
PRECISIONS = ("none", "ieee", "tf32")


def calls(dtype: torch.dtype, check: bool) -> list[dict[str, Any]]:
    """Arguments of `launches_of` that meet every kernel of a dtype, or those that the field's sizes meet."""
    if check:
        return [{"regions": 36, "words": 13}, {"regions": 100, "words": 50, "gradient": False}]
    sizes = ([] if dtype == torch.float32 else SMALL) + LARGE
    found = [{"regions": m, "words": n, "gradient": False, "listed": listed} for m, n in sizes for listed in (False, True)]
    found += [{"regions": m, "words": n, "listed": True} for m, n in DIFFERENTIATED]
    return found + [{"regions": m, "words": 13, "options": options} for m in (36, 100) for options in OPTIONS]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch's setting of float32 products, undone at the end."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def wanted(check: bool) -> list[tuple[str, Launch]]:
    """What is compiled, with the dtype's name; no launch twice."""
    found: dict[str, tuple[str, Launch]] = {}
    for name, dtype in DTYPES.items():
        if check and name == "float16":
            continue
        for precision in PRECISIONS if dtype == torch.float32 and not check else PRECISIONS[:1]:
            with float32_products(precision):
                launches = [each for call in calls(dtype, check) for each in launches_of(dtype, **call)]
                launches += [each for width in (() if check else SEARCHED) for each in searches_of(dtype, width)]
                for each in launches:
                    found.setdefault(repr((name, each)), (name, each))
    return list(found.values())


def measure(check: bool, architectures: Sequence[int]) -> dict[str, Any]:
    """Compile everything that is wanted; prints a line for each kernel."""
    rows = []
    for architecture in architectures:
        for dtype, recorded_launch in wanted(check):
            constants = {k: v for k, v in recorded_launch.constants.items() if k not in ("WIDTH", "HIDDEN")}
            compiled = compile_for(recorded_launch, architecture)
            row = {
                "kernel": recorded_launch.kernel,
                "dtype": dtype,
                "warps": recorded_launch.warps,
                "stages": recorded_launch.stages,
            }
            rows.append({**row, "constants": constants, **asdict(compiled)})
            print(line(rows[-1]), flush=True)
    return {
        "triton": triton.__version__,
        "width": WIDTH,
        "hidden": HIDDEN,
        "date": datetime.date.today().isoformat(),
        "kernels": rows,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the report on a terminal."""
    size = " ".join(str(row["constants"][x]) for x in ("REGIONS", "TAIL", "WORDS", "PRECISION") if x in row["constants"])
    return (
        f"{row['architecture']:7}{row['dtype']:9} {row['kernel']:24} {size:14} {row['registers']:4} registers,"
        f" {row['spilled_bytes']} bytes spilled, {row['shared_bytes']:6} shared, {row['tensor_instructions']:3} tensor instructions"
        f", {row['wgmma_products']} of Hopper's kind, {row['tcgen05_products']} of Blackwell's"
    )


def faults(report: dict[str, Any]) -> list[str]:
    """Kernels that are not as they should be.

    They spill, with a version of Triton with which none should; they take more shared memory than there is; they have products
    of Hopper's or Blackwell's kind, which nothing here executes; or they multiply half-precision numbers without tensor cores.
    """
    return [
        line(row)
        for row in report["kernels"]
        if (row["spilled_bytes"] and SPILLS_NOTHING)
        or row["shared_bytes"] > ARCHITECTURES[int(row["architecture"].removeprefix("sm_"))]
        or row["wgmma_products"]
        or row["tcgen05_products"]
        or (row["dtype"] != "float32" and multiplies(row) and not row["tensor_instructions"])
    ]


def multiplies(row: dict[str, Any]) -> bool:
    """Whether a kernel has matrix products for tensor cores, as it is compiled."""
    given = row["constants"]
    if row["kernel"] in ("plan_kernel", *SEARCH[1:]):
        return False
    if row["kernel"] in ("map_kernel", "gradient_kernel") and given["PRECISION"] == "ieee":
        return False
    if row["kernel"] in ("tile_kernel", "large_kernel"):
        return True
    return bool(given.get("INTER", True) or given.get("INTRA", True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="the field's sizes of context_attention in bfloat16 and float32 only; writes nothing"
    )
    options = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET=1 compiles nothing: unset it")
    report = measure(options.check, list(ARCHITECTURES))
    if not options.check:
        compiled_tables.write(report, RESULTS)
        compiled_tables.render(RESULTS, DOCUMENT)
    wrong = faults(report)
    print("\n".join(["", "Not as it should be:", *wrong]) if wrong else f"{len(report['kernels'])} kernels, all as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
