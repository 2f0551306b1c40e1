"""What is compiled, and how.

`caan_kernels/_ops.so` holds the kernels and their registration through torch's stable ABI: it needs no particular Python, and one
build serves every torch from 2.11. `caan_kernels/_build.json` says what it was built with. These two make a wheel that serves every
CPython. `caan_kernels/_host.*.so` shows the planner to tests: a pybind11 module, which is for one CPython only, since pybind11 has
no limited API. So an editable build has it, and a wheel does not.

Environment variables: CONTRIBUTING.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402

# Never -ffast-math: NaN, Inf and the order of sums are part of what the kernels promise.
CXX_FLAGS = """
    -std=c++20 -O3 -DNDEBUG -fPIC -Wall -Wextra
    -fno-math-errno -fno-trapping-math -ffp-contract=fast
    -fvisibility=hidden -fno-semantic-interposition
""".split()

# Instruction sets with their flags, from the one that every processor has to the newest: each operator's kernels.cpp is compiled
# once for each.
INSTRUCTION_SETS = {
    "generic": [],
    "avx2": "-mavx2 -mfma -mf16c".split(),
    # -Wno-*: GCC 12 warns of uninitialised values inside its own AVX-512 header.
    "avx512": """
        -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -Wno-uninitialized -Wno-maybe-uninitialized
    """.split(),
}

TARGET_TORCH = "0x{:02x}{:02x}000000000000".format(*caan_build.TORCH)
TORCH_FLAGS = [f"-DTORCH_TARGET_VERSION={TARGET_TORCH}"]
# By name only: Python has loaded torch's libraries before ours, whichever version they are.
TORCH_LIBRARIES = "-ltorch -ltorch_cpu -lc10".split()

# Where no GPU is seen: machine code for Ampere, Hopper and Blackwell, and PTX that the driver of any other compiles, for minutes.
DEFAULT_CUDA_ARCHS = "80+PTX,90,100,120"
ALL_CUDA_ARCHS = "80+PTX,86,90,100,120"

NAMESPACE = "caan_kernels"
HOST = "caan_kernels._host"
HOST_SOURCES = ["csrc/host.cpp", "csrc/context_attention/cpu/plan.cpp"]


def sources(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def instruction_sets() -> list[str]:
    return [name for name in INSTRUCTION_SETS if name == "generic" or platform.machine() in ("x86_64", "AMD64")]


def ops_sources() -> list[tuple[str, str | None]]:
    """Files of the operators, each with the instruction set that it is compiled for; None: what every processor has."""
    found = sources("csrc/*/cpu/*.cpp")
    kernels = [source for source in found if source.endswith("/kernels.cpp")]
    # The linker keeps the first copy of an inline function that several files share: it must be one that every processor can run.
    shared = [(source, None) for source in found if source not in kernels]
    return shared + [(source, name) for name in instruction_sets() for source in kernels]


def cuda_sources() -> list[str]:
    return sources("csrc/*/cuda/*.cu")


def architectures_of_gpus() -> str:
    """The GPUs that this machine has, as CAAN_CUDA_ARCHS names them; an empty string where nvidia-smi finds none."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return ""
    capabilities = sorted({tuple(map(int, line.split("."))) for line in found if re.fullmatch(r"\d+\.\d+", line)})
    return ",".join("{}{}".format(*x) for x in capabilities if x >= (8, 0))


def cuda_architectures(nvcc: str) -> list[str]:
    """Those that CAAN_CUDA_ARCHS names; else those of the GPUs here; else the default ones that nvcc knows."""
    named = os.environ.get("CAAN_CUDA_ARCHS") or architectures_of_gpus()
    listed = ALL_CUDA_ARCHS if named == "all" else named or DEFAULT_CUDA_ARCHS
    architectures = [architecture.strip() for architecture in listed.split(",")]
    for architecture in architectures:
        if not re.fullmatch(r"80\+PTX|\d{2,3}", architecture):
            raise SystemExit(f"error: CAAN_CUDA_ARCHS={listed}: {architecture!r} is not 80+PTX or a number like 90, nor all")
        if int(architecture.removesuffix("+PTX")) < 80:
            raise SystemExit(
                f"error: CAAN_CUDA_ARCHS={listed}: the kernels need compute capability 8.0 or later, not {architecture!r}"
            )
    if named:
        return architectures
    known = caan_build.nvcc_architectures(nvcc)
    return [x for x in architectures if int(x.removesuffix("+PTX")) in known]


