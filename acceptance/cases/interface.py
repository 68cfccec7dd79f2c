"""P9: what tests of other servers of this interface ask of one: capabilities, a workflow of training, sampling, top-k, stops, diversity, unloading."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import tinker
from tinker import types

MODEL = sys.argv[1]
service = tinker.ServiceClient()
assert MODEL in {m.model_name for m in tinker.RestClient().get_server_capabilities().result().supported_models}


def datum(text: str) -> types.Datum:
    t = list(text.encode())
    return types.Datum(types.ModelInput.from_ints(t[:-1]), {"target_tokens": t[1:], "weights": [1.0] * (len(t) - 1)})


def loss(run: Any, text: str) -> float:
    return run.forward([datum(text)], "cross_entropy").result().metrics["loss:sum"]


# Training: gradients of several requests add up; a zero weight adds nothing; runs do not touch each other; states go back and forth.
a, b = (service.create_lora_training_client(MODEL, rank=8, seed=1).result() for _ in range(2))
untouched = loss(b, "hello")
for _ in range(5):
    a.forward_backward([datum("hello")], "cross_entropy")
    a.forward_backward([datum("world")], "cross_entropy")
    a.optim_step(types.AdamParams(learning_rate=1e-3)).result()
assert loss(a, "hello") < untouched and loss(b, "hello") == untouched
saved = a.save_state("five").result().path
trained = loss(a, "hello")
b.load_state_with_optimizer(saved).result()
assert loss(b, "hello") == trained
assert a.optim_step(types.AdamParams()).result().metrics["grad_norm"] == 0.0

# Sampling: lengths, reasons, top-k of prompts, stops by text and by token, several samples that differ, seeds that repeat.
sampler = service.create_sampling_client(model_path=a.save_weights_for_sampler("w").result().path).result()
prompt = types.ModelInput.from_ints(list(b"hello "))
free = sampler.sample(prompt, 8, types.SamplingParams(max_tokens=10, seed=1), True, 5).result()
assert len({tuple(s.tokens) for s in free.sequences}) > 1
assert [len(top) for top in free.topk_prompt_logprobs[1:]] == [5] * 5
again = sampler.sample(prompt, 8, types.SamplingParams(max_tokens=10, seed=1)).result()
assert [s.tokens for s in free.sequences] == [s.tokens for s in again.sequences]
greedy = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=10, temperature=0)).result().sequences[0]
text = bytes(t for t in greedy.tokens if t < 256).decode(errors="replace")
for stop in ([text[3]], [greedy.tokens[3]]):
    s = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=10, temperature=0, stop=stop)).result().sequences[0]
    assert s.stop_reason == "stop" and len(s.tokens) <= 4 and s.tokens == greedy.tokens[: len(s.tokens)]

# Unloading, which only the low level has: the run is gone for its client, what it saved is there.
body = json.dumps({"model_id": a.model_id}).encode()
headers = {"X-API-Key": os.environ["TINKER_API_KEY"], "Content-Type": "application/json"}
urllib.request.urlopen(urllib.request.Request(os.environ["TINKER_BASE_URL"] + "/api/v1/unload_model", body, headers)).close()
try:
    loss(a, "hello")
    raise AssertionError("an unloaded run has answered")
except tinker.NotFoundError as e:
    assert "create_training_client_from_state_with_optimizer" in str(e)
assert loss(service.create_training_client_from_state(saved).result(), "hello") == trained
print("done")
