"""A line on the terminal, or in a notebook, while a base model is being loaded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from .futures import APIFuture

T = TypeVar("T")

# Seconds between two looks. What takes less shows nothing.
TICK = 0.5


class Informed(Protocol):
    """An Engine."""

    def info(self) -> dict[str, Any]: ...


def shown(engine: Informed, future: APIFuture[T]) -> T:
    """future.result(), with a line on standard error about the loading of a model, if somebody sees it."""
    if not _visible():
        return future.result()
    width = 0
    try:
        while True:
            try:
                return future.result(TICK)
            except TimeoutError:
                if future.done():
                    continue  # it ended just now
            text = _text(engine.info().get("loading"))
            print("\r" + text.ljust(width), end="", file=sys.stderr, flush=True)
            width = len(text)
    finally:
        if width:
            print("\r" + " " * width + "\r", end="", file=sys.stderr, flush=True)


def _visible() -> bool:
    """Whether standard error is a terminal or a notebook's."""
    return sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def _text(loading: dict[str, Any] | None) -> str:
    if not loading or not loading["total"]:
        return ""
    return f"loading {loading['model']}: {100 * loading['done'] // loading['total']} %"
