"""Triton's interpreter without most of its own work, none of which is of a test."""

import functools
import inspect
import math

import pytest
from triton import language
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def _languages(patch: pytest.MonkeyPatch) -> None:
    """At each call of a function within a kernel it goes through all of Triton's language, although the kernel's own start has done
    so."""
    prepare = interpreter._patch_lang

    @functools.cache
    def languages(function):
        return [x for x in function.__globals__.values() if inspect.ismodule(x) and x in (language, core)]

    def prepared(function):
        used = languages(function)
        if used and not any(core.is_builtin(x.load) for x in used):
            return interpreter._LangPatchScope()
        return prepare(function)

    patch.setattr(interpreter, "_patch_lang", prepared)


def _dtypes(patch: pytest.MonkeyPatch) -> None:
    """For each value it makes a table of dtypes."""
    dtype_of = interpreter._get_np_dtype
    known = {x.name: dtype_of(x) for x in (language.int1, language.int32, language.int64, language.float16, language.float32)}.get
    patch.setattr(interpreter, "_get_np_dtype", lambda kind: known(kind.scalar.name) or dtype_of(kind))


def _shapes(patch: pytest.MonkeyPatch) -> None:
    """For each value it checks its shape and wraps every size; for each sum of two, it compares shapes size by size."""
    check, broadcast = core.block_type.__init__, TritonSemantic.broadcast_impl_value
    checked: dict[tuple[int, ...], tuple] = {}

    def make_block(self, element_ty, shape):
        values = shape.values if isinstance(shape, core.tuple) else shape
        sizes = tuple([x.value if isinstance(x, core.constexpr) else x for x in values])
        if sizes in checked:
            self.element_ty, (self.shape, self.numel, text) = element_ty, checked[sizes]
            self.name = f"<{text}, {element_ty}>"
        else:
            check(self, element_ty, shape)
            checked[sizes] = self.shape, self.numel, str(self.shape)

    @functools.cache
    def wrapped(*sizes):
        return core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(x) for x in sizes])

    def make_tensor(self, handle, type):
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = wrapped(*type.shape.values) if type.is_block() else wrapped()

    def broadcast_other_shapes(self, left, right):
        of_blocks = left.type.is_block(), right.type.is_block()
        if not any(of_blocks) or (all(of_blocks) and left.type.shape.values == right.type.shape.values):
            return left, right
        return broadcast(self, left, right)

    patch.setattr(core.block_type, "__init__", make_block)
    patch.setattr(core.tensor, "__init__", make_tensor)
    patch.setattr(TritonSemantic, "broadcast_impl_value", broadcast_other_shapes)


def install(patch: pytest.MonkeyPatch) -> None:
    _languages(patch)
    _dtypes(patch)
    _shapes(patch)
    # It computes whether whole numbers overflow, to say so nowhere but in its debug mode.
    patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))
