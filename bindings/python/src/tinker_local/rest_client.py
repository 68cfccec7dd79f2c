"""RestClient: checkpoints, training runs and sessions of this process's engine."""

from __future__ import annotations

import concurrent.futures
import json
import re
import tempfile
import threading
from collections.abc import Callable
from ctypes import byref, c_void_p
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _results
from ._library import Handle, check, encode, lib
from .exceptions import BadRequestError, NotFoundError, RequestFailedError, UnprocessableEntityError, as_refusal
from .futures import APIFuture, AwaitableFuture, Operation
from .types import (
    AuditLogResponse,
    BillingUsageResponse,
    Checkpoint,
    CheckpointArchiveUrlResponse,
    CheckpointsListResponse,
    Cursor,
    GetSamplerResponse,
    GetSessionResponse,
    ListSessionsResponse,
    ParsedCheckpointTinkerPath,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
    WhoamiResponse,
)

if TYPE_CHECKING:
    from .engine import Engine, Session
    from .sampling_client import SamplingClient

T = TypeVar("T")
Scope = Literal["owned", "accessible"]

# Archives are temporary files of this process.
ARCHIVE_LIFE = timedelta(minutes=15)


class RestClient:
    """Lists, publishes, deletes and packs what is stored. Get one from `ServiceClient.create_rest_client`.

    Methods return concurrent futures, which can be awaited; their `_async` twins return the value. Errors are those of the HTTP API:
    NotFoundError, BadRequestError, ...
    There is one owner in-process, so both access scopes give the same.
    """

    def __init__(self, holder: Session) -> None:
        self._engine: Engine = holder.engine

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    # ---- Training runs

    def get_training_run(self, training_run_id: str, access_scope: Scope = "owned") -> AwaitableFuture[TrainingRun]:
        """The record of a run."""
        return _start(lambda: _run(self._engine.json("tinker_training_run_info", training_run_id)))

    async def get_training_run_async(self, training_run_id: str, access_scope: Scope = "owned") -> TrainingRun:
        """As get_training_run."""
        return await self.get_training_run(training_run_id)

    def get_training_run_by_tinker_path(self, tinker_path: str, access_scope: Scope = "owned") -> AwaitableFuture[TrainingRun]:
        """The record of the run that saved a checkpoint."""
        return _start(lambda: _run(self._engine.json("tinker_training_run_info", _parse(tinker_path).training_run_id)))

    async def get_training_run_by_tinker_path_async(self, tinker_path: str, access_scope: Scope = "owned") -> TrainingRun:
        """As get_training_run_by_tinker_path."""
        return await self.get_training_run_by_tinker_path(tinker_path)

    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> AwaitableFuture[TrainingRunsResponse]:
        """Runs, those with the latest requests first. limit 0: all. project_id is ignored: there are no projects."""

        def ask() -> TrainingRunsResponse:
            page = self._engine.json("tinker_training_run_list", json.dumps({"limit": limit, "offset": offset}))
            cursor = Cursor(offset=offset, limit=limit, total_count=page["total"])
            return TrainingRunsResponse(training_runs=[_run(r) for r in page["training_runs"]], cursor=cursor)

        return _start(ask)

    async def list_training_runs_async(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> TrainingRunsResponse:
        """As list_training_runs."""
        return await self.list_training_runs(limit, offset)

    # ---- Checkpoints

    def list_checkpoints(self, training_run_id: str) -> AwaitableFuture[CheckpointsListResponse]:
        """All checkpoints of a run, the newest first."""
        return _start(lambda: self._checkpoints({"run": training_run_id}, None))

    async def list_checkpoints_async(self, training_run_id: str) -> CheckpointsListResponse:
        """As list_checkpoints."""
        return await self.list_checkpoints(training_run_id)

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> AwaitableFuture[CheckpointsListResponse]:
        """Checkpoints of all runs, the newest first. limit 0: all."""
        return _start(lambda: self._checkpoints({"limit": limit, "offset": offset}, (offset, limit)))

    async def list_user_checkpoints_async(self, limit: int = 100, offset: int = 0) -> CheckpointsListResponse:
        """As list_user_checkpoints."""
        return await self.list_user_checkpoints(limit, offset)

    def _checkpoints(self, query: dict[str, Any], part: tuple[int, int] | None) -> CheckpointsListResponse:
        page = self._engine.json("tinker_checkpoint_list", json.dumps(query))
        cursor = None if part is None else Cursor(offset=part[0], limit=part[1], total_count=page["total"])
        return CheckpointsListResponse(checkpoints=[_checkpoint(c) for c in page["checkpoints"]], cursor=cursor)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        """What a checkpoint's adapter is."""
        return _start(lambda: weights_info(self._engine, tinker_path))

    def get_checkpoint_archive_url(self, training_run_id: str, checkpoint_id: str) -> AwaitableFuture[CheckpointArchiveUrlResponse]:
        """Packs a checkpoint (kind/name) into an archive and gives its file:// URL. The file is removed when the process ends."""
        return self.get_checkpoint_archive_url_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    async def get_checkpoint_archive_url_async(self, training_run_id: str, checkpoint_id: str) -> CheckpointArchiveUrlResponse:
        """As get_checkpoint_archive_url."""
        return await self.get_checkpoint_archive_url(training_run_id, checkpoint_id)

    def get_checkpoint_archive_url_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[CheckpointArchiveUrlResponse]:
        """As get_checkpoint_archive_url, by its path."""

        def pack() -> CheckpointArchiveUrlResponse:
            folder = tempfile.mkdtemp(dir=_archives())
            file = Path(folder) / (re.sub(r"[^\w.-]+", "_", tinker_path.removeprefix("tinker://")) + ".tar")
            out = c_void_p()
            check(lib().tinker_checkpoint_export(self._engine.handle.value, encode(tinker_path), b"archive", encode(str(file)), None, byref(out)))
            try:
                Operation(Handle(out.value, "tinker_future_free"), _results.json_result).result()
            except RequestFailedError as e:
                raise as_refusal(e) from e
            return CheckpointArchiveUrlResponse(url=file.as_uri(), expires=datetime.now(timezone.utc) + ARCHIVE_LIFE)

        return _start(pack)

    async def get_checkpoint_archive_url_from_tinker_path_async(self, tinker_path: str) -> CheckpointArchiveUrlResponse:
        """As get_checkpoint_archive_url_from_tinker_path."""
        return await self.get_checkpoint_archive_url_from_tinker_path(tinker_path)

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> AwaitableFuture[None]:
        """Deletes a checkpoint (kind/name)."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        """As delete_checkpoint."""
        await self.delete_checkpoint(training_run_id, checkpoint_id)

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[None]:
        """Deletes a checkpoint."""
        return self._change("tinker_checkpoint_delete", tinker_path)

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """As delete_checkpoint_from_tinker_path."""
        await self.delete_checkpoint_from_tinker_path(tinker_path)

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[None]:
        """Lets every owner of the state folder read it. Twice is no error."""
        return self._change("tinker_checkpoint_publish", tinker_path)

    async def publish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """As publish_checkpoint_from_tinker_path."""
        await self.publish_checkpoint_from_tinker_path(tinker_path)

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> AwaitableFuture[None]:
        """Lets its owner alone read it again. Twice is no error."""
        return self._change("tinker_checkpoint_unpublish", tinker_path)

    async def unpublish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        """As unpublish_checkpoint_from_tinker_path."""
        await self.unpublish_checkpoint_from_tinker_path(tinker_path)

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> AwaitableFuture[None]:
        """Lets a checkpoint expire so many seconds from now; None: never."""
        if ttl_seconds is not None and ttl_seconds <= 0:
            message = f"ttl_seconds is {ttl_seconds}, wanted more than 0, or None for ever"
            return _start(lambda: _raise(BadRequestError(message, body={"detail": message})))
        return self._change("tinker_checkpoint_set_ttl", tinker_path, ttl_seconds or 0)

    async def set_checkpoint_ttl_from_tinker_path_async(self, tinker_path: str, ttl_seconds: int | None) -> None:
        """As set_checkpoint_ttl_from_tinker_path."""
        await self.set_checkpoint_ttl_from_tinker_path(tinker_path, ttl_seconds)

    def _change(self, function: str, path: str, *arguments: int) -> AwaitableFuture[None]:
        return _start(lambda: check(getattr(lib(), function)(self._engine.handle.value, encode(path), *arguments)))

    # ---- Sessions and samplers: those of this process, while something refers to them

    def _sessions(self) -> list[Session]:
        return [session for ref in reversed(self._engine.sessions) if (session := ref()) is not None]

    def list_sessions(self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned") -> AwaitableFuture[ListSessionsResponse]:
        """Ids of this process's sessions, the newest first."""
        return _start(lambda: ListSessionsResponse(sessions=[x.id for x in self._sessions()][offset : offset + limit]))

    async def list_sessions_async(self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned") -> ListSessionsResponse:
        """As list_sessions."""
        return await self.list_sessions(limit, offset)

    def get_session(self, session_id: str, access_scope: Scope = "owned") -> AwaitableFuture[GetSessionResponse]:
        """The runs and samplers of a session of this process."""
        return _start(lambda: self._session(session_id))

    async def get_session_async(self, session_id: str, access_scope: Scope = "owned") -> GetSessionResponse:
        """As get_session."""
        return await self.get_session(session_id)

    def _session(self, session_id: str) -> GetSessionResponse:
        for x in self._sessions():
            if x.id == session_id:
                return GetSessionResponse(training_run_ids=list(x.runs), sampler_ids=list(x.samplers))
        raise NotFoundError(f"there is no session {session_id} in this process")

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        """What a sampler of this process samples from."""
        return _start(lambda: self._sampler(sampler_id))

    async def get_sampler_async(self, sampler_id: str) -> GetSamplerResponse:
        """As get_sampler."""
        return await self.get_sampler(sampler_id)

    def _sampler(self, sampler_id: str) -> GetSamplerResponse:
        for x in self._sessions():
            client: SamplingClient | None = x.samplers.get(sampler_id)
            if client is not None:
                return GetSamplerResponse(sampler_id=sampler_id, base_model=client.get_base_model(), model_path=client._model_path)
        raise NotFoundError(f"there is no sampler {sampler_id} in this process")

    # ---- What does not exist in-process

    def assign_session_project(self, session_id: str, project_id: str) -> AwaitableFuture[None]:
        """Raises UnprocessableEntityError: there are no projects."""
        return _start(lambda: _raise(UnprocessableEntityError("there are no projects in-process: a session cannot be assigned to one")))

    async def assign_session_project_async(self, session_id: str, project_id: str) -> None:
        """As assign_session_project."""
        await self.assign_session_project(session_id, project_id)

    def export_session_trace(self, session_id: str) -> AwaitableFuture[str]:
        """Raises RuntimeError: no traces are kept."""
        return _start(lambda: _raise(RuntimeError("no traces are kept in-process")))

    async def export_session_trace_async(self, session_id: str) -> str:
        """As export_session_trace."""
        return await self.export_session_trace(session_id)

    def whoami(self) -> APIFuture[WhoamiResponse]:
        """Raises RuntimeError, as the official SDK without an account."""
        return _start(lambda: _raise(RuntimeError("nobody is known in-process: there are no accounts")))

    def get_audit_log(self, event_type: Literal["all", "checkpoints"] = "all", day: date | None = None) -> AwaitableFuture[AuditLogResponse]:
        """Empty: no audit log is kept."""
        return _start(lambda: AuditLogResponse(entries=[]))

    async def get_audit_log_async(self, event_type: Literal["all", "checkpoints"] = "all", day: date | None = None) -> AuditLogResponse:
        """As get_audit_log."""
        return AuditLogResponse(entries=[])

    def get_billing_usage(self, starting_on: datetime | str, ending_before: datetime | str) -> AwaitableFuture[BillingUsageResponse]:
        """Empty: nothing is billed."""
        return _start(lambda: BillingUsageResponse(data=[]))

    async def get_billing_usage_async(self, starting_on: datetime | str, ending_before: datetime | str) -> BillingUsageResponse:
        """As get_billing_usage."""
        return BillingUsageResponse(data=[])


def weights_info(engine: Engine, path: str) -> WeightsInfoResponse:
    """What a checkpoint's adapter is, from its record."""
    c = engine.json("tinker_checkpoint_info", path)
    lora = c["lora_config"]
    return WeightsInfoResponse(
        base_model=c["base_model"], is_lora=True, lora_rank=lora["rank"],
        train_unembed=lora["train_unembed"], train_mlp=lora["train_mlp"], train_attn=lora["train_attn"],
    )  # fmt: skip


def _parse(path: str) -> ParsedCheckpointTinkerPath:
    try:
        return ParsedCheckpointTinkerPath.from_tinker_path(path)
    except ValueError as e:
        raise BadRequestError(str(e)) from e


def _checkpoint(c: dict[str, Any]) -> Checkpoint:
    parsed = ParsedCheckpointTinkerPath.from_tinker_path(c["tinker_path"])
    return Checkpoint(
        checkpoint_id=parsed.checkpoint_id, checkpoint_type=parsed.checkpoint_type, time=_time(c["time"]), tinker_path=c["tinker_path"],
        size_bytes=c.get("size_bytes"), public=c.get("public", False), expires_at=_time(c["expires_at"]) if c.get("expires_at") else None,
    )  # fmt: skip


def _run(r: dict[str, Any]) -> TrainingRun:
    last, last_sampler = r.get("last_checkpoint"), r.get("last_sampler_checkpoint")
    return TrainingRun(
        training_run_id=r["training_run_id"], base_model=r["base_model"], model_owner=r["model_owner"], is_lora=True,
        lora_rank=r["lora_config"]["rank"], last_request_time=_time(r["last_request_time"]), user_metadata=r.get("user_metadata"),
        last_checkpoint=_checkpoint(last) if last else None, last_sampler_checkpoint=_checkpoint(last_sampler) if last_sampler else None,
    )  # fmt: skip


def _time(text: str) -> datetime:
    """A time of RFC 3339 with any number of digits behind the second."""
    text = re.sub(r"(\.\d{1,6})\d*", lambda m: m[1].ljust(7, "0"), text)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


_lock = threading.Lock()
_executor: concurrent.futures.ThreadPoolExecutor | None = None
_folder: tempfile.TemporaryDirectory[str] | None = None


def _start(work: Callable[[], T]) -> AwaitableFuture[T]:
    """Runs work that reads the disk on a thread of its own."""
    global _executor
    lib()  # in a child of fork() the thread is not there
    with _lock:
        if _executor is None:
            _executor = concurrent.futures.ThreadPoolExecutor(1, "tinker_local rest")
        future: AwaitableFuture[T] = AwaitableFuture()
        _executor.submit(future.settle, work)
        return future


def _archives() -> str:
    global _folder
    with _lock:
        if _folder is None:
            _folder = tempfile.TemporaryDirectory(prefix="tinker_local-")
        return _folder.name


def _raise(error: Exception) -> Any:
    raise error
