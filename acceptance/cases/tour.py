"""P3: what the first tutorials show: what the server has, sampling, a step of fine-tuning, and every loss."""

from __future__ import annotations

import sys

import numpy as np
import tinker
from tinker import types
from tinker_cookbook import renderers
from tinker_cookbook.supervised.data import conversation_to_datum
from tinker_cookbook.tokenizer_utils import get_tokenizer

MODEL = sys.argv[1]

models = [m.model_name for m in tinker.RestClient().get_server_capabilities().result().supported_models]
assert MODEL in models, models
service = tinker.ServiceClient()
sampler = service.create_sampling_client(base_model=MODEL).result()
tokenizer = sampler.get_tokenizer()
assert tokenizer.encode("abc") == get_tokenizer(MODEL).encode("abc")
prompt = types.ModelInput.from_ints(tokenizer.encode("The weather today is"))
for s in sampler.sample(prompt, 3, types.SamplingParams(max_tokens=12, temperature=0.7, stop=["\n"])).result().sequences:
    print(repr(tokenizer.decode(s.tokens)), s.stop_reason)

training = service.create_lora_training_client(MODEL, rank=16).result()
renderer = renderers.get_renderer("qwen3", tokenizer)
talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ello-hay"}]
datum = conversation_to_datum(talk, renderer, 256, renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES)
losses = []
for _ in range(8):
    step = training.forward_backward([datum], "cross_entropy")
    training.optim_step(types.AdamParams(learning_rate=1e-3))
    losses.append(step.result().metrics["loss:sum"])
print("cross_entropy", losses)
assert losses[-1] < losses[0] / 2

tuned = training.save_weights_and_get_sampling_client().result()
start = renderer.build_generation_prompt(talk[:1])
drawn = tuned.sample(start, 4, types.SamplingParams(max_tokens=16, stop=renderer.get_stop_sequences())).result().sequences
batch = []
for i, s in enumerate(drawn):
    whole, n = start.to_ints() + list(s.tokens), len(s.tokens)
    pad = [0.0] * (len(whole) - 1 - n)
    batch.append(types.Datum(
        model_input=types.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={"target_tokens": whole[1:], "logprobs": pad + list(s.logprobs), "advantages": pad + [1.0 - i % 2 * 2.0] * n},
    ))  # fmt: skip
for name, config in (("importance_sampling", None), ("ppo", None), ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}), ("cispo", None), ("dro", {"beta": 0.05})):
    out = training.forward_backward(batch, name, config).result()
    print(name, config, "loss:sum", out.metrics["loss:sum"])
    assert np.isfinite(out.metrics["loss:sum"])
assert training.optim_step(types.AdamParams(learning_rate=1e-4)).result().metrics["grad_norm"] > 0
service.close("success").result()
