"""The programs of docs/python.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = ROOT / "docs" / "python.md"
if not PAGE.exists():
    pytest.skip("no docs/python.md: not run in a checkout", allow_module_level=True)

PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.splitlines()[0])
def test_program(program: str) -> None:
    out = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and out.stdout.strip() and not out.stderr, out.stderr


def test_there_is_one() -> None:
    assert PROGRAMS