def namespace() -> str:
    """Under which torch is to know the operators: CAAN_NAMESPACE, where several builds are to be loaded into one process."""
    named = os.environ.get("CAAN_NAMESPACE") or NAMESPACE
    if not re.fullmatch(r"[A-Za-z_]\w*", named):
        raise SystemExit(f"error: CAAN_NAMESPACE={named}: expected letters, digits and underscores, no digit first")
    return named


def job_count() -> int:
    """Compile jobs at once: one a core, 2 GiB of free memory each; MAX_JOBS overrides."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            memory = int(line.split()[1]) * 1024
    # A container's limit is not in /proc/meminfo.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        memory = min(memory, int(limit.read_text()))
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))


def python_include() -> str:
    include = sysconfig.get_paths()["include"]
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise SystemExit(f"error: no Python.h in {include}: install Python's headers (Debian, Ubuntu: python3-dev)")
    return include


class NinjaFile:
    """The text of a build.ninja: one rule a tool, one statement a file, so that only what changed is built again."""

    def __init__(self, folder: Path, cxx: list[str], linker: list[str], nvcc: str | None):
        dependencies = ("deps = gcc", "depfile = $out.d")
        self.lines = ["ninja_required_version = 1.5", f"builddir = {folder}", f"cxx = {self.command(cxx)}"]
        self.lines.append(f"linker = {self.command(linker)}")
        self.rule("cxx", "$cxx -MD -MF $out.d $flags -c $in -o $out", "description = compiling $in", *dependencies)
        self.rule("link", "$linker -shared $in $flags -o $out", "description = linking $out")
        if nvcc:
            self.lines.append(f"nvcc = {self.command([nvcc, *caan_build.host_compiler_flags(cxx)])}")
            self.rule("nvcc", "$nvcc -MD -MF $out.d $flags -c $in -o $out", "description = compiling $in", *dependencies)

    @staticmethod
    def command(arguments: list[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")

    @staticmethod
    def path(path: str | Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    def rule(self, name: str, command: str, *variables: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", *(f"  {line}" for line in variables)]

    def build(self, rule: str, output: Path, inputs: list[str | Path], flags: list[str]) -> Path:
        self.lines.append(f"build {self.path(output)}: {rule} {' '.join(map(self.path, inputs))}")
        self.lines.append(f"  flags = {self.command(flags)}")
        return output

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def build_facts(version: str, torch_version: str, cxx: list[str], architectures: list[str]) -> str:
    """What `caan_kernels.build_info` tells, as the text of a JSON file."""
    compiler = subprocess.run([*cxx, "--version"], stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    facts = {
        "version": version,
        "namespace": namespace(),
        "compiler": compiler,
        "cxx_flags": " ".join(CXX_FLAGS),
        "cpu_instruction_sets": instruction_sets(),
        "cuda_architectures": architectures,
        "torch_target_abi": "{}.{}".format(*caan_build.TORCH),
        "torch_built_with": torch_version,
    }
    return json.dumps(facts, indent=1) + "\n"


class PlatformWheel(bdist_wheel):
    """A wheel for every CPython: what it has of machine code names none."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class NinjaBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        ending = {"_ops": ".so", "_build": ".json"}.get(fullname.rpartition(".")[2])
        return os.path.join(*fullname.split(".")) + ending if ending else super().get_ext_filename(fullname)

    def run(self) -> None:
        if not (self.inplace or self.editable_mode):
            self.extensions = [extension for extension in self.extensions if extension.name != HOST]
        super().run()

    def build_extensions(self) -> None:
        if sys.platform != "linux":
            raise SystemExit(f"error: caan_kernels builds on Linux only, this is {sys.platform}")
        cxx, torch = caan_build.find_cxx(), caan_build.find_torch()
        cuda = cuda_sources()
        nvcc = caan_build.find_nvcc() if cuda else None
        architectures = cuda_architectures(nvcc) if nvcc else []

        # Not setuptools' own folder, which is a new one for every editable install.
        folder = Path("build", f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        facts = build_facts(self.distribution.get_version(), torch.version, cxx, architectures)
        write_if_changed(ROOT / folder / "build.json", facts)

        common = [*shlex.split(os.environ.get("CXXFLAGS", "")), *CXX_FLAGS, "-Icsrc"]
        link = shlex.split(os.environ.get("LDFLAGS", ""))
        torch_include = [f"-isystem{torch.include}"]
        ninja_file = NinjaFile(folder, cxx, shlex.split(os.environ.get("CAAN_LINKER", "")) or cxx, nvcc)

        # STABLE_TORCH_LIBRARY_IMPL takes the namespace as a bare word.
        register = [] if namespace() == NAMESPACE else [f"-D{NAMESPACE}={namespace()}"]

        def compiled(source: str, flags: list[str], library: str, instruction_set: str | None = None) -> Path:
            if instruction_set:
                flags = [*flags, f"-DCAAN_ISA={instruction_set}", *INSTRUCTION_SETS[instruction_set]]
            if source.endswith("/bindings.cpp"):
                flags = [*flags, *register]
            output = folder / library / f"{source}.{instruction_set or 'all'}.o"
            return ninja_file.build("cxx", output, [source], flags)

        objects = [compiled(source, [*common, *TORCH_FLAGS, *torch_include], "ops", name) for source, name in ops_sources()]
        if nvcc:
            bindings = sources("csrc/*/cuda/bindings.cpp")
            objects += [compiled(source, [*common, *TORCH_FLAGS, *torch_include], "ops") for source in bindings]
            flags = [
                *caan_build.NVCC_FLAGS,
                "--threads=2",
                "-Xcompiler=-fPIC,-fvisibility=hidden",
                *caan_build.gencode_flags(architectures),
            ]
            objects += [ninja_file.build("nvcc", folder / f"{source}.o", [source], flags) for source in cuda]
        libraries = [f"-L{torch.lib}", *TORCH_LIBRARIES, *(caan_build.cuda_runtime_flags(nvcc) if nvcc else [])]
        outputs = {"_build": folder / "build.json", "_ops": folder / "_ops.so"}
        ninja_file.build("link", outputs["_ops"], objects, [*link, *libraries])

        if any(extension.name == HOST for extension in self.extensions):
            python_includes = [f"-isystem{include}" for include in (caan_build.pybind11_include(), python_include())]
            host = [compiled(source, [*common, *python_includes], "host") for source in HOST_SOURCES]
            outputs["_host"] = ninja_file.build("link", folder / "_host.so", host, link)

        write_if_changed(ROOT / folder / "build.ninja", str(ninja_file))
        command = [caan_build.find_ninja(), "-f", str(folder / "build.ninja"), "-j", str(job_count())]
        print(f"building against torch {torch.version} in {torch.root}:", shlex.join(command), flush=True)
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise SystemExit("error: the C++ build of caan_kernels failed, its message is above")
        for extension in self.extensions:
            target = self.get_ext_fullpath(extension.name)
            self.mkpath(os.path.dirname(target))
            # A process that has the old library loaded keeps it: writing into its file would pull the code from under it.
            Path(target).unlink(missing_ok=True)
            self.copy_file(str(ROOT / outputs[extension.name.rpartition(".")[2]]), target)


setup(
    ext_modules=[
        Extension("caan_kernels._ops", [source for source, _ in ops_sources()]),
        Extension("caan_kernels._build", []),
        Extension(HOST, HOST_SOURCES),
    ],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": PlatformWheel},
)
