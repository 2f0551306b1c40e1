"""What the build asks of the tools it finds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "build_backend"))
import caan_build


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


def test_the_cuda_runtime_lies_where_nvcc_says():
    nvcc = caan_build.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    folders = [flag.removeprefix("-L") for flag in caan_build.cuda_runtime_flags(nvcc) if flag.startswith("-L")]
    assert any(Path(folder, "libcudart_static.a").is_file() for folder in folders)
