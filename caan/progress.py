"""A bar for work that is usually over at once."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
# In seconds; a shorter wait needs no bar.
_DELAY = 2.0


def watched(items: Iterable[_Item], what: str, unit: str) -> Iterable[_Item]:
    """The items, with a bar on stderr where they take longer than two seconds."""
    return tqdm(items, desc=what, unit=f" {unit}", delay=_DELAY, leave=False, dynamic_ncols=True)
