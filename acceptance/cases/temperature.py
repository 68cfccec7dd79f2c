"""P8: a drawn token's log-probability is that of the distribution it was drawn from: log p_T(i) - log p_T(j) = (log p_1(i) - log p_1(j)) / T."""

from __future__ import annotations

import sys

import tinker
from tinker import types

sampler = tinker.ServiceClient().create_sampling_client(base_model=sys.argv[1]).result()
prompt = types.ModelInput.from_ints(list(b"English: "))


def drawn(temperature: float) -> dict[int, float]:
    params = types.SamplingParams(max_tokens=1, temperature=temperature, seed=3)
    return {s.tokens[0]: s.logprobs[0] for s in sampler.sample(prompt, 256, params).result().sequences}


plain = drawn(1.0)
for t in (0.5, 0.7, 1.5, 2.0):
    scaled = drawn(t)
    both = sorted(set(plain) & set(scaled))
    worst = max(abs((scaled[a] - scaled[b]) - (plain[a] - plain[b]) / t) for a, b in zip(both, both[1:]))
    print("temperature", t, "tokens", len(both), "largest difference", worst)
    assert len(both) > 2 and worst < 1e-3
