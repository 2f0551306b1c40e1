"""What the build asks of the tools it finds."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

import caan_kernels as ck  # noqa: E402
from caan_kernels.core import library  # noqa: E402


@pytest.mark.parametrize(
    ("cxx", "flags"),
    [
        (["g++"], ["-ccbin", "g++"]),
        (["ccache", "clang++"], ["-ccbin", "clang++"]),
        (["g++", "-m64", "--sysroot=/x"], ["-ccbin", "g++", "-Xcompiler=-m64", "-Xcompiler=--sysroot=/x"]),
    ],
)
def test_the_host_compiler_as_nvcc_takes_it(cxx, flags):
    assert caan_build.host_compiler_flags(cxx) == flags


@pytest.mark.parametrize("torch", [None, ["2.10.0", "/x"], ["2.13.0+cpu", "/x"]])
@pytest.mark.parametrize("front_end", ["pip", "uv"])
def test_no_torch_is_downloaded_beside_one_that_is_hidden(monkeypatch, front_end, torch):
    versions = {"setuptools": "80.0", "pybind11": "3.0", "ninja": "1.13"}
    monkeypatch.setattr(caan_build, "_outside", lambda: {"versions": versions, "torch": torch, "path": []})
    # As pip sets it for a build of its own.
    monkeypatch.setenv("PYTHONPATH", "pip-build-env-x/site" if front_end == "pip" else "")
    if torch and torch[0] > "2.11":
        assert caan_build.get_requires_for_build_wheel() == []
    elif front_end == "pip":
        assert caan_build.get_requires_for_build_wheel() == ["torch>=2.11"]
    else:
        for hook in (caan_build.get_requires_for_build_wheel, caan_build.get_requires_for_build_editable):
            with pytest.raises(
                SystemExit, match=r"which this front end hides from builds: use pip install, or .*--no-build-isolation"
            ):
                hook()
    assert caan_build.get_requires_for_build_sdist() == []


def test_what_a_wheel_does_not_have_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(caan_build, "_outside", lambda: {"versions": {"setuptools": "80.0"}, "torch": ["2.13.0", "/x"], "path": []})
    monkeypatch.setattr(shutil, "which", lambda name, **given: f"/usr/bin/{name}")
    assert caan_build.get_requires_for_build_wheel() == []
    assert caan_build.get_requires_for_build_editable() == ["pybind11>=2.13"]


def test_an_editable_install_beside_a_folder_of_the_same_name(tmp_path):
    """A clone may be called caan or caan_kernels, and Python be started beside it."""
    for name in ("clone", "beside", "site"):
        (tmp_path / name).mkdir()
    # Without setup.py, which compiles.
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path / "clone")
    for package in ("caan", "caan_kernels"):
        (tmp_path / "beside" / package).mkdir()
        (tmp_path / "clone" / package).mkdir()
        (tmp_path / "clone" / package / "__init__.py").touch()
    build = f"import sys; sys.path.append({str(ROOT / 'build_backend')!r}); import caan_build; caan_build.build_editable('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "clone", capture_output=True, check=True)
    (wheel,) = (tmp_path / "clone").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    start = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import caan, caan_kernels; print(caan, caan_kernels)"
    # Without the path and site-packages of here, which may have another install.
    shown = subprocess.run([sys.executable, "-ES", "-c", start], cwd=tmp_path / "beside", capture_output=True, text=True)
    assert shown.stdout.count(f"from '{tmp_path / 'clone'}/") == 2, shown.stdout + shown.stderr


def test_the_cuda_runtime_lies_where_nvcc_says():
    nvcc = caan_build.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    folders = [flag.removeprefix("-L") for flag in caan_build.cuda_runtime_flags(nvcc) if flag.startswith("-L")]
    assert any(Path(folder, "libcudart_static.a").is_file() for folder in folders)


@pytest.fixture
def built_for(monkeypatch):
    """The architectures that setup.py asks of an nvcc that knows these, on a machine with these GPUs."""
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    chosen = runpy.run_path(str(ROOT / "setup.py"))["cuda_architectures"]

    def architectures(known, seen="", named=""):
        monkeypatch.setenv("CAAN_CUDA_ARCHS", named)
        monkeypatch.setattr(caan_build, "nvcc_architectures", lambda nvcc: known)
        monkeypatch.setitem(chosen.__globals__, "architectures_of_gpus", lambda: seen)
        return chosen("nvcc")

    return architectures


def test_blackwell_is_built_for_where_nvcc_knows_it(built_for):
    """Else its driver compiles PTX for minutes when a kernel is first used."""
    newest, older = {80, 90, 100, 103, 120}, {80, 89, 90}
    assert built_for(newest) == ["80+PTX", "90", "100", "120"]
    assert built_for(older) == ["80+PTX", "90"]
    # What is there, or asked for, is not replaced by less.
    assert built_for(older, seen="90,120") == ["90", "120"]
    assert built_for(older, seen="90", named="100") == ["100"]
    assert built_for(older, named="all") == ["80+PTX", "86", "90", "100", "120"]
    with pytest.raises(SystemExit, match=r"CAAN_CUDA_ARCHS=90\+PTX: '90\+PTX' is not 80\+PTX or a number like 90"):
        built_for(newest, named="90+PTX")


def test_blackwell_has_ptx_of_its_own():
    flags = caan_build.gencode_flags(["80+PTX", "86", "90", "100", "120"])
    older = "-gencode=arch=compute_80,code=[sm_80,compute_80,sm_86,sm_90]"
    assert flags == [older, "-gencode=arch=compute_100,code=[sm_100,sm_120]"]


def test_what_nvcc_knows():
    nvcc = caan_build.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    assert {80, 90} <= caan_build.nvcc_architectures(nvcc)


@pytest.fixture(scope="module")
def needed():
    """What the library takes from others: name and version, an empty string where it asks for none."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm")
    command = ["nm", "-D", "-u", library.LIBRARY]
    names = [line.split()[-1] for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]
    return dict(name.partition("@")[::2] for name in names)


