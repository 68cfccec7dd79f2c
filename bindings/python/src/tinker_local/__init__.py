"""tinker_local: fine-tune language models with LoRA, and sample from them, in this process.

The names and signatures of the official `tinker` SDK, over libtinker, which the package carries: a script runs with its import line changed.

    import tinker_local as tinker
    from tinker_local import types

    client = tinker.ServiceClient().create_lora_training_client(base_model="tinker-local/tiny", rank=16)
    client.forward_backward(data, "cross_entropy")
    client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
"""

from . import types
from ._library import debug_counts
from ._version import __title__, __version__
from .engine import Engine
from .exceptions import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ForkedError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestFailedError,
    SidecarDiedError,
    SidecarError,
    SidecarIPCError,
    SidecarStartupError,
    TinkerError,
    UnprocessableEntityError,
)
from .futures import APIFuture, AwaitableConcurrentFuture
from .losses import numpy_loss
from .rest_client import RestClient
from .sampling_client import RetryConfig, SamplingClient
from .service_client import ServiceClient
from .tokenizer import Tokenizer
from .training_client import TrainingClient
from .types import (
    AdamParams,
    Checkpoint,
    CheckpointType,
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ForwardBackwardOutput,
    LoraConfig,
    ModelID,
    ModelInput,
    ModelInputChunk,
    OptimStepRequest,
    OptimStepResponse,
    ParsedCheckpointTinkerPath,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SamplingParams,
    StopReason,
    TensorData,
    TensorDtype,
    TrainingRun,
)

__all__ = [
    "__title__",
    "__version__",
    "AdamParams",
    "APIConnectionError",
    "APIError",
    "APIFuture",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "AwaitableConcurrentFuture",
    "BadRequestError",
    "Checkpoint",
    "CheckpointType",
    "ConflictError",
    "Datum",
    "debug_counts",
    "DmelChunk",
    "EncodedTextChunk",
    "Engine",
    "ForkedError",
    "ForwardBackwardOutput",
    "InternalServerError",
    "LoraConfig",
    "ModelID",
    "ModelInput",
    "ModelInputChunk",
    "NotFoundError",
    "numpy_loss",
    "OptimStepRequest",
    "OptimStepResponse",
    "ParsedCheckpointTinkerPath",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestFailedError",
    "RestClient",
    "RetryConfig",
    "SampledSequence",
    "SampleRequest",
    "SampleResponse",
    "SamplingClient",
    "SamplingParams",
    "ServiceClient",
    "SidecarDiedError",
    "SidecarError",
    "SidecarIPCError",
    "SidecarStartupError",
    "StopReason",
    "TensorData",
    "TensorDtype",
    "TinkerError",
    "Tokenizer",
    "TrainingClient",
    "TrainingRun",
    "types",
    "UnprocessableEntityError",
]
