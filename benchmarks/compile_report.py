"""What the Triton kernels compile to, for GPUs that need not be here.

    python benchmarks/compile_report.py                   all shipped configurations; writes results/triton_compiled.json
                                                          and the tables of docs/triton.md; about five minutes on two cores
    python benchmarks/compile_report.py --check           a part of them; exits with 1 if one is not as it should be

The kernels' own launch code runs on small CPU tensors, with kernels that record how they are launched in place of the real
ones; what was recorded is compiled for each architecture and disassembled.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from machine_code import NARROW, TENSOR, disassembled, instructions, operations_of, registers_and_spills, stray_descriptors
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from caan_kernels.context_attention.call import Call, CallGradient, Matrices, Options, Projection, ProjectionGradient, Side, Vectors
from caan_kernels.context_attention.gpu import launch as operators
from caan_kernels.context_attention.triton import launch
from caan_kernels.core.modes import INTERPRETED

ARCHITECTURES = (80, 90, 100)
KERNELS = (
    "product_kernel",
    "scores_kernel",
    "pair_kernel",
    "image_features_kernel",
    "image_hidden_kernel",
    "caption_features_kernel",
    "caption_hidden_kernel",
)
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

    def _record(
        self, *arguments, num_warps: int, num_stages: int, enable_fp_fusion: bool, maxnreg: int | None = None, **constants
    ) -> None:
        names = self.kernel.arg_names
        given = dict(zip(names, arguments, strict=False)) | constants
        signature, attributes = {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            aligned = not parameter.do_not_specialize and not parameter.do_not_specialize_on_alignment
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + _type(value.dtype)
                # A GPU's allocator aligns what it gives; so is the start of every item of the usual widths.
                if aligned:
                    attributes[place,] = [["tt.divisibility", 16]]
            elif value == 1 and not parameter.do_not_specialize:
                signature[parameter.name], constants[parameter.name] = "constexpr", 1
            else:
                signature[parameter.name] = "i32"
                if aligned and value % 16 == 0:
                    attributes[place,] = [["tt.divisibility", 16]]
        self.launches.append(Launch(self.name, signature, constants, attributes, num_warps, num_stages, maxnreg, enable_fp_fusion))


def _type(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}[dtype]


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Launches are kept instead of made, and shaped for an architecture."""
    launches: list[Launch] = []
    kernels = {name: Recorder(name, getattr(launch, name), launches) for name in KERNELS}
    with mock.patch.multiple(launch, capability_of=lambda device: divmod(architecture, 10), **kernels):
        yield launches


def packed(regions: Side, words: Side, w: torch.Tensor, pairs: torch.Tensor | None = None, options: Options = PAPER) -> Call:
    """A call of the Triton kernels, both score vectors alike."""
    return Call(regions, words, Vectors(w, w), Matrices(), pairs, options, "triton")


