"""The line that is shown while a model is loaded."""

from __future__ import annotations

import io
from typing import Any

import pytest
from tinker_local import _progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Engine:
    def __init__(self) -> None:
        self.done = 0

    def info(self) -> dict[str, Any]:
        self.done += 25
        return {"loading": {"model": "Org/Name", "done": self.done, "total": 100} if self.done < 100 else None}


class Future:
    """Ends at the n-th look."""

    def __init__(self, looks: int, outcome: Any) -> None:
        self.looks, self.outcome = looks, outcome

    def result(self, timeout: float | None = None) -> Any:
        self.looks -= 1
        if timeout is not None and self.looks > 0:
            raise TimeoutError
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def done(self) -> bool:
        return self.looks <= 0


def test_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells the share, and is gone at the end, also of a failure."""
    for outcome in 7, ValueError("no"):
        out = Terminal()
        monkeypatch.setattr("sys.stderr", out)
        if outcome == 7:
            assert _progress.shown(Engine(), Future(4, outcome)) == 7
        else:
            with pytest.raises(ValueError):
                _progress.shown(Engine(), Future(4, outcome))
        assert "loading Org/Name: 25 %" in out.getvalue() and "75 %" in out.getvalue()
        assert out.getvalue().split("\r")[-2].strip() == "" and out.getvalue().endswith("\r")


def test_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends at once, and what nobody sees, shows nothing."""
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    assert _progress.shown(Engine(), Future(1, 7)) == 7
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert _progress.shown(Engine(), Future(4, 7)) == 7
    assert out.getvalue() == ""
