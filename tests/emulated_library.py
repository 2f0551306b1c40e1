"""The CUDA kernels, compiled for the CPU by way of csrc/core/cuda/emulator.h: `python tests/emulated_library.py` builds them and
prints where the library is; CAAN_CUDA_EMULATED takes that path."""

import fcntl
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

# Products and sums are fused where the source says so and nowhere else, as by nvcc.
FLAGS = """
    -x c++ -std=c++20 -O2 -march=native -ffp-contract=off -ftls-model=initial-exec -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas
    -Wno-clobbered -U_FORTIFY_SOURCE -Icsrc -DCAAN_EMULATED
""".split()


def build() -> Path:
    """Compile what changed since the last time.

    Raises:
        subprocess.CalledProcessError: a file does not compile; the message is on stderr.
    """
    cxx, torch = caan_build.find_cxx(), caan_build.find_torch()
    emulator, bindings = ROOT / "csrc/core/cuda/emulator.cpp", ROOT.glob("csrc/*/cuda/bindings.cpp")
    sources = [*sorted(ROOT.glob("csrc/*/cuda/*.cu")), emulator, *sorted(bindings)]
    flags = [*FLAGS, "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*caan_build.TORCH), f"-isystem{torch.include}"]
    # With them, what this machine's processor can do.
    macros = subprocess.check_output([*cxx, *FLAGS, "-dM", "-E", "/dev/null"], text=True)
    seen = hashlib.sha256(repr((cxx, flags, torch.version, macros)).encode())
    for file in sorted([*ROOT.glob("csrc/*/cuda/*"), *ROOT.glob("csrc/*/*.h")]):
        seen.update(file.read_bytes())
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{seen.hexdigest()[:16]}.so"
    # Processes that test at once build it once.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library, sources, cxx, flags, torch)
    return library


def _compile(library: Path, sources: list[Path], cxx: list[str], flags: list[str], torch: caan_build.Torch) -> None:
    def compiled(source: Path) -> str:
        output = str(library.parent / f"{'_'.join(source.relative_to(ROOT / 'csrc').parts)}.o")
        subprocess.run([*cxx, *flags, "-c", str(source), "-o", output], check=True, cwd=ROOT)
        return output

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*cxx, "-shared", *objects, "-o", str(library), f"-L{torch.lib}", "-ltorch", "-ltorch_cpu", "-lc10"], check=True)


def build_races(folder: Path) -> Path:
    """The program of tests/sanitize/cuda_races.cpp, with ThreadSanitizer inside."""
    sources = [ROOT / "tests/sanitize/cuda_races.cpp", *sorted(ROOT.glob("csrc/*/cuda/*.cu")), ROOT / "csrc/core/cuda/emulator.cpp"]
    flags = [
        *(flag for flag in FLAGS if flag not in ("-O2", "-DCAAN_EMULATED")),
        "-O1",
        "-fsanitize=thread",
        "-DCAAN_EMULATED_THREADS",
    ]
    program = folder / "cuda_races"
    subprocess.run([*caan_build.find_cxx(), *flags, *map(str, sources), "-o", str(program)], check=True, cwd=ROOT)
    return program


def build_program(folder: Path, source: str) -> Path:
    """A program that calls the emulator itself."""
    program = folder / Path(source).stem
    sources = [str(ROOT / source), str(ROOT / "csrc/core/cuda/emulator.cpp")]
    subprocess.run([*caan_build.find_cxx(), *FLAGS, *sources, "-o", str(program)], check=True, cwd=ROOT)
    return program


if __name__ == "__main__":
    print(build())
