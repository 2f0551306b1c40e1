"""Links of README and docs lead somewhere, and their Python code runs; tests/caan/test_documented_commands.py has the commands."""

import re

import cases
import pytest
import torch
from documented import DOCUMENTS, ROOT, code_blocks, name_of

# What runs the code of these, and words that it has. The first needs a run and a gallery. The other needs a build, and a package
# that is in no extra: it is a stage of tools/release_check.sh.
ELSEWHERE = {
    "docs/python.md": ("tests/caan/test_api.py", '"docs" / "python.md"'),
    "docs/hub-kernel.md": ("tools/try_kernel.py", "get_local_kernel("),
}

pytestmark = pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")


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


def blocks():
    for document in (document for document in DOCUMENTS if name_of(document) not in ELSEWHERE):
        for place, code in enumerate(code_blocks(document)):
            yield pytest.param(code, id=f"{name_of(document)}-{place}")


def test_code_that_runs_elsewhere():
    for document, (file, words) in ELSEWHERE.items():
        assert code_blocks(ROOT / document) and words in (ROOT / file).read_text()


@pytest.mark.parametrize("code", list(blocks()))
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "code", "exec"), {"__name__": "__main__"})
