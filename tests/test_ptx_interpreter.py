"""The interpreter of PTX (tests/support/ptx): what instructions compute, and what it must not overlook."""

import numpy as np
import pytest
from support import ptx
from support.ptx.bodies import GIVEN, THREADS, run


def number(value):
    """A literal of float32."""
    return f"0f{np.float32(value).view(np.uint32):08X}"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("sub.s32 %r1, 3, 5", -2),
        ("mul.hi.s32 %r1, -2147483648, 6", -3),
        ("mul.hi.u32 %r1, -2147483648, 6", 3),
        ("mul.hi.s64 %d1, -4611686018427387905, 12; cvt.u32.u64 %r1, %d1", -4),
        ("mul.hi.u64 %d1, -4611686018427387905, 12; cvt.u32.u64 %r1, %d1", 8),
        ("mul.lo.s32 %r1, 65537, 65536", 65536),
        ("mad.lo.s32 %r1, -3, 7, 1", -20),
        ("div.s32 %r1, -7, 2", -3),
        ("rem.s32 %r1, -7, 2", -1),
        ("div.u32 %r1, -2, 2", 0x7FFFFFFF),
        ("shr.s32 %r1, -8, 40", -1),
        ("shr.u32 %r1, -8, 40", 0),
        ("shl.b32 %r1, 3, 31", 1 << 31),
        ("shl.b32 %r1, 3, 32", 0),
        ("bfe.u32 %r1, 0xABCD, 4, 8", 0xBC),
        ("bfe.s32 %r1, 0xABCD, 4, 8", -0x44),
        ("bfi.b32 %r1, 0xFF, 0, 8, 4", 0xF00),
        ("lop3.b32 %r1, 0xF0, 0xCC, 0xAA, 0x96", 0xF0 ^ 0xCC ^ 0xAA),
        ("prmt.b32 %r1, 0x44332211, 0x88776655, 0x7052", 0x88116633),
        ("shf.l.wrap.b32 %r1, 0x80000000, 1, 33", 3),
        ("shf.r.clamp.b32 %r1, 5, 9, 40", 9),
        ("popc.b32 %r1, 0xF0F0", 8),
        ("brev.b32 %r1, 0xB", 0xD0000000),
        ("clz.b32 %r1, 0xFFFF", 16),
        ("bfind.shiftamt.u32 %r1, 0xFFFF", 16),
        ("bfind.shiftamt.u32 %r1, 0", -1),
        ("not.b32 %r1, 0", -1),
        ("max.s32 %r1, -1, 1", 1),
        ("max.u32 %r1, -1, 1", -1),
        (f"cvt.rzi.s32.f32 %r1, {number(-2.7)}", -2),
        (f"cvt.rni.s32.f32 %r1, {number(2.5)}", 2),
        (f"cvt.rzi.s32.f32 %r1, {number(1e20)}", 2**31 - 1),
        (f"cvt.rn.bf16x2.f32 %r1, {number(1)}, {number(1 + 2**-8)}", 0x3F803F80),
        (f"cvt.rn.bf16x2.f32 %r1, {number(1)}, {number(1 + 3 * 2**-8)}", 0x3F803F82),
        (f"cvt.rn.f16x2.f32 %r1, {number(-2)}, {number(1)}", 0xC0003C00),
        ("mov.b64 %d1, kernel_param_1; add.s64 %d1, %d1, 4; ld.param.u32 %r1, [%d1+-4]", GIVEN),
        ("fma.rn.f16x2 %r1, 0x3C004000, 0x40004200, 0x3C003C00", 0x42004700),
    ],
)
def test_integers_and_bits(instruction, expected):
    assert run(f"{instruction}; st.global.u32 [%mine], %r1;")[3] == expected % 2**32


@pytest.mark.parametrize(
    ("instruction", "expected", "bound"),
    [
        (f"fma.rn.f32 %f1, {number(1 + 2**-12)}, {number(1 + 2**-12)}, {number(-1 - 2**-11)}", 2.0**-24, 0),
        (f"fma.rm.f32 %f1, {number(1)}, {number(1)}, {number(2**-30)}", 1, 0),
        (f"fma.rm.f32 %f1, {number(1)}, {number(1)}, {number(-(2**-30))}", 1 - 2.0**-24, 0),
        (f"max.f32 %f1, {number(np.nan)}, {number(-3)}", -3, 0),
        (f"copysign.f32 %f1, {number(-2)}, {number(5)}", -5, 0),
        (f"cvt.sat.f32.f32 %f1, {number(1.5)}", 1, 0),
        (f"div.rn.f32 %f1, {number(1)}, {number(3)}", np.float32(1) / np.float32(3), 0),
        (f"tanh.approx.f32 %f1, {number(0.3)}", np.tanh(0.3), 2**-11),
        (f"tanh.approx.f32 %f1, {number(9)}", 1, 2**-11),
        (f"ex2.approx.ftz.f32 %f1, {number(0.7)}", 2**0.7, 2**-21),
        (f"rsqrt.approx.f32 %f1, {number(3)}", 3**-0.5, 2**-22),
        (f"cvt.rna.tf32.f32 %f1, {number(1 + 2**-11)}", 1 + 2**-10, 0),
    ],
)
def test_floats(instruction, expected, bound):
    found = run(f"{instruction}; st.global.f32 [%mine], %f1;").view(np.float32)
    assert np.abs(found - expected).max() <= bound * abs(expected) + 2**-24 * bool(bound)


