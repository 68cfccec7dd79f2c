"""Losses of the caller's: torch functions, numpy functions and WASM modules give the gradient of the built-in loss, and cost one forward."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, counters, example

import tinker_local
from tinker_local import numpy_loss, types

STEP = types.AdamParams(learning_rate=1e-2)


def weights_after(service: tinker_local.ServiceClient, do: Any) -> dict[str, np.ndarray]:
    """The adapter of a fresh run after a pass and a step."""
    client = service.create_lora_training_client("tinker-local/tiny", rank=4, seed=1)
    do(client).result()
    client.optim_step(STEP).result()
    return client.weights().result()


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@numpy_loss
def cross_entropy(data: list[types.Datum], logprobs: list[np.ndarray]) -> Any:
    w = [d.loss_fn_inputs["weights"].to_numpy() for d in data]
    return -sum(float(a @ b) for a, b in zip(w, logprobs)), {"mine": 7.0}, w


@numpy_loss(returns="gradient")
def by_gradient(data: list[types.Datum], logprobs: list[np.ndarray]) -> Any:
    return 0.0, {}, [-d.loss_fn_inputs["weights"].to_numpy() for d in data]


def test_numpy_loss_trains_as_the_built_in_one(service: tinker_local.ServiceClient) -> None:
    data = [example("hello"), example("a longer one", 0.5)]
    built_in = weights_after(service, lambda c: c.forward_backward(data, "cross_entropy"))
    assert same(weights_after(service, lambda c: c.forward_backward_custom(data, cross_entropy)), built_in)
    assert same(weights_after(service, lambda c: c.forward_backward_custom(data, by_gradient)), built_in)
    assert not same(weights_after(service, lambda c: c.forward(data, "cross_entropy")), built_in)


def test_metrics_and_logprobs(training: tinker_local.TrainingClient) -> None:
    data = [example("hello")]
    plain = training.forward(data, "cross_entropy").result()
    result = training.forward_backward_custom(data, cross_entropy).result()
    assert result.metrics["mine"] == 7.0
    assert result.metrics["loss:sum"] == pytest.approx(plain.metrics["loss:sum"])
    assert result.loss_fn_outputs[0]["logprobs"].data == plain.loss_fn_outputs[0]["logprobs"].data


def test_costs_one_forward(service: tinker_local.ServiceClient) -> None:
    client = service.create_lora_training_client("tinker-local/tiny", rank=4, seed=1)
    data = [example("hello")]

    def cost(do: Any) -> dict[str, int]:
        before = counters(service)
        do().result()
        return {k: v - before[k] for k, v in counters(service).items()}

    built_in = cost(lambda: client.forward_backward(data, "cross_entropy"))
    assert built_in["Head Forward"] > 0 and built_in["Layers Forward"] > 0 and built_in["Layers Backward"] > 0
    assert cost(lambda: client.forward_backward_custom(data, cross_entropy)) == built_in
    # What the official SDK does is a forward and a forward_backward, which finds the activations of the first.
    official = cost(lambda: [client.forward(data, "cross_entropy").result(), client.forward_backward(data, "cross_entropy")][1])
    assert official == built_in


def test_mistakes_are_raised_and_give_the_activations_up(training: tinker_local.TrainingClient) -> None:
    data = [example("hello")]

    @numpy_loss
    def wrong_shape(data: Any, logprobs: Any) -> Any:
        return 0.0, {}, [np.zeros(3)]

    @numpy_loss
    def fails(data: Any, logprobs: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\], wanted those of the log-probabilities"):
        training.forward_backward_custom(data, wrong_shape)
    with pytest.raises(ZeroDivisionError, match="mine"):
        training.forward_backward_custom(data, fails)
    with pytest.raises(TypeError, match="wanted a function"):
        training.forward_backward_custom(data, 17)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss_type_input"):
        training.forward_backward_custom(data, fails, loss_type_input="logits")  # type: ignore[arg-type]
    without_targets = [types.Datum(types.ModelInput.from_ints([1, 2]), {})]
    with pytest.raises(tinker_local.RequestFailedError, match="target_tokens"):
        training.forward_backward_custom(without_targets, fails)
    assert tinker_local.debug_counts()["handles"]["held"] == 0


def test_a_nan_is_the_users_mistake(training: tinker_local.TrainingClient) -> None:
    @numpy_loss
    def nan(data: Any, logprobs: Any) -> Any:
        return 0.0, {}, [np.full_like(lp, np.nan) for lp in logprobs]

    with pytest.raises(tinker_local.RequestFailedError) as e:
        training.forward_backward_custom([example("hello")], nan).result()
    assert e.value.category == "user"


def test_stale(training: tinker_local.TrainingClient) -> None:
    @numpy_loss
    def steps_in_between(data: Any, logprobs: Any) -> Any:
        training.optim_step(STEP).result()
        return 0.0, {}, logprobs

    with pytest.raises(tinker_local.RequestFailedError, match="optim_step|step|version|stale"):
        training.forward_backward_custom([example("hello")], steps_in_between).result()


def test_async_twin(training: tinker_local.TrainingClient) -> None:
    async def main() -> Any:
        return await (await training.forward_backward_custom_async([example("hello")], cross_entropy))

    assert asyncio.run(main()).metrics["mine"] == 7.0


def test_targets_of_two_dimensions(training: tinker_local.TrainingClient) -> None:
    seen = []

    @numpy_loss
    def loss(data: Any, logprobs: Any) -> Any:
        seen.extend(lp.shape for lp in logprobs)
        return 0.0, {}, [np.ones_like(lp) for lp in logprobs]

    data = [types.Datum(types.ModelInput.from_ints([1, 2, 3]), {"target_tokens": np.arange(6).reshape(3, 2)}), example("hello")]
    training.forward_backward_custom(data, loss).result()
    assert seen == [(3, 2), (4,)]


def test_torch_loss(service: tinker_local.ServiceClient) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its loss functions are not tried")
    data = [example("hello"), example("a longer one", 0.5)]

    def loss(data: list[types.Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        assert all(lp.requires_grad and lp.is_leaf and lp.dtype == torch.float32 for lp in logprobs)
        value = -sum((d.loss_fn_inputs["weights"].to_torch() * lp).sum() for d, lp in zip(data, logprobs))
        return value, {"value": value.item()}

    built_in = weights_after(service, lambda c: c.forward_backward(data, "cross_entropy"))
    assert same(weights_after(service, lambda c: c.forward_backward_custom(data, loss)), built_in)

    client = service.create_lora_training_client("tinker-local/tiny", rank=4)
    with pytest.raises(ValueError, match="datum 1"):
        client.forward_backward_custom(data, lambda d, lps: (lps[0].sum(), {}))
    with pytest.raises(TypeError, match="numpy_loss"):
        client.forward_backward_custom(data, lambda d, lps: (0.0, {}))


def test_without_torch_the_reason_is_said(training: tinker_local.TrainingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="numpy_loss"):
        training.forward_backward_custom([example()], lambda data, logprobs: (0, {}))


def test_wasm(service: tinker_local.ServiceClient, tmp_path: Path) -> None:
    """A module by its name, its bytes and its file is the same loss, and costs one forward."""
    file = ROOT / "plugins" / "losses" / "logprob_variance.wasm"
    if not file.exists():
        pytest.skip(f"no {file}: not run in a checkout")
    data = [types.Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]}) for d in (example("hello"), example("a longer one"))]
    assert "logprob_variance" in [p["name"] for p in service.engine.plugins()]
    by_name = weights_after(service, lambda c: c.forward_backward(data, "wasm:logprob_variance"))
    assert same(weights_after(service, lambda c: c.forward_backward(data, file.read_bytes())), by_name)
    assert same(weights_after(service, lambda c: c.forward_backward_custom(data, file)), by_name)
    assert same(weights_after(service, lambda c: c.forward_backward_custom(data, str(file), loss_fn_config={})), by_name)

    client = service.create_lora_training_client("tinker-local/tiny", rank=4, seed=1)
    value = client.forward(data, file).result()
    logprobs = np.concatenate([o["logprobs"].to_numpy() for o in value.loss_fn_outputs]).astype(np.float64)
    assert value.metrics["loss:sum"] in (pytest.approx(logprobs.var(), 1e-5), pytest.approx(logprobs.var(ddof=1), 1e-5))
    assert tinker_local.debug_counts()["handles"]["module"] >= 1


def test_wasm_mistakes(training: tinker_local.TrainingClient) -> None:
    for loss in (b"no module", "wasm:no-such", "/no/such.wasm"):
        with pytest.raises(tinker_local.RequestFailedError) as e:
            training.forward_backward([example()], loss).result()
        assert e.value.category == "user"
