#!/usr/bin/env bash
# All set-up on a fresh machine, into .venv: torch (its CPU build where there is no NVIDIA GPU), the package built from this tree,
# and what its tests and benchmark need. A second run only builds what changed.
# Usage: tools/setup.sh [extras], by default test,bench.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

[[ -x .venv/bin/pip ]] || "${PYTHON:-python3}" -m venv .venv
# Without bytecode, whose making takes half a minute: Python makes it of what it imports.
install=(.venv/bin/python -m pip --disable-pip-version-check install --no-compile)

if ! .venv/bin/python -c "import torch" 2>/dev/null; then
  if nvidia-smi -L >/dev/null 2>&1; then
    "${install[@]}" "torch==$torch"
  else
    # +cpu is never the build with CUDA. The indexes that pip is set up with come first: a mirror may have it, and may be all there is.
    "${install[@]}" "torch==$torch+cpu" 2>/dev/null ||
      "${install[@]}" "torch==$torch+cpu" --extra-index-url "$cpu_index"
  fi
fi
# What builds it, in one place: pip would bring it anew for each build, and what includes pybind11 would be compiled again.
"${install[@]}" "setuptools>=77" pybind11
"${install[@]}" -e ".[${1:-test,bench}]"
