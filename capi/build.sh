#!/usr/bin/env bash
# Builds libtinker: build.sh FOLDER [so|a|all]. It needs a C compiler ($CC, or the one Go takes). Linux.
#
# libtinker.so: a version script exposes tinker_* alone. libtinker.a: all its objects are joined to one, in which all other symbols are made
# local, so that a program may link another Go archive as well.
set -euo pipefail
out=$1 what=${2:-all}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")"
export CGO_ENABLED=1
if [ -z "${CC:-}" ]; then
  for CC in gcc clang cc; do command -v "$CC" >/dev/null && break; done
  export CC
fi
version() { awk "/define TINKER_VERSION_$1/ {print \$3}" ../include/tinker.h; }
major=$(version MAJOR) minor=$(version MINOR) patch=$(version PATCH)
work=$(mktemp -d "$out/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT

# The Go tool writes a header beside the library; include/tinker.h is ours.
if [ "$what" != a ]; then
  "${GO:-go}" build -trimpath -buildmode=c-shared -o "$work/libtinker.so" \
    -ldflags "-s -w -extldflags '-Wl,--version-script=$PWD/tinker.map -Wl,-soname,libtinker.so.$major'" .
  mv "$work/libtinker.so" "$out/libtinker.so"
  ln -sf libtinker.so "$out/libtinker.so.$major"
fi
if [ "$what" != so ]; then
  "${GO:-go}" build -trimpath -buildmode=c-archive -ldflags '-s -w' -o "$work/all.a" .
  mkdir "$work/objects"
  (cd "$work/objects" && ar x ../all.a)
  ld -r -d -o "$work/libtinker.o" "$work"/objects/*.o # -d: common symbols become ordinary ones, which can be local
  objcopy --wildcard --keep-global-symbol 'tinker_*' --strip-debug "$work/libtinker.o"
  rm -f "$out/libtinker.a"
  ar rcs "$out/libtinker.a" "$work/libtinker.o"
fi
cat >"$out/libtinker.pc" <<EOF
prefix=@PREFIX@
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: libtinker
Description: LoRA fine-tuning of language models, in process
Version: $major.$minor.$patch
Libs: -L\${libdir} -ltinker
Libs.private: -lpthread -lresolv -lm
Cflags: -I\${includedir}
EOF
