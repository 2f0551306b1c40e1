"""Templates, and images as text inside a page."""

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

from ..files import replacing

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: str | Path, template: str, **values: object) -> None:
    """Fill a template and write it, whole or not at all; all text is escaped."""
    text = _TEMPLATES.get_template(template).render(values)
    with replacing(path) as unfinished:
        # Names of folders need not be text.
        unfinished.write_text(text, encoding="utf-8", errors="replace")


def embedded(image: Image.Image, kind: str) -> str:
    """An image as the URL that holds it; kind is "jpeg" or "png"."""
    data = io.BytesIO()
    image.save(data, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
