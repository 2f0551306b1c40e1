#!/usr/bin/env bash
# The proofs that take too long for CI: tools/release_check.py says which, and writes tools/release_log.json. Hours, and gigabytes.
# Usage: tools/release_check.sh [STAGE ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -x .venv/bin/python ]] || bash tools/setup.sh dev
exec .venv/bin/python tools/release_check.py "$@"
