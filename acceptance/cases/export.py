"""P11: the cookbook's way out: weights are downloaded and built into a PEFT adapter and into a merged model, which give the server's log-probabilities."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import tinker
import torch
import transformers
from tinker import types
from tinker_cookbook import weights

MODEL = sys.argv[1]
service = tinker.ServiceClient()
run = service.create_lora_training_client(MODEL, rank=8, seed=1, train_unembed=False).result()
tokens = list(b"English: hello world\nPig Latin: ello-hay orld-way\n")
datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)})
for _ in range(10):
    run.forward_backward([datum], "cross_entropy")
    run.optim_step(types.AdamParams(learning_rate=3e-3)).result()
served = run.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()


def logprobs(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        lp = torch.log_softmax(model(torch.tensor([tokens[:-1]])).logits[0].float(), -1)
    return lp.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


def base() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


with tempfile.TemporaryDirectory() as t:
    out = Path(t)
    path = run.save_weights_external("out").result().path
    weights.download(tinker_path=path, output_dir=str(out / "downloaded"))
    weights.build_lora_adapter(base_model=MODEL, adapter_path=str(out / "downloaded"), output_path=str(out / "adapter"))
    adapted = logprobs(peft.PeftModel.from_pretrained(base(), out / "adapter").eval())
    print("peft: largest difference", np.abs(adapted - served).max(), "trained away from the base:", np.abs(logprobs(base()) - served).max())
    assert np.abs(adapted - served).max() < 1e-3 < np.abs(logprobs(base()) - served).max()
    weights.build_hf_model(base_model=MODEL, adapter_path=str(out / "downloaded"), output_path=str(out / "merged"))
    merged = logprobs(transformers.AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32).eval())
    print("merged: largest difference", np.abs(merged - served).max())
    assert np.abs(merged - served).max() < 0.1, "beyond what rounding to the base's bfloat16 explains"
