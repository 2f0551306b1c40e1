"""PEP 517 backend: setuptools, plus one rule: what the user's environment has is used, only what it lacks is asked for.

pip builds in an environment of its own, in which torch is absent even if the user has it. This backend asks the interpreter
outside what is installed there. So a package is built against the torch that it will run with, torch is a build requirement only
where there is none, and a machine without a network builds with the tools it has. setup.py finds its tools through the same
functions, so that a build without isolation takes the same road.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Lowest versions. An older setuptools cannot read pyproject.toml's licence.
TORCH = (2, 11)
SETUPTOOLS = (77,)
PYBIND11 = (2, 13)
NINJA = (1, 5)

_PROBE = """
import importlib.metadata, json, os, sys
versions = {}
for name in ("setuptools", "pybind11", "ninja"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
try:
    import torch
    torch = (torch.__version__, os.path.dirname(torch.__file__))
except Exception:
    torch = None
print()
print(json.dumps({"versions": versions, "torch": torch, "path": [entry for entry in sys.path if entry]}))
"""


class Torch(NamedTuple):
    version: str
    root: Path

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def _at_least(version: str | None, minimum: tuple[int, ...]) -> bool:
    return version is not None and tuple(int(part) for part in re.findall(r"\d+", version)[: len(minimum)]) >= minimum


@functools.cache
def _probe(*python_options: str) -> dict:
    # From the interpreter's own folder: a folder called torch in the current one must not be taken for it.
    folder = os.path.dirname(sys.executable)
    command = [sys.executable, *python_options, "-c", _PROBE]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder, check=True).stdout
    return json.loads(output.splitlines()[-1])


def _outside() -> dict:
    """What the user's environment has: pip isolates a build through PYTHONPATH, which `-E` ignores."""
    return _probe("-E")


def _usable_torch(probe: dict) -> Torch | None:
    if probe["torch"] is None or not _at_least(probe["torch"][0], TORCH):
        return None
    return Torch(probe["torch"][0], Path(probe["torch"][1]))


def find_torch() -> Torch:
    """The torch to build against: the one outside, else the one that was installed for this build.

    Raises:
        SystemExit: neither has a torch that is new enough.
    """
    torch = _usable_torch(_outside()) or _usable_torch(_probe())
    if torch is None:
        raise SystemExit(
            f"error: building caan_kernels needs torch>={_dotted(TORCH)}, and {sys.executable} has none: pip install torch"
        )
    return torch


def find_cxx() -> list[str]:
    """The C++ compiler's command: $CXX, else the first of g++, c++ and clang++ on the path.

    Raises:
        SystemExit: there is none, or it does not know C++20, which torch's headers need.
    """
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)] if named else [["g++"], ["c++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        trial = [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull]
        if subprocess.run(trial, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return command
    tried = " or ".join(shlex.join(command) for command in candidates)
    raise SystemExit(
        f"error: caan_kernels needs a C++20 compiler (GCC 11, Clang 14 or later) and found none as {tried}: "
        "install one (Debian, Ubuntu: apt-get install g++) or name it in CXX"
    )


# Without -fmad=false nvcc chooses, kernel by kernel, which products and sums to fuse: the same pair would have other bits in a
# tile of another shape.
NVCC_FLAGS = "-std=c++20 -O3 -DNDEBUG -fmad=false -Icsrc".split()

# Machine code of several architectures comes from the same PTX, of the lowest that they are not older than: with PTX of each,
# compiling takes half as long again. Blackwell has its own, since registers spill on sm_120 where it is of 80.
PTX = (80, 100)


def gencode_flags(architectures: list[str]) -> list[str]:
    """nvcc's flags for architectures as `CAAN_CUDA_ARCHS` names them."""
    codes: dict[int, list[str]] = {}
    for architecture in architectures:
        number = architecture.removesuffix("+PTX")
        own = codes.setdefault(max(x for x in PTX if x <= int(number)), [])
        own += [f"sm_{number}", *(["compute_80"] if architecture != number else [])]
    return [f"-gencode=arch=compute_{ptx},code=[{','.join(own)}]" for ptx, own in codes.items()]


def find_nvcc() -> str | None:
    """The path of nvcc, or None for a build without CUDA; whether a GPU is plugged in plays no part.

    Raises:
        SystemExit: CAAN_CUDA=1 and no nvcc, or a CAAN_CUDA that is neither 0 nor 1.
    """
    wanted = os.environ.get("CAAN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"error: CAAN_CUDA must be 0 or 1, not {wanted!r}")
    if wanted == "0":
        return None
    for name in ("CUDA_HOME", "CUDA_PATH"):
        nvcc = shutil.which("nvcc", path=os.path.join(os.environ[name], "bin")) if os.environ.get(name) else None
        if nvcc:
            return nvcc
    nvcc = shutil.which("nvcc")
    if nvcc is None and wanted == "1":
        raise SystemExit("error: CAAN_CUDA=1, but there is no nvcc in CUDA_HOME, CUDA_PATH or PATH")
    return nvcc


def nvcc_architectures(nvcc: str) -> set[int]:
    """The architectures that nvcc makes machine code for, 90 for sm_90."""
    shown = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return {int(number) for number in re.findall(r"sm_(\d+)", shown)}


def cuda_runtime_flags(nvcc: str) -> list[str]:
    """What links the static CUDA runtime, where nvcc says that it lies."""
    command = [nvcc, "--dryrun", "-shared", "x.o", "-o", "x.so"]
    shown = subprocess.run(command, capture_output=True, text=True).stderr
    libraries = re.search(r"^#\$ LIBRARIES=(.*)$", shown, re.MULTILINE)
    folders = shlex.split(libraries[1]) if libraries else []
    return [*(x for x in folders if not x.endswith("/stubs")), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def host_compiler_flags(cxx: list[str]) -> list[str]:
    """A C++ compiler's command, `find_cxx`, as nvcc takes it."""
    # Before the compiler there may be a program that calls it, as ccache does; what is after it are options.
    last = max(place for place, part in enumerate(cxx) if not part.startswith("-"))
    return ["-ccbin", cxx[last], *(f"-Xcompiler={option}" for option in cxx[last + 1 :])]


def find_ninja() -> str:
    """The path of ninja: the Python package's, else the first on the path."""
    if importlib.util.find_spec("ninja"):
        return os.path.join(importlib.import_module("ninja").BIN_DIR, "ninja")
    ninja = shutil.which("ninja")
    if ninja is None:
        raise SystemExit("error: building caan_kernels needs ninja: pip install ninja")
    return ninja


def pybind11_include() -> str:
    if importlib.util.find_spec("pybind11") is None:
        raise SystemExit("error: building caan_kernels needs pybind11: pip install pybind11")
    return importlib.import_module("pybind11").get_include()


def _check_tools() -> None:
    # Before setuptools speaks and before anything is downloaded: without these the build cannot end well.
    find_cxx()
    find_nvcc()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _lacking(**minimums: tuple[int, ...]) -> list[str]:
    versions = _outside()["versions"]
    return [f"{name}>={_dotted(low)}" for name, low in minimums.items() if not _at_least(versions.get(name), low)]


def _build_requirements(**minimums: tuple[int, ...]) -> list[str]:
    _check_tools()
    lacking = _lacking(setuptools=SETUPTOOLS, **minimums)
    if shutil.which("ninja") is None:
        lacking += _lacking(ninja=NINJA)
    if _usable_torch(_outside()):
        return lacking
    _check_front_end()
    return [*lacking, f"torch>={_dotted(TORCH)}"]


def _check_front_end() -> None:
    """Have a front end end here that would download a torch beside the user's, and build with that one.

    Only pip lets a build look at the environment outside. uv, `python -m build` and others give it a virtual environment of its
    own, and no way to find the user's.

    Raises:
        SystemExit: this front end is not pip.
    """
    if not any("pip-build-env-" in entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        raise SystemExit(
            "error: caan_kernels is built with the torch it runs with, which this front end hides from builds: use pip install, "
            "or install torch, setuptools, pybind11 and ninja and build without isolation (uv pip install --no-build-isolation, "
            "python -m build --no-isolation)"
        )


def _setuptools():
    """setuptools' own backend, after the packages that were not asked for have been made importable."""
    if any(importlib.util.find_spec(name) is None for name in ("setuptools", "pybind11", "ninja")):
        sys.path += [entry for entry in _outside()["path"] if entry not in sys.path]
    setuptools = importlib.import_module("setuptools")
    if not _at_least(setuptools.__version__, SETUPTOOLS):
        raise SystemExit(
            f"error: building caan_kernels needs setuptools>={_dotted(SETUPTOOLS)}, this is {setuptools.__version__}: "
            "pip install --upgrade setuptools, or build with isolation"
        )
    return importlib.import_module("setuptools.build_meta")


def get_requires_for_build_wheel(config_settings=None):
    return _build_requirements()


def get_requires_for_build_editable(config_settings=None):
    # For the module that shows plans to tests, which a wheel does not have.
    return _build_requirements(pybind11=PYBIND11)


def get_requires_for_build_sdist(config_settings=None):
    return _lacking(setuptools=SETUPTOOLS)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    return _setuptools().prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    return _setuptools().prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _check_tools()
    return _setuptools().build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _check_tools()
    return _setuptools().build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    return _setuptools().build_sdist(sdist_directory, config_settings)
