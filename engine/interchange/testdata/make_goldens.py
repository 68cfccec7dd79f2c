"""Makes the adapters of peft and the log-probabilities that it computes with them, for tests of what is imported.

    python make_goldens.py

Made with torch 2.15.0, transformers 4.57.6 (which has a module for every expert), peft 0.21.2. Tiny random models; seed 1.
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = Path(__file__).parent
torch.manual_seed(1)
sizes = dict(vocab_size=13, hidden_size=8, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=6, max_position_embeddings=64, tie_word_embeddings=False, eos_token_id=None, bos_token_id=None)
tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
golden = {"tokens": tokens[0].tolist(), "logprobs": {}}


def base(name, model):
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / p.shape[-1] ** 0.5) if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    return folder


def logprobs(name, model):
    with torch.no_grad():
        out = torch.log_softmax(model(tokens).logits[0].double(), -1)
    golden["logprobs"][name] = out[:-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()


def adapter(folder, name, cls, config, shared=False):
    model = get_peft_model(cls.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    factors = {k: p for k, p in model.named_parameters() if ".lora_" in k}
    for p in factors.values():
        p.data = torch.randn_like(p) * 0.3
    if shared:  # the factor on the side of the hidden size is one for all experts of a layer
        for k, p in factors.items():
            which = "lora_B" if ".down_proj." in k else "lora_A"
            if ".experts." in k and which in k:
                head, rest = k.split(".experts.")
                p.data = factors[f"{head}.experts.0.{rest.split('.', 1)[1]}"].data.clone()
    logprobs(name, model)
    model.save_pretrained(folder / name)
    (folder / name / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / name / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny/" + folder.name  # no path of the machine
    config["target_modules"] = sorted(config["target_modules"])
    (folder / name / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


dense = base("dense", Qwen3ForCausalLM(Qwen3Config(**sizes)))
logprobs("base", Qwen3ForCausalLM.from_pretrained(dense).eval())
adapter(dense, "alpha", Qwen3ForCausalLM, dict(r=4, lora_alpha=6, target_modules="all-linear"))
adapter(dense, "rslora", Qwen3ForCausalLM, dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj", "lm_head"]))
adapter(dense, "subset", Qwen3ForCausalLM, dict(r=2, lora_alpha=4, layers_to_transform=[1], target_modules=["v_proj", "up_proj"]))
# 2 * moe_intermediate_size is not hidden_size, since tools tell the two by their sizes; a multiple of 4, since torch groups products of such only
moe = base("moe", Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12, decoder_sparse_step=1, norm_topk_prob=True, **sizes)))
everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
adapter(moe, "experts", Qwen3MoeForCausalLM, dict(r=2, lora_alpha=32, target_modules=everything), shared=True)
adapter(moe, "apart", Qwen3MoeForCausalLM, dict(r=2, lora_alpha=32, target_modules=everything))
(HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
