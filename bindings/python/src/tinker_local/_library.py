"""Loads libtinker, once, at the first call that needs it: until then a process may fork."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _structs as s
from .exceptions import ForkedError, refusal

LIBRARY_NAME = "libtinker.dylib" if sys.platform == "darwin" else "libtinker.so"

_H = c_void_p  # a handle: a number, never followed
_OUT = POINTER(c_void_p)  # a handle, string or array that the library gives
_STR = c_char_p

# What each function takes. All but those in _RESULTS return a tinker_status.
_PROTOTYPES: dict[str, list[Any]] = {
    "tinker_status_name": [c_int32],
    "tinker_last_error": [],
    "tinker_version": [],
    "tinker_free": [c_void_p],
    "tinker_debug_counts": [_OUT],
    "tinker_default_folders": [_OUT],
    "tinker_engine_open": [POINTER(s.EngineOptions), _OUT],
    "tinker_engine_close": [_H],
    "tinker_engine_free": [_H],
    "tinker_engine_info": [_H, _OUT],
    "tinker_engine_capabilities": [_H, _OUT],
    "tinker_engine_models": [_H, _OUT],
    "tinker_engine_plugins": [_H, _OUT],
    "tinker_model_info": [_H, _STR, _OUT],
    "tinker_tokenizer_open": [_H, _STR, _OUT],
    "tinker_tokenizer_free": [_H],
    "tinker_tokenizer_info": [_H, _OUT],
    "tinker_tokenizer_encode": [_H, _STR, c_int64, c_int32, _OUT, POINTER(c_int64)],
    "tinker_tokenizer_decode": [_H, c_void_p, c_int64, c_int32, _OUT, POINTER(c_int64)],
    "tinker_tokenizer_id": [_H, _STR, POINTER(c_int32)],
    "tinker_chat_render": [_H, _STR, _OUT, _OUT, POINTER(c_int64), _OUT],
    "tinker_chat_parse": [_H, _STR, _STR, _OUT],
    "tinker_session_open": [_H, _STR, _OUT],
    "tinker_session_free": [_H],
    "tinker_session_info": [_H, _OUT],
    "tinker_session_create_run": [_H, _STR, POINTER(s.Lora), _STR, _OUT],
    "tinker_session_resume_run": [_H, _STR, c_int32, _STR, _OUT],
    "tinker_run_info": [_H, _OUT],
    "tinker_run_close": [_H],
    "tinker_run_free": [_H],
    "tinker_batch_create": [_OUT],
    "tinker_batch_free": [_H],
    "tinker_batch_add": [_H, POINTER(s.Datums)],
    "tinker_batch_datum": [_H, c_void_p, c_int64],
    "tinker_batch_set": [_H, _STR, c_int32, c_void_p, POINTER(c_int64), c_int32],
    "tinker_batch_set_csr": [_H, _STR, c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_int64],
    "tinker_forward_backward": [_H, _H, _STR, POINTER(s.Pair), c_int64, _OUT],
    "tinker_forward": [_H, _H, _STR, POINTER(s.Pair), c_int64, _OUT],
    "tinker_hold": [_H, _H, _OUT],
    "tinker_held_backward": [_H, c_void_p, c_int64, _OUT],
    "tinker_held_free": [_H],
    "tinker_optim_step": [_H, POINTER(s.Adam), _OUT],
    "tinker_module_open": [_H, c_char_p, c_int64, _OUT],
    "tinker_module_free": [_H],
    "tinker_forward_backward_custom": [_H, _H, _H, POINTER(s.Pair), c_int64, _OUT],
    "tinker_forward_custom": [_H, _H, _H, POINTER(s.Pair), c_int64, _OUT],
    "tinker_save_state": [_H, _STR, POINTER(s.SaveOptions), _OUT],
    "tinker_save_for_sampler": [_H, _STR, POINTER(s.SaveOptions), _OUT],
    "tinker_load_state": [_H, _STR, c_int32, _OUT],
    "tinker_run_weights": [_H, _OUT],
    "tinker_run_save_peft": [_H, _STR, _OUT],
    "tinker_run_load_peft": [_H, _STR, _OUT],
    "tinker_checkpoint_list": [_H, _STR, _OUT],
    "tinker_checkpoint_info": [_H, _STR, _OUT],
    "tinker_checkpoint_delete": [_H, _STR],
    "tinker_checkpoint_publish": [_H, _STR],
    "tinker_checkpoint_unpublish": [_H, _STR],
    "tinker_checkpoint_set_ttl": [_H, _STR, c_int64],
    "tinker_training_run_list": [_H, _STR, _OUT],
    "tinker_training_run_info": [_H, _STR, _OUT],
    "tinker_checkpoint_export": [_H, _STR, _STR, _STR, _STR, _OUT],
    "tinker_session_create_sampler": [_H, _STR, _OUT],
    "tinker_session_load_sampler": [_H, _STR, _OUT],
    "tinker_session_peft_sampler": [_H, _STR, _STR, _OUT],
    "tinker_run_sampler": [_H, _OUT],
    "tinker_sampler_info": [_H, _OUT],
    "tinker_sampler_close": [_H],
    "tinker_sampler_free": [_H],
    "tinker_sample": [_H, c_void_p, c_int64, POINTER(s.Sampling), _OUT],
    "tinker_compute_logprobs": [_H, c_void_p, c_int64, _OUT],
    "tinker_future_wait": [_H, c_int64],
    "tinker_future_cancel": [_H],
    "tinker_future_free": [_H],
    "tinker_future_run": [_H, _OUT],
    "tinker_future_sampler": [_H, _OUT],
    "tinker_future_held": [_H, _OUT],
    "tinker_future_json": [_H, _OUT],
    "tinker_future_output": [_H, POINTER(POINTER(s.Output))],
    "tinker_future_samples": [_H, POINTER(POINTER(s.Samples))],
    "tinker_future_weights": [_H, POINTER(POINTER(s.Weights))],
}
_RESULTS = {"tinker_status_name": c_char_p, "tinker_last_error": c_char_p, "tinker_version": c_char_p, "tinker_free": None}

_lock = threading.Lock()
_loaded: Any = None
_forked = False


def lib() -> Any:
    """The library. Loads it the first time; in a child of fork() it raises ForkedError, as what the parent has open cannot be used there."""
    if _forked:
        raise ForkedError()
    return _loaded if _loaded is not None else _load()


def _path() -> str:
    if named := os.environ.get("TINKER_LOCAL_LIBRARY"):
        return named
    return str(Path(__file__).with_name(LIBRARY_NAME))


def _load() -> Any:
    global _loaded
    with _lock:
        if _loaded is not None:
            return _loaded
        try:
            library = ctypes.CDLL(_path())
        except OSError as e:
            raise ImportError(f"libtinker cannot be loaded: {e}; install the package with pip, or name the library in TINKER_LOCAL_LIBRARY") from e
        for name, arguments in _PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = _RESULTS.get(name, c_int32)
        os.register_at_fork(after_in_child=_after_fork)
        _reaper.start()
        _loaded = library
        return library


def _after_fork() -> None:
    global _forked
    _forked = True


def last_error() -> str:
    """What was wrong with this thread's last call."""
    text: bytes = lib().tinker_last_error()
    return text.decode("utf-8", "replace")


