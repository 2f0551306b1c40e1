#!/usr/bin/env bash
# Install a wheel into a fresh environment that sees no compiler, and run tools/smoke.py there.
# Usage: tools/try_wheel.sh WHEEL [TORCH], TORCH as pip takes it, by default the CPU build of the version in tools/setup.sh.
# PYTHON names the interpreter.
set -euo pipefail
tools=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
wheel=$(realpath "$1")
torch=${2:-torch==$(sed -n 's/^torch=//p' "$tools/setup.sh")+cpu}
if [[ $torch == *.whl ]]; then
  echo "TORCH: expected a requirement as pip takes it, got a second wheel, $torch" >&2
  exit 2
fi
cpu_index=https://download.pytorch.org/whl/cpu

# Not a script that looks for one, as pyenv's is: it would need a shell.
python=$("${PYTHON:-python3}" -c "import sys; print(sys.executable)")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# pip would take a package on it for installed.
unset PYTHONPATH
"$python" -m venv --without-pip fresh
# pip of the interpreter outside, told to install there; without bytecode, which costs more than all else.
install() {
  PATH=$work/fresh/bin "$python" -m pip --disable-pip-version-check --python fresh/bin/python install --quiet --no-compile "$@"
}
if [[ "$torch" == *+cpu ]]; then
  # As in tools/setup.sh: the indexes that pip is set up with come first.
  install "$torch" 2>/dev/null || install "$torch" --extra-index-url "$cpu_index"
else
  install "$torch"
fi
install "$wheel"
# Nothing but the environment's own programs: no compiler, and no setting from outside.
env -i HOME="$work" PATH="$work/fresh/bin" OMP_NUM_THREADS=1 fresh/bin/python -I "$tools/smoke.py"
