"""Kernels of a few instructions, for tests of the interpreter itself."""

import numpy as np

from .machine import run as _run
from .memory import Buffer, GlobalMemory
from .parser import parse
from .program import Program

THREADS = 64
OUT, GIVEN, TURNS = 0x10000, 0x20000, 0x30000


def run(body, given=None, *, blocks=1, threads=THREADS, shared=0, out=4 * THREADS):
    """Run a body and return `out`.

    The body finds the address of `out` in %out, that of `given` in %given, the thread in %t and its place in `out` in %mine. `out`
    has so many bytes and holds nothing at the start; `given` is only read. %turns has the address of two numbers of 32 bits, 0 at
    the start.
    """
    text = f"""
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1, .param .u64 kernel_param_2)
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<40>;
    .reg .f32 %f<40>;
    .reg .b64 %d<9>;
    .reg .b64 %out, %given, %turns, %mine;
    .reg .b32 %t;
    ld.param.u64 %out, [kernel_param_0];
    ld.param.u64 %given, [kernel_param_1];
    ld.param.u64 %turns, [kernel_param_2];
    mov.u32 %t, %tid.x;
    mad.wide.u32 %mine, %t, 4, %out;
    {body}
    ret;
}}
"""
    program = Program(parse(text, "kernel"))
    found = np.zeros(out, np.uint8)
    buffers = [Buffer("out", OUT, found, np.zeros(out, bool), True)]
    buffers.append(Buffer("turns", TURNS, np.zeros(8, np.uint8), None, True))
    if given is not None:
        buffers.append(Buffer("given", GIVEN, np.ascontiguousarray(given).view(np.uint8).ravel(), None, False))
    memory = GlobalMemory(buffers, program.unit("global"), threads)
    parameters = {f"kernel_param_{i}": x.to_bytes(8, "little") for i, x in enumerate((OUT, GIVEN, TURNS))}
    _run(program, blocks, threads, shared, parameters, memory)
    memory.leave()
    return found.view(np.uint32)
