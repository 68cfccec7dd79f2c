"""The table of cases that the Go API, the C library and the Python package answer, capi/testdata/cases.json, answered over HTTP with the same bits.

It is for one kind of arithmetic, so a server of its own that has it is asked."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from clients import VERSION, datum, logprobs, settled, sync
from tinker import types

TEXT = {"encode", "decode", "render"}  # clients have tokenizers of their own


@pytest.fixture(scope="module")
def portable() -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=os.environ["TINKER_LOCAL_PORTABLE_URL"])


def test_cases(portable: tinker.ServiceClient, root: Path) -> None:
    table = json.loads((root / "capi/testdata/cases.json").read_text())
    door, asked, wrong = Door(portable), 0, []
    for case in table["cases"]:
        if case["op"] in TEXT or VERSION < (0, 25) and not door.old_can(case):
            continue
        asked += 1
        try:
            got = getattr(door, case["op"])(case)
        except (tinker.RequestFailedError, tinker.APIStatusError, ValueError):
            got = ["error"]
        want = [door.visible(line) for line in case["want"]]
        if case["op"] == "hold":  # the loss was the caller's
            got, want = ([line for line in lines if not line.startswith("metric")] for lines in (got, want))
        if got != want:
            wrong.append((case["name"], got, want))
    assert not wrong
    assert asked > (20 if VERSION < (0, 25) else 45)


class Door:
    """Does what a case says, and says what came of it in the table's words."""

    def __init__(self, service: tinker.ServiceClient) -> None:
        self.service = service
        self.run: Any = None
        self.sampling: Any = None
        self.lost = False

    def old_can(self, c: dict[str, Any]) -> bool:
        """SDKs before 0.25 let no plugin's name pass. What its gradients would have changed is left out, too."""
        self.lost = (self.lost or c["name"] == "wasm-by-name") and c["op"] != "create_run" and c["name"] != "base-sampler"
        return not self.lost

    def visible(self, line: str) -> str:
        """A line of the table as far as clients can see it."""
        words = line.split()
        if words[0] in ("error", "checkpoint"):
            return words[0]
        if words[0] == "sequence":  # without the log-probability before temperature
            drawn = words[3:]
            return " ".join(words[:3] + [w for i, w in enumerate(drawn) if i % 3 != 2])
        return line

    def create_run(self, c: dict[str, Any]) -> list[str]:
        self.run = self.service.create_lora_training_client(c["base_model"], **c["lora_config"])
        sync(self.run, "get_info")
        return ["run"]

    def forward(self, c: dict[str, Any]) -> list[str]:
        return output(settled(self.run.forward(data(c), c["loss_fn"], c.get("loss_fn_config"))))

    def forward_backward(self, c: dict[str, Any]) -> list[str]:
        return output(settled(self.run.forward_backward(data(c), c["loss_fn"], c.get("loss_fn_config"))))

    def hold(self, c: dict[str, Any]) -> list[str]:
        """A loss of the client's: forward, then its derivative as weights."""
        seen = logprobs(settled(self.run.forward(data(c), "cross_entropy")))
        weighted = [
            datum(d["tokens"], target_tokens=tensor(d["loss_fn_inputs"]["target_tokens"]), weights=np.array(w, np.float32).reshape(lp.shape))
            for d, w, lp in zip(c["data"], c["hold_weights"], seen)
        ]
        return rows(seen) + output(settled(self.run.forward_backward(weighted, "cross_entropy")))

    def optim_step(self, c: dict[str, Any]) -> list[str]:
        return metrics(settled(self.run.optim_step(types.AdamParams(**c["adam_params"]))).metrics)

    def sampler(self, c: dict[str, Any]) -> list[str]:
        base = c.get("base_model")
        self.sampling = self.service.create_sampling_client(base_model=base) if base else self.run.save_weights_and_get_sampling_client()
        return ["sampler"]

    def sample(self, c: dict[str, Any]) -> list[str]:
        params = types.SamplingParams(stop=c.get("stop_tokens"), **c["sampling_params"])
        prompt = types.ModelInput.from_ints(c.get("prompt", []))
        r = settled(self.sampling.sample(prompt, c["num_samples"], params, c.get("prompt_logprobs", False), c.get("topk_prompt_logprobs", 0)))
        out = []
        for i, x in enumerate(r.sequences):
            out.append(" ".join([f"sequence {i} {x.stop_reason}", *(f"{t} {bits(lp)}" for t, lp in zip(x.tokens, x.logprobs))]))
        if r.prompt_logprobs is not None:
            out.append(prompt_line(r.prompt_logprobs))
        for i, row in enumerate(r.topk_prompt_logprobs or []):
            out.append(" ".join([f"topk {i}", *(f"{t} {bits(lp)}" for t, lp in row or [])]))
        return out

    def compute_logprobs(self, c: dict[str, Any]) -> list[str]:
        return [prompt_line(settled(self.sampling.compute_logprobs(types.ModelInput.from_ints(c["prompt"]))))]

    def save_state(self, c: dict[str, Any]) -> list[str]:
        self.saved = settled(self.run.save_state(c["name_of_state"])).path
        return ["checkpoint"]

    def load_state(self, c: dict[str, Any]) -> list[str]:
        settled((self.run.load_state_with_optimizer if c.get("optimizer") else self.run.load_state)(self.saved))
        return ["checkpoint"]


def data(c: dict[str, Any]) -> list[types.Datum]:
    return [datum(d["tokens"], **{name: tensor(t) for name, t in sorted(d["loss_fn_inputs"].items())}) for d in c["data"]]


def tensor(t: dict[str, Any]) -> types.TensorData:
    values = dict(data=t["data"], dtype="float32" if t["dtype"] == "float32" else "int64", shape=t["shape"])
    if "sparse_crow_indices" in t and VERSION < (0, 25):  # that knows dense tensors only
        dense, crow = np.zeros(t["shape"]), t["sparse_crow_indices"]
        for row in range(len(crow) - 1):
            for i in range(crow[row], crow[row + 1]):
                dense[row, t["sparse_col_indices"][i]] = t["data"][i]
        values["data"] = dense.ravel().tolist()
    elif "sparse_crow_indices" in t:
        values |= {k: t[k] for k in ("sparse_crow_indices", "sparse_col_indices")}
    return types.TensorData(**values)


def output(o: types.ForwardBackwardOutput) -> list[str]:
    return rows(logprobs(o)) + metrics(o.metrics)


def rows(lps: list[np.ndarray]) -> list[str]:
    return [" ".join([f"logprobs {i} columns {lp.shape[1] if lp.ndim == 2 else 0}", *(bits(v) for v in lp.ravel())]) for i, lp in enumerate(lps)]


def metrics(m: dict[str, float]) -> list[str]:
    # What a plugin's host measures differs from run to run.
    return [f"metric {name} {struct.pack('>d', m[name]).hex()}" for name in sorted(m) if not name.startswith("plugin/")]


def prompt_line(values: Any) -> str:
    return " ".join(["prompt", *("none" if v is None else bits(v) for v in values)])


def bits(v: float) -> str:
    return struct.pack(">f", float(v)).hex()
