"""The table of cases that the Go API and the C interface answer, capi/testdata/cases.json, answered here with the same bits."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import tinker_local
from tinker_local import RequestFailedError, types
from tinker_local._library import lib

TABLE = ROOT / "capi" / "testdata" / "cases.json"
if not TABLE.exists():
    pytest.skip("no capi/testdata/cases.json: not run in a checkout", allow_module_level=True)


def test_cases() -> None:
    table = json.loads(TABLE.read_text())
    service = tinker_local.ServiceClient(device=table["device"], state=":memory:")
    door = Door(service, table["tokenizer"])
    wrong = []
    for case in table["cases"]:
        try:
            got = getattr(door, case["op"])(case)
        except (RequestFailedError, tinker_local.APIStatusError) as e:
            got = ["error " + lib().tinker_status_name(e.status).decode()]
        if got != case["want"]:
            wrong.append((case["name"], got, case["want"]))
    assert not wrong
    assert len(table["cases"]) > 40


class Door:
    """Does what a case says, and says what came of it in the table's words."""

    def __init__(self, service: tinker_local.ServiceClient, tokenizer: str) -> None:
        self.service = service
        self.tokenizer = service.engine.tokenizer(tokenizer)
        self.run: Any = None
        self.sampling: Any = None

    def encode(self, c: dict[str, Any]) -> list[str]:
        return [" ".join(["ids", *map(str, self.tokenizer.encode(c.get("text", ""), c.get("special", False)))])]

    def decode(self, c: dict[str, Any]) -> list[str]:
        text = self.tokenizer.decode(c["tokens"], c.get("special", False))
        return [" ".join(["bytes", *(f"{b:02x}" for b in text.encode())])]

    def render(self, c: dict[str, Any]) -> list[str]:
        r = self.tokenizer.render(**c["request"])
        return [" ".join(["ids", *map(str, r["tokens"])]), " ".join(["trained", *(str(int(w)) for w in r["weights"])])]

    def create_run(self, c: dict[str, Any]) -> list[str]:
        self.run = self.service.create_lora_training_client(c["base_model"], **c["lora_config"])
        return ["run"]

    def forward(self, c: dict[str, Any]) -> list[str]:
        return self.output(self.run.forward(data(c), c["loss_fn"], c.get("loss_fn_config")).result())

    def forward_backward(self, c: dict[str, Any]) -> list[str]:
        return self.output(self.run.forward_backward(data(c), c["loss_fn"], c.get("loss_fn_config")).result())

    def hold(self, c: dict[str, Any]) -> list[str]:
        seen: list[np.ndarray] = []

        @tinker_local.numpy_loss
        def loss(_: Any, logprobs: list[np.ndarray]) -> Any:
            seen.extend(logprobs)
            return 0.0, {}, [np.array(w, np.float32).reshape(lp.shape) for w, lp in zip(c["hold_weights"], logprobs)]

        result = self.run.forward_backward_custom(data(c), loss).result()
        return rows(seen) + self.output(result)

    def optim_step(self, c: dict[str, Any]) -> list[str]:
        return metrics(self.run.optim_step(types.AdamParams(**c["adam_params"])).result().metrics)

    def sampler(self, c: dict[str, Any]) -> list[str]:
        base = c.get("base_model")
        self.sampling = self.service.create_sampling_client(base_model=base) if base else self.run.save_weights_and_get_sampling_client()
        return ["sampler"]

    def sample(self, c: dict[str, Any]) -> list[str]:
        params = types.SamplingParams(stop=c.get("stop_tokens"), **c["sampling_params"])
        prompt = types.ModelInput.from_ints(c.get("prompt", []))
        r = self.sampling.sample(prompt, c["num_samples"], params, c.get("prompt_logprobs", False), c.get("topk_prompt_logprobs", 0)).result()
        out = []
        for i, x in enumerate(r.sequences):
            drawn = [f"{t} {bits(a)} {bits(b)}" for t, a, b in zip(x.tokens, x.logprobs_np, x.raw_logprobs_np)]
            out.append(" ".join([f"sequence {i} {x.stop_reason}", *drawn]))
        if r.prompt_logprobs_np is not None:
            out.append(prompt_line(r.prompt_logprobs_np))
        for i, row in enumerate(r.topk_prompt_logprobs or []):
            out.append(" ".join([f"topk {i}", *(f"{t} {bits(lp)}" for t, lp in row or [])]))
        return out

    def compute_logprobs(self, c: dict[str, Any]) -> list[str]:
        values = self.sampling.compute_logprobs(types.ModelInput.from_ints(c["prompt"])).result()
        return [prompt_line([float("nan") if v is None else v for v in values])]

    def save_state(self, c: dict[str, Any]) -> list[str]:
        return self.checkpoint(self.run.save_state(c["name_of_state"]).result().path)

    def load_state(self, c: dict[str, Any]) -> list[str]:
        load = self.run.load_state_with_optimizer if c.get("optimizer") else self.run.load_state
        return self.checkpoint(load(f"tinker://{self.run.model_id}/weights/{c['name_of_state']}").result().path)

    def checkpoint(self, path: str) -> list[str]:
        return ["checkpoint " + self.service.engine.json("tinker_checkpoint_info", path)["sha256"]]

    def output(self, o: types.ForwardBackwardOutput) -> list[str]:
        return rows([x["logprobs"].to_numpy() for x in o.loss_fn_outputs]) + metrics(o.metrics)


def data(c: dict[str, Any]) -> list[types.Datum]:
    return [
        types.Datum(types.ModelInput.from_ints(d["tokens"]), {name: tensor(t) for name, t in sorted(d["loss_fn_inputs"].items())}) for d in c["data"]
    ]


def tensor(t: dict[str, Any]) -> types.TensorData:
    dtype = "float32" if t["dtype"] == "float32" else "int64"
    return types.TensorData(t["data"], dtype, t["shape"], t.get("sparse_crow_indices"), t.get("sparse_col_indices"))


def rows(logprobs: list[np.ndarray]) -> list[str]:
    return [" ".join([f"logprobs {i} columns {lp.shape[1] if lp.ndim == 2 else 0}", *(bits(v) for v in lp.ravel())]) for i, lp in enumerate(logprobs)]


def metrics(m: dict[str, float]) -> list[str]:
    # What a plugin's host measures differs from run to run.
    return [f"metric {name} {struct.pack('>d', m[name]).hex()}" for name in sorted(m) if not name.startswith("plugin/")]


def prompt_line(values: Any) -> str:
    return " ".join(["prompt", *("none" if v != v else bits(v) for v in values)])


def bits(v: float) -> str:
    return struct.pack(">f", float(v)).hex()
