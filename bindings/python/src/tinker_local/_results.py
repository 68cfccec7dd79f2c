"""Results of ended futures, in the library's memory, to values: each array is copied once, into memory that is the caller's."""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, byref, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Handle, check, copy_array, lib, take_text
from .types import ForwardBackwardOutput, OptimStepResponse, SampledSequence, SampleResponse, TensorData
from .types._sampling import topk_matrices


def _view(future: Handle, name: str, kind: Any) -> Any:
    pointer = POINTER(kind)()
    check(getattr(lib(), name)(future.value, byref(pointer)))
    return pointer.contents


def _metrics(output: Any) -> dict[str, float]:
    return {output.metrics[i].name.decode(): output.metrics[i].value for i in range(output.metric_count)}


def logprobs(future: Handle) -> tuple[list[npt.NDArray[np.float32]], dict[str, float]]:
    """Log-probabilities of each datum's targets, (N) or (N, K), and metrics. The arrays are parts of one."""
    output = _view(future, "tinker_future_output", s.Output)
    count = output.count
    offsets = copy_array(output.offsets, count + 1, np.int64).tolist()
    columns = copy_array(output.columns, count, np.int64).tolist()
    values = copy_array(output.logprobs, offsets[-1], np.float32)
    rows = [values[offsets[i] : offsets[i + 1]] for i in range(count)]
    return [row.reshape(-1, k) if k else row for row, k in zip(rows, columns)], _metrics(output)


def forward_backward_output(future: Handle) -> ForwardBackwardOutput:
    """The result of a pass."""
    rows, metrics = logprobs(future)
    return ForwardBackwardOutput("ArrayRecord", [{"logprobs": TensorData(row, "float32", list(row.shape))} for row in rows], metrics)


def optim_step_response(future: Handle) -> OptimStepResponse:
    """The result of an optimizer step."""
    return OptimStepResponse(metrics=_metrics(_view(future, "tinker_future_output", s.Output)))


def sample_response(future: Handle) -> SampleResponse:
    """The result of sampling."""
    v = _view(future, "tinker_future_samples", s.Samples)
    offsets = copy_array(v.offsets, v.count + 1, np.int64).tolist()
    tokens = copy_array(v.tokens, offsets[-1], np.int32)
    lps, raw = (copy_array(address, offsets[-1], np.float32) for address in (v.logprobs, v.raw_logprobs))
    reasons = copy_array(v.stop_reasons, v.count, np.int32).tolist()
    sequences = [
        SampledSequence("stop" if reason == s.STOP else "length", tokens[a:b], lps[a:b], raw_logprobs_np=raw[a:b])
        for reason, a, b in zip(reasons, offsets, offsets[1:])
    ]
    top = None
    if v.topk_offsets:
        at = copy_array(v.topk_offsets, v.prompt_count + 1, np.int64)
        top = topk_matrices(at, copy_array(v.topk_tokens, int(at[-1]), np.int32), copy_array(v.topk_logprobs, int(at[-1]), np.float32))
    return SampleResponse(sequences, prompt_logprobs(v), top)


def prompt_logprobs(v: Any) -> npt.NDArray[np.float32] | None:
    """The prompt's log-probabilities of a tinker_samples."""
    return copy_array(v.prompt_logprobs, v.prompt_count, np.float32) if v.prompt_logprobs else None


def computed_logprobs(future: Handle) -> npt.NDArray[np.float32]:
    """The result of tinker_compute_logprobs."""
    v = _view(future, "tinker_future_samples", s.Samples)
    return copy_array(v.prompt_logprobs, v.prompt_count, np.float32)


def adapter_weights(future: Handle) -> dict[str, npt.NDArray[np.float32]]:
    """The matrices of an adapter by their PEFT names."""
    v = _view(future, "tinker_future_weights", s.Weights)
    out = {}
    for i in range(v.count):
        m = v.matrices[i]
        shape = copy_array(m.shape, m.rank, np.int64).tolist()
        out[m.name.decode()] = copy_array(m.values, int(np.prod(shape)), np.float32).reshape(shape)
    return out


def json_result(future: Handle) -> dict[str, Any]:
    """A result that is JSON."""
    out = c_void_p()
    check(lib().tinker_future_json(future.value, byref(out)))
    answer: dict[str, Any] = json.loads(take_text(out.value))
    return answer


def handle_result(future: Handle, name: str, free: str) -> Handle:
    """A result that is a handle of its own."""
    out = c_void_p()
    check(getattr(lib(), name)(future.value, ctypes.byref(out)))
    return Handle(out.value, free)
