"""Trains and samples with fixed seeds and prints what came of it, which must not depend on who else is there."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "checks"))
import numpy as np
import tinker
from clients import MODEL, adam, example, ints, logprobs, settled
from tinker import types

service = tinker.ServiceClient()
run = service.create_lora_training_client(MODEL, rank=8, seed=3)
seen = hashlib.sha256()
for k in range(12):
    out = run.forward_backward([example(t) for t in ("hello world", "a longer text to learn", "abc")[: 1 + k % 3]], "cross_entropy")
    run.optim_step(adam(grad_clip_norm=1.0))
    if k % 4 == 3:
        sampler = run.save_weights_and_get_sampling_client()
        drawn = settled(sampler.sample(ints("hello "), 3, types.SamplingParams(max_tokens=12, seed=k)))
        for s in drawn.sequences:
            seen.update(np.array(s.tokens, np.int32).tobytes() + np.array(s.logprobs, np.float32).tobytes())
    for lp in logprobs(settled(out)):
        seen.update(lp.tobytes())
print(seen.hexdigest())
