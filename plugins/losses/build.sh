#!/usr/bin/env bash
# Builds the bundled losses from src/: build.sh [FOLDER] (this one when not given). Modules that only tests use go to
# testdata/. Prints the SHA-256 of each. The same clang and wasm-ld make the same bytes; SHA256SUMS names the version.
#
#   apt-get install clang-14 lld-14
#   CLANG=clang-14 ./build.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
clang=${CLANG:-clang-14}

bundled='dpo.c bradley_terry.cpp kto.c grpo.cpp gspo.cpp logprob_variance.c topk_distillation.c'
tests='cross_entropy.c importance_sampling.cpp ppo.cpp'

# No path of this machine gets into a module. The SDK has its vectors and unrolled loops written out; the compiler's own make the
# tape three times as large and no faster. Contraction to fused operations is off: wasm has none.
flags=(--target=wasm32 -O3 -fno-vectorize -fno-unroll-loops -msimd128 -mbulk-memory -msign-ext -mnontrapping-fptoint -ffreestanding -fno-builtin -nostdlib
  -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Werror -I "$here/../sdk/c"
  -Wl,--no-entry -Wl,-z,stack-size=65536 -Wl,--strip-all)

build() { # SOURCE FOLDER
  local std=(-x c -std=c11)
  [[ $1 == *.cpp ]] && std=(-x c++ -std=c++17 -fno-exceptions -fno-rtti -fno-threadsafe-statics)
  "$clang" "${std[@]}" "${flags[@]}" -o "$2/${1%.*}.wasm" "$here/src/$1"
}

mkdir -p "$out/testdata"
for source in $bundled; do build "$source" "$out"; done
for source in $tests; do build "$source" "$out/testdata"; done
chmod 644 "$out"/*.wasm "$out"/testdata/*.wasm
echo "# $("$clang" --version | head -n 1), made by build.sh"
cd "$out"
sha256sum $(for s in $bundled; do echo "${s%.*}.wasm"; done) $(for s in $tests; do echo "testdata/${s%.*}.wasm"; done)
