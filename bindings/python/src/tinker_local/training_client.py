"""TrainingClient: one LoRA adapter in training."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from ctypes import byref
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from . import _results, losses
from . import _structs as s
from ._batch import make_batch, make_config
from ._library import Handle, call_json, encode, lib
from .futures import APIFuture, Operation, submit
from .losses import CustomLossFnV1, NamedLoss, NumpyLoss
from .sampling_client import RetryConfig, SamplingClient
from .tokenizer import Tokenizer
from .types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    ModelData,
    OptimStepResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)

if TYPE_CHECKING:
    from .engine import Session

T = TypeVar("T")


class TrainingClient:
    """A training run. Get one from `ServiceClient.create_lora_training_client`.

    Methods submit an operation and return its future at once; operations are executed in the order in which they were submitted. What is
    wrong with one is raised by its future. A method's `_async` twin is a coroutine that returns the same future: await it twice.
    """

    def __init__(self, session: Session, run: Handle) -> None:
        self._session, self._run = session, run
        info = call_json("tinker_run_info", run.value)
        self.model_id: str = info["model_id"]
        self._base_model: str = info["base_model"]
        self._rank: int = info["lora_config"]["rank"]
        session.runs[self.model_id] = self

    @property
    def holder(self) -> Session:
        """What the client was opened in."""
        return self._session

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    # ---- Passes

    def forward(self, data: list[Datum], loss_fn: NamedLoss, loss_fn_config: dict[str, float] | None = None) -> APIFuture[ForwardBackwardOutput]:
        """A loss and log-probabilities, without a gradient. loss_fn: as of forward_backward."""
        return self._pass("tinker_forward", data, loss_fn, loss_fn_config)

    async def forward_async(
        self, data: list[Datum], loss_fn: NamedLoss, loss_fn_config: dict[str, float] | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        """As forward."""
        return self.forward(data, loss_fn, loss_fn_config)

    def forward_backward(
        self, data: list[Datum], loss_fn: NamedLoss, loss_fn_config: dict[str, float] | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        """A loss and log-probabilities; adds the loss's gradient to the run's, whole or, on an error, not at all.

        loss_fn: "cross_entropy", "importance_sampling", "ppo", "cispo", "dro"; "wasm:NAME", or a WASM module by its file or bytes.
        """
        return self._pass("tinker_forward_backward", data, loss_fn, loss_fn_config)

    async def forward_backward_async(
        self, data: list[Datum], loss_fn: NamedLoss, loss_fn_config: dict[str, float] | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        """As forward_backward."""
        return self.forward_backward(data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: CustomLossFnV1 | NumpyLoss | NamedLoss,
        *,
        loss_type_input: Literal["logprobs"] = "logprobs",
        loss_fn_config: dict[str, float] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """forward_backward with a loss of yours; waits for the forward pass and runs the function before it returns.

        loss_fn: takes (data, logprobs), logprobs a list of torch tensors (N) or (N, K) that require a gradient, and gives (loss, metrics); or a
        function marked with `numpy_loss`; or a WASM module as of forward_backward, with loss_fn_config. Metrics are added to the result's.
        """
        if losses.is_named(loss_fn):
            return self.forward_backward(data, loss_fn, loss_fn_config)  # type: ignore[arg-type]
        self._check_custom(loss_fn, loss_type_input, loss_fn_config)
        return losses.evaluate(data, loss_fn, self._hold(data).result())

    async def forward_backward_custom_async(
        self,
        data: list[Datum],
        loss_fn: CustomLossFnV1 | NumpyLoss | NamedLoss,
        *,
        loss_type_input: Literal["logprobs"] = "logprobs",
        loss_fn_config: dict[str, float] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """As forward_backward_custom; the function runs in the event loop."""
        if losses.is_named(loss_fn):
            return self.forward_backward(data, loss_fn, loss_fn_config)  # type: ignore[arg-type]
        self._check_custom(loss_fn, loss_type_input, loss_fn_config)
        return losses.evaluate(data, loss_fn, await self._hold(data))

    @staticmethod
    def _check_custom(loss_fn: object, loss_type_input: str, config: object) -> None:
        if loss_type_input != "logprobs":
            raise ValueError(f"loss_type_input is {loss_type_input!r}, wanted 'logprobs'")
        if config is not None:
            raise ValueError("loss_fn_config is for WASM modules: a function has its own configuration")
        losses.require_torch(loss_fn)

    def _pass(self, name: str, data: list[Datum], loss: NamedLoss, config: dict[str, float] | None) -> Operation[ForwardBackwardOutput]:
        def call(out: Any) -> int:
            pairs, count = make_config(config)
            batch = make_batch(data)
            wasm = losses.module_bytes(loss)
            function = getattr(lib(), name if wasm is None else name + "_custom")
            which = encode(loss) if wasm is None else self._session.engine.module(wasm).value  # type: ignore[arg-type]
            status: int = function(self._run.value, batch.value, which, pairs, count, out)
            if status == s.OK:
                batch.free()
            return status

        return submit(call, _results.forward_backward_output)

    def _hold(self, data: list[Datum]) -> Operation[losses.Held]:
        def call(out: Any) -> int:
            batch = make_batch(data, ("target_tokens",))
            status: int = lib().tinker_hold(self._run.value, batch.value, out)
            return status

        return submit(call, losses.Held)

    # ---- Weights

    def optim_step(self, adam_params: AdamParams) -> APIFuture[OptimStepResponse]:
        """AdamW with the gradient accumulated so far, which is cleared."""
        p = adam_params
        adam = s.Adam(ctypes.sizeof(s.Adam), 0, p.learning_rate, p.beta1, p.beta2, p.eps, p.weight_decay, p.grad_clip_norm)
        return submit(lambda out: lib().tinker_optim_step(self._run.value, byref(adam), out), _results.optim_step_response)

    async def optim_step_async(self, adam_params: AdamParams) -> APIFuture[OptimStepResponse]:
        """As optim_step."""
        return self.optim_step(adam_params)

    def save_state(self, name: str, ttl_seconds: int | None = None, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        """Saves weights, moments and step as tinker://RUN/weights/NAME, as they are at this place in the order. It ends when the checkpoint
        would survive a loss of power: a program waits for that before it ends. ttl_seconds: it expires after that; None: never."""
        return self._save("tinker_save_state", name, ttl_seconds, overwrite, lambda path: SaveWeightsResponse(path=path, type="save_weights"))

    async def save_state_async(self, name: str, ttl_seconds: int | None = None, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        """As save_state."""
        return self.save_state(name, ttl_seconds, overwrite)

    def load_state(self, path: str, weights_access_token: str | None = None) -> APIFuture[LoadWeightsResponse]:
        """Replaces the weights by a checkpoint's, of the same rank and modules; the optimizer starts afresh, the gradient is dropped.
        weights_access_token is not needed here."""
        return self._load(path, False)

    async def load_state_async(self, path: str, weights_access_token: str | None = None) -> APIFuture[LoadWeightsResponse]:
        """As load_state."""
        return self._load(path, False)

    def load_state_with_optimizer(self, path: str, weights_access_token: str | None = None) -> APIFuture[LoadWeightsResponse]:
        """load_state with the optimizer's moments and step: training goes on bit for bit."""
        return self._load(path, True)

    async def load_state_with_optimizer_async(self, path: str, weights_access_token: str | None = None) -> APIFuture[LoadWeightsResponse]:
        """As load_state_with_optimizer."""
        return self._load(path, True)

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Saves the weights alone as tinker://RUN/sampler_weights/NAME."""
        return self._save(
            "tinker_save_for_sampler", name, ttl_seconds, False,
            lambda path: SaveWeightsForSamplerResponse(path=path, type="save_weights_for_sampler"),
        )  # fmt: skip

    async def save_weights_for_sampler_async(self, name: str, ttl_seconds: int | None = None) -> APIFuture[SaveWeightsForSamplerResponse]:
        """As save_weights_for_sampler."""
        return self.save_weights_for_sampler(name, ttl_seconds)

    def weights(self) -> APIFuture[dict[str, npt.NDArray[np.float32]]]:
        """The adapter's matrices by their PEFT names, as they are at this place in the order. Not in the official SDK."""
        return submit(lambda out: lib().tinker_run_weights(self._run.value, out), _results.adapter_weights)

    def save_peft(self, folder: str | os.PathLike[str]) -> APIFuture[None]:
        """Writes the adapter as a PEFT folder, whole or not at all. Not in the official SDK."""
        return submit(lambda out: lib().tinker_run_save_peft(self._run.value, encode(os.fspath(folder)), out), lambda _: None)

    def load_peft(self, folder: str | os.PathLike[str]) -> APIFuture[None]:
        """Replaces the weights by those of a PEFT folder of the same rank and modules. Not in the official SDK."""
        return submit(lambda out: lib().tinker_run_load_peft(self._run.value, encode(os.fspath(folder)), out), lambda _: None)

    def _save(self, function: str, name: str, ttl_seconds: int | None, overwrite: bool, answer: Callable[[str], T]) -> Operation[T]:
        def call(out: Any) -> int:
            if ttl_seconds is not None and ttl_seconds <= 0:
                raise ValueError(f"ttl_seconds is {ttl_seconds}, wanted more than 0, or None for ever")
            options = s.SaveOptions(ctypes.sizeof(s.SaveOptions), bool(overwrite), ttl_seconds or 0, 0)
            status: int = getattr(lib(), function)(self._run.value, encode(name), byref(options), out)
            return status

        return submit(call, lambda future: answer(_results.json_result(future)["tinker_path"]))

    def _load(self, path: str, optimizer: bool) -> Operation[LoadWeightsResponse]:
        response = LoadWeightsResponse(path=path, model_id=self.model_id, type="load_weights")
        return submit(lambda out: lib().tinker_load_state(self._run.value, encode(path), optimizer, out), lambda _: response)

    # ---- Sampling

    def save_weights_and_get_sampling_client(self, name: str | None = None, retry_config: RetryConfig | None = None) -> SamplingClient:
        """A sampler with the weights as they are now, on the device, not on the disk; later training does not change it. name is ignored."""
        return self._sampler(self._snapshot().result())

    async def save_weights_and_get_sampling_client_async(self, name: str | None = None, retry_config: RetryConfig | None = None) -> SamplingClient:
        """As save_weights_and_get_sampling_client."""
        return self._sampler(await self._snapshot())

    def create_sampling_client(self, model_path: str, retry_config: RetryConfig | None = None) -> SamplingClient:
        """A sampler with the weights of a checkpoint."""
        return SamplingClient.create(self._session, model_path=model_path).result()

    async def create_sampling_client_async(self, model_path: str, retry_config: RetryConfig | None = None) -> SamplingClient:
        """As create_sampling_client."""
        return await SamplingClient.create(self._session, model_path=model_path)

    def _snapshot(self) -> Operation[Handle]:
        return submit(
            lambda out: lib().tinker_run_sampler(self._run.value, out),
            lambda future: _results.handle_result(future, "tinker_future_sampler", "tinker_sampler_free"),
        )

    def _sampler(self, handle: Handle) -> SamplingClient:
        return SamplingClient(self._session, handle, base_model=self._base_model, snapshot=True)

    # ---- Facts

    def get_info(self) -> GetInfoResponse:
        """The run and its model."""
        facts = self._session.engine.json("tinker_model_info", self._base_model)
        data = ModelData(arch=facts.get("family"), model_name=self._base_model, tokenizer_id=self._base_model)
        return GetInfoResponse(
            type="get_info", model_data=data, model_id=self.model_id, is_lora=True, lora_rank=self._rank, model_name=self._base_model
        )

    async def get_info_async(self) -> GetInfoResponse:
        """As get_info."""
        return await asyncio.to_thread(self.get_info)

    def get_tokenizer(self) -> Tokenizer:
        """The base model's tokenizer."""
        return self._session.engine.tokenizer(self._base_model)

    def close(self) -> None:
        """Drops what is queued and frees the adapter now. It also ends when nothing refers to the client any more. Not in the official SDK."""
        if self._run.value:
            lib().tinker_run_close(self._run.value)
