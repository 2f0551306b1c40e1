"""What is said on stderr while something runs."""

import sys
from collections.abc import Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
# In seconds; a shorter wait needs no bar.
_DELAY = 2.0


def watched(items: Iterable[_Item], what: str, unit: str) -> Iterable[_Item]:
    """The items, with a bar where they take longer than two seconds."""
    # The model and the vocabulary do without what only the commands need.
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=f" {unit}", delay=_DELAY, leave=False, dynamic_ncols=True)


def warn(line: str) -> None:
    """A line beside the bars."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
