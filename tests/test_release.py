"""What a release says of itself is true of the sources that are here."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import release_check  # noqa: E402


def test_the_log_of_long_proofs_claims_nothing_that_has_changed():
    found = release_check.faults(release_check.read_log())
    assert not found, f"run tools/release_check.sh for these, or with --stale, and commit tools/release_log.json: {found}"


def test_a_release_has_no_stale_proof():
    released = re.search(r"^## [\d.]+ - (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] != "unreleased"
    stale = [name for name, entry in release_check.read_log().items() if entry["stale"]]
    assert not (released and stale)


def test_a_change_makes_a_claim_false(tmp_path, monkeypatch):
    source = tmp_path / "kernel.cpp"
    source.write_text("one")
    digest = release_check.digest
    monkeypatch.setattr(release_check, "digest", lambda patterns: digest(("*.cpp",), tmp_path))
    entry = {"result": "passed", "sources": release_check.digest(()), "stale": False}
    log = {name: dict(entry) for name in release_check.STAGES}
    assert release_check.faults(log) == []
    source.write_text("two")
    assert release_check.faults(log)[0] == "wheel: its files have changed since it passed"
    # What is marked claims nothing, and what failed or never ran neither.
    log = {name: {**entry, "stale": True} for name in log}
    assert release_check.faults(log) == []
    del log["wheel"]
    assert release_check.faults(log) == ["wheel: the log does not have it"]


def test_every_stage_depends_on_files_that_exist():
    for name, stage in release_check.STAGES.items():
        for pattern in stage.files:
            assert any(ROOT.glob(pattern)), f"{name}: {pattern}"


def test_one_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} - " in (ROOT / "CHANGELOG.md").read_text()


def test_workflows_call_scripts_that_are_there():
    """They cannot run here: whatever can be wrong in them lies in scripts, which can."""
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    called = {name for path in workflows for name in re.findall(r"bash (\S+)", path.read_text())}
    assert len(workflows) == 3 and ".ci/run" in called
    assert all((ROOT / name).is_file() for name in called)
