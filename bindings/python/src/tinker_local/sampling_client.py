"""SamplingClient: a model, or a snapshot of a run, to sample from."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int32
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _results
from . import _structs as s
from ._library import Handle, call_json, encode, lib
from .exceptions import RequestFailedError, as_refusal
from .futures import APIFuture, Operation, WatchedFuture, submit
from .tokenizer import Tokenizer
from .types import ModelInput, SampleResponse, SamplingParams
from .types._sampling import optional_list

if TYPE_CHECKING:
    from .engine import Session


@dataclass
class RetryConfig:
    """Accepted wherever the official SDK takes it, and not used: there is no connection to try again."""

    max_connections: int = 1000
    progress_timeout: float = 7200.0
    retry_delay_base: float = 0.5
    retry_delay_max: float = 10.0
    jitter_factor: float = 0.25
    enable_retry_logic: bool = True
    enable_stuck_detection: bool = True
    retryable_exceptions: tuple[type[Exception], ...] = ()


class SamplingClient:
    """Draws continuations. Get one from a ServiceClient or a TrainingClient.

    Requests run together, however they come: submit many and wait afterwards. One of a bare base model can be pickled; another process opens
    the model again.
    """

    def __init__(self, session: Session, sampler: Handle, *, base_model: str, model_path: str | None = None, snapshot: bool = False) -> None:
        self._session, self._sampler = session, sampler
        self._base_model, self._model_path, self._snapshot = base_model, model_path, snapshot
        self.sampler_id = session.sampler_id()
        session.samplers[self.sampler_id] = self

    @staticmethod
    def create(
        holder: Session,
        *,
        model_path: str | None = None,
        base_model: str | None = None,
        sampling_session_id: str | None = None,
        retry_config: RetryConfig | None = None,
    ) -> APIFuture[SamplingClient]:
        """Opens a sampler of a checkpoint (tinker://...), of a PEFT folder with its base_model, or of a bare base model."""
        if sampling_session_id is not None:
            raise ValueError("sampling_session_id: a sampler of this process cannot be opened by its id")
        session = holder.handle.value
        if model_path is None and base_model is None:
            raise ValueError("wanted model_path or base_model")

        def call(out: Any) -> int:
            if model_path is None:
                status: int = lib().tinker_session_create_sampler(session, encode(base_model), out)
            elif model_path.startswith("tinker://"):
                status = lib().tinker_session_load_sampler(session, encode(model_path), out)
            elif base_model is not None:
                status = lib().tinker_session_peft_sampler(session, encode(base_model), encode(model_path), out)
            else:
                raise ValueError(f"model_path is {model_path!r}, wanted tinker://..., or a PEFT folder with base_model")
            return status

        def client(future: Handle) -> SamplingClient:
            sampler = _results.handle_result(future, "tinker_future_sampler", "tinker_sampler_free")
            return SamplingClient(holder, sampler, base_model=_base_of(sampler), model_path=model_path)

        return submit(call, client)

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    def on_queue_state_change(self, queue_state: object, queue_state_reason: str | None) -> None:
        """Never called: a hook of the official SDK's connection."""

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> WatchedFuture[SampleResponse]:
        """Draws num_samples continuations of prompt. topk_prompt_logprobs: k most probable tokens at each of its positions, too.
        The future can be awaited as well; cancelling it stops at the next token."""
        return self._sample(prompt, num_samples, sampling_params, include_prompt_logprobs, topk_prompt_logprobs).future()

    async def sample_async(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> SampleResponse:
        """As sample, with the result."""
        return await self._sample(prompt, num_samples, sampling_params, include_prompt_logprobs, topk_prompt_logprobs)

    def compute_logprobs(self, prompt: ModelInput) -> WatchedFuture[list[float | None]]:
        """The log-probability of each token of prompt, given those before it; None of the first."""
        return self._compute(prompt).future()

    async def compute_logprobs_async(self, prompt: ModelInput) -> list[float | None]:
        """As compute_logprobs, with the result."""
        return await self._compute(prompt)

    def _sample(self, prompt: ModelInput, n: int, params: SamplingParams, logprobs: bool, topk: int) -> Operation[SampleResponse]:
        def call(out: Any) -> int:
            ids, (sampling, keep) = prompt.ids(), _sampling(n, params, logprobs, topk)
            status: int = lib().tinker_sample(self._sampler.value, ids.ctypes.data, ids.size, byref(sampling), out)
            del keep
            return status

        return submit(call, _results.sample_response)

    def _compute(self, prompt: ModelInput) -> Operation[list[float | None]]:
        def call(out: Any) -> int:
            ids = prompt.ids()
            status: int = lib().tinker_compute_logprobs(self._sampler.value, ids.ctypes.data, ids.size, out)
            return status

        return submit(call, lambda future: optional_list(_results.computed_logprobs(future)))

    def get_base_model(self) -> str:
        """The name of the base model."""
        return self._base_model

    async def get_base_model_async(self) -> str:
        """As get_base_model."""
        return self._base_model

    def get_tokenizer(self) -> Tokenizer:
        """The base model's tokenizer."""
        return self._session.engine.tokenizer(self._base_model)

    def close(self) -> None:
        """Refuses new requests and frees the sampler when those under way have ended. It also ends when nothing refers to the client any more.
        Not in the official SDK."""
        if self._sampler.value:
            lib().tinker_sampler_close(self._sampler.value)

    def __reduce__(self) -> Any:
        if self._snapshot or self._model_path is not None:
            raise TypeError(
                "this SamplingClient cannot be pickled: its adapter is in this process. Write it with TrainingClient.save_peft, "
                "and open the folder in the other process with create_sampling_client(model_path=FOLDER, base_model=NAME)"
            )
        engine = self._session.engine
        return _reopen, (self._base_model, engine.models, engine.device, engine.dtype)


def _reopen(base_model: str, models: str | None, device: str | None, dtype: str | None) -> SamplingClient:
    """A pickled client in another process. It has its own engine, whose checkpoints are in memory: a state folder has one process at a time."""
    from .engine import IN_MEMORY, Session, shared

    return finish(SamplingClient.create(Session(shared(models, IN_MEMORY, device, dtype)), base_model=base_model))


def finish(future: APIFuture[SamplingClient]) -> SamplingClient:
    """The sampler, or why there is none, as the HTTP API refuses it."""
    try:
        return future.result()
    except RequestFailedError as e:
        raise as_refusal(e) from e


def _base_of(sampler: Handle) -> str:
    name: str = call_json("tinker_sampler_info", sampler.value)["base_model"]
    return name


def _sampling(n: int, p: SamplingParams, logprobs: bool, topk: int) -> tuple[Any, Any]:
    """A tinker_sampling, and what it points to."""
    c = s.Sampling(
        struct_size=ctypes.sizeof(s.Sampling),
        num_samples=s.int32("num_samples", n),
        max_tokens=_max_tokens(p.max_tokens),
        has_seed=p.seed is not None,
        top_k=s.int32("top_k", p.top_k),
        seed=s.int64(p.seed or 0),
        temperature=p.temperature,
        top_p=p.top_p,
        prompt_logprobs=bool(logprobs),
        topk_prompt_logprobs=s.int32("topk_prompt_logprobs", topk),
    )
    stop: list[Any] = [p.stop] if isinstance(p.stop, str) else list(p.stop if p.stop is not None else [])
    c.no_stop_tokens = p.stop is not None and not stop
    keep: Any = None
    if stop and all(isinstance(x, str) for x in stop):
        keep = (c_char_p * len(stop))(*map(encode, stop))
        c.stop, c.stop_count = ctypes.addressof(keep), len(stop)
    elif stop:
        keep = (c_int32 * len(stop))(*(s.int32("a stop token", x) for x in stop))
        c.stop_tokens, c.stop_token_count = ctypes.addressof(keep), len(stop)
    return c, keep


def _max_tokens(n: int | None) -> int:
    if n is None:
        return 0
    if n < 1:
        raise ValueError(f"max_tokens is {n}, wanted 1 or more, or None for up to the model's context")
    return n
