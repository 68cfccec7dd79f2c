#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment below build/, and runs its tests there. What is missing for that is said, and is no failure.
#
#     bindings/python/test.sh [ARGUMENTS OF PYTEST]        PYTHON=python3.13 chooses another interpreter
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() { echo "skipped: the Python tests: $*"; exit 0; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || skip "there is no $python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || skip "$("$python" --version) is older than 3.10"
"$python" -c 'import venv, ensurepip' 2>/dev/null || skip "$python has no module venv"
command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null || command -v cc >/dev/null || skip 'libtinker needs a C compiler'
[ "$(uname)" = Linux ] || skip 'libtinker is built on Linux only'

venv=build/python/venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -c 'import numpy, pytest' 2>/dev/null ||
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'numpy>=1.23' 'pytest>=7' ||
  skip 'numpy and pytest cannot be installed'
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall ./bindings/python
cd bindings/python
PYTHONDONTWRITEBYTECODE=1 exec "../../$venv/bin/python" -m pytest -q -p no:cacheprovider "$@"
