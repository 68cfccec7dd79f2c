#!/usr/bin/env bash
# Builds mischief.c: build.sh [FOLDER] (this one when not given). Needs clang-14 and lld-14, as ../../../plugins/losses/build.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for scope in datum batch; do
  "${CLANG:-clang-14}" --target=wasm32 -O2 -std=c11 -msimd128 -mbulk-memory -msign-ext -mnontrapping-fptoint -ffreestanding -fno-builtin -nostdlib \
    -fvisibility=hidden -Wall -Wextra -Werror -Wl,--no-entry -Wl,-z,stack-size=65536 -Wl,--strip-all -I "$here/../../../plugins/sdk/c" \
    -DSCOPE=$scope -o "${1:-$here}/mischief_$scope.wasm" "$here/mischief.c"
done
chmod 644 "${1:-$here}"/mischief_*.wasm
