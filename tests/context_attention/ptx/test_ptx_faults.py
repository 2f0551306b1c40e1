"""Faults planted in the PTX of the kernels, each of which has to be found."""

from typing import NamedTuple

import cases
import pytest
import torch
from ptx_cases import CASES, Case, product, slow
from support.ptx import PtxError
from support.ptx.faults import BARRIER, WAIT, WARP_BARRIER, assert_needed, editing

PRODUCT, GRADIENTS = "product_tile_kernel<bfloat16>", "gradient_tile_kernel<bfloat16>"
LARGE_OF_FLOAT32 = CASES["large_of_float32"]._replace(words=(9,))


def run(case, edit, dtype=torch.bfloat16):
    """Scores of a case by edited PTX, and what they should be."""
    problem = case.problem(dtype)
    return case.run(problem, edit)[0], cases.oracle(problem, **case.options)[0]


@pytest.mark.parametrize(
    ("pattern", "replacement", "place", "message"),
    [
        (r"(st\.global\.u32 +\t?\[%rd\d+)\]", r"\1+1073741824]", 0, "out of bounds"),
        (r"(st\.global\.u32 +\t?\[%rd\d+)\]", r"\1+-1073741824]", 0, "out of bounds"),
        (r"(cp\.async[^;]*\], \[%rd\d+)\]", r"\1+1073741824]", 0, "out of bounds"),
        (r"(cp\.async[^;]*\], \[%rd\d+)\]", r"\1+2]", 0, "misaligned: expected a multiple of 16"),
        (r"(ldmatrix[^;]*\[%r\d+)\]", r"\1+8]", 0, "misaligned: expected a multiple of 16"),
        (r"(ldmatrix[^;]*\[%r\d+)\]", r"\1+65536]", 0, "shared memory is out of bounds"),
        (r"bar\.sync[^;]*;", "", 0, "race.*no barrier is in between"),
        (r"cp\.async\.wait_group[^;]*;", "", 0, "a copy to it is not waited for"),
        (r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;", 0, "a copy to it is not waited for"),
        (r"cp\.async\.cg[^;]*;", "", 3, "shared memory is read and was never written"),
        (r"mma\.sync\.aligned\.m16n8k16", "mma.sync.aligned.m8n8k4", 0, "not known to the interpreter"),
    ],
    ids=[
        *("store_beyond", "store_before", "copy_beyond", "copy_misaligned", "rows_misaligned", "rows_beyond"),
        *("no_barrier", "no_wait", "short_wait", "no_copy", "unknown_instruction"),
    ],
)
def test_fault_is_found(pattern, replacement, place, message):
    with pytest.raises(PtxError, match=f"(?s){message}"):
        product(editing(PRODUCT, pattern, replacement, place))


@pytest.mark.parametrize(
    ("pattern", "replacement", "place", "message"),
    [
        (r"ld\.acquire\.gpu\.global\.u64 (%rd\d+), \[[^;]*;", r"mov.u64 \1, 9223372036854775807;", None, "race|never written"),
        (
            r"(selp\.b64[^,]*, )0(,(?:[^;]*;){3,4}[^;]*ld\.acquire)",
            r"\1-1000\2",
            0,
            "race: it (reads|writes) what thread .* of block",
        ),
        (r"ld\.acquire", "ld.relaxed", None, "race: it reads what thread .* of block . wrote"),
        (r"membar\.gl;([^@]*)red\.release", r"\1red.relaxed", 0, "race: it reads what thread .* of block . wrote"),
    ],
    ids=["no_wait", "next_round_does_not_wait", "no_acquire", "no_release"],
)
def test_missing_order_of_turns_is_found(pattern, replacement, place, message):
    with pytest.raises(PtxError, match=f"(?s)gradient_tile_kernel.*({message})"):
        run(CASES["gradients"], editing(GRADIENTS, pattern, replacement, place))


class Ordered(NamedTuple):
    """A kernel, and how much of what keeps its threads in order some calls need.

    Attributes:
        kernel: its key.
        cases: a fault that the first does not find the next one may.
        unnoticed: barriers of the block that can be left out by themselves: others stand right behind them.
        others: what else is left out.
    """

    kernel: str
    cases: tuple[Case, ...]
    unnoticed: int = 0
    others: tuple[str, ...] = (WARP_BARRIER, WAIT)

    def assert_needed(self, every: bool) -> None:
        dtype = torch.bfloat16 if "bfloat16" in self.kernel else torch.float32
        calls = [(case, case.problem(dtype)) for case in self.cases]

        def run(edit):
            for case, problem in calls:
                case.run(problem, edit)

        assert_needed(self.kernel, BARRIER, run, self.unnoticed, every)
        for pattern in self.others:
            assert_needed(self.kernel, pattern, run, every=every)


ORDERED = {
    "tiles": Ordered("tile_kernel<Shape<5,1,false,true>,bfloat16>", (CASES["tiles_38_both_terms"], CASES["tiles_38_cosine"])),
    "list": Ordered("tile_kernel<Shape<8,2,true,false>,bfloat16>", (CASES["tiles_50_list"], CASES["list_50_cosine"])),
    "tiles_of_float32": Ordered("tile_kernel<FloatShape<false>,float>", (CASES["tiles_of_float32"],), 2, (WARP_BARRIER,)),
    "large": Ordered("large_kernel<Large<4>,bfloat16>", (CASES["large"]._replace(words=(40,)), CASES["large_cosine"]), 4),
    "pair": Ordered("score_kernel", (CASES["any_width"], CASES["any_width_cosine"]), 4, ()),
    # Many of its warps' barriers only a call of several pieces needs.
    "gradients": Ordered("gradient_tile_kernel<bfloat16>", (CASES["gradients"],), 1, ()),
    "ieee_gradients": Ordered("gradient_kernel", (CASES["ieee_gradients"],), 12, ()),
}


@pytest.mark.parametrize("name", [slow(x) if x in ("list", "tiles_of_float32", "ieee_gradients") else x for x in ORDERED])
def test_a_barrier_is_needed(name):
    """One at least, and one of what else keeps order."""
    ORDERED[name].assert_needed(every=False)


@pytest.mark.release
@pytest.mark.parametrize("name", ORDERED)
def test_every_barrier_is_needed(name):
    ORDERED[name].assert_needed(every=True)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(mma[^{]*tf32\.f32 \{[^}]*\}, )\{(%\w+), (%\w+),", r"\1{\3, \2,"),
        slow(r"(mma[^{]*tf32\.f32 \{[^}]*\}, \{[^}]*\}, )\{(%\w+), (%\w+)\}", r"\1{\3, \2}"),
        slow(r"sub\.rn\.f32 (\t%\w+), [^;]*;(\s*mov\.b32)", r"mov.f32 \1, 0f00000000;\2"),
    ],
    ids=["left", "right", "small_parts"],
)
def test_wrong_product_of_float32_is_found(pattern, replacement):
    """Registers of factors change places; what TF32 leaves of a number is lost."""
    found, expected = run(LARGE_OF_FLOAT32, editing("large_kernel<Single<1>,float>", pattern, replacement, None), torch.float32)
    assert not cases.score_error(found, expected) <= 1e-6


@pytest.mark.parametrize("swapped", [(5, 6), (6, 7), (9, 10), (1, 2), (1, 3)], ids=str)
def test_swapped_fragment_is_found(swapped):
    """Two registers of a tensor-core product change places: of the left factor, of the right one, of the sums."""
    first, second = swapped
    order = list(range(1, 11))
    order[first - 1], order[second - 1] = second, first
    registers = r"\{(%\w+), (%\w+), (%\w+), (%\w+)\}, \{(%\w+), (%\w+), (%\w+), (%\w+)\}, \{(%\w+), (%\w+)\}"
    names = [rf"\{i}" if i < 10 else rf"\g<{i}>" for i in order]
    changed = "{{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}".format(*names)
    found, expected = product(editing(PRODUCT, registers, changed, 0))
    assert not torch.allclose(found, expected, rtol=2**-8, atol=1e-2)
