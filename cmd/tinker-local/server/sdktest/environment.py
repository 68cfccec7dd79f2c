#!/usr/bin/env python3
"""Builds the Python environment of tests with official packages, unless it is there, and prints its folder.

    environment.py [--versions FILE] [--site DIR] FOLDER REQUIREMENTS...

FOLDER/KEY/venv is a virtual environment with the packages of the files REQUIREMENTS, all pinned; KEY names the interpreter and what the
files say, so that a change of either makes a new environment, and the old ones are removed. For each line V of the file --versions, FOLDER/KEY/tinker-V
holds the package tinker of that version, to be put on PYTHONPATH. --site adds a folder of packages that are used where REQUIREMENTS have none:
a large library that the machine has need not be installed again.

Exit code 3: it cannot be built here, for the reason on standard error.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

OLDEST = (3, 11)  # that the pinned packages run on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, action="append", default=[])
    parser.add_argument("--versions", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requirements", type=Path, nargs="+")
    args = parser.parse_args()
    if sys.version_info < OLDEST:
        cannot(f"{sys.executable} is Python {sys.version.split()[0]}, wanted {OLDEST[0]}.{OLDEST[1]} or newer")
    versions = args.versions.read_text().split() if args.versions else []
    said = "\n".join([sys.executable, sys.version, *(r.read_text() for r in args.requirements), *versions, *map(str, args.site)])
    folder = args.folder.resolve() / ("py%d.%d-" % sys.version_info[:2] + hashlib.sha256(said.encode()).hexdigest()[:12])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the others wait
        if not (folder / "complete").exists():
            build(folder, args.requirements, versions, args.site)
    print(folder)


def build(folder: Path, requirements: list[Path], versions: list[str], sites: list[Path]) -> None:
    for old in folder.parent.glob("py*"):
        shutil.rmtree(old)
    print(f"building {folder} (once)", file=sys.stderr, flush=True)
    try:
        venv.create(folder / "venv", with_pip=True)
    except (ImportError, OSError, subprocess.CalledProcessError) as e:
        cannot(f"no virtual environment can be made: {e}")
    python = folder / "venv" / "bin" / "python"
    for r in requirements:
        pip(python, "--requirement", str(r))
    for v in versions:
        pip(python, "--target", str(folder / f"tinker-{v}"), f"tinker=={v}")
    packages = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    Path(packages, "zz_sites.pth").write_text("".join(f"{s.resolve()}\n" for s in sites))
    (folder / "complete").touch()


def pip(python: Path, *what: str) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", *what]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        cannot(f"pip install {' '.join(what)}: {' '.join(done.stderr.split())[-600:]}")


def cannot(why: str) -> None:
    print(why, file=sys.stderr)
    sys.exit(3)


if __name__ == "__main__":
    main()
