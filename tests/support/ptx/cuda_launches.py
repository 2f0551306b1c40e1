"""The package's own launches of CUDA C++ kernels, in a process with CAAN_CUDA_EMULATED, as launches of their PTX."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from . import compilers
from .machine import run
from .memory import Buffer, GlobalMemory
from .parser import parse
from .program import Program
from .tensors import buffers_of


class _Launch(ctypes.Structure):
    """`Launch` of csrc/core/cuda/emulator.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("blocks", "threads", "shared", "count")),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
    ]


_HOOK = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Launch))


@contextmanager
def interpreted(edit: Callable[[str, str], str] | None = None) -> Iterator[list[str]]:
    """Every CUDA C++ kernel that is launched inside runs as PTX; yields the names of those that ran, as they do.

    The tensors that an operator of the package is called with are what its kernel may access (tensors.py).

    Args:
        edit: (key of the kernel, its PTX's text) -> the text that runs instead.

    Raises:
        PtxError: a kernel did what it must not.
    """
    launched: list[str] = []
    state = _State(edit, launched)
    library = ctypes.CDLL(os.environ["CAAN_CUDA_EMULATED"])
    hook = ctypes.c_void_p.in_dll(library, "_ZN4caan4cuda9on_launchE")
    callback = _HOOK(lambda launch: state.take(launch.contents))
    called = torch._ops.OpOverloadPacket.__call__

    def call(packet, *arguments, **named):
        if not packet.__name__.startswith("cuda_"):
            return called(packet, *arguments, **named)
        state.buffers = _buffers(packet, arguments)
        result = called(packet, *arguments, **named)
        # Nothing can be raised through the C++ that called the hook.
        if state.error is not None:
            error, state.error = state.error, None
            raise error
        return result

    hook.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        with mock.patch.object(torch._ops.OpOverloadPacket, "__call__", call):
            yield launched
    finally:
        hook.value = None


class _State:
    """What a launch finds: memory, and programs that were made."""

    def __init__(self, edit, launched: list[str]):
        self.edit, self.launched = edit, launched
        self.buffers: list[Buffer] = []
        self.error: Exception | None = None

    def take(self, launch: _Launch) -> None:
        if self.error is not None:
            return
        try:
            self._run(launch)
        except Exception as error:
            self.error = error

    def _run(self, launch: _Launch) -> None:
        name = compilers.launched(launch.name.decode())
        program = program_of(name, self.edit)
        self.launched.append(name)
        values = [ctypes.string_at(launch.arguments[i], launch.sizes[i]) for i in range(launch.count)]
        names = [parameter for parameter, _ in program.kernel.parameters]
        memory = GlobalMemory(self.buffers, program.unit("global"), launch.threads)
        run(program, launch.blocks, launch.threads, launch.shared, dict(zip(names, values, strict=True)), memory)
        memory.leave()


_programs: dict[str, Program] = {}


def program_of(name: str, edit: Callable[[str, str], str] | None = None) -> Program:
    """A kernel, by its `compilers.key`."""
    if name not in _programs:
        text = compilers.compiled_with(name)
        _programs[name] = Program(parse(text, compilers.names_in(text)[name]))
    program = _programs[name]
    if edit is None:
        return program
    text = compilers.compiled_with(name)
    edited = edit(name, text)
    return program if edited == text else Program(parse(edited, program.name), program)


def _buffers(packet, arguments) -> list[Buffer]:
    """The memory of an operator's tensors; what may be written as its schema says."""
    schema = getattr(packet, packet.overloads()[0])._schema
    given = zip(schema.arguments, arguments, strict=True)
    return buffers_of((x.name, value, x.alias_info is not None and x.alias_info.is_write) for x, value in given)
