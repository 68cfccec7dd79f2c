"""The clients and types against the official package, where it is installed. Every difference is listed here with its reason."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import tinker_local

official = pytest.importorskip("tinker", reason="the official package tinker is not installed: pip install tinker==0.25.0 to compare with it")

from tinker.lib.public_interfaces import api_future, rest_client, sampling_client, service_client, training_client  # noqa: E402
from tinker.lib.retry_handler import RetryConfig  # noqa: E402

CLASSES = {
    "ServiceClient": service_client.ServiceClient,
    "TrainingClient": training_client.TrainingClient,
    "SamplingClient": sampling_client.SamplingClient,
    "RestClient": rest_client.RestClient,
    "APIFuture": api_future.APIFuture,
    "AwaitableConcurrentFuture": api_future.AwaitableConcurrentFuture,
}

# Methods whose parameters differ, and why.
DIFFERENT = {
    ("TrainingClient", "__init__"): "made by ServiceClient: it holds a session and a run of this process, not a connection",
    ("SamplingClient", "__init__"): "as TrainingClient",
    ("TrainingClient", "forward_backward_custom"): "one parameter more, loss_fn_config, for WASM modules",
    ("TrainingClient", "forward_backward_custom_async"): "as its twin",
}
# Public methods that only newer or only the official package has, and why not here.
MISSING: dict[tuple[str, str], str] = {}

# Types that are about the HTTP protocol between client and server, which does not exist here.
PROTOCOL = (
    "AuthToken ClientConfig ClientDynamicConfig CreateModelRequest CreateSamplingSession CreateSession ForwardBackwardRequest ForwardRequest "
    "FutureRetrieve GetInfoRequest GetBillingUsageRequest Health LoadWeightsRequest SaveWeightsRequest SaveWeightsForSamplerRequest "
    "SaveWeightsForSamplerResponseInternal SessionEnd SessionHeartbeat SessionStart Telemetry GenericEvent UnhandledException EventType Severity "
    "UnloadModelRequest UntypedAPIFuture"
).split()
# Bills that nobody writes here.
BILLING = ("Billing", "CheckpointBilling", "SamplingPrefillBilling", "SamplingSampleBilling", "StorageBilling", "TrainingBilling")

SAME_VERSION = official.__version__ == "0.25.0"
newer = pytest.mark.skipif(not SAME_VERSION, reason=f"the installed tinker is {official.__version__}; the comparison is with 0.25.0")


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def public(cls: type) -> set[str]:
    return {n for n in vars(cls) if (not n.startswith("_") or n in ("__init__", "__await__")) and callable(getattr(cls, n))}


@newer
@pytest.mark.parametrize("name", CLASSES)
def test_methods(name: str) -> None:
    theirs, ours = CLASSES[name], getattr(tinker_local, name)
    for method in sorted(public(theirs)):
        if (name, method) in DIFFERENT or (name, method) in MISSING:
            continue
        assert hasattr(ours, method), f"{name}.{method} is missing"
        assert parameters(getattr(ours, method)) == parameters(getattr(theirs, method)), f"{name}.{method}"
        assert inspect.iscoroutinefunction(getattr(ours, method)) == inspect.iscoroutinefunction(getattr(theirs, method)), f"{name}.{method}"


@newer
def test_listed_differences_are_differences() -> None:
    for name, method in DIFFERENT:
        assert parameters(getattr(getattr(tinker_local, name), method)) != parameters(getattr(CLASSES[name], method)), f"{name}.{method} is the same"


@newer
def test_exports() -> None:
    no_http = {"Timeout", "RequestOptions"}  # options of the HTTP client
    assert set(official.__all__) - no_http <= set(tinker_local.__all__)
    ours = set(tinker_local.types.__all__)
    missing = {
        n
        for n, v in vars(official.types).items()
        if not n.startswith("_") and not inspect.ismodule(v) and n[0].isupper() and n not in ours and not n.startswith((*PROTOCOL, *BILLING))
    } - {"BillingUsageResponse", "ModelID", "RequestID"}
    assert missing == set()


@newer
def test_fields() -> None:
    for name in tinker_local.types.__all__:
        theirs, ours = getattr(official.types, name, None), getattr(tinker_local.types, name)
        if theirs is None or not dataclasses.is_dataclass(ours) or name == "BillingUsageResponse":
            continue
        if hasattr(theirs, "model_fields"):
            wanted = {n: (f.is_required(), None if f.is_required() else f.default) for n, f in theirs.model_fields.items()}
            got = {
                f.name: (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING, f.default) for f in dataclasses.fields(ours)
            }
            got = {n: (required, None if required else default) for n, (required, default) in got.items()}
            assert got == wanted, name
        else:
            theirs_first = list(inspect.signature(theirs).parameters)
            assert list(inspect.signature(ours).parameters)[: len(theirs_first)] == theirs_first, name
        for member in (m for m in vars(theirs) if not m.startswith(("_", "model_", "validate_", "serialize_"))):
            assert hasattr(ours, member) or member in {f.name for f in dataclasses.fields(ours)}, f"{name}.{member}"


@newer
def test_retry_config() -> None:
    assert [f.name for f in dataclasses.fields(tinker_local.RetryConfig)] == [f.name for f in dataclasses.fields(RetryConfig)]


@newer
def test_exceptions() -> None:
    for name in official.__all__:
        theirs = getattr(official, name)
        if isinstance(theirs, type) and issubclass(theirs, Exception):
            ours = getattr(tinker_local, name)
            assert [c.__name__ for c in ours.__mro__ if c.__name__ != "object"] == [c.__name__ for c in theirs.__mro__ if c.__name__ != "object"]


@newer
def test_values_are_the_same() -> None:
    """What the two packages make of the same inputs."""
    import numpy as np

    for package in (tinker_local, official):
        t = package.types
        d = t.Datum(
            model_input=t.ModelInput.from_ints([1, 2]).append_int(3),
            loss_fn_inputs={"target_tokens": [1, 2, 3], "weights": np.array([1, 0.5, 2]), "logprobs": t.TensorData(data=[1, 2], dtype="float32")},
        )
        assert (d.model_input.to_ints(), d.model_input.length, len(d.model_input.chunks)) == ([1, 2, 3], 3, 2)
        assert [(k, v.dtype, v.shape, v.data) for k, v in d.loss_fn_inputs.items()] == [
            ("target_tokens", "int64", [3], [1, 2, 3]),
            ("weights", "float32", [3], [1.0, 0.5, 2.0]),
            ("logprobs", "float32", None, [1.0, 2.0]),
        ]
        assert t.AdamParams().model_dump() == official.types.AdamParams().model_dump()
        parsed = t.ParsedCheckpointTinkerPath.from_tinker_path("tinker://run:train:0/sampler_weights/a")
        assert (parsed.training_run_id, parsed.checkpoint_type, parsed.checkpoint_id) == ("run:train:0", "sampler", "sampler_weights/a")
        assert str(t.RequestErrorCategory.User) == f"{t.RequestErrorCategory.User}" == "user"
        for wrong in ({"my_input": [1.0]}, {"weights": [[1.0], [1.0, 2.0]]}, {"weights": "1"}, {"weights": np.array([True])}):
            with pytest.raises((KeyError, ValueError, TypeError)):
                t.Datum(model_input=t.ModelInput.from_ints([1]), loss_fn_inputs=wrong)
