#!/usr/bin/env python3
"""Makes merged/*.safetensors: adapters merged into tiny models by peft, for merged_golden_test.go.

    python make_merged.py

Needs torch, transformers, peft and safetensors (stored files: torch 2.15.0, transformers 5.24.0, peft 0.21.2). The models and adapters are those
of engine/model/testdata, and llama-untied, which this script makes with seed 7. A file holds the weights of the last layer and of the head.

- Dense models: PeftModel.merge_and_unload, in the model's own type. A tied head is taken from the embedding first, since peft would change
  both. This version of peft adds B·A in float32 and rounds the sum once.
- Mixtures of experts: peft has no shared-outer factors. W + scale·einsum(B, A) in float64, rounded to float32 or bfloat16 by torch.
"""

import json
import os
import re
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "..", "model", "testdata")
OUT = os.path.join(HERE, "merged")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def make_llama():
    """A Llama with a head of its own, and an adapter that peft itself made."""
    torch.manual_seed(7)
    folder = os.path.join(HERE, "llama-untied")
    shutil.rmtree(folder, ignore_errors=True)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)).to(torch.float16)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if ".lora_" in name:
                p.copy_(torch.randn_like(p) * 0.05)
    adapted.save_pretrained(os.path.join(folder, "adapter"), save_embedding_layers=False)
    os.remove(os.path.join(folder, "adapter", "README.md"))
    return folder


def kept(name, layers):
    return name == "lm_head.weight" or re.match(rf"model\.layers\.{layers - 1}\..*(proj|gate_up_proj|down_proj)(\.weight)?$", name)


def dense(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if config["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    merged = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).merge_and_unload()
    state = merged.state_dict()
    return {n: t.contiguous() for n, t in state.items() if kept(n, config["num_hidden_layers"])}


def mixture(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    weights = {}
    for f in sorted(os.listdir(folder)):
        if f.startswith("model") and f.endswith(".safetensors"):
            weights.update(load_file(os.path.join(folder, f)))
    factors = {n.removeprefix("base_model.model."): t.double() for n, t in load_file(os.path.join(folder, "adapter", "adapter_model.safetensors")).items()}
    a = json.load(open(os.path.join(folder, "adapter", "adapter_config.json")))
    scale = a["lora_alpha"] / a["r"]
    out = {}
    for name, w in weights.items():
        module = name.removesuffix(".weight")
        def delta(m):
            return factors[m + ".lora_A.weight"], factors[m + ".lora_B.weight"]
        expert = re.match(r"(.*\.mlp\.experts\.)(\d+)\.(gate|up|down)_proj$", module)
        if expert:
            p, e, which = expert.groups()
            x, y = delta(p + {"gate": "w1", "up": "w3", "down": "w2"}[which])
            d = torch.einsum("or,ri->oi", y[int(e) if y.shape[0] > 1 else 0], x[int(e) if x.shape[0] > 1 else 0])
        elif module.endswith(".experts.gate_up_proj"):
            p = module.removesuffix("gate_up_proj")
            d = torch.cat([torch.einsum("eor,ri->eoi", y, x[0]) for x, y in (delta(p + "w1"), delta(p + "w3"))], 1)
        elif module.endswith(".experts.down_proj"):
            x, y = delta(module.removesuffix("down_proj") + "w2")
            d = torch.einsum("or,eri->eoi", y[0], x)
        elif module + ".lora_A.weight" in factors:
            x, y = delta(module)
            d = y @ x
        else:
            continue
        if kept(name, config["num_hidden_layers"]):
            out[name] = (w.double() + scale * d).to(w.dtype)
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    folders = [make_llama()] + [os.path.join(MODELS, n) for n in ("llama", "mistral", "qwen2", "qwen3-tied", "qwen3-untied")]
    for folder in folders:
        save_file(dense(folder), os.path.join(OUT, os.path.basename(folder) + ".safetensors"))
    for name in ("qwen3moe-hub", "qwen3moe-fused"):
        save_file(mixture(os.path.join(MODELS, name)), os.path.join(OUT, name + ".safetensors"))


main()
