"""What torch.compile is told of functions that it must not trace."""

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)


def constant_while_traced(function: _Function) -> _Function:
    """Have torch.compile call a function while it traces, and keep what it returns: for what does not change in a process.

    It is what `torch.compiler.assume_constant_result` does, which imports all of the compiler for it: 1.5 seconds that
    a process which compiles nothing need not wait.
    """
    function._dynamo_marked_constant = True
    return function
