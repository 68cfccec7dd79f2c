"""Threads that do anything in any order, with mistakes among it. Two seconds; TINKER_SOAK=1: two minutes."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from typing import Any

from conftest import example, left_over

import tinker_local
from tinker_local import numpy_loss, types

SECONDS = 120 if os.environ.get("TINKER_SOAK") else 2
PROMPT = types.ModelInput.from_ints(list(b"hello"))


def test_threads_at_random(kept: tinker_local.ServiceClient) -> None:
    gc.collect()
    before = tinker_local.debug_counts()
    deadline = time.monotonic() + SECONDS
    crashes: list[BaseException] = []
    done: list[int] = []
    threads = [threading.Thread(target=_work, args=(seed, deadline, done, crashes)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(SECONDS + 60)
    assert not any(t.is_alive() for t in threads)
    assert not crashes, crashes
    assert sum(done) > 20
    assert left_over(before) == {}


def _work(seed: int, deadline: float, done: list[int], crashes: list[BaseException]) -> None:
    rng = random.Random(seed)
    n = 0
    try:
        service = tinker_local.ServiceClient(state=":memory:", models="/nonexistent", device="cpu")
        client = service.create_lora_training_client("tinker-local/tiny", rank=2, seed=seed)
        sampler = client.save_weights_and_get_sampling_client()
        futures: list[Any] = []
        while time.monotonic() < deadline:
            n += 1
            futures.append(rng.choice(_ACTIONS)(client, sampler))
            rng.shuffle(futures)
            if rng.random() < 0.4:
                _end(futures.pop(), rng)
            if rng.random() < 0.05:
                futures.clear()
            if rng.random() < 0.05:
                sampler = client.save_weights_and_get_sampling_client()
            if rng.random() < 0.02:
                client.close()
                client = service.create_lora_training_client("tinker-local/tiny", rank=2, seed=n)
            if rng.random() < 0.02:
                gc.collect()
    except BaseException as e:
        crashes.append(e)
    done.append(n)


@numpy_loss
def _loss(data: Any, logprobs: Any) -> Any:
    return 0.0, {}, logprobs


_ACTIONS: list[Any] = [
    lambda c, s: c.forward_backward([example()] * 3, "cross_entropy"),
    lambda c, s: c.forward([example()], "cross_entropy"),
    lambda c, s: c.forward_backward([example()], "no such loss"),
    lambda c, s: c.forward_backward([None], "cross_entropy"),
    lambda c, s: c.forward_backward_custom([example()], _loss),
    lambda c, s: c.optim_step(types.AdamParams(learning_rate=1e-4)),
    lambda c, s: c.save_state("same", overwrite=True),
    lambda c, s: c.load_state(f"tinker://{c.model_id}/weights/same"),
    lambda c, s: c.weights(),
    lambda c, s: s.sample(PROMPT, 2, types.SamplingParams(max_tokens=20)),
    lambda c, s: s.sample(PROMPT, 0, types.SamplingParams(max_tokens=20)),
    lambda c, s: s.compute_logprobs(PROMPT),
]


def _end(future: Any, rng: random.Random) -> None:
    try:
        what = rng.randrange(4)
        if what == 0:
            future.result(timeout=0.001)
        elif what == 1:
            future.cancel()
        elif what == 2:
            future.future().exception(timeout=30)
        else:
            future.result(timeout=30)
    except (tinker_local.RequestFailedError, TimeoutError):
        pass  # as asked for