def test_rough_results_are_off_by_what_is_promised():
    """No test passes because the interpreter is better than a GPU."""
    given = np.linspace(0.1, 2, THREADS, dtype=np.float32)
    body = "mad.wide.u32 %d1, %t, 4, %given; ld.global.f32 %f1, [%d1]; tanh.approx.f32 %f2, %f1; st.global.f32 [%mine], %f2;"
    errors = run(body, given).view(np.float32) / np.tanh(given.astype(np.float64)) - 1
    assert 2**-12 < np.abs(errors).max() <= 2**-11 * 1.001
    assert errors.min() < 0 < errors.max()


@pytest.mark.parametrize("compare", ["lt", "ltu", "ge", "geu", "ne", "neu", "eq", "equ"])
def test_comparisons_with_nan(compare):
    body = f"setp.{compare}.f32 %p1, {number(np.nan)}, {number(1)}; selp.u32 %r1, 1, 0, %p1; st.global.u32 [%mine], %r1;"
    assert run(body)[0] == compare.endswith("u")


def test_threads_go_their_own_ways():
    """Thread t goes t % 5 times through a loop, and an odd one adds 100."""
    found = run("""
    rem.u32 %r1, %t, 5; mov.u32 %r2, 0;
$again:
    setp.ge.u32 %p1, %r2, %r1;
    @%p1 bra $done;
    add.u32 %r2, %r2, 1;
    bra.uni $again;
$done:
    and.b32 %r3, %t, 1; setp.ne.s32 %p2, %r3, 0;
    @%p2 add.u32 %r2, %r2, 100;
    @!%p2 bra $even;
    xor.b32 %r2, %r2, 0;
$even:
    st.global.u32 [%mine], %r2;
    """)
    t = np.arange(THREADS)
    assert np.array_equal(found, t % 5 + 100 * (t % 2))


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "source"),
    [
        ("bfly", 5, "0x1f", lambda lane: lane ^ 5),
        ("idx", 3, "0x181f", lambda lane: lane // 8 * 8 + 3),
        ("down", 2, "0x1f", lambda lane: np.where(lane < 30, lane + 2, lane)),
        ("up", 2, "0x0", lambda lane: np.where(lane >= 2, lane - 2, lane)),
    ],
)
def test_shuffles(mode, by, clamp, source):
    found = run(f"shfl.sync.{mode}.b32 %r1|%p1, %t, {by}, {clamp}, -1; st.global.u32 [%mine], %r1;")
    t = np.arange(THREADS)
    assert np.array_equal(found, t // 32 * 32 + source(t % 32))


@pytest.mark.parametrize(("mode", "of"), [("max", np.max), ("min", np.min), ("add", np.sum)])
def test_reductions(mode, of):
    found = run(f"xor.b32 %r1, %t, 21; redux.sync.{mode}.s32 %r2, %r1, -1; st.global.u32 [%mine], %r2;")
    assert np.array_equal(found, np.repeat([of(warp ^ 21) for warp in np.arange(THREADS).reshape(-1, 32)], 32))


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_tensor_core_product(kind):
    """Matrices that lie row by row in memory, each lane taking what the figures of the PTX ISA give it."""
    generator, depth = np.random.default_rng(0), 8 if kind == "tf32" else 16
    left, right = (generator.integers(-8, 8, shape).astype(np.float32) for shape in ((16, depth), (depth, 8)))
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    if kind == "tf32":
        registers = [left[g, t], left[g + 8, t], left[g, t + 4], left[g + 8, t + 4], right[t, g], right[t + 4, g]]
        bits = [x.view(np.uint32) for x in registers]
    else:
        pairs = [(left[g + r, 2 * t + c], left[g + r, 2 * t + c + 1]) for c in (0, 8) for r in (0, 8)]
        pairs += [(right[2 * t + k, g], right[2 * t + k + 1, g]) for k in (0, 8)]
        number_of = (lambda x: x.astype(np.float16).view(np.uint16)) if kind == "f16" else lambda x: x.view(np.uint32) >> 16
        bits = [number_of(a).astype(np.uint32) | number_of(b).astype(np.uint32) << 16 for a, b in pairs]
    loads = " ".join(f"ld.global.u32 %r{i}, [%d1+{128 * i}];" for i in range(6))
    found = run(
        f"""
    mad.wide.u32 %d1, %t, 4, %given; {loads}
    mov.f32 %f1, {number(0.5)};
    mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32
        {{%f2, %f3, %f4, %f5}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%f1, %f1, %f1, %f1}};
    mad.wide.u32 %d2, %t, 16, %out;
    st.global.v4.f32 [%d2], {{%f2, %f3, %f4, %f5}};
    """,
        np.stack(bits),
        threads=32,
        out=512,
    )
    sums = found.view(np.float32).reshape(32, 4)
    expected = left @ right + 0.5
    for i in range(4):
        assert np.array_equal(sums[:, i], expected[g + 8 * (i // 2), 2 * t + i % 2])


def test_tensor_core_product_of_float64():
    generator = np.random.default_rng(0)
    left, right = generator.standard_normal((8, 4)), generator.standard_normal((4, 8))
    g, t = np.arange(32) // 4, np.arange(32) % 4
    found = run(
        """
    mad.wide.u32 %d1, %t, 8, %given; ld.global.b64 %d2, [%d1]; ld.global.b64 %d3, [%d1+256];
    mov.b64 %d4, 0d3FE0000000000000;
    mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d5, %d6}, {%d2}, {%d3}, {%d4, %d4};
    mad.wide.u32 %d7, %t, 16, %out; st.global.v2.b64 [%d7], {%d5, %d6};
    """,
        np.stack([left[g, t], right[t, g]]),
        threads=32,
        out=512,
    )
    assert np.allclose(found.view(np.float64).reshape(8, 8), left @ right + 0.5, rtol=1e-14)


@pytest.mark.parametrize("turned", [False, True])
def test_loads_of_matrices(turned):
    """Lanes 8 i to 8 i + 7 name the rows of matrix i; a lane gets two numbers of its row, or of its column."""
    given = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    found = run(
        f"""
    mov.u32 %r9, memory; mad.lo.u32 %r8, %t, 16, %r9;
    mad.wide.u32 %d1, %t, 16, %given;
    cp.async.cg.shared.global [%r8], [%d1], 16; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{".trans" * turned}.shared.b16 {{%r0, %r1, %r2, %r3}}, [%r8];
    mad.wide.u32 %d2, %t, 16, %out; st.global.v4.u32 [%d2], {{%r0, %r1, %r2, %r3}};
    """,
        given,
        threads=32,
        shared=512,
        out=512,
    )
    g, t = np.arange(32) // 4, np.arange(32) % 4
    halves = found.view(np.uint16).reshape(32, 4, 2)
    for i, matrix in enumerate(given.swapaxes(1, 2) if turned else given):
        assert np.array_equal(halves[:, i], np.stack([matrix[g, 2 * t], matrix[g, 2 * t + 1]], 1))


def test_a_turned_matrix():
    body = "mul.lo.u32 %r1, %t, 0x20002; add.u32 %r1, %r1, 0x10000; movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;"
    found = run(f"{body} st.global.u32 [%mine], %r2;", threads=32, out=128)
    assert np.array_equal(found.view(np.uint16).reshape(8, 8), np.arange(64).reshape(8, 8).T)


STORE = "mov.u32 %r9, memory; mad.lo.u32 %r8, %t, 4, %r9; st.shared.u32 [%r8], %t;"
NEXT = "xor.b32 %r7, %t, {}; mad.lo.u32 %r7, %r7, 4, %r9; ld.shared.u32 %r1, [%r7]; st.global.u32 [%mine], %r1;"


@pytest.mark.parametrize(("partner", "barrier"), [(33, "bar.sync 0;"), (1, "bar.sync 0;"), (1, "bar.warp.sync -1;")])
def test_barriers_order(partner, barrier):
    assert np.array_equal(run(STORE + barrier + NEXT.format(partner), shared=256), np.arange(THREADS) ^ partner)


def test_parts_of_a_block_have_barriers_of_their_own():
    """The first warp writes and arrives, the second waits for it and reads."""
    found = run(
        f"""
    setp.ge.u32 %p1, %t, 32;
    @%p1 bra $second;
    {STORE}
    bar.arrive 1, 64;
    bra.uni $end;
$second:
    bar.sync 1, 64;
    mov.u32 %r9, memory; {NEXT.format(32)}
$end:
    mov.u32 %r5, 0;
    """,
        shared=256,
    )
    assert np.array_equal(found[32:], np.arange(32))


FAULTS = {
    "block_race": (STORE + NEXT.format(33), "race: it reads what thread .* wrote"),
    "warp_race": (STORE + NEXT.format(1), "race: it reads what thread .* wrote"),
    "race_past_the_warps_barrier": (STORE + "bar.warp.sync -1;" + NEXT.format(33), "race: it reads what thread .* wrote"),
    "late_write": (STORE + "bar.sync 0;" + NEXT.format(33) + "st.shared.u32 [%r8], 7;", "race: it writes what thread .* read"),
    "two_numbers": ("st.global.u32 [%out], %t;", "race: it writes what thread .* wrote"),
    "two_numbers_in_a_warp": (
        "setp.lt.u32 %p1, %t, 32; @%p1 st.global.u32 [%out], %t;",
        "written at once by two threads, with other numbers",
    ),
    "unwritten_shared": ("mov.u32 %r9, memory; ld.shared.u32 %r1, [%r9];", "byte 0 of shared memory is read and was never written"),
    "unwritten_global": ("ld.global.u32 %r1, [%mine+0];", "byte 0 of out is read and was never written"),
    "beyond_shared": ("mov.u32 %r9, memory; st.shared.u32 [%r9+256], 1;", "byte 256 of shared memory is out of bounds"),
    "before_shared": ("mov.u32 %r9, memory; st.shared.u32 [%r9+-4], 1;", "byte -4 of shared memory is out of bounds"),
    "beyond_global": ("st.global.u32 [%mine+4], %t;", "byte 256 of out is out of bounds: it has 256"),
    "misaligned": ("st.global.u32 [%mine+2], %t;", "misaligned: expected a multiple of 4"),
    "misaligned_vector": ("st.global.v4.u32 [%mine], {%t, %t, %t, %t};", "misaligned: expected a multiple of 16"),
    "written_input": ("st.global.u32 [%given], 1;", "given is written"),
    "copy_not_waited_for": (
        "mov.u32 %r9, memory; mad.lo.u32 %r8, %t, 4, %r9; mad.wide.u32 %d1, %t, 4, %given;"
        "cp.async.ca.shared.global [%r8], [%d1], 4; cp.async.commit_group; bar.sync 0; ld.shared.u32 %r1, [%r8];",
        "read while a copy to it is not waited for",
    ),
    "copy_over_what_is_read": (
        STORE + "bar.sync 0;" + NEXT.format(33) + "cp.async.ca.shared.global [%r8], [%given], 4;",
        "race: it writes what thread .* read",
    ),
    "missed_barrier": ("setp.lt.u32 %p1, %t, 9; @%p1 bra $end; bar.sync 0, 64;\n$end:\nmov.u32 %r1, 0;", "waits at a barrier"),
    "missing_lane": (
        "setp.eq.u32 %p1, %t, 9; @%p1 bra $end; shfl.sync.idx.b32 %r1, %t, 9, 31, -1;\n$end:\nmov.u32 %r1, 0;",
        "waits for lanes of its warp",
    ),
    "lane_that_takes_no_part": (
        "setp.eq.u32 %p1, %t, 9; @%p1 bra $end; shfl.sync.idx.b32 %r1, %t, 9, 31, 0xfffffdff;\n$end:\nmov.u32 %r1, 0;",
        "lane 9 is asked for",
    ),
    "beyond_a_parameter": ("mov.b64 %d1, kernel_param_1; ld.param.u32 %r1, [%d1+8];", "no parameter has 4 bytes at"),
    "several_parameters": (
        "mov.b64 %d1, kernel_param_1; setp.eq.u32 %p1, %t, 0; @%p1 add.s64 %d1, %d1, 4; ld.param.u32 %r1, [%d1];",
        "at several places",
    ),
    "unknown": ("add.sat.s32 %r1, %t, 1;", "'add.sat.s32 %r1, %t, 1' is not known"),
    "local": (".local .align 4 .b8 stack[4]; mov.u32 %r1, 0;", "no local memory is expected"),
    "endless": ("\n$here:\nadd.u32 %r1, %r1, 1; bra $here;", "does not end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(ptx.machine, "_MOST_BLOCKS", 1000)
    body, message = FAULTS[fault]
    with pytest.raises(ptx.PtxError, match=message):
        run(body, np.zeros(THREADS, np.uint32), shared=256)


@pytest.mark.parametrize(
    "body",
    [
        "setp.eq.u32 %p1, %t, 0; @%p1 st.global.u32 [%out], 1;",
        "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%mine], 1; @!%p1 ld.global.u32 %r2, [%mine];",
    ],
    ids=["both_write", "one_reads"],
)
@pytest.mark.parametrize("together", [64, 4096])
def test_race_of_blocks_is_found(body, together, monkeypatch):
    """Whether they run at once or one after another."""
    monkeypatch.setattr(ptx.machine, "_TOGETHER", together)
    with pytest.raises(ptx.PtxError, match="race: it (writes|reads) what thread .* of block [01] wrote"):
        run(body, blocks=2)
