"""Builds the wheel: the package, libtinker and the command line program, which it takes from `make build` or makes with the Go tool.

It is a backend as PEP 517 describes, of the standard library alone, so that `pip install ./bindings/python` downloads nothing to build with.
The wheel needs no compiler, no Go and, where it says so in its tag, only a C library as old as that.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent
PACKAGE = HERE / "src" / "tinker_local"
LIBRARY = "libtinker.dylib" if sys.platform == "darwin" else "libtinker.so"
PROGRAM = "tinker-local"


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return []


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """Writes the wheel into wheel_directory and gives its name."""
    binaries = {f"tinker_local/{name}": built(name) for name in (LIBRARY, PROGRAM)}
    files = {f"tinker_local/{p.relative_to(PACKAGE)}": p for p in sorted(PACKAGE.rglob("*")) if p.suffix in (".py", ".typed")}
    files["tinker_local-VERSION.dist-info/licenses/LICENSE".replace("VERSION", version())] = ROOT / "LICENSE"
    files["tinker_local-VERSION.dist-info/licenses/NOTICE".replace("VERSION", version())] = ROOT / "NOTICE"
    return write(Path(wheel_directory), {**files, **binaries}, f"py3-none-{platform_tag(binaries[f'tinker_local/{LIBRARY}'])}")


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """A wheel that points to the source folder, into which library and program are copied."""
    for name in (LIBRARY, PROGRAM):
        shutil.copy2(built(name), PACKAGE / name)
    return write(Path(wheel_directory), {"tinker_local.pth": str(PACKAGE.parent) + "\n"}, "py3-none-any")


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """There is none: the sources are the repository."""
    raise UnsupportedOperation("tinker_local is built from a checkout of its repository: pip install ./bindings/python, or pip wheel")


class UnsupportedOperation(Exception):
    """PEP 517's word for a hook that cannot do what is asked."""


def built(name: str) -> Path:
    """A binary: the one of `make build`, when it is not older than the sources; else one made here."""
    file = ROOT / "bin" / name
    if file.exists() and file.stat().st_mtime >= newest_source():
        return file
    target = ROOT / "build" / "python" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    commands = {
        LIBRARY: ["capi/build.sh", str(target.parent), "so"],
        PROGRAM: ["go", "build", "-trimpath", "-ldflags", f"-s -w -X main.version={version()}", "-o", str(target), "./cmd/tinker-local"],
    }
    flags = f"-buildvcs=false {os.environ.get('GOFLAGS', '')}"  # the Go tool's own stamping fails in checkouts that belong to another user
    try:
        subprocess.run(commands[name], cwd=ROOT, check=True, env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": flags})
    except (FileNotFoundError, subprocess.CalledProcessError) as e:
        raise SystemExit(f"{file} is not there or older than its sources, and {name} cannot be built: {e}. It takes Go and a C compiler") from None
    return target


def newest_source() -> float:
    """When a file that the binaries are made of was changed last."""
    folders = ("capi", "cmd", "engine", "include", "kernels", "plugins", "store")
    files = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file())
    return max(p.stat().st_mtime for p in files if "testdata" not in p.parts and not p.name.endswith(("_test.go", ".md")))


def version() -> str:
    """The package's version, which is libtinker's."""
    return re.findall(r'^__version__ = "(.+)"', (PACKAGE / "_version.py").read_text(), re.M)[0]


def platform_tag(library: Path) -> str:
    """manylinux_2_N, N from the newest version of glibc that the library asks for; elsewhere the platform's own name."""
    name = re.sub(r"[^\w]", "_", sysconfig.get_platform())
    needed = [int(n) for n in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())]
    return name.replace("linux_", f"manylinux_2_{max(needed)}_") if name.startswith("linux_") and needed else name


def write(folder: Path, files: dict[str, Path | str], tag: str) -> str:
    """Writes a wheel of files (a path, or the text itself) with its three files of metadata."""
    info = f"tinker_local-{version()}.dist-info"
    project = (HERE / "pyproject.toml").read_text()
    metadata = {
        "METADATA": (
            f"Metadata-Version: 2.1\nName: tinker-local\nVersion: {version()}\n"
            f"Summary: {re.findall(r'^description = .(.+).$', project, re.M)[0]}\nRequires-Python: >=3.10\nRequires-Dist: numpy>=1.23\n"
        ),
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: tinker_local\nRoot-Is-Purelib: false\nTag: {tag}\n",
        "entry_points.txt": "[console_scripts]\ntinker-local = tinker_local.__main__:main\n",
    }
    files = {**files, **{f"{info}/{name}": text for name, text in metadata.items()}}
    name = f"tinker_local-{version()}-{tag}.whl"
    record = ""
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, source in files.items():
            data = source.encode() if isinstance(source, str) else source.read_bytes()
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if path.endswith((LIBRARY, PROGRAM)) else 0o100644) << 16
            wheel.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return name
