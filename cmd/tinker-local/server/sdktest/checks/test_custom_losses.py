"""A client's own loss: forward, its derivative on the client, then cross_entropy with weights. And losses that are plugins of the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clients import adam, datum, example, logprobs, needs_torch, settled, since
from tinker import types

TOKENS = list(b"hello world")


def step(run: Any) -> float:
    return settled(run.optim_step(adam())).metrics["grad_norm"]


def test_as_the_client_sends_it(service: Any) -> None:
    """Mean of squares of the log-probabilities, without torch: what forward_backward_custom sends, and the run that a built-in loss with the same derivative gives."""
    one, other = (service.create_lora_training_client("tinker-local/tiny", rank=4, seed=3) for _ in range(2))
    bare = [datum(TOKENS[:-1], target_tokens=TOKENS[1:], weights=[0.0] * 10)]
    (lp,) = logprobs(settled(one.forward(bare, "cross_entropy")))
    weighted = [datum(TOKENS[:-1], target_tokens=TOKENS[1:], weights=-2 * lp / 10)]
    out = settled(one.forward_backward(weighted, "cross_entropy"))
    assert np.array_equal(logprobs(out)[0], lp)
    direct = settled(other.forward_backward(weighted, "cross_entropy"))
    assert out.metrics == direct.metrics and step(one) == step(other)
    assert np.array_equal(*(logprobs(settled(r.forward(bare, "cross_entropy")))[0] for r in (one, other)))


@needs_torch
def test_custom(service: Any, do: Any) -> None:
    import torch

    def loss(data: Any, lps: Any) -> Any:
        total = torch.stack([(lp**2).mean() for lp in lps]).sum()
        return total, {"squares": float(total.detach())}

    one, other = (service.create_lora_training_client("tinker-local/tiny", rank=4, seed=3) for _ in range(2))
    data = [types.Datum(model_input=types.ModelInput.from_ints(TOKENS[:-1]), loss_fn_inputs={"target_tokens": TOKENS[1:]})] * 3
    out = do(one, "forward_backward_custom", data, loss)
    assert out.metrics["squares"] == pytest.approx(sum(float((lp**2).mean()) for lp in logprobs(out)), rel=1e-5)
    weighted = [datum(TOKENS[:-1], target_tokens=TOKENS[1:], weights=-2 * lp / 10) for lp in logprobs(out)]
    settled(other.forward_backward(weighted, "cross_entropy"))
    assert step(one) == pytest.approx(step(other), rel=1e-5)


@needs_torch
@since(0, 38)
def test_traced_custom(service: Any) -> None:
    def negative(logprobs: Any, weights: Any) -> Any:
        value = -(logprobs * weights).sum()
        return value, {"custom/negative:sum": value}

    handle = service.create_custom_loss(negative, input_ranks={"logprobs": 1, "weights": 1}).result()
    run = service.create_lora_training_client("tinker-local/tiny", rank=4, seed=3)
    out = settled(run.forward_backward_custom([example()], handle))
    assert out.metrics["loss:sum"] == pytest.approx(-logprobs(out)[0].sum(), rel=1e-5)


@since(0, 25)  # before, the SDK refuses names that it does not know
def test_plugin_by_name(training: Any) -> None:
    out = settled(training.forward_backward([example(), example("abc")], "wasm:logprob_variance"))
    lp = np.concatenate(logprobs(out)).astype(float)
    assert out.metrics["logprob:mean"] == pytest.approx(lp.mean(), rel=1e-4)
    assert step(training) > 0


@since(0, 25)
def test_dpo_plugin(training: Any) -> None:
    """Pairs, with the reference's log-probabilities as an array: at the reference itself the loss is ln 2 a pair."""
    texts = ["good day", "bad day"]
    reference = logprobs(settled(training.forward([example(t) for t in texts], "cross_entropy")))
    pair = []
    for text, ref in zip(texts, reference):
        tokens = list(text.encode())
        pair.append(datum(tokens[:-1], target_tokens=tokens[1:], weights=[1.0] * len(ref), ref_logprobs=ref))
    out = settled(training.forward_backward(pair, "wasm:dpo", {"beta": 0.1}))
    assert out.metrics["loss:sum"] == pytest.approx(np.log(2), rel=1e-5)
    assert step(training) > 0
    after = settled(training.forward(pair, "wasm:dpo", {"beta": 0.1}))
    assert after.metrics["loss:sum"] < np.log(2)
