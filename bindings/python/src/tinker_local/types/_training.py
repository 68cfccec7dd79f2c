"""Training: configurations, results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ._input import ModelID
from ._record import Record, number
from ._tensor import Datum, LossFnOutput

LossFnType = Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Record):
    """A LoRA adapter: B·A·x is added to what the adapted matrices give, A [rank, in], B [out, rank]."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    def __post_init__(self) -> None:
        number(self, "rank", "seed")


@dataclass(frozen=True, kw_only=True)
class AdamParams(Record):
    """A step of AdamW. grad_clip_norm bounds the norm of the whole gradient; 0 does not."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        number(self, "learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")


@dataclass(frozen=True)
class ForwardBackwardInput:
    """What a pass takes."""

    data: list[Datum]
    loss_fn: LossFnType
    loss_fn_config: dict[str, float] | None = None


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """What a pass gives. loss_fn_outputs [datums]: {"logprobs": of the targets, of their shape}, arrays that are yours. metrics: "loss:sum" and
    what the loss adds."""

    loss_fn_output_type: str
    loss_fn_outputs: list[LossFnOutput]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimStepRequest(Record):
    """An optimizer step of a run."""

    adam_params: AdamParams
    model_id: ModelID
    seq_id: int | None = None
    type: Literal["optim_step"] = "optim_step"


@dataclass(frozen=True, kw_only=True)
class OptimStepResponse(Record):
    """metrics: "grad_norm", before clipping."""

    metrics: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SaveWeightsResponse(Record):
    """Where a training state was saved: tinker://RUN/weights/NAME."""

    path: str
    type: Literal["save_weights"] | None = None


@dataclass(frozen=True, kw_only=True)
class SaveWeightsForSamplerResponse(Record):
    """Where weights were saved: tinker://RUN/sampler_weights/NAME."""

    path: str
    type: Literal["save_weights_for_sampler"] | None = None


@dataclass(frozen=True, kw_only=True)
class LoadWeightsResponse(Record):
    """What was loaded into which run."""

    path: str | None = None
    model_id: ModelID | None = None
    type: Literal["load_weights"] | None = None


@dataclass(frozen=True, kw_only=True)
class CreateModelResponse(Record):
    """A run that was opened."""

    model_id: ModelID
    type: Literal["create_model"] = "create_model"


@dataclass(frozen=True, kw_only=True)
class UnloadModelResponse(Record):
    """A run that was closed."""

    model_id: ModelID
    type: Literal["unload_model"] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelData(Record):
    """arch: the model family. tokenizer_id: the model whose tokenizer it is."""

    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class GetInfoResponse(Record):
    """A run and its model."""

    type: Literal["get_info"] | None = None
    model_data: ModelData
    model_id: ModelID
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class SupportedModel(Record):
    """A base model that can be opened."""

    model_name: str | None = None
    max_context_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class GetServerCapabilitiesResponse(Record):
    """What can be opened here."""

    supported_models: list[SupportedModel]
