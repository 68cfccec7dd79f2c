"""What a model reads: chunks, and their sequence."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from ._record import Record

ModelID = str
RequestID = str


@dataclass(frozen=True, kw_only=True)
class EncodedTextChunk(Record):
    """Text as token ids. `tokens`: a list, or a one-dimensional numpy array of integers, which saves making one."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @cached_property
    def ids(self) -> npt.NDArray[np.int32]:
        """The tokens as an array [length]. ValueError when they are no token ids."""
        array = np.asarray(self.tokens)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"tokens: wanted a sequence of integers, got {array.dtype} of shape {list(array.shape)}")
        if array.dtype != np.int32 and array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError("tokens: an id does not fit into 32 bits")
        return np.ascontiguousarray(array, np.int32)


@dataclass(frozen=True, kw_only=True)
class ImageChunk(Record):
    """An image. The engine has no model that sees: it refuses one."""

    data: bytes = field(repr=False)
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image"] = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _bytes(self.data))

    @property
    def length(self) -> int:
        """expected_tokens; ValueError without."""
        return _expected(self.expected_tokens)


@dataclass(frozen=True, kw_only=True)
class ImageAssetPointerChunk(Record):
    """An image that lies somewhere else. The engine refuses one."""

    format: Literal["png", "jpeg"]
    location: str
    expected_tokens: int | None = None
    type: Literal["image_asset_pointer"] = "image_asset_pointer"

    @property
    def length(self) -> int:
        """expected_tokens; ValueError without."""
        return _expected(self.expected_tokens)


@dataclass(frozen=True, kw_only=True)
class DmelChunk(Record):
    """Sound. The engine refuses it."""

    dmel: bytes = field(repr=False)
    type: Literal["dmel"] = "dmel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dmel", _bytes(self.dmel))

    @property
    def length(self) -> int:
        """Not known here."""
        raise ValueError("the length of a dmel chunk is not known: the engine does not read sound")


def _bytes(value: bytes | str) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else bytes(value)


def _expected(tokens: int | None) -> int:
    if tokens is None:
        raise ValueError("the length of an image is not known: expected_tokens is not set")
    return tokens


ModelInputChunk = Union[EncodedTextChunk, ImageAssetPointerChunk, ImageChunk, DmelChunk]

_CHUNKS: dict[str, Any] = {"encoded_text": EncodedTextChunk, "image": ImageChunk, "image_asset_pointer": ImageAssetPointerChunk, "dmel": DmelChunk}


@dataclass(frozen=True, kw_only=True)
class ModelInput(Record):
    """A sequence of chunks, in order. Chunks given as dicts are made into what their "type" says."""

    chunks: list[ModelInputChunk]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", [_CHUNKS[c["type"]](**c) if isinstance(c, dict) else c for c in self.chunks])

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> ModelInput:
        """An input of token ids: a list, or a one-dimensional numpy array."""
        return cls(chunks=[EncodedTextChunk(tokens=tokens)])

    @classmethod
    def empty(cls) -> ModelInput:
        """An input of nothing."""
        return cls(chunks=[])

    def to_ints(self) -> list[int]:
        """The token ids. ValueError when a chunk is not text."""
        return [int(t) for c in self._text() for t in c.tokens]

    def append(self, chunk: ModelInputChunk) -> ModelInput:
        """A longer input; this one stays."""
        return ModelInput(chunks=[*self.chunks, chunk])

    def append_int(self, token: int) -> ModelInput:
        """An input with one token more; this one stays."""
        return self.append(EncodedTextChunk(tokens=[token]))

    @property
    def length(self) -> int:
        """The number of tokens of all chunks."""
        return sum(c.length for c in self.chunks)

    def ids(self) -> npt.NDArray[np.int32]:
        """The token ids as an array [length]. ValueError when a chunk is not text."""
        parts = self._text()
        return parts[0].ids if len(parts) == 1 else np.concatenate([c.ids for c in parts] or [np.empty(0, np.int32)])

    def _text(self) -> list[EncodedTextChunk]:
        for c in self.chunks:
            if not isinstance(c, EncodedTextChunk):
                raise ValueError(f"the input has a chunk of type {getattr(c, 'type', type(c).__name__)}: only text is supported")
        return self.chunks  # type: ignore[return-value]
