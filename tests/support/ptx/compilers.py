"""PTX of the shipped kernels, compiled once for a state of the sources and kept in build/ptx."""

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from .parser import PtxError, entries

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

# mma.sync is what kernels are compiled to for this, and for later GPUs too.
ARCHITECTURE = "compute_80"
# An explicit instantiation at the end of a file, and the type of numbers that it is for.
_INSTANCE = re.compile(r"^template [^;{]*<(float|bfloat16|float16)>[^;{]*;", re.MULTILINE)


def find_nvcc() -> str | None:
    return caan_build.find_nvcc()


def shipped(operator: str) -> set[str]:
    """Keys of the kernels that files of csrc/<operator>/cuda launch, from the emulated library: for every type of numbers."""
    library = Path(os.environ["CAAN_CUDA_EMULATED"]).read_bytes().decode(errors="replace")
    keys = {launched(name) for name in re.findall(r"KERNEL = [^;\0]*;", library)}
    folder = ROOT / "csrc" / operator / "cuda"
    return {x for x in keys if any(source.parent == folder for source in _sources_of(x.split("<")[0]))}


def name_of(dtype: torch.dtype) -> str:
    """In C++."""
    return str(dtype).removeprefix("torch.").replace("float32", "float")


def launched(name: str) -> str:
    """The key of the kernel in the emulator's name of a launch."""
    return key(re.search(r"KERNEL = ([^;]*);", name)[1])


@functools.cache
def compiled_with(name: str) -> str:
    """PTX of the file that has a kernel, by its key, for the kernel's type of numbers.

    Raises:
        PtxError: no file has it.
    """
    dtype = re.search(r"b?float16|$", name)[0] or "float"
    for source in _sources_of(name.split("<")[0]):
        text = compiled(source, dtype)
        if name in names_in(text):
            return text
    raise PtxError(f"no file has a kernel {name}")


@functools.cache
def _sources_of(kernel: str) -> list[Path]:
    """The files that launch a kernel, named without template arguments."""
    return [x for x in sorted(ROOT.glob("csrc/*/cuda/*.cu")) if re.search(rf"\blaunch<{kernel}[<>]", x.read_text())]


@functools.cache
def compiled(source: Path, dtype: str) -> str:
    """PTX of a file's kernels for numbers of one type: "float", "bfloat16" or "float16"."""
    nvcc = find_nvcc()
    text = _INSTANCE.sub(lambda match: match[0] if match[1] == dtype else "", source.read_text())
    flags = [*caan_build.NVCC_FLAGS, f"-arch={ARCHITECTURE}", "-ptx"]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    seen = hashlib.sha256(repr((flags, version, text)).encode())
    for header in sorted(ROOT.glob("csrc/**/*.h")):
        seen.update(header.read_bytes())
    folder = ROOT / "build" / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{source.stem}_{dtype}_{seen.hexdigest()[:16]}.ptx"
    # Processes that test at once compile it once.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            cut = output.with_suffix(".cu")
            cut.write_text(text)
            # Warnings are the build's to show.
            subprocess.run([nvcc, *flags, "-w", cut, "-o", output], check=True, cwd=ROOT)
    return output.read_text()


@functools.cache
def names_in(text: str) -> dict[str, str]:
    """Mangled names of kernels by their `key`."""
    mangled = entries(text)
    names = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(zip(map(key, names), mangled, strict=True))


def key(name: str) -> str:
    """A kernel's name with template arguments, as every compiler and demangler would write it."""
    plain = re.sub(r"\(anonymous namespace\)::|\{anonymous\}::|\(\w+\)(?=\w)|\w+::|^void ", "", name)
    return plain.replace(" ", "").split("(")[0]
