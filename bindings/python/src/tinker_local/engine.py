"""The engine of this process and what is opened on it."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import itertools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from . import _structs as s
from ._library import Handle, call_json, drain, encode, lib, make_handle
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .sampling_client import SamplingClient
    from .training_client import TrainingClient

# The state that is no folder: checkpoints live as long as the engine.
IN_MEMORY = ":memory:"


class Engine:
    """A device, the models on it and the folder of checkpoints. Use `shared` to get one: clients that want the same one share it.

    models: the folder of ORG/NAME model folders. state: the folder of checkpoints, or ":memory:". None: what TINKER_LOCAL_MODELS and
    TINKER_LOCAL_STATE name, or the command line's folders. device: "auto", "cpu", "cpu:portable", "cuda", "cuda:N". dtype of the base
    weights: "auto", "float32", "bfloat16".
    """

    def __init__(self, models: str | None, state: str | None, device: str | None, dtype: str | None) -> None:
        drain()  # an engine that was let go of gives its state folder back
        folders = call_json("tinker_default_folders")
        self.models = models or folders["models"] or None
        in_memory = os.environ.get("TINKER_LOCAL_STATE") == IN_MEMORY
        self.state = state or (IN_MEMORY if in_memory else folders["state"]) or IN_MEMORY
        self.device, self.dtype = device, dtype
        options = s.EngineOptions(
            struct_size=ctypes.sizeof(s.EngineOptions),
            device=encode(device),
            dtype=encode(dtype),
            models=encode(self.models),
            state=None if self.state == IN_MEMORY else encode(os.path.expanduser(self.state)),
            hub_cache=encode(folders["hub_cache"] or None),
        )
        self.handle = make_handle("tinker_engine_open", "tinker_engine_free", ctypes.byref(options))
        self.closed = False
        self.sessions: list[weakref.ref[Session]] = []
        self._tokenizers: dict[str, Tokenizer] = {}
        self._modules: dict[bytes, Handle] = {}
        self._lock = threading.Lock()
        _open.add(self)

    def close(self) -> None:
        """Ends everything on the engine and frees the device's memory. What waits fails with a RequestFailedError."""
        self.closed = True
        if self.handle.value:
            lib().tinker_engine_close(self.handle.value)

    def info(self) -> dict[str, Any]:
        """The device, limits in force, and counters of each loaded model: tinker_engine_info of tinker.h."""
        return self.json("tinker_engine_info")

    def models_info(self) -> list[dict[str, Any]]:
        """Every model that can be opened, and why others cannot: tinker_engine_models of tinker.h."""
        return call_json("tinker_engine_models", self.handle.value)  # type: ignore[no-any-return]

    def plugins(self) -> list[dict[str, Any]]:
        """The custom losses that can be named as "wasm:NAME", with their inputs and parameters: tinker_engine_plugins of tinker.h."""
        return call_json("tinker_engine_plugins", self.handle.value)  # type: ignore[no-any-return]

    def json(self, name: str, *arguments: str | None) -> dict[str, Any]:
        """Asks the library about the engine. Errors: APIStatusError."""
        answer: dict[str, Any] = call_json(name, self.handle.value, *map(encode, arguments))
        return answer

    def tokenizer(self, model: str) -> Tokenizer:
        """The tokenizer of a model, read once."""
        lib()
        with self._lock:
            if model not in self._tokenizers:
                handle = make_handle("tinker_tokenizer_open", "tinker_tokenizer_free", self.handle.value, encode(model))
                self._tokenizers[model] = Tokenizer(handle, model)
            return self._tokenizers[model]

    def module(self, wasm: bytes) -> Handle:
        """A custom loss, compiled once. Errors: APIStatusError."""
        lib()
        digest = hashlib.sha256(wasm).digest()
        with self._lock:
            if digest not in self._modules:
                self._modules[digest] = make_handle("tinker_module_open", "tinker_module_free", self.handle.value, wasm, len(wasm))
            return self._modules[digest]


class Session:
    """What one ServiceClient opens on an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handle = make_handle("tinker_session_open", "tinker_session_free", engine.handle.value, None)
        self.id: str = call_json("tinker_session_info", self.handle.value)["session_id"]
        self.runs: weakref.WeakValueDictionary[str, TrainingClient] = weakref.WeakValueDictionary()
        self.samplers: weakref.WeakValueDictionary[str, SamplingClient] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        engine.sessions = [*(ref for ref in engine.sessions if ref() is not None), weakref.ref(self)]

    def sampler_id(self) -> str:
        """An id for a new sampler, as the HTTP API makes them."""
        return f"{self.id}:sample:{next(self._numbers)}"


_open: weakref.WeakSet[Engine] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[tuple[str | None, ...], Engine] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def shared(models: str | None = None, state: str | None = None, device: str | None = None, dtype: str | None = None) -> Engine:
    """The engine with these options: the one that is open, or a new one. It closes when no client refers to it any more."""
    key = (models, state, device, dtype, os.environ.get("TINKER_LOCAL_MODELS"), os.environ.get("TINKER_LOCAL_STATE"))
    lib()
    with _shared_lock:
        engine = _shared.get(key)
        if engine is None or engine.closed:
            engine = _shared[key] = Engine(models, state, device, dtype)
        return engine


def _close_all() -> None:
    for engine in list(_open):
        try:
            engine.close()
        except Exception:
            pass  # a child of fork(), or the library is gone: there is nothing left to close


atexit.register(_close_all)
