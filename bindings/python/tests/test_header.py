"""The ctypes declarations against include/tinker.h, read as text: names, types and order of every field, arguments of every function."""

from __future__ import annotations

import ctypes
import re

import pytest
from conftest import ROOT

from tinker_local import _library, _structs, exceptions

HEADER = ROOT / "include" / "tinker.h"
if not HEADER.exists():
    pytest.skip("no include/tinker.h: not run in a checkout", allow_module_level=True)

TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
STRUCTS = dict(re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", TEXT, re.S))
STRUCTS = {name: [re.match(r"(.+?)(\w+)$", f.strip()).groups() for f in body.split(";") if f.strip()] for body, name in STRUCTS.items()}
FUNCTIONS = {
    name: [a.strip() for a in arguments.split(",") if a.strip() != "void"]
    for name, arguments in re.findall(r"TINKER_API [\w ]+?\*?(tinker_\w+)\((.*?)\);", TEXT, re.S)
}
CLASSES = {
    "tinker_" + re.sub(r"(?<!^)([A-Z])", r"_\1", c.__name__).lower(): c
    for c in vars(_structs).values()
    if isinstance(c, type) and issubclass(c, ctypes.Structure)
}
SCALARS = {"uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float,
           "tinker_status": ctypes.c_int32}  # fmt: skip


def kind(c_type: str) -> str:
    """What matters of a C type: a scalar by name, or that it is a pointer."""
    c_type = c_type.replace("const", "").strip()
    return "pointer" if "*" in c_type else SCALARS[c_type].__name__


def python_kind(t: object) -> str:
    return "pointer" if t in (ctypes.c_void_p, ctypes.c_char_p) or issubclass(t, ctypes._Pointer) else t.__name__


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_struct(name: str) -> None:
    assert [(field, python_kind(t)) for field, t in CLASSES[name]._fields_] == [(field, kind(t)) for t, field in STRUCTS[name]]


@pytest.mark.parametrize("name", sorted(_library._PROTOTYPES))
def test_function(name: str) -> None:
    wanted = [kind(re.sub(r"\w+$", "", a) if not a.endswith("*") else a) for a in FUNCTIONS[name]]
    assert [python_kind(t) for t in _library._PROTOTYPES[name]] == wanted


def test_numbers() -> None:
    numbers = {name: int(value) for name, value in re.findall(r"(TINKER_\w+) = (-?\d+)", TEXT)}
    assert (_structs.OK, _structs.PENDING) == (numbers["TINKER_OK"], numbers["TINKER_PENDING"])
    for name in ("FLOAT32", "INT64", "STOP"):
        assert getattr(_structs, name) == numbers["TINKER_" + name]
    errors = {value for name, value in numbers.items() if name.startswith("TINKER_ERR_")}
    assert errors == set(exceptions._STATUSES) | {exceptions._FORKED}


def test_version() -> None:
    import tinker_local

    assert _library.lib().tinker_version().decode() == tinker_local.__version__
    parts = [re.search(rf"TINKER_VERSION_{part} (\d+)", TEXT)[1] for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(parts) == tinker_local.__version__


def test_the_comparison_sees_differences() -> None:
    assert len(STRUCTS) >= 12 and len(FUNCTIONS) >= 70
    assert kind("const int64_t *") != kind("int64_t") and kind("double") != kind("float")
