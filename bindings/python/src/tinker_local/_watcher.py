"""One thread that tells who waits without blocking (asyncio, concurrent.futures) that an operation has ended.

It waits inside the library for the oldest operation, a few milliseconds at a time, and then asks for others, the older ones each time and the rest in
turns: operations mostly end in the order in which they came. It spends at most a twentieth of its time asking. With nothing to watch it sleeps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._library import lib

if TYPE_CHECKING:
    from .futures import Operation

_MOST_MS = 50
_PART = 64  # operations of each kind, older ones and others, that are asked for at a time

_changed = threading.Condition()
_watched: list[tuple[Operation[Any], Callable[[Any], None]]] = []
_started = False


def watch(operation: Operation[Any], done: Callable[[Any], None]) -> None:
    """Calls done(operation), on the watcher's thread, when the operation has ended."""
    global _started
    lib()  # in a child of fork() the watcher is not there
    with _changed:
        _watched.append((operation, done))
        if not _started:
            _started = True
            threading.Thread(target=_run, name="tinker_local watcher", daemon=True).start()
        _changed.notify()


def _run() -> None:
    pause, turn = 1, 0
    while True:
        with _changed:
            while not _watched:
                _changed.wait()
            now = list(_watched)
        now[0][0]._ask(pause)
        began = time.monotonic()
        turn = turn + _PART if turn + _PART < len(now) else _PART
        ended = [w for w in now[:_PART] + now[turn : turn + _PART] if w[0].done()]
        took = time.monotonic() - began
        if ended:
            gone = {id(w) for w in ended}
            with _changed:
                _watched[:] = [w for w in _watched if id(w) not in gone]
            for operation, done in ended:
                _call(done, operation)
        pause = max(1, min(_MOST_MS, int(took * 1000 * 20)))
        del now, ended


def _call(done: Callable[[Any], None], operation: Operation[Any]) -> None:
    try:
        done(operation)
    except Exception:
        logging.getLogger("tinker_local").exception("a callback failed")
