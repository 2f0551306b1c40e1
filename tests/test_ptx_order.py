"""The interpreter of PTX (tests/support/ptx): blocks that wait for each other, and what orders their accesses."""

import numpy as np
import pytest
from support import ptx
from support.ptx.bodies import THREADS, run

# Six turns, of a block each. The first writes a row, four wait for it, read it and write rows of their own, and the last waits for
# those and writes over the first row.
TAKE_TURNS = """
    setp.ne.u32 %p1, %t, 0;
$again:
    @%p1 bra $taken;
    atom.global.add.u32 %r1, [%turns], 1;
    st.shared.u32 [memory], %r1;
$taken:
    bar.sync 0;
    ld.shared.u32 %r1, [memory];
    setp.gt.u32 %p2, %r1, 5;
    @%p2 bra $end;
    min.u32 %r2, %r1, 1;
    setp.eq.u32 %p3, %r1, 5;
    @%p3 mov.u32 %r2, 5;
    @%p1 bra $waited;
$wait:
    ld.acquire.gpu.global.u32 %r3, [%turns+4];
    setp.lt.u32 %p4, %r3, %r2;
    @%p4 bra $wait;
$waited:
    bar.sync 0; // waited
    mov.u32 %r4, %t;
    rem.u32 %r5, %r1, 5;
    setp.eq.u32 %p5, %r5, 0;
    @%p5 bra $write;
    sub.u32 %r6, 63, %t;
    mad.wide.u32 %d1, %r6, 4, %out;
    ld.global.u32 %r4, [%d1];
$write:
    add.u32 %r4, %r4, %r1;
    mad.lo.u32 %r5, %r5, 64, %t;
    mad.wide.u32 %d1, %r5, 4, %out;
    st.global.u32 [%d1], %r4;
    bar.sync 0; // written
    @%p1 bra $again;
    red.release.gpu.global.add.u32 [%turns+4], 1;
    bra.uni $again;
$end:
    mov.u32 %r7, 0;
"""
RELEASE, ACQUIRE = "red.release.gpu", "ld.acquire.gpu.global.u32 %r3, [%turns+4];"
END_OF_WAIT = "@%p4 bra $wait;"


def take_turns(**changes):
    """(5, 64) rows, of a body some parts of which are others."""
    body = TAKE_TURNS
    for old, new in changes.values():
        assert old in body
        body = body.replace(old, new)
    return run(body, blocks=8, shared=16, out=5 * 256).reshape(5, THREADS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"release": (RELEASE, "fence.acq_rel.gpu; red.relaxed.gpu")},
        {"release": (RELEASE, "membar.gl; red")},
        {"acquire": ("ld.acquire.gpu", "ld.relaxed.gpu"), "fence": (END_OF_WAIT, END_OF_WAIT + "fence.sc.gpu;")},
        {"acquire": ("ld.acquire.gpu", "ld.volatile"), "fence": (END_OF_WAIT, END_OF_WAIT + "membar.gl;")},
        {"acquire": (ACQUIRE, "atom.acquire.gpu.global.add.u32 %r3, [%turns+4], 0;")},
        {"spin": (END_OF_WAIT, "mov.u32 %r8, 200; nanosleep.u32 %r8; " + END_OF_WAIT)},
    ],
    ids=["acquire_and_release", "fence_before", "old_fence_before", "fence_after", "volatile", "atomic_wait", "sleep"],
)
@pytest.mark.parametrize("together", [64, 256, 4096])
def test_blocks_wait_for_turns(changes, together, monkeypatch):
    monkeypatch.setattr(ptx.machine, "_TOGETHER", together)
    t = np.arange(THREADS)
    assert np.array_equal(take_turns(**changes), [t + 5, *(63 - t + turn for turn in range(1, 5))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wait": (ACQUIRE, "mov.u32 %r3, 5;")}, "never written"),
        ({"count": ("mov.u32 %r2, 5;", "mov.u32 %r2, 1;")}, "race: it writes what thread .* of block . read"),
        ({"release": (RELEASE, "red.relaxed.gpu")}, "race: it reads what thread .* of block 0 wrote"),
        ({"release": (RELEASE, "red.release.cta")}, "race: it reads what thread .* of block 0 wrote"),
        ({"release": (RELEASE, "fence.acq_rel.cta; red.relaxed.gpu")}, "race: it reads what thread .* of block 0 wrote"),
        ({"acquire": ("ld.acquire.gpu", "ld.relaxed.gpu")}, "race: it reads what thread .* of block 0 wrote"),
        ({"barrier": ("bar.sync 0; // written", "")}, "race: it reads what thread .* of block 0 wrote"),
        ({"barrier": ("bar.sync 0; // waited", "")}, "race: it reads what thread .* of block 0 wrote|never written"),
        ({"acquire": (ACQUIRE, "ld.global.u32 %r3, [%turns+4];")}, "does not end"),
        (
            {"end": ("mov.u32 %r7, 0;", "ld.global.u32 %r7, [%turns];")},
            "accessed by strong instructions, .* and by others",
        ),
        ({"shared": ("atom.global.add.u32 %r1, [%turns]", "atom.shared.add.u32 %r1, [memory]")}, "is not known"),
    ],
    ids=[
        *("no_wait", "short_wait", "relaxed_add", "release_in_block", "fence_in_block", "relaxed_load"),
        *("no_barrier_before", "no_barrier_after", "plain_wait", "plain_load", "unknown"),
    ],
)
def test_missing_order_of_blocks_is_found(changes, message, monkeypatch):
    monkeypatch.setattr(ptx.machine, "_MOST_BLOCKS", 1000)
    with pytest.raises(ptx.PtxError, match=message):
        take_turns(**changes)


# Block 0 writes, blocks 1 and 2 wait for it and read at once, and block 3 writes again when so many of them are done as say it.
TWO_READERS = """
    mov.u32 %r1, %ctaid.x;
    setp.ne.u32 %p1, %t, 0;
    setp.eq.u32 %p2, %r1, 3;
    @%p2 bra $last;
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra $readers;
    st.global.u32 [%mine], %t;
    bar.sync 0;
    @%p1 bra $end;
    red.release.gpu.global.add.u32 [%turns], 1;
    bra.uni $end;
$readers:
    @%p1 bra $written;
$wait:
    ld.acquire.gpu.global.u32 %r2, [%turns];
    setp.eq.u32 %p3, %r2, 0;
    @%p3 bra $wait;
$written:
    bar.sync 0;
    ld.global.u32 %r3, [%mine];
    bar.sync 0;
    setp.lt.u32 %p4, %r1, FIRST_TO_SAY;
    @%p4 bra $end;
    @%p1 bra $end;
    red.release.gpu.global.add.u32 [%turns+4], 1;
    bra.uni $end;
$last:
    @%p1 bra $read;
$wait_for_readers:
    ld.acquire.gpu.global.u32 %r2, [%turns+4];
    setp.lt.u32 %p3, %r2, SAYING;
    @%p3 bra $wait_for_readers;
$read:
    bar.sync 0;
    st.global.u32 [%mine], 7;
$end:
    mov.u32 %r7, 0;
"""


def test_all_readers_are_waited_for():
    assert (run(TWO_READERS.replace("FIRST_TO_SAY", "1").replace("SAYING", "2"), blocks=4) == 7).all()
    with pytest.raises(ptx.PtxError, match="race: it writes what thread .* read, and others"):
        run(TWO_READERS.replace("FIRST_TO_SAY", "2").replace("SAYING", "1"), blocks=4)
