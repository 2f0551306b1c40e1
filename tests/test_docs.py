"""The docs site: it builds without a warning, has every public name, and says what today's rules say."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import pytest

import caan
import caan_kernels as ck

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import support_matrix  # noqa: E402

once = pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")


@once
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not there: it comes with the extra docs")
def test_the_site(tmp_path):
    # As in tools/build_docs.sh. Never --quiet: what is not printed is not counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0 and "WARNING" not in run.stdout, run.stdout
    for package in (ck, caan):
        page = (tmp_path / "api" / package.__name__ / "index.html").read_text()
        headings = {name.rpartition(".")[2] for name in re.findall(r'<h2 id="([^"]*)"', page)}
        assert set(package.__all__) <= headings
    # What the pages ask other hosts for, a reader's browser would too.
    assert not re.search(r'<(link|script|img)[^>]* (src|href)="https?:', (tmp_path / "index.html").read_text())


@once
def test_a_page_has_one_name():
    """Its heading: mkdocs takes that where the navigation has no title, and the front page's links say the same."""
    assert re.findall(r"- (.+): \S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE) == ["Start"]
    for name, page in re.findall(r"\[([^]]+)\]\(([\w/-]+\.md)\)", (ROOT / "docs" / "index.md").read_text()):
        assert (ROOT / "docs" / page).read_text().startswith(f"# {name}\n"), page


@once
def test_the_support_matrix_is_of_todays_rules():
    assert support_matrix.PAGE.read_text() == support_matrix.page(), "python tools/support_matrix.py"


@once
def test_the_support_matrix_asks_the_backends(monkeypatch):
    monkeypatch.setitem(support_matrix.backends._operators["max_similarity"], "cpu", lambda **wanted: "it is out of order")
    text = support_matrix.page()
    assert "it is out of order" in text and text != support_matrix.PAGE.read_text()
