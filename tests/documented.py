"""The commands and the Python code that README and docs show."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PROGRAM = re.compile(r"(?:\w+=(?:\$\([^)]*\)|\S+) )*(?:bash|caan|mkdocs|pip|python|torchrun|uv) ")


class Command(NamedTuple):
    """One command.

    Attributes:
        document: its name, from the repository.
        line: as it is typed, without the folder of the program.
    """

    document: str
    line: str


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def commands() -> Iterator[Command]:
    """The commands of indented lines and fenced blocks, those of a line with && one by one."""
    for document in DOCUMENTS:
        text = re.sub(r"```python\n.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        text = re.sub(r"^```\w*\n(.*?)```", _indented, text, flags=re.DOTALL | re.MULTILINE)
        for line in re.sub(r" *\\\n\s*", " ", text).splitlines():
            if not line.startswith("    "):
                continue
            for part in re.sub(r"\s+#\s.*", "", line).split("&&"):
                command = part.strip().removeprefix(".venv/bin/")
                # Two spaces are between a command and what a table of commands says of it.
                if _PROGRAM.match(command) and "  " not in command:
                    yield Command(name_of(document), command)


def code_blocks(document: Path) -> list[str]:
    """The Python code of fenced blocks."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def _indented(block: re.Match) -> str:
    return re.sub("^", "    ", block[1], flags=re.MULTILINE)
