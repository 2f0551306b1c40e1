"""Faults planted in PTX."""

import re
from collections.abc import Callable

import pytest

from . import compilers
from .parser import PtxError

Edit = Callable[[str, str], str]

# What a kernel can be without, by what it is.
BARRIER, WARP_BARRIER, WAIT = r"bar\.sync[^;]*;", r"bar\.warp\.sync[^;]*;", r"cp\.async\.wait_group[^;]*;"


def editing(kernel: str, pattern: str, replacement: str, place: int | None = 0) -> Edit:
    """Puts something else for one match of a pattern, or for all where the place is None, in the PTX of a kernel by its key."""

    def edit(name: str, text: str) -> str:
        if name != kernel:
            return text
        start, end = _span(name, text)
        body = text[start:end]
        found = list(re.finditer(pattern, body))
        assert found, f"{kernel}: nothing in its PTX is {pattern}"
        for match in reversed(found if place is None else [found[place]]):
            body = body[: match.start()] + match.expand(replacement) + body[match.end() :]
        return text[:start] + body + text[end:]

    return edit


def assert_needed(kernel: str, pattern: str, run: Callable[[Edit], object], unnoticed: int = 0, every: bool = True) -> None:
    """Each match of a pattern in a kernel's PTX is left out by itself, and the interpreter notices, but for so many at most.

    Args:
        run: calls what launches the kernel, with an edit of its PTX.
        unnoticed: barriers that have another right behind them, or that these calls do not need.
        every: False looks for one only, among as many as must have one.
    """
    text = compilers.compiled_with(kernel)
    start, end = _span(kernel, text)
    body = text[start:end]
    matches = list(re.finditer(pattern, body))
    assert len(matches) > unnoticed, f"{kernel}: expected more than {unnoticed} of {pattern} in its PTX, got {len(matches)}"
    # From the middle on, where most of the work is.
    places = sorted(range(len(matches)), key=lambda place: abs(2 * place - len(matches)))
    missed = []
    for place in places if every else places[: unnoticed + 1]:
        try:
            run(editing(kernel, pattern, "", place))
        except PtxError as error:
            assert re.search("race|never written|not waited for", str(error)), error
            if not every:
                return
        else:
            missed.append(place)
    if every and len(missed) <= unnoticed:
        return
    shown = [f"number {place}:\n{body[: matches[place].end()][-300:]}\n  <- left out" for place in sorted(missed)]
    pytest.fail(
        f"{kernel}: {len(missed)} of {len(matches)} {pattern} can be left out one by one and nothing is noticed, where "
        f"{unnoticed} at most should be. Either they are not needed, or no call here needs them.\n" + "\n".join(shown)
    )


def _span(name: str, text: str) -> tuple[int, int]:
    """Where a kernel's body lies in a file's PTX."""
    start = text.index(f".entry {compilers.names_in(text)[name]}(")
    return start, text.index("\n}", start)
