"""What is said on stderr while something runs."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

_Item = TypeVar("_Item")
# In seconds; a shorter wait needs no bar.
_DELAY = 2.0


def bar(items: Iterable[_Item] | None = None, *, shown: bool = True, **options: Any) -> "tqdm[_Item]":
    """A bar of tqdm on stderr, and none where stderr is no terminal: in a file its lines would run together.

    Args:
        items: gone through, each counted; None where the caller says `update`.
        shown: False has no bar anywhere.
        options: tqdm's.
    """
    # The model and the vocabulary do without what only the commands need.
    from tqdm import tqdm

    return tqdm(items, dynamic_ncols=True, disable=None if shown else True, **options)


def watched(items: Iterable[_Item], what: str, unit: str) -> Iterable[_Item]:
    """The items, with a bar where they take longer than two seconds."""
    return bar(items, desc=what, unit=f" {unit}", delay=_DELAY, leave=False)


def warn(line: str) -> None:
    """A line beside the bars."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
