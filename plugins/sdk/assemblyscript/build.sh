#!/usr/bin/env bash
# Builds the example with the compiler that package.json names: build.sh [FOLDER] (testdata when not given). Prints the SHA-256 of module and
# sources. The same version makes the same bytes, so SHA256SUMS names it. The compiler is $ASC, or asc in PATH, or what npm fetches.
#
#   ./build.sh > SHA256SUMS.new && mv SHA256SUMS.new testdata/SHA256SUMS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-$here/testdata}"
out=$(cd "${1:-$here/testdata}" && pwd)
[[ ${ASC:-} == */* ]] && ASC=$(cd "$(dirname "$ASC")" && pwd)/$(basename "$ASC")
cd "$here"
version=$(sed -n 's/.*"assemblyscript": "\(.*\)".*/\1/p' package.json)
if [[ -n ${ASC:-} ]]; then
  asc=("$ASC")
elif command -v asc >/dev/null; then
  asc=(asc)
else
  asc=(npx --yes -p "assemblyscript@$version" asc)
fi
"${asc[@]}" loss.ts -O3 --noAssert --runtime stub -o "$out/pairs.wasm"
echo "# asc $("${asc[@]}" --version | sed 's/^Version //'), made by build.sh"
sha256sum loss.ts tinker-loss.ts
(cd "$out" && sha256sum pairs.wasm)