def launches_of(
    architecture: int,
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
    with recorded(architecture) as launches:
        operators.pair_scores(call)
        if gradient:
            projection = Projection(V, torch.zeros(WIDTH, 2 * HIDDEN, dtype=dtype), None, "triton")
            operators.project(projection)
            operators.project_backward(ProjectionGradient(VQ, projection, True, True))
            operators.pair_scores_backward(CallGradient(torch.ones(2 if listed else (2, 2)), call))
    return launches


@dataclass(frozen=True)
class Compiled:
    """What a launch became."""

    architecture: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_instructions: int
    narrow_tensor_instructions: int
    stray_descriptors: int
    special_instructions: int
    instructions: int


def compile_for(recorded: Launch, architecture: int) -> tuple[Compiled, str]:
    """Compile and disassemble: the counts, and the machine code as text."""
    source = ASTSource(getattr(launch, recorded.kernel), recorded.signature, recorded.constants, recorded.attributes)
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
    counts = Compiled(
        architecture=f"sm_{architecture}",
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=kernel.metadata.shared,
        tensor_instructions=sum(operations[x] for x in TENSOR),
        narrow_tensor_instructions=len(NARROW.findall(code)),
        stray_descriptors=len(stray_descriptors(code)),
        special_instructions=operations["MUFU"],
        instructions=operations.total(),
    )
    return counts, code


class Clocks(NamedTuple):
    """Clocks that one pair takes of a multiprocessor, for each thing that it may wait for."""

    issue: float
    tensor: float
    special: float
    memory: float


def estimate(recorded: Launch, code: str, regions: int, words: float) -> Clocks:
    """What an H100 would need for a pair in `scores_kernel`, from its machine code; an estimate, nothing of it measured.

    Assumed of a multiprocessor and clock: 4 warp instructions issued, 16 special functions, 4,096 multiply-add flops by
    warpgroup instructions and 2,048 by the older kind, 24 bytes from the L2 cache (5.5 TB/s over 132 at 1.755 GHz).
    """
    constants = recorded.constants
    listed = list(instructions(code))
    trips = [WIDTH // constants["WIDTH_BLOCK"], HIDDEN // constants["HIDDEN_BLOCK"], WIDTH // constants["POOL_BLOCK"]]
    loops = []
    for address, text in listed:
        branch = re.search(r"\bBRA (?:`\()?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            loops.append((int(branch[1], 16), address))
    if len(loops) != len(trips):
        raise ValueError(f"expected the loops of equations 1, 4 and 5, and 6, found {len(loops)}")
    issued, flops, special = 0.0, {"HGMMA": 0.0, "HMMA": 0.0}, 0.0
    for address, text in listed:
        times = next((n for (first, last), n in zip(loops, trips, strict=True) if first <= address <= last), 1)
        issued += times
        special += times * 32 * ("MUFU" in text)
        if shape := re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", text):
            m, n, k = map(int, shape.groups())
            flops["HGMMA"] += times * 2 * m * n * k / 4
        elif "HMMA.16816" in text:
            flops["HMMA"] += times * 2 * 16 * 8 * 16
    scale = recorded.warps / constants["TOGETHER"]
    rows = regions * 4 / constants["TOGETHER"] + words * 4
    return Clocks(
        issue=issued * scale / 4,
        tensor=(flops["HGMMA"] / 4096 + flops["HMMA"] / 2048) * scale,
        special=special * scale / 16,
        memory=rows * WIDTH * 2 / 24,
    )


def nanoseconds(clocks: float) -> float:
    """On 132 multiprocessors at 1.755 GHz."""
    return clocks / 132 / 1.755


# Region features and longest captions, in words, of the field; and the blocks that others need.
USUAL = [(36, 12), (36, 25), (36, 50), (36, 82)]
OTHERS = [(16, 16), (32, 32), (49, 64), (64, 128)]
# cosine, inter, intra
OPTIONS = [
    (True, True, True),
    (False, True, False),
    (False, False, True),
    (False, False, False),
]


def wanted(architecture: int, check: bool) -> list[tuple[str, Launch]]:
    """What is compiled, with the dtype's name; no launch twice."""
    found: dict[str, tuple[str, Launch]] = {}
    for name, dtype in DTYPES.items():
        if check and name == "float16":
            continue
        for place, size in enumerate(USUAL if check else USUAL + OTHERS):
            calls: list[dict[str, Any]] = [{"gradient": place == 0 or not check}]
            if place == 0 and not check:
                calls += [{"listed": True}, *({"options": options} for options in OPTIONS)]
            for call in calls:
                for recorded_launch in launches_of(architecture, dtype, *size, **call):
                    found.setdefault(repr((name, recorded_launch)), (name, recorded_launch))
    return list(found.values())


def measure(check: bool, architectures: Sequence[int]) -> dict[str, Any]:
    """Compile everything that is wanted; prints a line for each kernel."""
    rows, estimates = [], {}
    for architecture in architectures:
        for dtype, recorded_launch in wanted(architecture, check):
            constants = {k: v for k, v in recorded_launch.constants.items() if k not in ("WIDTH", "HIDDEN")}
            compiled, code = compile_for(recorded_launch, architecture)
            row = {
                "kernel": recorded_launch.kernel,
                "dtype": dtype,
                "warps": recorded_launch.warps,
                "stages": recorded_launch.stages,
            }
            rows.append({**row, "constants": constants, **asdict(compiled)})
            print(line(rows[-1]), flush=True)
            if recorded_launch.kernel == "scores_kernel" and (architecture, dtype) == (90, "bfloat16") and not estimates:
                estimates = estimate(recorded_launch, code, regions=36, words=12.5)._asdict()
    return {
        "triton": triton.__version__,
        "width": WIDTH,
        "hidden": HIDDEN,
        "date": datetime.date.today().isoformat(),
        "estimated_clocks_of_a_pair": estimates,
        "kernels": rows,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the report on a terminal."""
    size = " ".join(str(row["constants"][x]) for x in ("REGIONS", "TAIL", "WORDS") if x in row["constants"])
    return (
        f"{row['architecture']:7}{row['dtype']:9} {row['kernel']:24} {size:10} {row['registers']:4} registers,"
        f" {row['spilled_bytes']} bytes spilled, {row['shared_bytes']:6} shared, {row['tensor_instructions']:3} tensor instructions"
        f", {row['narrow_tensor_instructions']} narrow, {row['stray_descriptors']} with stray descriptors"
    )


def faults(report: dict[str, Any]) -> list[str]:
    """Kernels that spill, have Hopper's products of eight columns or by stray descriptors, or half-precision products without
    tensor cores."""
    return [
        line(row)
        for row in report["kernels"]
        if row["spilled_bytes"]
        or row["narrow_tensor_instructions"]
        or row["stray_descriptors"]
        or (row["dtype"] != "float32" and not row["tensor_instructions"])
    ]


def render(report: dict[str, Any], document: Path) -> None:
    """Write the tables between the document's markers."""
    begin, end = "<!-- compiled: begin -->", "<!-- compiled: end -->"
    text = document.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    document.write_text(f"{before}{begin}\n{tables(report)}\n{end}{after}")


def tables(report: dict[str, Any]) -> str:
    """Markdown: the estimate, and the most that any configuration of a kernel takes."""
    clocks = Clocks(**report["estimated_clocks_of_a_pair"])
    lines = ["| estimate for a pair on an H100, bfloat16, m = 36, n = 12.5, D = H = 1024 | clocks of a multiprocessor | ns |"]
    lines += ["| --- | ---: | ---: |"]
    for name, value in clocks._asdict().items():
        lines.append(f"| {MEANING[name]} | {value:,.0f} | {nanoseconds(value):.1f} |")
    lines += [
        "",
        "| kernel | dtype | architecture | configurations | registers | spilled bytes | shared KiB | tensor instructions |",
    ]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in report["kernels"]:
        groups.setdefault((row["kernel"], row["dtype"], row["architecture"]), []).append(row)
    for key, rows in groups.items():
        registers, spilled, shared = (max(row[x] for row in rows) for x in ("registers", "spilled_bytes", "shared_bytes"))
        tensor = sorted({row["tensor_instructions"] for row in rows})
        span = f"{tensor[0]}-{tensor[-1]}" if len(tensor) > 1 else str(tensor[0])
        lines.append(f"| {' | '.join(key)} | {len(rows)} | {registers} | {spilled} | {shared / 1024:.0f} | {span} |")
    lines += [
        "",
        f"Compiled with Triton {report['triton']}, {report['date']}, by benchmarks/compile_report.py. Registers and shared",
    ]
    lines += ["memory are the most of any configuration; each stands in benchmarks/results/triton_compiled.json."]
    return "\n".join(lines)


MEANING = {
    "issue": "instructions issued",
    "tensor": "tensor cores",
    "special": "special functions: tanh",
    "memory": "bytes from the L2 cache",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="the field's sizes in bfloat16 and float32 only; writes nothing")
    options = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET=1 compiles nothing: unset it")
    report = measure(options.check, ARCHITECTURES)
    if not options.check:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        render(report, DOCUMENT)
    wrong = faults(report)
    print("\n".join(["", "Not as it should be:", *wrong]) if wrong else f"{len(report['kernels'])} kernels, all as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
