"""Faults planted in PTX."""

import re
from collections.abc import Callable

from . import compilers


def editing(kernel: str, pattern: str, replacement: str, place: int | None = 0) -> Callable[[str, str], str]:
    """Puts something else for one match of a pattern, or for all where the place is None, in the PTX of a kernel by its key."""

    def edit(name: str, text: str) -> str:
        if name != kernel:
            return text
        start = text.index(f".entry {compilers.names_in(text)[name]}(")
        end = text.index("\n}", start)
        body = text[start:end]
        found = list(re.finditer(pattern, body))
        assert found, pattern
        for match in reversed(found if place is None else [found[place]]):
            body = body[: match.start()] + match.expand(replacement) + body[match.end() :]
        return text[:start] + body + text[end:]

    return edit
