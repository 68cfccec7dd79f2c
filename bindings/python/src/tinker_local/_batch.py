"""Training examples to a tinker_batch: neighbours that have the same inputs go over in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_int64
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _structs as s
from ._library import Handle, check, encode, lib, make_handle
from .types import Datum, TensorData

_DTYPES = {"float32": s.FLOAT32, "int64": s.INT64}


def make_batch(data: Sequence[Datum], names: tuple[str, ...] | None = None) -> Handle:
    """A batch of the datums, with the inputs named, or all."""
    batch = make_handle("tinker_batch_create", "tinker_batch_free")
    # A signature is what all datums of one call share.
    for signature, group in groupby(data, key=lambda d: _signature(d, names)):
        if signature is None:
            for datum in group:
                _add_one(batch, datum, names)
        else:
            _add(batch, list(group), signature)
    return batch


_Signature = tuple[tuple[str, str, int], ...]  # name, dtype, columns (0: one dimension) of each input


def _signature(datum: Datum, names: tuple[str, ...] | None) -> _Signature | None:
    """None: the datum has sparse inputs, or some of more than two dimensions, and goes over alone."""
    out = []
    for name, tensor in datum.loss_fn_inputs.items():
        if names is not None and name not in names:
            continue
        shape = tensor.array.shape
        if tensor.sparse_crow_indices is not None or not 1 <= len(shape) <= 2 or (len(shape) == 2 and shape[1] == 0):
            return None
        out.append((name, tensor.dtype, shape[1] if len(shape) == 2 else 0))
    return tuple(out)


def _add(batch: Handle, data: list[Datum], signature: _Signature) -> None:
    rows = [d.model_input.ids() for d in data]
    tokens, offsets = _join(rows)
    keep: list[Any] = [tokens, offsets]  # the arrays whose addresses are handed over
    tensors = (s.Tensor * len(signature))()
    lengths = [len(r) for r in rows]
    for tensor, (name, dtype, columns) in zip(tensors, signature):
        arrays = [d.loss_fn_inputs[name].array for d in data]
        as_tokens = not columns and [len(a) for a in arrays] == lengths
        values, at = _join([a.reshape(-1) for a in arrays] if columns else arrays, not as_tokens)
        keep += [values, at]
        tensor.name, tensor.dtype, tensor.columns = encode(name), _DTYPES[dtype], columns
        tensor.values, tensor.count = values.ctypes.data, values.size
        tensor.offsets = None if at is None else at.ctypes.data
    datums = s.Datums(
        ctypes.sizeof(s.Datums), ctypes.sizeof(s.Tensor), len(data), tokens.ctypes.data, offsets.ctypes.data if offsets is not None else None,
        ctypes.addressof(tensors), len(signature),
    )  # fmt: skip
    check(lib().tinker_batch_add(batch.value, byref(datums)))


def _join(arrays: list[npt.NDArray[Any]], offsets: bool = True) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """The arrays, one after the other, and where each begins."""
    joined = np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
    if not offsets:
        return joined, None
    at = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([a.size for a in arrays], out=at[1:])
    return joined, at


def _add_one(batch: Handle, datum: Datum, names: tuple[str, ...] | None) -> None:
    tokens = datum.model_input.ids()
    check(lib().tinker_batch_datum(batch.value, tokens.ctypes.data, tokens.size))
    for name, tensor in datum.loss_fn_inputs.items():
        if names is None or name in names:
            (_set if tensor.sparse_crow_indices is None else _set_csr)(batch, encode(name) or b"", tensor)


def _set(batch: Handle, name: bytes, tensor: TensorData) -> None:
    values = np.ascontiguousarray(tensor.array)
    shape = (c_int64 * max(1, values.ndim))(*tensor.array.shape)
    check(lib().tinker_batch_set(batch.value, name, _DTYPES[tensor.dtype], values.ctypes.data, shape, tensor.array.ndim))


def _set_csr(batch: Handle, name: bytes, tensor: TensorData) -> None:
    if tensor.shape is None or len(tensor.shape) != 2 or tensor.sparse_col_indices is None:
        raise ValueError(f"{name.decode()}: a sparse tensor needs a shape of two dimensions and sparse_col_indices")
    rows, columns = tensor.shape
    values = np.ascontiguousarray(tensor.array)
    at, col = np.asarray(tensor.sparse_crow_indices, np.int64), np.asarray(tensor.sparse_col_indices, np.int64)
    if at.shape != (rows + 1,) or col.shape != values.shape or at[0] != 0 or at[-1] != values.size:
        raise ValueError(
            f"{name.decode()}: {at.size} row pointers to {at[-1] if at.size else 0}, {col.size} column indices and {values.size} values, "
            f"wanted {rows + 1} pointers from 0 to the number of indices and values"
        )
    check(lib().tinker_batch_set_csr(batch.value, name, _DTYPES[tensor.dtype], values.ctypes.data, at.ctypes.data, col.ctypes.data, rows, columns))


def make_config(config: Mapping[str, float] | None) -> tuple[Any, int]:
    """A loss's configuration as an array of tinker_pair, and its length."""
    if not config:
        return None, 0
    return (s.Pair * len(config))(*(s.Pair(encode(name), float(value)) for name, value in config.items())), len(config)
