"""A page around one picture: the picture inside, and its numbers as tables."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def write_figure_page(path: str | Path, title: str, lead: str, picture: bytes, tables: Sequence[Table]) -> None:
    """Write a page that one file holds.

    Args:
        path: the HTML file; it is replaced whole or not at all.
        title: the heading.
        lead: a line under it.
        picture: a PNG file.
        tables: the picture's numbers.

    Raises:
        OSError: the file cannot be written.
    """
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    write_page(path, "figure.html", title=title, lead=lead, picture=url, tables=tables, shown=_shown)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
