"""What torch, transformers and peft compute, in float64, against what a client of this server gets: engine/model/testdata/README.md has the details."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import datum, logprobs, settled
from tinker import types

FAMILIES = ["llama", "mistral", "qwen2", "qwen3-tied", "qwen3-untied", "qwen3moe-fused", "qwen3moe-hub"]
TOLERATED = 10  # times the noise of float32, as in the engine's own tests


@pytest.fixture(params=FAMILIES)
def golden(request: pytest.FixtureRequest, root: Path) -> dict[str, Any]:
    return json.loads((root / "engine/model/testdata" / request.param / "golden.json").read_text())


def batch(golden: dict[str, Any]) -> list[types.Datum]:
    return [datum(d["tokens"], target_tokens=d["target_tokens"], weights=d["weights"]) for d in golden["batch"]]


def near(got: Any, want: Any, noise: float) -> bool:
    return bool(np.abs(np.asarray(got, float) - np.asarray(want, float)).max() <= TOLERATED * noise)


def test_base(service: Any, golden: dict[str, Any]) -> None:
    """A fresh adapter changes nothing."""
    run = service.create_lora_training_client("goldens/" + golden["name"], rank=2)
    out, want = settled(run.forward(batch(golden), "cross_entropy")), golden["base"]
    assert near(out.metrics["loss:sum"], want["loss_f64"], want["loss_noise"])
    for got, lp in zip(logprobs(out), want["logprobs_f64"], strict=True):
        assert near(got, lp, want["logprobs_noise"])


@pytest.mark.parametrize("adapter", ["adapter", "adapter_attn"])
def test_adapters(service: Any, golden: dict[str, Any], adapter: str) -> None:
    """Folders of peft, imported: in training, in prompts and in what is drawn."""
    path, want = imported(golden, adapter), golden[adapter]
    run = service.create_training_client_from_state(path)
    out = settled(run.forward(batch(golden), "cross_entropy"))
    assert near(out.metrics["loss:sum"], want["loss_f64"], want["loss_noise"])
    for got, lp in zip(logprobs(out), want["logprobs_f64"], strict=True):
        assert near(got, lp, want["logprobs_noise"])


def test_greedy(service: Any, golden: dict[str, Any]) -> None:
    """transformers' generate, token by token, with the log-probability of each."""
    samplers = {"": service.create_sampling_client(base_model="goldens/" + golden["name"])}
    samplers["adapter"] = service.create_sampling_client(model_path=imported(golden, "adapter"))
    for g in golden["greedy"]:
        params = types.SamplingParams(max_tokens=len(g["tokens"]), temperature=0)
        s = settled(samplers[g["adapter"]].sample(types.ModelInput.from_ints(g["prompt"]), 1, params)).sequences[0]
        assert list(s.tokens) == g["tokens"]
        assert near(s.logprobs, g["logprobs_f64"], g["logprobs_noise"])


def test_ten_steps(service: Any, golden: dict[str, Any]) -> None:
    """torch.optim.AdamW with clipping, from an adapter whose B is zero."""
    train = golden["train"]
    run = service.create_training_client_from_state(imported(golden, train["adapter"]))
    for s in train["steps"]:
        adam = types.AdamParams(
            learning_rate=s["lr"], beta1=s["beta1"], beta2=s["beta2"], eps=s["eps"], weight_decay=s["weight_decay"], grad_clip_norm=s["clip"]
        )
        out, step = run.forward_backward(batch(golden), "cross_entropy"), run.optim_step(adam)
        assert near(settled(out).metrics["loss:sum"], s["loss_f64"], s["loss_noise"])
        assert near(settled(step).metrics["grad_norm"], s["grad_norm_f64"], s["grad_norm_noise"])
    final = settled(run.forward(batch(golden), "cross_entropy"))
    assert near(final.metrics["loss:sum"], train["final"]["loss_f64"], train["final"]["loss_noise"])


def imported(golden: dict[str, Any], adapter: str) -> str:
    """Where the adapters were imported before the server began: a JSON object of folders and their paths."""
    return json.loads(os.environ["TINKER_LOCAL_IMPORTED"])[f"{golden['name']}/{adapter}"]
