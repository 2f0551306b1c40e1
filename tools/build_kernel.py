"""A kernel of the Hugging Face hub, laid out as the `kernels` package loads it from a folder (docs/hub-kernel.md).

    python tools/build_kernel.py [--cuda CUDA] [FOLDER]     by default build/kernel; CUDA as 13.0, for a build with CUDA kernels

The build has an op namespace of its own, which names the sources: several can be loaded into one process. Needs Python 3.11.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import release_check  # noqa: E402


def digests(folder: Path) -> dict[str, str]:
    """Of every file, as a kernel's metadata has them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for path in files
    }


def build(folder: Path, cuda: str | None) -> Path:
    """Build the variant for this platform; its folder."""
    described = tomllib.loads((ROOT / "build.toml").read_text())
    general, backend = described["general"], "cuda" if cuda else "cpu"
    name = general["name"].replace("-", "_")
    identity = f"_{name}_{backend}_{release_check.digest(release_check.WHEEL)[:7]}"
    torch = described["torch"]["stable-abi"][backend].replace(".", "")
    device = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    variant = folder / "build" / f"torch-stable-abi{torch}-{device}-{platform.machine()}-linux"

    with tempfile.TemporaryDirectory() as work:
        command = [ROOT / "tools" / "build_wheel.sh", *(["--cuda"] if cuda else []), "--reuse", work]
        subprocess.run(command, env={**os.environ, "CAAN_NAMESPACE": identity}, check=True)
        shutil.rmtree(variant, ignore_errors=True)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            wheel.extractall(work, [entry for entry in wheel.namelist() if entry.startswith(f"{name}/")])
        shutil.copytree(Path(work) / name, variant)

    metadata = {
        "name": general["name"],
        "id": identity,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
    }
    if cuda:
        built = json.loads((variant / "_build.json").read_text())["cuda_architectures"]
        # 80+PTX as the hub writes it: 8.0+PTX.
        metadata["backend"]["archs"] = [re.sub(r"(?=\d(\+|$))", ".", x, count=1) for x in built]
    metadata["digest"] = {"algorithm": "sha256", "files": digests(variant)}
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    shutil.copy(ROOT / "build.toml", folder)
    return variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", metavar="CUDA", help="with CUDA kernels, for this version of CUDA, as 13.0")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "kernel", help="default: build/kernel")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(build(options.folder.resolve(), options.cuda))


if __name__ == "__main__":
    main()
