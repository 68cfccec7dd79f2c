"""ServiceClient: where a program begins."""

from __future__ import annotations

import ctypes
import json
import warnings
from ctypes import byref
from typing import Any

from . import _results
from . import _structs as s
from ._library import Handle, encode, lib
from ._progress import shown
from .engine import Engine, Session, shared
from .exceptions import RequestFailedError
from .futures import APIFuture, Operation, submit
from .rest_client import RestClient, weights_info
from .sampling_client import RetryConfig, SamplingClient, finish
from .training_client import TrainingClient
from .types import GetServerCapabilitiesResponse, LoraConfig, SupportedModel

# Keyword arguments of the official client that are about its connection.
_IGNORED = {"api_key", "base_url", "default_headers", "default_query", "http_client", "max_retries", "timeout"}


class ServiceClient:
    """Opens training runs and samplers on this process's engine. No key, no server.

    Keyword arguments, all optional: models, state, device, dtype, as of `tinker_local.Engine`; clients with the same ones share one engine.
    Those of the official client that are about its connection (base_url, api_key, ...) are accepted and ignored, with a warning.
    """

    def __init__(self, user_metadata: dict[str, str] | None = None, project_id: str | None = None, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name, None) for name in ("models", "state", "device", "dtype")}
        if unknown := sorted(set(kwargs) - _IGNORED):
            raise TypeError(f"ServiceClient has no argument {', '.join(unknown)}")
        if kwargs:
            warnings.warn(f"tinker_local runs in this process: {', '.join(sorted(kwargs))} is ignored", stacklevel=2)
        self._metadata = dict(user_metadata or {})
        self._session = Session(shared(**options))

    @property
    def holder(self) -> Session:
        """What clients are opened in."""
        return self._session

    @property
    def engine(self) -> Engine:
        """The engine. Not in the official SDK."""
        return self._session.engine

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The base models that can be opened here."""
        found = self.engine.json("tinker_engine_capabilities")["supported_models"]
        return GetServerCapabilitiesResponse(supported_models=[SupportedModel(**m) for m in found])

    async def get_server_capabilities_async(self) -> GetServerCapabilitiesResponse:
        """As get_server_capabilities."""
        return self.get_server_capabilities()

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> TrainingClient:
        """Opens a run: a fresh adapter on a base model, which is loaded if it is not. seed: of its initial weights; None: a random one.
        base_model: "tinker-local/tiny" (embedded), ORG/NAME of the models folder, or the path of a model's folder."""
        config = LoraConfig(rank=rank, seed=seed, train_mlp=train_mlp, train_attn=train_attn, train_unembed=train_unembed)
        return shown(self._session.engine, self._create(base_model, config, user_metadata))

    async def create_lora_training_client_async(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> TrainingClient:
        """As create_lora_training_client."""
        config = LoraConfig(rank=rank, seed=seed, train_mlp=train_mlp, train_attn=train_attn, train_unembed=train_unembed)
        return await self._create(base_model, config, user_metadata)

    def create_training_client_from_state(
        self, path: str, base_model: str | None = None, user_metadata: dict[str, str] | None = None, weights_access_token: str | None = None
    ) -> TrainingClient:
        """Opens a run with a checkpoint's configuration and weights; the optimizer starts afresh. base_model: another one of the same shape.
        weights_access_token is not needed here."""
        client, load = self._resume(path, base_model, user_metadata, False)
        return _loaded(shown(self._session.engine, client), load)

    async def create_training_client_from_state_async(
        self, path: str, base_model: str | None = None, user_metadata: dict[str, str] | None = None, weights_access_token: str | None = None
    ) -> TrainingClient:
        """As create_training_client_from_state."""
        client, load = self._resume(path, base_model, user_metadata, False)
        return await _loaded_async(await client, load)

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None = None, user_metadata: dict[str, str] | None = None, weights_access_token: str | None = None
    ) -> TrainingClient:
        """create_training_client_from_state with the optimizer's moments and step: training goes on bit for bit."""
        client, load = self._resume(path, base_model, user_metadata, True)
        return _loaded(shown(self._session.engine, client), load)

    async def create_training_client_from_state_with_optimizer_async(
        self, path: str, base_model: str | None = None, user_metadata: dict[str, str] | None = None, weights_access_token: str | None = None
    ) -> TrainingClient:
        """As create_training_client_from_state_with_optimizer."""
        client, load = self._resume(path, base_model, user_metadata, True)
        return await _loaded_async(await client, load)

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None, retry_config: RetryConfig | None = None
    ) -> SamplingClient:
        """Opens a sampler of a checkpoint (tinker://...), of a PEFT folder with its base_model, or of a bare base model."""
        future = SamplingClient.create(self._session, model_path=model_path, base_model=base_model)
        try:
            shown(self._session.engine, future)
        except RequestFailedError:
            pass  # finish says it
        return finish(future)

    async def create_sampling_client_async(
        self, model_path: str | None = None, base_model: str | None = None, retry_config: RetryConfig | None = None
    ) -> SamplingClient:
        """As create_sampling_client."""
        future = SamplingClient.create(self._session, model_path=model_path, base_model=base_model)
        try:
            await future
        except RequestFailedError:
            pass  # finish says it
        return finish(future)

    def create_rest_client(self) -> RestClient:
        """A client for checkpoints, runs and sessions."""
        return RestClient(self._session)

    def _create(self, base_model: str, config: LoraConfig, metadata: dict[str, str] | None) -> Operation[TrainingClient]:
        def call(out: Any) -> int:
            lora = s.Lora(
                ctypes.sizeof(s.Lora), s.int32("rank", config.rank), bool(config.train_attn), bool(config.train_mlp), bool(config.train_unembed),
                config.seed is not None, s.int64(config.seed or 0),
            )  # fmt: skip
            status: int = lib().tinker_session_create_run(self._session.handle.value, encode(base_model), byref(lora), self._json(metadata), out)
            return status

        return submit(call, self._client)

    def _resume(self, path: str, base_model: str | None, metadata: dict[str, str] | None, optimizer: bool) -> tuple[Operation[TrainingClient], Any]:
        """The client to come, and what is then still to be loaded into it: a path and whether with the optimizer, or None."""
        if base_model is not None:
            try:
                info = weights_info(self.engine, path)
            except RequestFailedError as e:
                return Operation.failed(e), None
            if info.base_model != base_model:
                config = LoraConfig(
                    rank=info.lora_rank or 0, train_mlp=info.train_mlp is not False, train_attn=info.train_attn is not False,
                    train_unembed=info.train_unembed is not False,
                )  # fmt: skip
                return self._create(base_model, config, metadata), (path, optimizer)

        def call(out: Any) -> int:
            status: int = lib().tinker_session_resume_run(self._session.handle.value, encode(path), optimizer, self._json(metadata), out)
            return status

        return submit(call, self._client), None

    def _client(self, future: Handle) -> TrainingClient:
        return TrainingClient(self._session, _results.handle_result(future, "tinker_future_run", "tinker_run_free"))

    def _json(self, metadata: dict[str, str] | None) -> bytes | None:
        merged = {**self._metadata, **(metadata or {})}
        if not all(isinstance(x, str) for pair in merged.items() for x in pair):
            raise ValueError(f"user_metadata is {merged!r}, wanted strings")
        return encode(json.dumps(merged)) if merged else None


def _loading(client: TrainingClient, load: tuple[str, bool]) -> APIFuture[Any]:
    path, optimizer = load
    return client.load_state_with_optimizer(path) if optimizer else client.load_state(path)


def _loaded(client: TrainingClient, load: tuple[str, bool] | None) -> TrainingClient:
    if load is not None:
        _loading(client, load).result()
    return client


async def _loaded_async(client: TrainingClient, load: tuple[str, bool] | None) -> TrainingClient:
    if load is not None:
        await _loading(client, load)
    return client
