import shutil
import time
from types import SimpleNamespace

import pytest
from documents import replace_between
from floor import Rates
from measure import MIB, Neighbours, median, spread
from render_readme import BEGIN, END, RESULTS, ROOT, newest, render, summary, write
from report import GPU_HEADINGS, HEADINGS, Report, fill_ratios, markdown_table, plot, table_cells, text_table
from reports import full_report, row


def cell(rows, line, heading):
    return table_cells(rows)[line][HEADINGS.index(heading)]


def test_ratios_are_of_rates():
    rows = [row("cpu", pairs=60, shape="4 x 15"), row("reference", seconds=2.0), row("caption loop")]
    fill_ratios(rows)
    assert rows[0].ratios == {"reference": pytest.approx(20), "caption loop": pytest.approx(10)}
    assert [cell(rows, 0, f"vs {baseline}") for baseline in ("reference", "loop", "compiled")] == ["20.0x", "10.0x", "-"]


@pytest.mark.parametrize("wrong", ["cpu", "reference"])
def test_no_ratio_while_results_disagree(wrong):
    rows = [row(name, error=3e-6 if name == wrong else 1e-7) for name in ("cpu", "reference")]
    fill_ratios(rows)
    assert cell(rows, 0, "vs reference") == "disagrees"


def test_a_gradient_that_disagrees_is_enough():
    one = row("cpu")
    one.errors["gradients"], one.tolerances["gradients"] = float("inf"), 1e-5
    assert not one.agrees


def test_the_same_shape_is_compared_apart():
    rows = [
        row("cpu", seconds=1.0, pairs=60, shape="4 x 15"),
        row("cpu", seconds=0.5, shadow=True),
        row("reference", seconds=2.0),
    ]
    fill_ratios(rows)
    assert rows[0].ratios["reference"] == pytest.approx(20)
    assert rows[0].same_shape_ratios["reference"] == pytest.approx(4)
    assert len(table_cells(rows)) == 2


def test_ratios_stay_inside_a_workload():
    rows = [row("cpu", workload="a"), row("reference", workload="b")]
    fill_ratios(rows)
    assert rows[0].ratios == {}


def test_tables_name_a_workload_once():
    rows = [row("cpu"), row("reference"), row("cpu", workload="next")]
    fill_ratios(rows)
    assert [line[0] for line in table_cells(rows)] == ["w", "", "next"]
    text = text_table(rows).splitlines()
    assert len(text) == 5
    assert len({len(line.split()) for line in text[2:4]}) == 2
    markdown = markdown_table(rows).splitlines()
    assert len(markdown) == 5
    assert all(line.count("|") == len(HEADINGS) + 1 for line in markdown)


def test_what_could_not_be_measured_is_a_dash():
    one = row("cpu")
    one.extra_bytes, one.spread = None, None
    assert cell([one], 0, "extra MiB") == cell([one], 0, "spread") == "-"


def test_a_gpus_table_has_nanoseconds():
    rows = [row("cpu", seconds=6 * 40e-9)]
    assert table_cells(rows, gpu=True)[0][GPU_HEADINGS.index("ns/pair")] == "40.0"
    assert [cell for cell in table_cells(rows, gpu=True)[0] if cell != "40.0"] == table_cells(rows)[0]
    assert all(line.count("|") == len(GPU_HEADINGS) + 1 for line in markdown_table(rows, gpu=True).splitlines())
    report = full_report()
    assert "ns/pair" not in report.text()
    report.header["multiprocessors"] = 132
    assert "ns/pair" in report.text()


@pytest.mark.parametrize(
    ("errors", "left_out", "text"),
    [
        ({"scores": 2e-7}, {"scores": 0}, "2.0e-07 (0)"),
        ({"scores": 2e-7, "gradients": 1e-6}, {"scores": 0, "gradients": 3}, "1.0e-06 grad (3)"),
        ({"rms": 1e-3, "p99": 4e-3}, {"rms": 0, "p99": 0}, "4.0e-03 99% (0)"),
    ],
)
def test_the_largest_error_with_what_it_leaves_out(errors, left_out, text):
    one = row("cpu")
    one.errors, one.left_out = errors, left_out
    assert cell([one], 0, "max error (left out)") == text


def test_shares_are_of_the_fastest_rates_seen_until_now():
    report = full_report()
    for flops, percent in ((1e11, 3.2), (2e11, 1.7)):
        best = Rates(flops, 1e9, 1e10)
        report.see_rates(SimpleNamespace(best=best, matrix_name="torch.mm", tanh_name="torch.tanh", read_name="torch.sum"))
        assert report.rows[0].floor_percent == pytest.approx(percent)
        assert report.floor["flops_per_second"] == flops


def test_neighbours_take_between_nothing_and_everything():
    neighbours = Neighbours()
    deadline = time.perf_counter() + 0.1
    while time.perf_counter() < deadline:
        pass
    share = neighbours.share()
    assert share is None or 0 <= share <= 1


def test_json_round_trip(tmp_path):
    report = full_report()
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report
    (tmp_path / "other.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="schema"):
        Report.load(tmp_path / "other.json")


def test_readme_is_replaced_between_its_markers_only():
    old = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = replace_between(old, render(full_report()), BEGIN, END)
    assert new.startswith(f"before\n{BEGIN}\n| workload")
    assert new.endswith(f"{END}\nafter\n")
    assert "old" not in new
    assert all(word in new for word in ("a CPU", "commit abc", "2026-01-02", "a note"))
    assert replace_between(new, render(full_report()), BEGIN, END) == new


def test_documents_are_what_the_committed_results_give(tmp_path):
    names = ("README.md", "docs/benchmarks.md")
    (tmp_path / "docs").mkdir()
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    write(Report.parsed(newest(RESULTS, "cpu_*.json"), "cpu_*.json"), newest(RESULTS, "cuda_*.json"), tmp_path)
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


def test_the_summary_leaves_out_what_disagrees():
    report = full_report()
    for each in report.rows:
        each.workload = "coco-5k"
    lines = summary(report, None).splitlines()
    assert lines[0] == "|  | COCO, H = 1024 | COCO, H = 64 | training step, B = 64 | memory of that step |"
    ours = max(each.rate for each in report.rows if each.ours and each.agrees)
    assert lines[2] == f"| **caan_kernels** | **{ours:,.0f}** | **-** | **-** | **-** |"
    for each in report.rows:
        each.errors = dict.fromkeys(each.errors, 1.0)
    assert [line.split("|")[2].strip(" *") for line in summary(report, None).splitlines()[2:6]] == ["-"] * 4


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_an_error(text):
    with pytest.raises(ValueError, match="once each"):
        replace_between(text, "x", BEGIN, END)


def test_median_and_spread():
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    assert spread([1.0, 2.0, 3.0]) == 1.0
    assert spread([1.0]) is None


def test_the_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    report = full_report()
    for name in ("cpu", "reference"):
        for kind in ("training step", "forward"):
            report.scaling += [
                {"implementation": name, "kind": kind, "pairs": n, "seconds": n / 10, "bytes": n * MIB} for n in (16, 64)
            ]
    report.eager_limit = {"batch": 160, "pairs": 25600, "bytes": 20 << 30, "free_bytes": 16 << 30}
    plot(report, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
