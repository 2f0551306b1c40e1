#!/usr/bin/env bash
# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, their workspaces filled with NaN: bash tests/sanitize/run.sh
# Every vector width is run, the widest one too where the processor has no such vectors: the compiler then splits them in two.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=c++20 -O1 -g -fno-math-errno -fno-trapping-math -ffp-contract=fast -fsanitize=address,undefined
       -fno-sanitize-recover=all -DCAAN_POISON_WORKSPACE -DCAAN_GENERIC_ONLY -Wno-psabi)
"${CXX:-g++}" "${flags[@]}" -Icsrc -c csrc/context_attention/cpu/plan.cpp -o "$build/plan.o"
"${CXX:-g++}" "${flags[@]}" -Icsrc -c csrc/core/cpu/instruction_set.cpp -o "$build/instruction_set.o"
"${CXX:-g++}" "${flags[@]}" -Icsrc -c tests/sanitize/kernels_under_sanitizer.cpp -o "$build/main.o"
for width in "16 16" "32 16" "64 32"; do
  read -r bytes registers <<<"$width"
  "${CXX:-g++}" "${flags[@]}" -DCAAN_VECTOR_BYTES="$bytes" -DCAAN_REGISTERS="$registers" -DCAAN_ISA=generic -Icsrc -c csrc/context_attention/cpu/kernels.cpp -o "$build/kernels.o"
  "${CXX:-g++}" "${flags[@]}" "$build"/*.o -o "$build/run" -pthread
  echo "vectors of $bytes bytes, $registers registers"
  "$build/run"
done
