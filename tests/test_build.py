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


def test_the_cuda_runtime_lies_where_nvcc_says():
    nvcc = caan_build.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    folders = [flag.removeprefix("-L") for flag in caan_build.cuda_runtime_flags(nvcc) if flag.startswith("-L")]
    assert any(Path(folder, "libcudart_static.a").is_file() for folder in folders)
