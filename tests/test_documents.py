"""What README and docs show can be typed: commands are understood, programs and links are there, Python code runs."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cases
import pytest
import torch

from caan.commands import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The first needs a run and a gallery, which tests/caan/test_api.py has; the other a package that is in no extra.
ELSEWHERE = ("docs/python.md", "docs/hub-kernel.md")
COMMANDS = ("demo", "evaluate", "extract", "index", "search", "show", "train")

pytestmark = pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def shell_lines(document: Path):
    """Indented lines and those of fenced blocks without Python, without comments."""
    text = re.sub(r"```python\n.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        if line.startswith("    ") or line.startswith(("caan ", "python ")):
            yield re.sub(r"\s+#\s.*", "", line.strip())


def typed(word: str):
    """(document, arguments after it) of every command that begins with a program, whatever stands before it."""
    for document in DOCUMENTS:
        for line in shell_lines(document):
            for part in line.split("&&"):
                if match := re.match(rf"(?:\S+=\S+ |torchrun .*-m |\S*/)*{word} (.*)", part.strip()):
                    yield name_of(document), match[1].strip()


# Two spaces are between a command and what a table of commands says of it.
CAAN = [(place, line) for place, line in typed("caan") if "  " not in line]
PYTHON = list(typed("python"))


def test_there_are_commands():
    assert len(CAAN) > 20 and len(PYTHON) > 5
    assert {line.split()[0] for _, line in CAAN} == set(COMMANDS)


@pytest.mark.parametrize(("place", "line"), CAAN, ids=lambda x: str(x))
def test_a_command_is_understood(place, line, monkeypatch):
    """Its options are there, and take what is given."""
    module, seen = import_module(f"caan.commands.{line.split()[0]}"), []
    monkeypatch.setattr(module, "run", lambda arguments: seen.append(arguments) or 0)
    assert main(shlex.split(line)) == 0
    assert seen


@pytest.mark.parametrize(("place", "line"), PYTHON, ids=lambda x: str(x))
def test_a_program_is_there_and_has_the_options(place, line):
    words = shlex.split(line)
    if words[0] == "-m":
        assert words[1] in ("pytest", "caan", "build", "mkdocs", "pip", "venv")
        files = [word for word in words[2:] if word.startswith("tests/")]
    else:
        files = words[:1]
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        if options:
            told = subprocess.run([sys.executable, ROOT / files[0], "--help"], capture_output=True, text=True, cwd=ROOT)
            assert all(option in told.stdout for option in options), told.stdout + told.stderr
    for file in files:
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def code_blocks():
    for document in (document for document in DOCUMENTS if name_of(document) not in ELSEWHERE):
        for place, code in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(code, id=f"{name_of(document)}-{place}")


@pytest.mark.parametrize("code", list(code_blocks()))
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "code", "exec"), {"__name__": "__main__"})
