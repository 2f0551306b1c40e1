"""PTX of the shipped kernels, compiled once for a state of the sources and kept in build/ptx."""

import fcntl
import functools
import hashlib
import re
import subprocess
import sys
from pathlib import Path

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


@functools.cache
def source_of(kernel: str) -> Path:
    """The file that a kernel, named without template arguments, stands in."""
    for source in sorted(ROOT.glob("csrc/*/cuda/*.cu")):
        if re.search(rf"CAAN_KERNEL[^;{{]*?\b{kernel}\(", source.read_text()):
            return source
    raise PtxError(f"no file has a kernel {kernel}")


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
