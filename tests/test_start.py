"""What a process waits for before its own work begins, counted in modules: seconds depend on the machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import caan
import caan_kernels as ck
from caan.commands import _COMMANDS

ROOT = Path(__file__).resolve().parents[1]
COMPILER = ("torch._dynamo", "torch._inductor", "triton")
# What takes long beside the compiler, and is for the work of a command alone.
HEAVY = ("sympy", "faiss", "matplotlib", "tensorboard", "torch.utils.tensorboard", "torchvision", "timm", "pandas", "scipy", "PIL")


def imported(code: str) -> list[str]:
    """The modules that this adds in a new process to those in `before`; what it prints is not looked at."""
    command = f"import json, sys\nbefore = set()\n{code}\nprint('\\n' + json.dumps(sorted(set(sys.modules) - before)))"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def calling(*lines: list[str]) -> str:
    """Code that runs `caan` with these arguments, which all end in SystemExit."""
    calls = "\n".join(f"try: main({line})\nexcept SystemExit: pass" for line in lines)
    return f"from caan.commands import main\n{calls}"


def test_help_and_version_wait_for_nothing():
    found = imported(f"import caan\n{calling(['--help'], ['--version'], [], ['trian'])}")
    assert not {name.split(".")[0] for name in found} & {"torch", "numpy", "caan_kernels", "safetensors", "tqdm", *HEAVY}
    assert len(found) < 250


def test_what_packages_and_commands_import_beyond_torch():
    """All in one process: what none of them imports, each starts without."""
    every_help = calling(*([name, "--help"] for name in _COMMANDS))
    found = imported(f"import torch\nbefore = set(sys.modules)\nimport caan_kernels\n{every_help}")
    assert {f"caan.commands.{name}" for name in _COMMANDS} < set(found)
    assert not [name for name in found if name.startswith((*COMPILER, *HEAVY))]


def test_torch_calls_it_constant_as_torch_itself_does():
    """The mark is torch's own name for it, which another torch may change."""
    from caan_kernels.core.tracing import constant_while_traced

    def ours():
        pass

    def theirs():
        pass

    assert vars(constant_while_traced(ours)) == vars(torch.compiler.assume_constant_result(theirs))


def test_one_version(capsys):
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert ck.__version__ == caan.__version__ == ck.build_info()["version"] == written
    from caan.commands import main

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"caan {written}\n"


def test_public_names_are_there():
    assert set(caan._MODULES) == set(caan.__all__) <= set(dir(caan))
    for module in (caan, ck):
        assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        caan.lod  # noqa: B018
