"""What is stored: checkpoints, training runs, sessions; and the empty answers about what does not exist in-process."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from ..exceptions import RequestErrorCategory
from ._record import Record

CheckpointType = Literal["training", "sampler", "external"]

_KINDS: dict[str, CheckpointType] = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A checkpoint. checkpoint_id: weights/NAME, sampler_weights/NAME or external_weights/NAME. size_bytes: of its tensors."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class ParsedCheckpointTinkerPath(Record):
    """The parts of tinker://RUN/KIND/NAME."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> ParsedCheckpointTinkerPath:
        """Takes a path apart. ValueError when it is none."""
        parts = tinker_path.removeprefix("tinker://").split("/")
        if not tinker_path.startswith("tinker://") or len(parts) != 3 or parts[1] not in _KINDS or not all(parts):
            raise ValueError(f"{tinker_path!r} is no checkpoint: wanted tinker://RUN/weights/NAME or tinker://RUN/sampler_weights/NAME")
        return cls(tinker_path=tinker_path, training_run_id=parts[0], checkpoint_type=_KINDS[parts[1]], checkpoint_id=f"{parts[1]}/{parts[2]}")


@dataclass(frozen=True, kw_only=True)
class Cursor(Record):
    """Which part of a list it is, and how long that is as a whole."""

    offset: int
    limit: int
    total_count: int


@dataclass(frozen=True, kw_only=True)
class CheckpointsListResponse(Record):
    """Checkpoints, the newest first."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointArchiveUrlResponse(Record):
    """Where an archive lies: a file:// URL here."""

    url: str
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Record):
    """The record of a training run."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRunsResponse(Record):
    """Training runs, those with the latest requests first."""

    training_runs: list[TrainingRun]
    cursor: Cursor


@dataclass(frozen=True, kw_only=True)
class WeightsInfoResponse(Record):
    """What a checkpoint's adapter is."""

    base_model: str
    is_lora: bool
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None


@dataclass(frozen=True, kw_only=True)
class GetSessionResponse(Record):
    """What a session opened, by id."""

    training_run_ids: list[str]
    sampler_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class ListSessionsResponse(Record):
    """Ids of sessions, the newest first."""

    sessions: list[str]


@dataclass(frozen=True, kw_only=True)
class GetSamplerResponse(Record):
    """What a sampler samples from. model_path: the checkpoint, None for a bare model or an unsaved snapshot."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class WhoamiResponse(Record):
    """Who asks. Nobody is known in-process."""

    user_urn: str
    email: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditLogEntry(Record):
    """An entry of the hosted service's audit log."""

    timestamp: datetime
    event: str
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditLogResponse(Record):
    """Always empty in-process."""

    entries: list[AuditLogEntry]


@dataclass(frozen=True, kw_only=True)
class BillingUsageResponse(Record):
    """Always empty in-process: nothing is billed."""

    data: list[Any]
    sessions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RequestFailedResponse(Record):
    """A failure as the HTTP API writes it."""

    error: str
    category: RequestErrorCategory
