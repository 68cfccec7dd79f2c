"""Losses of the caller's: functions of log-probabilities, and WASM modules.

A function costs one forward and one backward, as a built-in loss does: the forward is held while the function runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any, Literal, Union, overload

import numpy as np
import numpy.typing as npt

from . import _results
from ._library import Handle, last_error, lib
from .exceptions import failure
from .futures import Operation
from .types import Datum, ForwardBackwardOutput, LossFnType

# Takes the data and a list of torch tensors, for each datum the log-probabilities of its targets (N) or (N, K); gives (loss, metrics).
CustomLossFnV1 = Callable[[list[Datum], list[Any]], tuple[Any, dict[str, float]]]

# A built-in loss or "wasm:NAME"; the file of a module, or its bytes.
NamedLoss = Union[LossFnType, str, bytes, "os.PathLike[str]"]

# Takes the data and a list of float32 arrays; gives (loss, metrics, arrays of the same shapes).
NumpyLossFn = Callable[[list[Datum], list[npt.NDArray[np.float32]]], tuple[float, dict[str, float], Sequence[npt.ArrayLike]]]


class NumpyLoss:
    """A loss function of numpy arrays that computes its own gradient: made by numpy_loss."""

    def __init__(self, function: NumpyLossFn, returns: Literal["weights", "gradient"]) -> None:
        if returns not in ("weights", "gradient"):
            raise ValueError(f"numpy_loss: returns is {returns!r}, wanted 'weights' or 'gradient'")
        self.function, self.returns = function, returns

    def __call__(self, data: list[Datum], logprobs: list[npt.NDArray[np.float32]]) -> tuple[float, dict[str, float], Sequence[npt.ArrayLike]]:
        return self.function(data, logprobs)


@overload
def numpy_loss(function: NumpyLossFn) -> NumpyLoss: ...
@overload
def numpy_loss(*, returns: Literal["weights", "gradient"] = ...) -> Callable[[NumpyLossFn], NumpyLoss]: ...
def numpy_loss(function: NumpyLossFn | None = None, *, returns: Literal["weights", "gradient"] = "weights") -> Any:
    """Marks a function for forward_backward_custom that works on numpy arrays: no torch is needed.

    It takes (data, logprobs) and gives (loss, metrics, w): w[i] has the shape of logprobs[i] and holds -dL/dlogprob ("weights"), as all losses
    of the engine do, or +dL/dlogprob ("gradient").
    """
    return NumpyLoss(function, returns) if function is not None else lambda f: NumpyLoss(f, returns)


def is_named(loss: object) -> bool:
    """Whether it is no function."""
    return isinstance(loss, (str, bytes, bytearray, os.PathLike))


def module_bytes(loss: Any) -> bytes | None:
    """The bytes of a module that is given by its file or its bytes; None of a name."""
    if isinstance(loss, (bytes, bytearray)):
        return bytes(loss)
    if isinstance(loss, os.PathLike) or (isinstance(loss, str) and loss.endswith(".wasm") and not loss.startswith("wasm:")):
        try:
            return Path(loss).read_bytes()
        except OSError as e:
            raise failure(2, f"the custom loss cannot be read: {e}") from e  # TINKER_ERR_NOT_FOUND
    return None


class Held:
    """A forward pass that waits for its backward pass."""

    def __init__(self, future: Handle) -> None:
        self.logprobs, _ = _results.logprobs(future)
        self._handle = _results.handle_result(future, "tinker_future_held", "tinker_held_free")

    def release(self) -> None:
        """Gives the activations up, unless a backward is queued."""
        self._handle.free()

    def backward(self, weights: npt.NDArray[np.float32], metrics: dict[str, float]) -> Operation[ForwardBackwardOutput]:
        """The backward pass with w = -dL/dlogprob, in the order of the log-probabilities; metrics are added to its own."""

        def finish(future: Handle) -> ForwardBackwardOutput:
            output = _results.forward_backward_output(future)
            output.metrics.update(metrics)
            return output

        out = c_void_p()
        status = lib().tinker_held_backward(self._handle.value, weights.ctypes.data, weights.size, byref(out))
        if status:
            return Operation.failed(failure(status, last_error()))
        return Operation(Handle(out.value, "tinker_future_free"), finish)


def evaluate(data: list[Datum], loss: Any, held: Held) -> Operation[ForwardBackwardOutput]:
    """Runs a loss function on a held forward and submits the backward pass. What the function raises is raised here."""
    try:
        if isinstance(loss, NumpyLoss):
            weights, metrics = _with_numpy(data, loss, held.logprobs)
        else:
            weights, metrics = _with_torch(data, loss, held.logprobs)
        return held.backward(weights, metrics)
    finally:
        held.release()


def _with_torch(data: list[Datum], loss: CustomLossFnV1, rows: list[npt.NDArray[np.float32]]) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
    import torch

    leaves = [torch.from_numpy(row).requires_grad_(True) for row in rows]
    value, metrics = loss(data, leaves)
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"the loss function gave a {type(value).__name__}, wanted a torch tensor; one that works on numpy arrays is marked with numpy_loss"
        )
    value.backward()
    weights = []
    for i, leaf in enumerate(leaves):
        if leaf.grad is None:
            raise ValueError(f"the loss has no gradient with respect to the log-probabilities of datum {i}")
        weights.append((-leaf.grad).reshape(-1).numpy())
    return _flat(weights), dict(metrics)


def _with_numpy(data: list[Datum], loss: NumpyLoss, rows: list[npt.NDArray[np.float32]]) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
    shapes = [row.shape for row in rows]
    _, metrics, given = loss(data, rows)
    arrays = [np.asarray(a, np.float32) for a in given]
    if [a.shape for a in arrays] != shapes:
        raise ValueError(
            f"the loss function gave {loss.returns} of shapes {[a.shape for a in arrays]}, wanted those of the log-probabilities, {shapes}"
        )
    return _flat([a.reshape(-1) if loss.returns == "weights" else -a.reshape(-1) for a in arrays]), dict(metrics)


def _flat(arrays: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.concatenate(arrays), np.float32) if arrays else np.empty(0, np.float32)


def require_torch(loss: object) -> None:
    """Fails before the forward pass when a function needs torch and it is not there."""
    if isinstance(loss, NumpyLoss):
        return
    if not callable(loss):
        raise TypeError(f"loss_fn is a {type(loss).__name__}, wanted a function, the name of a loss, or a WASM module")
    try:
        import torch  # noqa: F401
    except ImportError as e:
        raise ImportError(
            "forward_backward_custom with this function needs torch, which is not installed; numpy_loss marks functions that do not"
        ) from e
