"""Typed records of an operator's arguments: packed once, at the interface, and passed on whole.

A record is a NamedTuple of `Tensor`, `Tensor | None`, `Written`, `bool`, `int` and `str` fields, and of other records. torch's
dispatcher takes its values flat, in the order of the fields; `schema` writes what it is told of them.
"""

import functools
import operator
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

# A tensor that the operator writes into.
Written = Annotated[Tensor, "written"]

_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", int: "int", str: "str"}


class Items(NamedTuple):
    """Regions or words.

    Attributes:
        features: (B, L, D).
        lengths: (B,) or None: all L.
    """

    features: Tensor
    lengths: Tensor | None


def schema(kind: type[tuple]) -> str:
    """The arguments of an operator that takes such a record.

    They are named as the fields; where two would have one name, that of the record's own field comes before it.
    """
    letters, parts = iter(string.ascii_lowercase), []
    leaves = list(_leaves(kind))
    count = Counter(path[-1] for path, _ in leaves)
    for path, of in leaves:
        name = "_".join(path) if count[path[-1]] > 1 else path[-1]
        parts.append(f"Tensor({next(letters)}!) {name}" if of is Written else f"{_TYPES[of]} {name}")
    return ", ".join(parts)


def flatten(record: tuple) -> list[Any]:
    """The values of a record, as the dispatcher takes them."""
    if not torch.compiler.is_compiling():
        return list(_values(type(record))(record))
    # What torch.compile traces cannot look at type hints.
    values: list[Any] = []
    for value in record:
        values += flatten(value) if isinstance(value, tuple) else [value]
    return values


@functools.cache
def _values(kind: type[tuple]) -> Callable[[tuple], tuple[Any, ...]]:
    paths = [".".join(path) for path, _ in _leaves(kind)]
    return operator.attrgetter(*paths) if len(paths) > 1 else tuple


class Layout(NamedTuple):
    """How a record's values lie one behind the other.

    Attributes:
        kind: the record's type.
        parts: of each field its layout, None for one that is no record, and where among the values it begins and ends.
        plain: no field is a record.
    """

    kind: type[tuple]
    parts: "tuple[tuple[Layout | None, int, int], ...]"
    plain: bool


@functools.cache
def layout(kind: type[tuple]) -> Layout:
    """Of a type of record."""
    parts, start = [], 0
    for of in _fields(kind).values():
        part = layout(of) if _is_record(of) else None
        stop = start + (1 if part is None else part.parts[-1][2])
        parts.append((part, start, stop))
        start = stop
    return Layout(kind, tuple(parts), all(part is None for part, _, _ in parts))


def unflatten(found: Layout, values: Sequence[Any]) -> Any:
    """The record of these values."""
    if found.plain:
        return found.kind(*values)
    return found.kind(
        *[values[start] if part is None else unflatten(part, values[start:stop]) for part, start, stop in found.parts]
    )


def _leaves(kind: type[tuple], outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, of in _fields(kind).items():
        if _is_record(of):
            yield from _leaves(of, (*outer, name))
        else:
            yield (*outer, name), of


def _fields(kind: type[tuple]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _is_record(of: Any) -> bool:
    return isinstance(of, type) and issubclass(of, tuple)