def check(status: int) -> None:
    """Raises the error of a call that was refused."""
    if status != s.OK:
        raise refusal(status, last_error())


def encode(text: str | None) -> bytes | None:
    """A string as C wants it. A NUL inside is an error: C would see the part before it."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"wanted a string, got {type(text).__name__}")
    if "\0" in text:
        raise ValueError("a string holds a NUL character")
    return text.encode("utf-8", "surrogateescape")


def take_text(address: int | None) -> str:
    """The string at an address that the library gave, which is freed."""
    try:
        return ctypes.string_at(address or 0).decode("utf-8", "replace")
    finally:
        lib().tinker_free(address)


def call_json(name: str, *arguments: Any) -> Any:
    """Calls a function whose last argument is char **json and parses what it gives."""
    out = c_void_p()
    check(getattr(lib(), name)(*arguments, ctypes.byref(out)))
    return json.loads(take_text(out.value))


def copy_array(address: int | None, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A numpy array [count] of its own with the values at an address: the only copy that the Python side makes of a result."""
    array = np.empty(count, dtype)
    if count:
        ctypes.memmove(array.ctypes.data, address or 0, array.nbytes)
    return array


def take_array(address: int | None, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """copy_array of memory that the library gave, which is freed."""
    try:
        return copy_array(address, count, dtype)
    finally:
        lib().tinker_free(address)


def debug_counts() -> dict[str, Any]:
    """What is alive in the library: {"handles": {type: count}, "memory": {"blocks", "bytes"}}. Handles that Python has let go of are freed first."""
    drain()
    counts: dict[str, Any] = call_json("tinker_debug_counts")
    return counts


def drain() -> None:
    """Waits until the handles that the garbage collector has found are freed."""
    lib()
    _reaper.drain()


class _Reaper:
    """Frees what the garbage collector finds, on a thread of its own: a finalizer may run between a failed call and the reading of its
    message, which another call of the same thread would clear, and freeing the last handle of an engine takes long."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, int] | threading.Event] = queue.SimpleQueue()
        self._started = False

    def bury(self, free: str, handle: int) -> None:
        """Called by finalizers, anywhere: it must not block and takes no lock."""
        if _forked:
            return
        self._queue.put((free, handle))

    def start(self) -> None:
        self._started = True
        threading.Thread(target=self._run, name="tinker_local reaper", daemon=True).start()

    def drain(self) -> None:
        if self._started:
            done = threading.Event()
            self._queue.put(done)
            done.wait()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                getattr(_loaded, item[0])(item[1])


_reaper = _Reaper()


class Handle:
    """A handle of the library, freed when nothing in Python refers to it any more."""

    __slots__ = ("value", "_free", "__weakref__")

    def __init__(self, value: int | None, free: str) -> None:
        self.value = value
        self._free = free

    def free(self) -> None:
        """Frees it now, in this thread. Twice does nothing."""
        value, self.value = self.value, None
        if value and not _forked:
            getattr(_loaded, self._free)(value)

    def __del__(self) -> None:
        value, self.value = self.value, None
        if value:
            _reaper.bury(self._free, value)

    def __reduce__(self) -> Any:
        raise TypeError("a handle of libtinker cannot be pickled: it belongs to its process")


def make_handle(name: str, free: str, *arguments: Any) -> Handle:
    """Calls a function whose last argument is a new handle."""
    out = c_void_p()
    check(getattr(lib(), name)(*arguments, ctypes.byref(out)))
    return Handle(out.value, free)
