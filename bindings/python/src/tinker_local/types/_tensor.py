"""Named inputs of losses, and training examples."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ._input import ModelInput

if TYPE_CHECKING:
    import torch

TensorDtype = Literal["int64", "float32"]

_NUMPY: dict[str, Any] = {"float32": np.float32, "int64": np.int64}

# The kind of an input that comes as a list, which has none of its own.
_LISTS = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
}


@dataclass(frozen=True, eq=False, init=False)
class TensorData:
    """A tensor of float32 or int64: dense, or two-dimensional in CSR form as torch.sparse_csr_tensor has it.

    data: the values, flat or in their shape; of a sparse tensor those that are stored. A numpy array of the right type that may be written to is
    not copied. shape: of the dense tensor; None means (len(data),).
    """

    dtype: TensorDtype
    array: npt.NDArray[Any] = field(repr=False)
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None

    def __init__(
        self,
        data: list[int] | list[float] | npt.NDArray[Any] | None = None,
        dtype: TensorDtype | None = None,
        shape: list[int] | None = None,
        sparse_crow_indices: list[int] | None = None,
        sparse_col_indices: list[int] | None = None,
    ) -> None:
        if dtype is None:
            raise TypeError("TensorData: dtype is missing")
        if dtype not in _NUMPY:
            raise ValueError(f"TensorData: dtype is {dtype!r}, wanted 'float32' or 'int64'")
        array = np.asarray([] if data is None else data, _NUMPY[dtype])
        if not array.flags.writeable:
            array = array.copy()
        if shape is not None and sparse_crow_indices is None and list(array.shape) != list(shape):
            array = array.reshape(shape)
        # Not by object.__setattr__, one after the other: a batch makes hundreds of these.
        self.__dict__.update(dtype=dtype, array=array, shape=shape, sparse_crow_indices=sparse_crow_indices, sparse_col_indices=sparse_col_indices)

    @property
    def data(self) -> list[int] | list[float]:
        """The values as a flat list."""
        values: list[float] = self.array.ravel().tolist()
        return values

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> TensorData:
        """Floats become float32, signed integers int64. An array of that type is not copied."""
        kind: TensorDtype | None = {"f": "float32", "i": "int64"}.get(array.dtype.kind)  # type: ignore[assignment]
        if kind is None:
            raise ValueError(f"an array of {array.dtype}: wanted floats or signed integers")
        return cls(array, kind, list(array.shape))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """A tensor on the CPU that does not require a gradient."""
        import torch

        return cls.from_numpy((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy())

    @classmethod
    def from_torch_sparse(cls, tensor: torch.Tensor) -> TensorData:
        """In CSR form where that takes fewer numbers, as a two-dimensional tensor that is mostly zero does; otherwise as from_torch."""
        if tensor.ndim != 2 or tensor.shape[0] + 1 + 2 * int(tensor.count_nonzero()) >= tensor.numel():
            return cls.from_torch(tensor)
        csr = tensor.to_sparse_csr()
        kind: TensorDtype = "float32" if tensor.dtype.is_floating_point else "int64"
        return cls(csr.values().float().numpy() if kind == "float32" else csr.values().numpy(), kind, list(tensor.shape),
                   csr.crow_indices().tolist(), csr.col_indices().tolist())  # fmt: skip

    def to_numpy(self) -> npt.NDArray[Any]:
        """The dense array. Of a dense tensor this is its memory, not a copy."""
        if self.sparse_crow_indices is None:
            return self.array
        if self.shape is None or self.sparse_col_indices is None:
            raise ValueError("a sparse tensor needs its shape and sparse_col_indices")
        dense = np.zeros(self.shape, self.array.dtype)
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.sparse_crow_indices))
        dense[rows, self.sparse_col_indices] = self.array
        return dense

    def to_torch(self) -> torch.Tensor:
        """The dense tensor. Of a dense tensor this is its memory, not a copy."""
        import torch

        return torch.from_numpy(self.to_numpy())

    def tolist(self) -> list[Any]:
        """The values as nested lists."""
        values: list[Any] = self.to_numpy().tolist()
        return values


LossFnInputs = dict[str, TensorData]
LossFnOutput = dict[str, TensorData]


@dataclass(frozen=True)
class Datum:
    """A training example. Position i of `model_input` predicts entry i of `loss_fn_inputs["target_tokens"]`.

    loss_fn_inputs: name to TensorData, numpy array, torch tensor or list; they are made TensorData. A list's type follows from its name.
    Two-dimensional torch tensors "target_tokens" and "weights" are kept sparse where that is shorter.
    """

    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs: Mapping[str, Any] = self.loss_fn_inputs
        object.__setattr__(self, "loss_fn_inputs", {name: _tensor(name, value) for name, value in inputs.items()})


def _tensor(name: str, value: Any) -> TensorData:
    if isinstance(value, TensorData):
        return value
    if isinstance(value, np.ndarray):
        return TensorData.from_numpy(value)
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is loaded
    if torch is not None and isinstance(value, torch.Tensor):
        return TensorData.from_torch_sparse(value) if name in ("target_tokens", "weights") else TensorData.from_torch(value)
    if not isinstance(value, list):
        raise TypeError(f"loss_fn_inputs[{name!r}] is a {type(value).__name__}, wanted TensorData, a numpy array, a torch tensor or a list")
    if name not in _LISTS:
        raise KeyError(f"loss_fn_inputs[{name!r}]: a list of this name has no known type; give a numpy array or TensorData")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"loss_fn_inputs[{name!r}]: the lists in it differ in length") from None
    if array.size and array.dtype.kind not in "fiu":
        raise ValueError(f"loss_fn_inputs[{name!r}]: wanted numbers, in lists of one length")
    return TensorData.from_numpy(array.astype(_NUMPY[_LISTS[name]]))