def test_the_library_serves_every_cpython_and_older_systems(needed):
    assert not [name for name in needed if name.startswith(("Py", "_Py"))]
    # What manylinux_2_28 allows: the library of GCC 8.
    versions = {version for version in needed.values() if version.startswith("GLIBCXX_")}
    assert versions and max(tuple(map(int, version[8:].split("."))) for version in versions) <= (3, 4, 24)
    # torch's libraries export some of the C++ runtime, without versions: a torch of another build may not.
    standard = re.compile(r"_Z(T[VISC])?(N[VKRO]*)?S[absiodt]")
    assert [name for name in needed if standard.match(name)]
    assert not [name for name, version in needed.items() if standard.match(name) and not version]


def test_a_namespace_is_a_bare_word(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    named = runpy.run_path(str(ROOT / "setup.py"))["namespace"]
    monkeypatch.delenv("CAAN_NAMESPACE", raising=False)
    assert named() == ck.build_info()["namespace"] == "caan_kernels"
    monkeypatch.setenv("CAAN_NAMESPACE", "_caan_kernels_cpu_12ab34c")
    assert named() == "_caan_kernels_cpu_12ab34c"
    monkeypatch.setenv("CAAN_NAMESPACE", "caan-kernels")
    with pytest.raises(SystemExit, match="CAAN_NAMESPACE=caan-kernels: expected letters, digits and underscores"):
        named()


def test_no_name_of_an_operator_stands_outside_its_namespace():
    """A build with a namespace of its own would call operators of another build, or find none."""
    sources = {path: path.read_text() for path in (ROOT / "caan_kernels").rglob("*.py")}
    assert not [path.name for path, text in sources.items() if re.search(r"torch\.ops\.caan_kernels\.\w|caan_kernels::\w", text)]
    assert not [path.name for path, text in sources.items() if re.search(r"^\s*(import|from) caan_kernels\b", text, re.MULTILINE)]


@pytest.mark.skipif(
    not ck.build_info()["cuda_architectures"], reason="caan_kernels was built without CUDA kernels: there was no nvcc"
)
def test_the_host_calls_nothing_that_only_a_gpu_has(needed):
    """In a template nvcc lets such a call pass and, where it is made, ends the process by `exit`."""
    assert "malloc" in needed
    assert "exit" not in needed


# Stands where the tools of .venv stand: makes an sdist, and says what lies in build/ of the tree that a wheel is made of.
PYTHON = """#!/bin/bash
case "$2 $3" in
  "$LACKING --help") exit 1 ;;
  "build --no-isolation") mkdir -p sdist/caan-1 && tar -czf "$6/caan-1.tar.gz" -C sdist caan-1 ;;
  pip*) ls -d "${@: -1}"/build/* 2>/dev/null || echo nothing ;;
esac
"""


@pytest.fixture
def wheel(tmp_path):
    """Runs tools/build_wheel.sh in a checkout of its own."""
    python, script = tmp_path / ".venv" / "bin" / "python", tmp_path / "tools" / "build_wheel.sh"
    for path, text in ((python, PYTHON), (script, (ROOT / "tools" / "build_wheel.sh").read_text())):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)

    def build(lacking="nothing"):
        command = [script, "--reuse", "build/kernel"]
        return subprocess.run(command, env={**os.environ, "LACKING": lacking}, capture_output=True, text=True)

    return build


def test_a_wheel_reuses_objects_where_there_are_some(wheel, tmp_path):
    """tools/build_kernel.py makes build/ itself, so that it is there before anything was compiled."""
    found = wheel()
    assert found.returncode == 0 and "nothing" in found.stdout, found.stderr
    (tmp_path / "build" / "ninja-linux").mkdir()
    assert "/build/ninja-linux" in wheel().stdout


def test_a_wheel_says_which_tool_is_not_there(wheel, tmp_path):
    found = wheel(lacking="auditwheel")
    assert found.returncode == 1
    assert found.stderr == f"{tmp_path}/.venv/bin/python has no auditwheel: run tools/setup.sh dev first\n"
