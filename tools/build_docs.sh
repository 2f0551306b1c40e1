#!/usr/bin/env bash
# The docs site, into build/site; a warning is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/python -c "import mkdocs, mkdocstrings" 2>/dev/null || CAAN_CUDA=${CAAN_CUDA:-0} bash tools/setup.sh docs
# A notice of the theme about other software.
export NO_MKDOCS_2_WARNING=1
.venv/bin/python tools/support_matrix.py --check
# Never --quiet: what is not printed is not counted.
exec .venv/bin/python -m mkdocs build --strict
