"""`python -m tinker_local` is the command line program that the package carries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Runs the program with this process's arguments and gives its exit status; where the system can, in this process's place."""
    program = os.environ.get("TINKER_LOCAL_PROGRAM") or str(Path(__file__).with_name("tinker-local"))
    if not os.access(program, os.X_OK):
        print(
            f"tinker_local: there is no program {program}: install the package with pip, or name the program in TINKER_LOCAL_PROGRAM", file=sys.stderr
        )
        return 1
    if os.name == "posix":
        os.execv(program, [program, *sys.argv[1:]])
    return subprocess.run([program, *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
