"""For mkdocs.yml: pages link to files of the repository, which the site does not have. There these are paths in plain text."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """A page's text, with paths in place of links that leave docs/; one that leads nowhere stays, and the build warns of it."""

    def replace(link: re.Match) -> str:
        text, target = link.groups()
        if not (ROOT / target).exists():
            return link[0]
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    return _OUTSIDE.sub(replace, markdown)
