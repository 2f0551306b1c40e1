"""What Triton compiles a kernel for when it is launched, by Triton's own launcher; no GPU need be here."""

from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

# Of the architectures that kernels run on, all specialise alike.
_BACKEND = make_backend(GPUTarget("cuda", 80, 32))


class Specialised(NamedTuple):
    """A kernel as a launch wants it.

    Attributes:
        signature: type of each parameter, "constexpr" for one whose value is compiled in.
        constants: those values, by name.
        attributes: what is known of other parameters, by place: which of them are multiples of 16.
        options: of the compiler.
    """

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list]
    options: dict[str, Any]


def specialised(kernel: JITFunction, arguments: tuple, named: dict[str, Any]) -> Specialised:
    """Of `kernel[grid](*arguments, **named)`."""
    bind = create_function_from_signature(kernel.signature, kernel.params, _BACKEND)
    values, found, options = bind(*arguments, **named)
    signature = dict(zip(values, (kind for kind, _ in found), strict=True))
    constants = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
    known = {(place,): _BACKEND.parse_attr(x) for place, (kind, x) in enumerate(found) if kind != "constexpr" and x}
    return Specialised(signature, constants, {place: x for place, x in known.items() if x}, options)
