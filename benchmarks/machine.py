"""What a measurement was made on: the commit, the kernels' sources, the processor or the GPU and its software."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# What nvidia-smi tells, with its units.
SMI_FIELDS = {
    "driver": "driver_version",
    "max_sm_clock": "clocks.max.sm",
    "max_memory_clock": "clocks.max.memory",
    "power_limit": "power.limit",
}


def commit() -> str:
    """Short hash of the checked-out commit, "+" if files other than results differ from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of all that the kernels are made from."""
    return _hash(root, [*(root / "caan_kernels").glob("*/**/*.py"), *(root / "csrc").rglob("*")])


def checks_hash() -> str:
    """SHA-256 over names and contents of tests and benchmarks, without results."""
    return _hash(ROOT, [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "benchmarks").glob("*.cu")])


def _hash(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Name, size, clocks and software of a GPU; "unknown" for what nvidia-smi does not tell."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        **smi_facts(str(getattr(properties, "uuid", ""))),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": module_version("triton"),
        "python": platform.python_version(),
    }


def smi_facts(uuid: str) -> dict[str, str]:
    """The `SMI_FIELDS` of one GPU."""
    command = ["nvidia-smi", f"--id=GPU-{uuid}", "--query-gpu=" + ",".join(SMI_FIELDS.values()), "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split(",")
        return {name: value.strip() for name, value in zip(SMI_FIELDS, told, strict=True)}
    except (OSError, subprocess.SubprocessError, ValueError):
        return dict.fromkeys(SMI_FIELDS, "unknown")


def module_version(name: str) -> str:
    try:
        return import_module(name).__version__
    except ImportError:
        return "not installed"
