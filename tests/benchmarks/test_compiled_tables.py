"""What the documents say that the kernels compile to is what the committed reports have."""

import json

import compiled_tables
import pytest

TABLES = {"triton_compiled.json": "triton.md", "nvcc_compiled.json": "cuda.md"}


@pytest.mark.parametrize(("results", "document"), TABLES.items())
def test_documents_have_the_committed_results(results, document, tmp_path):
    committed = (compiled_tables.DOCUMENTS / document).read_text(encoding="utf-8")
    copy = tmp_path / document
    copy.write_text(committed, encoding="utf-8")
    compiled_tables.render(compiled_tables.RESULTS / results, copy)
    assert copy.read_text(encoding="utf-8") == committed
    assert compiled_tables.rendered(compiled_tables.RESULTS / results).count("\n| ") <= 41


@pytest.mark.parametrize("results", TABLES)
def test_a_row_is_a_line(results, tmp_path):
    committed, again = compiled_tables.RESULTS / results, tmp_path / results
    report = json.loads(committed.read_text(encoding="utf-8"))
    compiled_tables.write(report, again)
    assert again.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
    assert json.loads(again.read_text(encoding="utf-8")) == report
    assert again.read_text(encoding="utf-8").count("\n") == len(report) + len(report["kernels"]) + 3


def test_a_line_has_the_most_of_a_kernel(tmp_path):
    row = {"kernel": "add_kernel", "dtype": "float16", "architecture": "sm_80", "warps": 4, "registers": 28, "resident_warps": 64}
    row |= {"spilled_bytes": 0, "shared_bytes": 512, "tensor_instructions": 0}
    other = row | {"dtype": "bfloat16", "warps": 8, "registers": 40, "resident_warps": 40, "shared_bytes": 2048, "spilled_bytes": 8}
    newer = [x | {"architecture": "sm_90", "tensor_instructions": 4} for x in (row, other)]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"triton": "3.9.0", "date": "2026-01-01", "kernels": [row, other, *newer]}))
    line = "| add_kernel | bfloat16, float16 | 2 | 4-8 | 2 | 8 | 0-4 | 40, 40 | 40, 40 |"
    assert compiled_tables.rendered(results).splitlines()[2] == line
