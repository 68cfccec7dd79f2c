"""A client whose server is killed in the middle of its run, and started again. It says on standard output what happens, a line each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "checks"))
import tinker
from clients import MODEL, adam, example, ints, logprobs, settled
from tinker import types


def say(*words: Any) -> None:
    print(*words, flush=True)


def step(run: Any) -> None:
    run.forward_backward([example()], "cross_entropy")
    settled(run.optim_step(adam()))


def seen(run: Any) -> str:
    return repr(logprobs(settled(run.forward([example()], "cross_entropy")))[0].tolist())


service = tinker.ServiceClient()
sampler = service.create_sampling_client(base_model=MODEL)
greedy = types.SamplingParams(max_tokens=8, temperature=0)
before = list(settled(sampler.sample(ints("hello "), 1, greedy)).sequences[0].tokens)
run = service.create_lora_training_client(MODEL, rank=4, seed=1)
for _ in range(3):
    step(run)
path = settled(run.save_state("three")).path
weights = settled(run.save_weights_for_sampler("three")).path
at_save = seen(run)
say("saved", path)
try:
    while True:
        step(run)
        say("step")
except tinker.TinkerError as e:
    say("error", type(e).__name__, getattr(e, "status_code", ""), e)
except ValueError as e:  # the SDK's way of saying that a result cannot be had any more
    say("error", type(e).__name__, "", e)

# The same session goes on, with samplers and runs that are made anew.
try:
    settled(sampler.sample(ints("hello "), 1, greedy))
except tinker.NotFoundError as e:
    say("sampler", e)
sampler = service.create_sampling_client(base_model=MODEL)
say("sampled", list(settled(sampler.sample(ints("hello "), 1, greedy)).sequences[0].tokens) == before)
again = service.create_training_client_from_state_with_optimizer(path)
say("loaded", seen(again) == at_save)
step(again)
say("weights", len(settled(service.create_sampling_client(model_path=weights).compute_logprobs(ints("hello")))) == 5)
listed = {c.tinker_path for c in settled(service.create_rest_client().list_user_checkpoints()).checkpoints}
say("listed", listed == {path, weights})
