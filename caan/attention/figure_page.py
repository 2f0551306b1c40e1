"""A page around one picture: the picture inside, and its numbers as tables."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .figures import to_png
from .rendering import write_page


@dataclass(frozen=True)
class Table:
    """Numbers of a picture.

    Attributes:
        title: what they are.
        heads: of the columns; the first is that of the rows' names.
        rows: as long as the heads; floats are shown with four significant digits, the rest as it is.
        open: shown at once, not only when its title is clicked.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    open: bool = True


def write_figure_page(path: str | Path, title: str, lead: str, draw: Callable[[], Figure], tables: Sequence[Table]) -> None:
    """Write a page that one file holds, light or dark as the reader's system is, its picture too.

    Args:
        path: the HTML file; it is replaced whole or not at all.
        title: the heading.
        lead: a line under it.
        draw: makes the picture; it is called for light colours and for dark ones.
        tables: the picture's numbers.

    Raises:
        OSError: the file cannot be written.
    """
    light, dark = (f"data:image/png;base64,{base64.b64encode(to_png(draw, dark)).decode()}" for dark in (False, True))
    write_page(path, "figure.html", title=title, lead=lead, light=light, dark=dark, tables=tables, shown=_shown)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
