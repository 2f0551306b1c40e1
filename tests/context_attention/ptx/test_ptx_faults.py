"""Faults planted in the PTX of the kernels, each of which has to be found."""

import cases
import pytest
import torch
from ptx_cases import CASES, product
from support.ptx import PtxError
from support.ptx.faults import editing

PRODUCT, GRADIENTS = "product_tile_kernel<bfloat16>", "gradient_tile_kernel<bfloat16>"
TILES = "tile_kernel<Shape<5,1,false,true>,bfloat16>"
LARGE = CASES["large"]._replace(words=(40,))
LARGE_OF_FLOAT32 = CASES["large_of_float32"]._replace(words=(9,))


def slow(*given):
    """Parameters for tools/release_check.sh; others of the same test run in CI."""
    return pytest.param(*given, marks=pytest.mark.release)


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
        (r"bar\.sync[^;]*;", "", -1, "race"),
        (r"bar\.sync[^;]*;(\s*setp\.lt\.s64 \t%p\d+, %rd\d+, 0;)", r"\1", 0, "race|never written"),
    ],
    ids=["no_wait", "next_round_does_not_wait", "no_acquire", "no_release", "no_barrier_before_end", "no_barrier_after_wait"],
)
def test_missing_order_of_turns_is_found(pattern, replacement, place, message):
    with pytest.raises(PtxError, match=f"(?s)gradient_tile_kernel.*({message})"):
        run(CASES["gradients"], editing(GRADIENTS, pattern, replacement, place))


@pytest.mark.parametrize("place", [20, slow(13), slow(27)])
def test_missing_barrier_of_gradients_is_found(place):
    """Between what warps bring for each other, or leave in the block's slot."""
    with pytest.raises(PtxError, match="(?s)gradient_tile_kernel.*(race|never written)"):
        run(CASES["gradients"], editing(GRADIENTS, r"bar\.sync[^;]*;", "", place))


@pytest.mark.parametrize(
    ("pattern", "message", "place"),
    [
        # Before other sums, or other columns, are written over those that others read.
        *((r"bar\.sync[^;]*;", "race: it writes what thread .* read", place) for place in (4, 8)),
        (r"bar\.warp\.sync[^;]*;", "race: it reads what thread .* wrote", 0),
        # Contexts of words and of regions, of captions that share a tile of columns and of others.
        *((r"cp\.async\.wait_group[^;]*;", "a copy to it is not waited for", place) for place in (1, 2, 3, 4)),
    ],
)
def test_missing_order_of_tiles_is_found(pattern, message, place):
    with pytest.raises(PtxError, match=f"(?s)tile_kernel.*{message}"):
        run(CASES["tiles_38_both_terms"], editing(TILES, pattern, "", place))


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("score_kernel<bfloat16>", "any_width"),
        slow("gradient_kernel", "ieee_gradients"),
    ],
)
@pytest.mark.parametrize("place", [3, 9, 13])
def test_missing_barrier_of_a_pair_is_found(kernel, name, place):
    """Between what threads leave in shared memory, or in the block's slot."""
    case = CASES[name]
    with pytest.raises(PtxError, match=f"(?s){kernel.split('<')[0]}.*race"):
        run(case, editing(kernel, r"bar\.sync[^;]*;", "", place), case.dtypes[0])


@pytest.mark.parametrize("place", [4, slow(3), slow(10)])
def test_missing_barrier_of_a_large_pair_is_found(place):
    """Between what warps bring for each other, or leave in the block's slot."""
    with pytest.raises(PtxError, match="(?s)large_kernel.*race: it (reads|writes) what thread .* of block 0"):
        run(LARGE, editing("large_kernel<Large<4>,bfloat16>", r"bar\.sync[^;]*;", "", place))


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
