"""The package's own launches of Triton kernels on CPU tensors, as launches of the PTX that Triton makes for sm_80."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import triton
from specialisation import specialised
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from caan_kernels.core import triton as backend

from .machine import run
from .memory import GlobalMemory
from .parser import parse
from .program import Program
from .tensors import buffers_of

_TARGET = GPUTarget("cuda", 80, 32)


def kernels_of(module) -> dict[str, triton.runtime.jit.JITFunction]:
    """The kernels that a module launches, by name."""
    return {name: x for name, x in vars(module).items() if isinstance(x, triton.runtime.jit.JITFunction)}


@contextmanager
def interpreted(module, edit: Callable[[str, str], str] | None = None) -> Iterator[list[str]]:
    """Every Triton kernel that a module launches inside runs as PTX; yields the names of those that ran, as they do.

    Args:
        module: where the kernels are launched by their names there.
        edit: (name of the kernel, its PTX) -> the PTX that runs instead.

    Raises:
        PtxError: a kernel did what it must not.
    """
    launched: list[str] = []
    replaced = {name: _Kernel(kernel, edit, launched) for name, kernel in kernels_of(module).items()}
    # The backend takes CPU tensors for a GPU's.
    usable = mock.patch.multiple(backend, missing=lambda: "", cannot_run=lambda device: "")
    with usable, mock.patch.multiple(module, **replaced):
        yield launched


class _Kernel:
    """Stands where a kernel stands."""

    def __init__(self, kernel, edit, launched: list[str]):
        self.kernel, self.edit, self.launched = kernel, edit, launched

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *arguments, **named: self._launch(grid[0], arguments, named)

    def _launch(self, blocks: int, arguments, named) -> None:
        signature, constants, attributes, options = specialised(self.kernel, arguments, named)
        program, threads, shared = _compiled(self.kernel, signature, constants, attributes, options, self.edit)
        self.launched.append(self.kernel.__name__)
        names = self.kernel.arg_names
        values = dict(zip(names, arguments, strict=False)) | named
        left = [(name, values[name]) for name in names if signature[name] != "constexpr"]
        parameters = {}
        for place, (name, size) in enumerate(program.kernel.parameters):
            # After the kernel's own there are pointers to memory of Triton's, which these kernels do not ask for.
            value = left[place][1] if place < len(left) else 0
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            parameters[name] = int(number).to_bytes(size, "little", signed=number < 0)
        memory = GlobalMemory(buffers_of((name, x, True) for name, x in left), program.unit("global"), threads, replicated=True)
        run(program, blocks, threads, shared, parameters, memory)
        memory.leave()


def _without_machine_code(backend=None, stages=None, *_):
    """Triton's hook for its stages; without arguments it is asked what tells what it makes from what others do."""
    if stages is None:
        return "ptx", "ptx"
    stages["cubin"] = lambda ptx, metadata: b""


_programs: dict[str, tuple[Program, int, int]] = {}


def _compiled(kernel, signature, constants, attributes, options, edit) -> tuple[Program, int, int]:
    """The program, its threads and its bytes of shared memory."""
    name = kernel.__name__
    key = repr((name, signature, constants, attributes, options))
    if edit is None and key in _programs:
        return _programs[key]
    with mock.patch.object(triton.knobs.runtime, "add_stages_inspection_hook", _without_machine_code):
        made = triton.compile(ASTSource(kernel, signature, constants, attributes), target=_TARGET, options=options)
    text = made.asm["ptx"] if edit is None else edit(name, made.asm["ptx"])
    found = Program(parse(text, name)), 32 * made.metadata.num_warps, made.metadata.shared
    if edit is None:
        _programs[key] = found
    return found
