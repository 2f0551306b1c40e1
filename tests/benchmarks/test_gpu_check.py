"""What needs no GPU of the program that checks one: stages are small programs here, or made up."""

import json
import re
import signal
import sys
import time

import gpu_check
import gpu_record
import gpu_sweep
import machine
import pytest
import torch
from gpu_check import judge_profile, judge_pytest, judge_sanitizer, pytest_counts
from gpu_profile import rows_of
from gpu_record import FAILED, NOT_RUN, OUT_OF_TIME, PASSED, Outcome, Record
from render_readme import ESTIMATE, REBUILT, UNMEASURED, newest, render_gpu
from reports import full_report

FACTS = {
    "device": "Example GPU",
    "compute_capability": "9.0",
    "multiprocessors": 100,
    "memory_bytes": 1 << 36,
    "driver": "1.2",
    "cuda": "13.0",
    "torch": "2.11.0",
    "triton": "3.6.0",
}


def python(program):
    return [sys.executable, "-c", program]


def plain(status, output):
    return Outcome(FAILED if status else PASSED, {"lines": len(output.splitlines())}, f"exit {status}" if status else "")


@pytest.fixture(autouse=True)
def interruptible():
    """As `gpu_check.main` has it: tests that are started in the background ignore interrupts, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(gpu_record, "GRACE", 2.0)


@pytest.fixture(autouse=True)
def logs(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    monkeypatch.setattr(gpu_record, "LOGS", folder)
    return folder


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "cuda_example.json", FACTS)


def stages(record):
    return json.loads(record.path.read_text())["stages"]


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("512 passed in 12.34s", {"passed": 512}),
        ("==== 3 failed, 10 passed, 2 skipped, 7 deselected, 1 warning in 75.01s (0:01:15) ====", {"failed": 3, "warning": 1}),
        (
            "1 passed, 2 errors in 0.10s\n(to show a full traceback on KeyboardInterrupt use --full-trace)",
            {"passed": 1, "error": 2},
        ),
        ("no tests ran in 0.01s", {}),
        ("ImportError: no module", {}),
    ],
)
def test_the_last_line_of_pytest(line, counts):
    found = pytest_counts(f"5 passed in nowhere\n{line}")
    assert counts.items() <= found.items()
    assert bool(found) == bool(counts)


@pytest.mark.parametrize(
    ("status", "output", "ending"),
    [
        (0, "9 passed, 1 skipped in 1.0s", PASSED),
        (1, "1 failed, 8 passed in 1.0s", FAILED),
        (5, "20 deselected in 1.0s", FAILED),
        (0, "20 skipped in 1.0s", FAILED),
    ],
)
def test_tests_pass_only_if_one_ran(status, output, ending):
    assert judge_pytest(status, output).status == ending


CLEAN = "========= COMPUTE-SANITIZER\nodd: done, 6 cases so far\nall 24 cases done\n========= ERROR SUMMARY: 0 errors\n"
RACES = "all 24 cases done\n========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 2 warnings)\n"


@pytest.mark.parametrize(
    ("status", "output", "ending", "reason"),
    [
        (0, CLEAN, PASSED, ""),
        (0, RACES.format(2, 0), PASSED, ""),
        (9, CLEAN.replace("0 errors", "3 errors"), FAILED, "3 errors"),
        (9, RACES.format(1, 1), FAILED, "1 errors"),
        (9, CLEAN.replace("0 errors", "1 error"), FAILED, "1 errors"),
        (1, CLEAN.replace("all 24 cases done", "AssertionError"), FAILED, "exit status 1"),
        (0, CLEAN.replace("all 24 cases done", ""), FAILED, "exit status 0"),
        (1, f"========= Error: Device not supported. See the list\n{CLEAN}", NOT_RUN, "Device not supported"),
        (0, "========= Error: No attachable process found. compute-sanitizer timed-out.\nall 24 cases done", NOT_RUN, "attachable"),
        (0, "all 24 cases done", NOT_RUN, "no summary"),
        (127, "", NOT_RUN, "no summary"),
        (None, CLEAN.replace("all 24 cases done", "KeyboardInterrupt"), NOT_RUN, "its end"),
        (None, CLEAN.replace("0 errors", "3 errors"), FAILED, "3 errors"),
    ],
)
def test_a_sanitizer_passes_only_with_a_clean_summary_of_all_cases(status, output, ending, reason):
    outcome = judge_sanitizer(status, output)
    assert outcome.status == ending
    assert reason in outcome.reason


def test_stages_are_kept_one_by_one(record, logs):
    record.run("first", python("print(1)"), 20, plain)
    assert stages(record)["first"]["status"] == PASSED
    assert "tail" not in stages(record)["first"]
    record.run("second", python("print('why'); raise SystemExit(3)"), 20, plain)
    assert list(stages(record)) == ["first", "second"]
    second = stages(record)["second"]
    assert (second["status"], second["counts"], second["reason"]) == (FAILED, {"lines": 1}, "exit 3")
    assert second["tail"] == ["why"]
    assert "why" in second["command"]
    assert json.loads(record.path.read_text())["device"] == "Example GPU"
    assert (logs / "second.log").read_text() == "why\n"


def test_a_program_that_is_not_there_was_not_run(record):
    assert record.run("absent", ["/nonexistent/program"], 20, plain).status == NOT_RUN
    assert "nonexistent" in stages(record)["absent"]["reason"]


def test_a_stage_without_time_is_interrupted_and_tells_what_it_had(record):
    program = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('3 passed in 1.0s')"
    outcome = record.run("slow", python(program), 3.5, judge_pytest)
    assert (outcome.status, outcome.counts) == (OUT_OF_TIME, {"passed": 3})
    assert record.run("next", python("print(1)"), 20, plain).status == PASSED
    assert [stage["status"] for stage in stages(record).values()] == [OUT_OF_TIME, PASSED]


def test_a_stage_that_ignores_the_interrupt_is_killed_with_its_children(record, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_record, "GRACE", 0.3)
    late = tmp_path / "late"
    child = f"import signal, time, pathlib; signal.signal({signal.SIGINT:d}, signal.SIG_IGN); "
    child += f"time.sleep(2.5); pathlib.Path({str(late)!r}).touch()"
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); exec({child!r})"
    start = time.monotonic()
    assert record.run("stubborn", python(program), 1.5, plain).status == OUT_OF_TIME
    time.sleep(max(0, start + 4 - time.monotonic()))
    assert not late.exists()


def test_no_stage_outlives_the_whole(tmp_path):
    record = Record(tmp_path / "r.json", FACTS, seconds=3.5)
    start = time.monotonic()
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    assert record.run("slow", python(stubborn), 100, plain).status == OUT_OF_TIME
    assert 3 < time.monotonic() - start < 5


def test_a_write_that_breaks_off_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    gpu_record.write_json(path, {"a": 1})

    def broken(*arguments):
        raise OSError("no more")

    monkeypatch.setattr(gpu_record.os, "replace", broken)
    with pytest.raises(OSError, match="no more"):
        gpu_record.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
    gpu_record.write_json(path, {"a": 3})
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_stages_compile_kernels_rather_than_interpret_them(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    made = gpu_record.environment()
    assert "TRITON_INTERPRET" not in made
    assert made["PYTHONPATH"].split(":") == [str(gpu_record.ROOT), "elsewhere"]


def test_the_hash_is_of_the_kernels_sources(tmp_path):
    kernel, header = tmp_path / "caan_kernels/context_attention/triton/tiles.py", tmp_path / "csrc/context_attention/cuda/pair.cuh"
    for path in (kernel, header):
        path.parent.mkdir(parents=True)
        path.write_text("one")
    seen = [machine.source_hash(tmp_path)]
    (tmp_path / "caan_kernels/other.py").write_text("x")
    assert machine.source_hash(tmp_path) == seen[0]
    for path, text in ((kernel, "two"), (header, "two"), (kernel.with_name("new.py"), "")):
        path.write_text(text)
        seen.append(machine.source_hash(tmp_path))
    header.rename(header.with_name("renamed.cuh"))
    seen.append(machine.source_hash(tmp_path))
    assert len(set(seen)) == 5


def test_what_nvidia_smi_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(machine.smi_facts("0").values()) == {"unknown"}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 3201 MHz, 700.00 W'\n")
    program.chmod(0o755)
    told = {"driver": "580.1", "max_sm_clock": "1980 MHz", "max_memory_clock": "3201 MHz", "power_limit": "700.00 W"}
    assert machine.smi_facts("0") == told
    program.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert set(machine.smi_facts("0").values()) == {"unknown"}


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--json", str(tmp_path / "r.json")]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_install_line_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "caan_kernels.py").write_text("raise ImportError('not built')")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.main(["--json", str(tmp_path / "r.json")]) == 2
    told = capsys.readouterr().err
    assert "not built" in told
    assert gpu_check.INSTALL in told
    assert not (tmp_path / "r.json").exists()


STAGES = ["cases", "rates", "benchmark bfloat16", "tests", "graphs", "invariance", "profile", "memcheck", "racecheck"]
STAGES += ["newer ptxas", "benchmark float16", "benchmark float32", "sweep"]
COLUMNS = '"ID","Kernel Name","Block Size","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"'
WATCHED = f"""==PROF== Connected to process 1
{COLUMNS}
"0","tile_kernel","(256, 1, 1)","(132, 1, 1)","Occupancy","Achieved Occupancy","%","24.5",""
"0","tile_kernel","(256, 1, 1)","(132, 1, 1)","SpeedOfLight","L2 Cache Throughput","%","61.2",""
"0","tile_kernel","(256, 1, 1)","(132, 1, 1)","SpeedOfLight","","","","Bottleneck"
"1","gradient_kernel","(256, 1, 1)","(64, 1, 1)","Occupancy","Registers Per Thread","register/thread","255",""
"""
SWEPT = """{"function": "tiles", "blocks": {}, "stages": 3, "same_bits": true, "faster": true}
{"function": "tiles", "blocks": {}, "stages": 4, "same_bits": false, "faster": false}
"""


def test_what_nsight_compute_prints():
    first, second = rows_of(WATCHED)
    assert first["grid"] == "(132, 1, 1)"
    assert first["metrics"] == {"Occupancy: Achieved Occupancy": "24.5 %", "SpeedOfLight: L2 Cache Throughput": "61.2 %"}
    assert second["metrics"] == {"Occupancy: Registers Per Thread": "255 register/thread"}
    assert rows_of("no table") == []


def test_a_profiler_that_may_not_watch_says_nothing():
    kept = []
    outcome = judge_profile(kept)(1, "==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    assert (outcome.status, outcome.reason) == (NOT_RUN, "==ERROR== ERR_NVGPUCTRPERM - no permission")
    assert judge_profile(kept)(0, WATCHED).counts == {"kernels": 2}
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("seconds", "same", "faster"),
    [((2.0, 1.0), True, True), ((2.0, 1.99), True, False), ((1.0, 2.0), True, False), ((2.0, 1.0), False, False)],
)
def test_a_configuration_is_taken_only_if_it_is_faster_and_has_the_same_bits(seconds, same, faster):
    calls = [lambda: seconds[0], lambda: seconds[1]]
    found = gpu_sweep.compared(*calls, lambda x, y: same, lambda call: call())
    assert (found["same_bits"], found["faster"]) == (same, faster)


def test_a_sweep_that_was_stopped_goes_on(fake_stages, tmp_path):
    fake_stages["gpu_sweep"] = (None, SWEPT)
    for _ in range(2):
        gpu_check.main(["--json", str(tmp_path / "r.json"), "--commit", "abc", "--stages", "sweep"])
    assert [command.split()[-1] for command in fake_stages["started"]] == ["0", "2"]
    assert len(json.loads((tmp_path / "r.json").read_text())["sweep"]) == 4


def test_configurations_are_put_back():
    configurations = pytest.importorskip("caan_kernels.context_attention.triton.configurations")
    for function, dtype, blocks, stages in gpu_sweep.candidates():
        shipped, dtype = getattr(configurations, function), getattr(torch, dtype)
        arguments = {"large": (dtype, "ieee", 64), "product": (dtype, False), "tiles": (36, 16), "gradients": (36, "ieee")}
        before = shipped(*arguments[function])
        with gpu_sweep.configured(configurations, function, blocks, stages):
            within = getattr(configurations, function)(*arguments[function])
        assert within.stages == stages and within.blocks == before.blocks | blocks and set(blocks) <= set(before.blocks)
        assert getattr(configurations, function) is shipped


def test_an_assembler_that_is_no_newer_is_not_tried(fake_stages, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "assembler_version", lambda path: (12, 8))
    gpu_check.main(["--json", str(tmp_path / "r.json"), "--stages", "newer ptxas"])
    stage = json.loads((tmp_path / "r.json").read_text())["stages"]["newer ptxas"]
    assert (stage["status"], stage["reason"]) == (NOT_RUN, "the CUDA toolkit's is 12.8, Triton's 12.8")


def test_the_version_of_an_assembler(tmp_path):
    program = tmp_path / "ptxas"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program.chmod(0o755)
    assert gpu_check.assembler_version(str(program)) == (13, 0, 88)
    assert gpu_check.assembler_version(str(tmp_path / "absent")) == (0,)


def bench_report():
    """What bench_attention.py writes, as JSON."""
    report = full_report()
    report.rows[0].implementation, report.rows[0].seconds = "triton", 6 * 40e-9
    report.header["dtype"] = "bfloat16"
    return report


@pytest.fixture
def fake_stages(monkeypatch, tmp_path):
    """`run_for` without processes; its dict says what a stage gives that is to give something else."""
    answers = {}
    started = answers["started"] = []

    def run_for(command, seconds, environment):
        names = ("pytest", "memcheck", "racecheck", "bench_attention", "gpu_rates", "gpu_profile", "gpu_sweep")
        name = next(word for word in names if word in " ".join(command))
        started.append(" ".join(command))
        if name == "bench_attention":
            bench_report().save(type(tmp_path)(command[command.index("--json") + 1]))
        default = {"pytest": (0, "7 passed in 1.0s"), "bench_attention": (0, ""), "racecheck": (0, RACES.format(0, 0))}
        default["gpu_rates"] = 0, 'a warning [of the compiler]\n[\n{"name": "tanh", "value": 16, "unit": "a clock"}]'
        default |= {"gpu_profile": (0, WATCHED), "gpu_sweep": (0, SWEPT)}
        return answers.get(name, default.get(name, (0, CLEAN)))

    monkeypatch.setattr(gpu_record, "run_for", run_for)
    monkeypatch.setattr(gpu_check, "obstacle", lambda: "")
    monkeypatch.setattr(gpu_check, "triton_ptxas", lambda: "/elsewhere/ptxas")
    monkeypatch.setattr(gpu_check, "assembler_version", lambda path: (13, 0) if path.startswith("/bin/") else (12, 8))
    monkeypatch.setattr(gpu_record.shutil, "which", lambda name, path=None: f"/bin/{name}")
    monkeypatch.setattr(machine, "gpu_facts", lambda device: dict(FACTS))
    return answers


def test_a_whole_run(fake_stages, tmp_path):
    path = tmp_path / "results" / "cuda_example.json"
    assert gpu_check.main(["--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert FACTS.items() <= found.items()
    assert {"commit", "source_sha256", "date"} <= found.keys()
    assert list(found["bench"]) == ["bfloat16", "float16", "float32"]
    assert {stage["status"] for stage in found["stages"].values()} == {PASSED}
    assert list(found["stages"]) == STAGES
    assert [row["kernel"] for row in found["profile"]] == ["tile_kernel", "gradient_kernel"]
    assert [row["faster"] for row in found["sweep"]] == [True, False]
    assert found["rates"] == [{"name": "tanh", "value": 16, "unit": "a clock"}]


def test_limits_leave_time_to_compile(fake_stages, tmp_path):
    """A test may compile Triton kernels beside 15 others, and a stage outlives one that hangs."""
    path = tmp_path / "r.json"
    gpu_check.main(["--json", str(path)])
    commands = {name: stage["command"].split() for name, stage in json.loads(path.read_text())["stages"].items()}
    tests = {name: command for name, command in commands.items() if "pytest" in command}
    assert list(tests) == ["cases", "tests", "graphs", "invariance", "newer ptxas"]
    assert " ".join(tests["newer ptxas"]).count("'golden and triton'") == 1
    for name, command in tests.items():
        of_a_test = int(command[command.index("--timeout") + 1])
        assert of_a_test >= 60 and gpu_check.LIMITS[name] >= of_a_test + gpu_check.GRACE + 15


def test_no_other_stage_takes_time_from_one_that_is_required():
    names, seconds = list(gpu_check.LIMITS), list(gpu_check.LIMITS.values())
    last = max(names.index(name.split()[0]) for name in gpu_check.REQUIRED)
    assert gpu_check.START + sum(seconds[: last + 1]) <= gpu_record.TOTAL <= 530


def test_what_needs_a_gpu_has_a_stage(fake_stages, tmp_path):
    path, root = tmp_path / "r.json", gpu_record.ROOT
    gpu_check.main(["--json", str(path)])
    commands = {name: stage["command"].split() for name, stage in json.loads(path.read_text())["stages"].items()}
    # Files that are skipped elsewhere, as they say before their first function.
    heads = {x: re.split(r"\n(?:@|def )", x.read_text())[0] for x in (root / "tests").glob("*_*/test_*.py")}
    alone = [x for x, head in heads.items() if 'reason="there is no GPU"' in head]
    assert len(alone) == 3 and {x.relative_to(root).as_posix() for x in alone} <= {*commands["graphs"]}
    assert "tests/test_gpu_plan.py" in commands["tests"]
    paths = {x for command in commands.values() if "pytest" in command for x in command if x.startswith("tests/")}
    assert all((root / x).exists() for x in paths)


def test_a_second_run_goes_on(fake_stages, tmp_path):
    """What passed is kept, for the same clean commit on the same GPU."""
    path, started = tmp_path / "r.json", fake_stages["started"]
    fake_stages["racecheck"] = (9, RACES.format(1, 1))
    assert gpu_check.main(["--json", str(path), "--commit", "abc"]) == 1
    del fake_stages["racecheck"], started[:]
    assert gpu_check.main(["--json", str(path), "--commit", "abc"]) == 0
    assert len(started) == 1
    assert "racecheck" in started[0]
    found = json.loads(path.read_text())
    assert list(found["bench"]) == ["bfloat16", "float16", "float32"]
    assert found["rates"]
    for changed in ({"commit": "abd"}, {"source_sha256": "0"}, {"checks_sha256": "0"}, {"device": "Another GPU"}):
        path.write_text(json.dumps(found | changed))
        del started[:]
        assert gpu_check.main(["--json", str(path), "--commit", "abc"]) == 0
        assert len(started) == len(found["stages"])


@pytest.mark.parametrize(
    ("first", "second", "status", "reason"),
    [
        ((9, RACES.format(1, 1)), (None, RACES.format(0, 0)), 1, "1 errors reported"),
        ((None, RACES.format(1, 1)), (None, ""), 1, "1 errors reported; stopped after"),
        ((None, ""), (None, ""), 0, "stopped after"),
        ((None, ""), (0, RACES.format(0, 0)), 0, ""),
    ],
)
def test_a_fault_that_was_found_stays(fake_stages, tmp_path, first, second, status, reason):
    """A sanitizer that is too slow is no failure, and takes none back."""
    path = tmp_path / "r.json"
    for answer in (first, second):
        fake_stages["racecheck"] = answer
        ended = gpu_check.main(["--json", str(path), "--commit", "abc", "--stages", "racecheck"])
    assert ended == status
    assert json.loads(path.read_text())["stages"]["racecheck"]["reason"].startswith(reason)


@pytest.mark.parametrize("output", ["1 failed, 83 passed in 1.0s", "2 errors in 1.0s"])
def test_a_stage_that_was_stopped_after_a_failure_failed(record, output):
    program = f"import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print({output!r})"
    outcome = record.run("tests", python(program), 3.5, judge_pytest)
    assert outcome.status == FAILED and "stopped after" in outcome.reason
    record.run("tests", python(program), 2.5, judge_pytest)
    assert stages(record)["tests"]["status"] == FAILED


def test_without_time_nothing_is_begun(tmp_path):
    record = Record(tmp_path / "r.json", FACTS, seconds=0.5)
    assert record.run("late", python("print(1)"), 20, plain) == Outcome(NOT_RUN, {}, "no time left")


def test_chosen_stages(fake_stages, tmp_path):
    """One call after another fills the same file, and what failed stays in it until it is run again."""
    path = tmp_path / "r.json"
    fake_stages["pytest"] = (1, "1 failed, 6 passed in 1.0s")
    for names, status in ((["cases", "rates"], 1), (["racecheck"], 1)):
        assert gpu_check.main(["--json", str(path), "--commit", "abc", "--stages", *names]) == status
    found = json.loads(path.read_text())["stages"]
    assert {name: stage["status"] for name, stage in found.items()} == {"cases": FAILED, "rates": PASSED, "racecheck": PASSED}
    del fake_stages["pytest"]
    assert gpu_check.main(["--json", str(path), "--commit", "abc", "--stages", "cases"]) == 0


@pytest.mark.parametrize(
    ("name", "answer", "status"),
    [
        ("pytest", (1, "1 failed, 6 passed in 1.0s"), 1),
        ("pytest", (None, ""), 1),
        ("memcheck", (9, CLEAN.replace("0 errors", "4 errors")), 1),
        ("memcheck", (1, "========= Error: Device not supported"), 0),
        ("bench_attention", (1, "Traceback"), 1),
        ("gpu_profile", (1, "==ERROR== refused"), 0),
        ("gpu_sweep", (None, SWEPT), 0),
        ("gpu_sweep", (1, "Traceback"), 1),
    ],
)
def test_the_exit_status(fake_stages, tmp_path, name, answer, status):
    fake_stages[name] = answer
    assert gpu_check.main(["--json", str(tmp_path / "r.json")]) == status
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["stages"]) == len(STAGES)
    assert "bfloat16" in found["bench"]


def test_tests_that_cannot_run_are_no_success(fake_stages, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None if name == "pytest" else name)
    assert gpu_check.main(["--json", str(tmp_path / "r.json")]) == 1
    stage = json.loads((tmp_path / "r.json").read_text())["stages"]["tests"]
    assert (stage["status"], stage["reason"]) == (NOT_RUN, "not installed: pytest")


def test_a_benchmark_of_wrong_results_fails():
    report = json.loads(json.dumps({"rows": [{"implementation": "triton", "workload": "w", "ours": True}]}))
    report["rows"][0] |= {"errors": {"scores": 1.0}, "tolerances": {"scores": 0.1}}
    outcome = gpu_check.judge_benchmark(report)(0, "")
    assert (outcome.status, outcome.reason) == (FAILED, "disagrees with float64: triton on w")
    assert gpu_check.judge_benchmark(None)(0, "").status == FAILED


def test_the_table_is_rendered_from_the_file(fake_stages, tmp_path):
    fake_stages["memcheck"] = (1, "========= Error: Device not supported")
    gpu_check.main(["--json", str(tmp_path / "cuda_example.json")])
    found = newest(tmp_path, "cuda_*.json")
    text = render_gpu(found)
    assert "| ns/pair |" in text
    assert "| **40.0** |" in text
    assert all(
        word in text for word in ("Example GPU", "9.0", "driver 1.2", "CUDA 13.0", "Triton 3.6.0", found["source_sha256"][:12])
    )
    assert "- tests: passed (7 passed)" in text
    assert "- memcheck: **not run**: Error: Device not supported" in text
    assert "w 40.0 ns/pair (triton)" in text
    assert "- a note" in text


def test_an_estimate_stands_beside_what_was_measured_of_the_same_kernels(fake_stages, tmp_path):
    gpu_check.main(["--json", str(tmp_path / "cuda_example.json"), "--stages", "benchmark"])
    found = newest(tmp_path, "cuda_*.json")
    (row,) = (row for row in found["bench"]["bfloat16"]["rows"] if row["implementation"] == "triton")
    row |= {"implementation": "cuda", "workload": "coco-5k"}
    estimated = json.loads(ESTIMATE.read_text())["sets"]["coco, H = 1024"]
    text = render_gpu(found)
    assert f"coco-5k 40.0, estimated {estimated['overlapped']:.1f} to {estimated['apart']:.1f}" in text
    assert REBUILT not in text
    assert REBUILT in render_gpu(found | {"source_sha256": "of other kernels"})


def test_a_run_without_a_benchmark_has_no_table(fake_stages, tmp_path):
    gpu_check.main(["--json", str(tmp_path / "cuda_example.json")])
    found = newest(tmp_path, "cuda_*.json") | {"bench": {}}
    assert "No benchmark came to its end" in render_gpu(found)
    assert "| workload" not in render_gpu(found)


def test_the_newest_file_counts(tmp_path):
    assert render_gpu(newest(tmp_path, "cuda_*.json")) == UNMEASURED
    assert UNMEASURED.startswith("Not yet measured on a GPU.")
    for name, date in (("a", "2026-02-01T10:00:00+00:00"), ("b", "2026-03-01T10:00:00+00:00"), ("c", "2026-01-01T10:00:00+00:00")):
        (tmp_path / f"cuda_{name}.json").write_text(json.dumps({"device": name, "date": date}))
    assert newest(tmp_path, "cuda_*.json")["device"] == "b"
