"""Sampling: parameters, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._input import ModelInput
from ._record import Record, number

StopReason = Literal["length", "stop"]

_NONE = -99999.0  # the log-probability of an unused place of TopkPromptLogprobs, as in the official SDK


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Record):
    """How tokens are drawn.

    max_tokens: None: up to the model's context. seed: None: a random one. stop: a text, texts, or token ids, which end a
    sequence besides the model's own; []: nothing does, not even those. temperature: 0 takes the most probable token. top_k: -1: off. top_p: 1: off.
    """

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1
    top_k: int = -1
    top_p: float = 1

    def __post_init__(self) -> None:
        number(self, "max_tokens", "seed", "temperature", "top_k", "top_p")


@dataclass(frozen=True, kw_only=True)
class SampleRequest(Record):
    """A request of the HTTP API, for programs that build one themselves."""

    num_samples: int = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: str | None = None
    model_path: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    type: Literal["sample"] = "sample"


@dataclass(frozen=True)
class SampledSequence:
    """A continuation. tokens_np int32 [n]: with the one that ended it. logprobs_np float32 [n]: of the distribution that was drawn from.

    raw_logprobs_np float32 [n], not in the official SDK: of the model at temperature 1, the bits that a forward pass gives.
    """

    stop_reason: StopReason
    tokens_np: npt.NDArray[np.int32] | None = field(default=None, repr=False)
    logprobs_np: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    _tokens_list: list[int] | None = field(default=None, repr=False)
    _logprobs_list: list[float] | None = field(default=None, repr=False)
    raw_logprobs_np: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> list[int]:
        """tokens_np as a list."""
        return self._tokens_list if self._tokens_list is not None else _listed(self.tokens_np) or []

    @cached_property
    def logprobs(self) -> list[float] | None:
        """logprobs_np as a list."""
        return self._logprobs_list if self._logprobs_list is not None else _listed(self.logprobs_np)


@dataclass(frozen=True)
class TopkPromptLogprobs:
    """The k most probable tokens at each of n positions: token_ids int32 [n, k], logprobs float32 [n, k]. Unused places hold token 0 with -99999."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SampleResponse:
    """Continuations of one prompt. prompt_logprobs_np float32 [prompt]: of the prompt's tokens, NaN of the first; None when not asked for."""

    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    topk_prompt_logprobs_np: TopkPromptLogprobs | None = field(default=None, repr=False)
    prompt_cache_hit_tokens: int = 0
    _prompt_logprobs_list: list[float | None] | None = field(default=None, repr=False)
    _topk_prompt_logprobs_list: list[list[tuple[int, float]] | None] | None = field(default=None, repr=False)

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """prompt_logprobs_np as a list, with None for NaN."""
        if self._prompt_logprobs_list is not None or self.prompt_logprobs_np is None:
            return self._prompt_logprobs_list
        return optional_list(self.prompt_logprobs_np)

    @cached_property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """[prompt] lists of up to k (token, logprob), the most probable first; None where there are none. None when not asked for."""
        top = self.topk_prompt_logprobs_np
        if self._topk_prompt_logprobs_list is not None or top is None:
            return self._topk_prompt_logprobs_list
        rows = ([(t, lp) for t, lp in zip(ids, lps) if lp != _NONE] for ids, lps in zip(top.token_ids.tolist(), top.logprobs.tolist()))
        return [row or None for row in rows]


def optional_list(values: npt.NDArray[np.float32]) -> list[float | None]:
    """The values as a list, with None for NaN."""
    return [None if v != v else v for v in values.tolist()]


def topk_matrices(offsets: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]) -> TopkPromptLogprobs:
    """Rows [offsets[i] : offsets[i+1]] as matrices."""
    counts = np.diff(offsets)
    used = np.arange(counts.max(initial=0)) < counts[:, None]
    ids, lps = np.zeros(used.shape, np.int32), np.full(used.shape, _NONE, np.float32)
    ids[used], lps[used] = tokens, logprobs
    return TopkPromptLogprobs(ids, lps)


def _listed(array: npt.NDArray[Any] | None) -> list[Any] | None:
    return None if array is None else array.tolist()
