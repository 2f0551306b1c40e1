"""PTX text as kernels: parameters, registers, shared variables and a list of instructions."""

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

# Bytes of each type; predicates have a register of their own kind.
SIZES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bsuf" for bits in (8, 16, 32, 64) if f"{kind}{bits}" != "f8"},
    "bf16": 2,
    "pred": 1,
}
# Directives that end with their line and say nothing of what a kernel computes.
_DEBUG = re.compile(r"^\s*\.(loc|file|pragma|section|maxntid|minnctapersm|reqntid|maxnreg|noreturn)\b[^\n]*$", re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{;]*\{")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_SHARED = re.compile(r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)\s*(?:\[(\d*)\])?\s*;")
# Before a kernel; those of other kernels' own are indented.
_OUTSIDE = re.compile(r"^(?:\.extern +)?\.shared[^;]*;", re.MULTILINE)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.(?:global|shared|align\s+\d+)\s+)*(\w+)(?:\[(\d+)\])?"
)
_LABEL = re.compile(r"([\w$]+):|[{}]")
_STATEMENT = re.compile(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)(?:\s+(.*))?")
# What stands between commas outside brackets and braces.
_OPERAND = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+")


class PtxError(Exception):
    """A fault of a kernel, or PTX that the interpreter does not know."""


class Shared(NamedTuple):
    """A variable in shared memory; one without a size is what a launch asks for."""

    name: str
    align: int
    size: int | None


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        text: as it stands in the PTX.
        operation: its name with all suffixes.
        rest: the text behind it.
        guard: the predicate register that it depends on, or None.
        negated: whether it runs where that is false.
    """

    text: str
    operation: str
    rest: str
    guard: str | None
    negated: bool

    @functools.cached_property
    def operands(self) -> tuple:
        """Registers, numbers and names; a tuple for a vector in braces, an `Address` for brackets."""
        return tuple(map(_operand, filter(None, map(str.strip, _OPERAND.findall(self.rest)))))


class Address(NamedTuple):
    """[base + offset]; the base is a register or a name."""

    base: str
    offset: int


@dataclass
class Kernel:
    """A kernel as parsed.

    Attributes:
        name: mangled, where the compiler mangles.
        parameters: name and bytes of each, in order.
        registers: type by name.
        shared: variables that it may name.
        instructions: in order.
        labels: place in `instructions` by name.
    """

    name: str
    parameters: list[tuple[str, int]] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    shared: list[Shared] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def entries(text: str) -> list[str]:
    """Names of the kernels."""
    return [entry[1] for entry in _ENTRY.finditer(text)]


def parse(text: str, name: str) -> Kernel:
    """A kernel by its name.

    Raises:
        PtxError: a statement that is not understood, or local memory: a spill, or an array that registers do not hold.
    """
    entry = next(x for x in _ENTRY.finditer(text) if x[1] == name)
    parameters = [(of, int(count or 1) * SIZES[kind]) for kind, of, count in _PARAMETER.findall(entry[2])]
    body = _DEBUG.sub("", _COMMENT.sub("", _braced(text, entry.end())))
    outside = "".join(_OUTSIDE.findall(text[: entry.start()]))
    kernel = Kernel(name, parameters, shared=_shared_variables(outside + body))
    _read_body(kernel, _SHARED.sub("", body))
    return kernel


def _braced(text: str, start: int) -> str:
    """What stands between an opening brace before `start` and the one that closes it."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    raise PtxError("a kernel's closing brace is missing")


def _shared_variables(text: str) -> list[Shared]:
    found = []
    for extern, align, kind, name, count in _SHARED.findall(text):
        found.append(Shared(name, int(align or SIZES[kind]), None if extern else int(count or 1) * SIZES[kind]))
    return found


def _read_body(kernel: Kernel, body: str) -> None:
    for piece in body.split(";"):
        statement = piece.strip()
        # Braces that begin a statement are a scope's: its registers have names that the kernel has only once.
        while label := _LABEL.match(statement):
            if label[1]:
                kernel.labels[label[1]] = len(kernel.instructions)
            statement = statement[label.end() :].strip()
        if statement.startswith(".reg"):
            _declare(kernel, statement)
        elif statement.startswith(".local"):
            raise PtxError(f"{kernel.name}: no local memory is expected: {statement}")
        elif statement:
            instruction = _instruction(" ".join(statement.split()))
            if instruction is None:
                raise PtxError(f"{kernel.name}: {statement!r} is not understood")
            kernel.instructions.append(instruction)


def _declare(kernel: Kernel, statement: str) -> None:
    match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
    for name in match[2].split(","):
        several = re.fullmatch(r"(.*)<(\d+)>", name.strip())
        names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name.strip()]
        kernel.registers.update(dict.fromkeys(names, match[1]))


# A kernel in which a fault is planted has the other instructions of the one without.
@functools.cache
def _instruction(text: str) -> Instruction | None:
    match = _STATEMENT.fullmatch(text)
    return match and Instruction(text, match[3], match[4] or "", match[2], match[1] == "!")


def _operand(text: str) -> str | tuple | Address:
    if text.startswith("{"):
        return tuple(x.strip() for x in text[1:-1].split(","))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(base, int(offset or "0", 0))
    return text
