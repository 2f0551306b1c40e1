#!/usr/bin/env bash
# Walks the README's path, from photographs to a search page, and then from Python to a ranked list. The commands are those
# between the README's two marks, with few photographs (rendered scenes) and few steps of training.
#
#     bash tools/walk.sh FOLDER       everything is made in FOLDER, which must be new or empty
#
# PYTHON names the interpreter whose caan is walked with; default: .venv/bin/python.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?usage: bash tools/walk.sh FOLDER}
python=${PYTHON:-$repository/.venv/bin/python}
mkdir -p "$folder"
if [ -n "$(ls -A "$folder")" ]; then
  echo "FOLDER: expected a new or empty folder, got $folder" >&2
  exit 1
fi
cd "$folder"

# What the README takes for granted: photographs with captions, others without, and one more.
"$python" - <<'PYTHON'
from pathlib import Path
from shutil import move
from caan.demo.scenes import CAPTIONS_FILE, write_split

move(write_split(Path("photos"), "train", 60), "captions.csv")
write_split(Path("more"), "dev", 6)
Path("more", CAPTIONS_FILE).unlink()
move("more/00005.png", "photo.jpg")
PYTHON

caan() {
  case "$*" in
    # Of an option that is given twice, the second counts.
    *--hold-out*) set -- "$@" --hold-out 15 ;;
    train*) set -- "$@" --epochs 2 --decay-epochs 1 ;;
  esac
  "$python" -m caan "$@"
}
commands=$(sed -n '/<!-- walk: begin -->/,/<!-- walk: end -->/s/^    \(caan .*\)/\1/p' "$repository/README.md" | sed 's/  *#.*//')
if [ -z "$commands" ]; then
  echo "README.md: expected the path's commands between its two marks, found none" >&2
  exit 1
fi
while IFS= read -r command; do
  echo "+ $command"
  # Not from this loop's own input.
  eval "$command" </dev/null
done <<<"$commands"
grep -q 'data:image' found.html

# From the run and the gallery to ranked lists.
echo "+ python"
"$python" - <<'PYTHON'
from pathlib import Path

import caan

model = caan.load("run")
photographs = sorted(Path("more").glob("*.png"))
for hit in model.rank("a red circle in the middle", photographs, top=3):
    print(f"{hit.score:.4f}  {photographs[hit.item].name}")
for found in caan.Gallery("gallery").search("a red circle in the middle", top=3):
    print(f"{found.score:.4f}  {found.image}")
PYTHON
