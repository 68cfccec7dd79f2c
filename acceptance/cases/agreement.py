"""P7: the log-probabilities of what is drawn, as the sampler reports them and as the trainer computes them, before and after training."""

from __future__ import annotations

import sys

import numpy as np
import tinker
from tinker import types

for model in sys.argv[1:]:
    service = tinker.ServiceClient()
    run = service.create_lora_training_client(model, rank=8, seed=1).result()
    rng = np.random.default_rng(5)
    for when in ("before", "after"):
        sampler = run.save_weights_and_get_sampling_client().result()
        squares = []
        for _ in range(4):
            prompt = rng.integers(32, 127, 40).tolist()
            for s in sampler.sample(types.ModelInput.from_ints(prompt), 4, types.SamplingParams(max_tokens=48)).result().sequences:
                tokens = prompt + list(s.tokens)
                datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)})
                trained = run.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
                again = np.array(sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result()[1:], np.float32)
                squares += [(trained[-len(s.tokens) :] - np.array(s.logprobs, np.float32)) ** 2, (trained - again) ** 2]
        mean = float(np.concatenate(squares).mean())
        print(model, when, "mean squared difference", mean)
        assert mean == 0.0, "wanted the same bits; a hosted service promises 1e-4"
        for _ in range(3):
            run.forward_backward([datum], "cross_entropy")
            run.optim_step(types.AdamParams(learning_rate=1e-3)).result()
