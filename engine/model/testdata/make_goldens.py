#!/usr/bin/env python3
"""Makes the golden files that engine/model is tested against: tiny random models in Hugging Face
format, PEFT adapters for them, and what torch computes with both, in float64 and in float32.

    python make_goldens.py [--out DIR] [--only NAME] [--seed N]

Needs torch, transformers, peft and safetensors; README.md names the versions of the stored files and
describes every file and key. Takes 90 seconds on one core.

Two implementations must agree before a golden is written: transformers with peft, and the plain
decoder below, which shares no code with them. peft has no shared-outer adapters for experts: for a
mixture of experts the adapter is merged into transformers' weights, inside autograd. A new family is one line in MODELS; if it has a block
that the plain decoder lacks, add it there (it takes norms on q and k, biases and an untied head from
the tensors that it finds).
"""

import argparse
import copy
import gc
import json
import math
import os
import platform
import shutil
import warnings

# The goldens come from the files written here, never from a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear, log_softmax, silu

FORMAT = 1  # version of the layout, checked by golden_test.go
SEED = 20260
ALPHA = 32
LENGTHS = [1, 7, 23, 41]  # input tokens of the batch's four datums
LOGITS_DATUM = 2  # the datum whose logits are stored
PROMPTS = [1, 5, 17]  # prompt lengths
NEW_TOKENS = 24
MARGIN = 1e-3  # greedy tokens must win by this much in logits
ROUTER_MARGIN = 1e-4  # the last expert chosen must lead the first one left out by this much in probability
AGREE = 1e-10  # float64: transformers and peft against the plain decoder
KEY = "base_model.model."  # what PEFT puts before a module's name

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTN + ["gate_proj", "up_proj", "down_proj", "lm_head"]
ADAPTERS = {  # folder: targets, is B zero; the ranks are the model's
    "adapter": (ALL, False),
    "adapter_attn": (ATTN, False),
    "adapter_start": (ALL, True),
}

# One line per model. `old_config` rewrites config.json in the form that transformers before version 5
# wrote and that published checkpoints have: rope_theta and torch_dtype at the top level.
MODELS = {
    "qwen3-tied": dict(
        family=("Qwen3Config", "Qwen3ForCausalLM"), dtype=torch.float32, shard="1GB", old_config=False,
        ranks=dict(adapter=4, adapter_attn=3, adapter_start=4),
        config=dict(hidden_size=28, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                    head_dim=10, intermediate_size=29, vocab_size=71, tie_word_embeddings=True),
        rope_theta=1e6),
    "qwen3-untied": dict(
        family=("Qwen3Config", "Qwen3ForCausalLM"), dtype=torch.bfloat16, shard="20KB", old_config=True,
        ranks=dict(adapter=2, adapter_attn=3, adapter_start=2),
        config=dict(hidden_size=27, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3,
                    head_dim=6, intermediate_size=31, vocab_size=53, tie_word_embeddings=False),
        rope_theta=1e4),
    "qwen3moe-hub": dict(
        family=("Qwen3MoeConfig", "Qwen3MoeForCausalLM"), dtype=torch.float32, shard="1GB", old_config=True,
        ranks=dict(adapter=2, adapter_attn=1, adapter_start=2),
        config=dict(hidden_size=22, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=4, intermediate_size=19, vocab_size=47, tie_word_embeddings=False,
                    num_experts=6, num_experts_per_tok=2, moe_intermediate_size=9, norm_topk_prob=True, mlp_only_layers=[1]),
        rope_theta=1e6),
    "qwen3moe-fused": dict(
        family=("Qwen3MoeConfig", "Qwen3MoeForCausalLM"), dtype=torch.bfloat16, shard="1GB", old_config=False, fused=True,
        ranks=dict(adapter=3, adapter_attn=2, adapter_start=3),
        config=dict(hidden_size=18, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
                    head_dim=6, intermediate_size=13, vocab_size=37, tie_word_embeddings=False,
                    num_experts=5, num_experts_per_tok=3, moe_intermediate_size=7, norm_topk_prob=False, decoder_sparse_step=2),
        rope_theta=1e4),
    # Of five pairs, one keeps its frequency, one is interpolated and three are divided: all of llama3's cases.
    "llama": dict(
        family=("LlamaConfig", "LlamaForCausalLM"), dtype=torch.float32, shard="1GB", old_config=True,
        ranks=dict(adapter=3, adapter_attn=2, adapter_start=3),
        config=dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=10, intermediate_size=26, vocab_size=61, tie_word_embeddings=True,
                    rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None),
        rope_theta=1e4, rope=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=64)),
    "qwen2": dict(
        family=("Qwen2Config", "Qwen2ForCausalLM"), dtype=torch.bfloat16, shard="1GB", old_config=True,
        ranks=dict(adapter=2, adapter_attn=3, adapter_start=2),
        config=dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=29, vocab_size=59, tie_word_embeddings=True,
                    use_sliding_window=False, sliding_window=16),
        rope_theta=1e6),
    "mistral": dict(
        family=("MistralConfig", "MistralForCausalLM"), dtype=torch.bfloat16, shard="1GB", old_config=False,
        ranks=dict(adapter=2, adapter_attn=2, adapter_start=2),
        config=dict(hidden_size=22, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                    head_dim=8, intermediate_size=27, vocab_size=57, tie_word_embeddings=False,
                    sliding_window=None, bos_token_id=None, eos_token_id=None),
        rope_theta=1e6),
}

# The ten steps: every hyper-parameter may change from step to step. clip 0 is off.
STEPS = [dict(lr=lr, beta1=b1, beta2=b2, eps=eps, weight_decay=wd, clip=clip) for lr, b1, b2, eps, wd, clip in [
    (2e-3, 0.9, 0.95, 1e-12, 0.0, 0.0),
    (4e-3, 0.9, 0.95, 1e-12, 0.0, 0.0),
    (8e-3, 0.9, 0.95, 1e-12, 0.0, 1.0),
    (8e-3, 0.9, 0.95, 1e-8, 0.0, 1e9),  # a limit that does not bind
    (6e-3, 0.9, 0.95, 1e-8, 0.01, 0.0),
    (5e-3, 0.9, 0.95, 1e-12, 0.01, 0.5),
    (4e-3, 0.9, 0.95, 1e-12, 0.01, 5.0),
    (3e-3, 0.85, 0.98, 1e-12, 0.01, 0.0),  # both betas change
    (2e-3, 0.9, 0.95, 1e-8, 0.0, 0.5),
    (1e-3, 0.9, 0.95, 1e-12, 0.0, 0.0),
]]


# --- the plain decoder -------------------------------------------------------------------------------


class Plain:
    """The decoder in plain torch. chunk > 0 sums every matrix product in pieces of that many
    terms, one after the other: the same function with another order of additions."""

    def __init__(self, folder, adapter, dtype, chunk=0):
        self.c = json.load(open(os.path.join(folder, "config.json")))
        self.w = {k: v.to(dtype) for k, v in read_weights(folder).items()}
        self.dtype, self.chunk, self.params, self.scale = dtype, chunk, {}, 0.0
        self.margin = float("inf")  # the closest that any choice of experts was
        if adapter:
            a = json.load(open(os.path.join(adapter, "adapter_config.json")))
            self.scale = a["lora_alpha"] / a["r"]
            stored = load_file(os.path.join(adapter, "adapter_model.safetensors"))
            self.params = {k: v.to(dtype).requires_grad_() for k, v in stored.items()}

    def product(self, x, w):
        if not self.chunk:
            return linear(x, w)
        y = 0
        for i in range(0, x.shape[-1], self.chunk):
            y = y + linear(x[..., i:i + self.chunk], w[:, i:i + self.chunk])
        return y

    def project(self, x, module):
        tied = module == "lm_head" and self.c["tie_word_embeddings"]
        y = self.product(x, self.w["model.embed_tokens.weight" if tied else module + ".weight"])
        if module + ".bias" in self.w:
            y = y + self.w[module + ".bias"]
        a, b = (self.params.get(f"{KEY}{module}.lora_{m}.weight") for m in "AB")
        if a is not None:
            y = y + self.scale * self.product(self.product(x, a), b)
        return y

    def norm(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c["rms_norm_eps"]) * self.w[name + ".weight"]

    def rotate(self, x):  # [n, T, C]: pair i is (i, i + C/2)
        half = x.shape[-1] // 2
        # Inverse frequencies and angles are float32 in the models' own code, at any precision of the rest.
        rope = self.c.get("rope_parameters") or self.c["rope_scaling"] or {}
        theta = self.c.get("rope_theta") or rope["rope_theta"]
        inv = 1.0 / theta ** (torch.arange(0, 2 * half, 2).float() / (2 * half))
        if rope.get("rope_type") == "llama3":
            inv = torch.stack([llama3(f, rope) for f in inv])
        angle = torch.arange(x.shape[1]).float()[:, None] * inv
        cos, sin = angle.to(self.dtype).cos(), angle.to(self.dtype).sin()
        lo, hi = x[..., :half], x[..., half:]
        return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], -1)

    def logits(self, tokens):
        c, n = self.c, len(tokens)
        size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        future = torch.full((n, n), float("-inf"), dtype=self.dtype).triu(1)
        x = self.w["model.embed_tokens.weight"][torch.tensor(tokens)]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            s = p + "self_attn."
            h = self.norm(x, p + "input_layernorm")
            q, k, v = (self.project(h, f"{s}{m}_proj").view(n, -1, size) for m in "qkv")
            if s + "q_norm.weight" in self.w:
                q, k = self.norm(q, s + "q_norm"), self.norm(k, s + "k_norm")
            q, k, v = self.rotate(q.transpose(0, 1)), self.rotate(k.transpose(0, 1)), v.transpose(0, 1)
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            att = torch.softmax(q @ k.transpose(1, 2) * size ** -0.5 + future, -1) @ v
            x = x + self.project(att.transpose(0, 1).reshape(n, -1), s + "o_proj")
            h = self.norm(x, p + "post_attention_layernorm")
            if p + "mlp.gate.weight" in self.w:
                x = x + self.experts(h, p + "mlp.")
            else:
                x = x + self.project(silu(self.project(h, p + "mlp.gate_proj")) * self.project(h, p + "mlp.up_proj"), p + "mlp.down_proj")
        return self.project(self.norm(x, "model.norm"), "lm_head")


    def experts(self, h, p):
        """A mixture of experts with shared-outer adapters: w1 (gate) and w3 (up) share A, w2 (down) shares B."""
        prob = torch.softmax(self.product(h, self.w[p + "gate.weight"]), -1)
        top = self.c["num_experts_per_tok"]
        order = prob.detach().sort(-1, descending=True)
        if top < prob.shape[1]:
            self.margin = min(self.margin, (order.values[:, top - 1] - order.values[:, top]).min().item())
        weight = torch.zeros_like(prob).scatter(1, order.indices[:, :top], 1.0) * prob
        if self.c["norm_topk_prob"]:
            weight = weight / weight.sum(-1, keepdim=True)
        factor = {m: self.params.get(f"{KEY}{p}experts.{m[0:2]}.lora_{m[2]}.weight") for m in ["w1A", "w1B", "w2A", "w2B", "w3A", "w3B"]}
        y = torch.zeros_like(h)
        for e in range(prob.shape[1]):
            rows = [t for t in range(len(h)) if weight[t, e] != 0]
            if not rows:
                continue
            x, (gate, up, down) = h[rows], self.expert(p + "experts.", e)
            g, u = self.product(x, gate), self.product(x, up)
            if factor["w1A"] is not None:
                g = g + self.scale * self.product(self.product(x, factor["w1A"][0]), factor["w1B"][e])
                u = u + self.scale * self.product(self.product(x, factor["w3A"][0]), factor["w3B"][e])
            z = silu(g) * u
            out = self.product(z, down)
            if factor["w2A"] is not None:
                out = out + self.scale * self.product(self.product(z, factor["w2A"][e]), factor["w2B"][0])
            y = y.index_add(0, torch.tensor(rows), weight[rows, e][:, None] * out)
        return y

    def expert(self, p, e):
        if p + "down_proj" in self.w:
            return *self.w[p + "gate_up_proj"][e].chunk(2), self.w[p + "down_proj"][e]
        return (self.w[f"{p}{e}.{m}_proj.weight"] for m in ["gate", "up", "down"])


def llama3(f, rope):
    """One frequency of Llama 3.1: kept, divided or in between by how often its wavelength fits the original context."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wave = 2 * math.pi / f
    fits = rope["original_max_position_embeddings"] / wave
    if fits > high:
        return f
    if fits < low:
        return f / rope["factor"]
    t = (fits - low) / (high - low)
    return (1 - t) * f / rope["factor"] + t * f


def read_weights(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        files = sorted(set(json.load(open(index))["weight_map"].values()))
    return {k: v for f in files for k, v in load_file(os.path.join(folder, f)).items()}


# --- transformers and peft ---------------------------------------------------------------------------


class Reference:
    """The model as transformers and peft run it, read from the stored files."""

    def __init__(self, folder, adapter, dtype, attention="sdpa"):
        self.model = load(folder, dtype, attn_implementation=attention)
        self.params, self.scale, self.merges = {}, 0.0, is_moe(folder)
        if adapter and self.merges:
            plain = Plain(folder, adapter, dtype)
            self.params, self.scale = plain.params, plain.scale
        elif adapter:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "tied": merging would change the input side; we never merge
                self.model = peft.PeftModel.from_pretrained(self.model, adapter, is_trainable=True)
            self.params = {n.replace(".default", ""): p for n, p in self.model.named_parameters() if p.requires_grad}
        self.model.to(dtype).eval()
        if dtype == torch.float64:
            make_exact(self.model)

    def logits(self, tokens):
        inputs = dict(input_ids=torch.tensor([tokens]))
        if self.merges and self.params:
            return torch.func.functional_call(self.model, self.merged(), kwargs=inputs).logits[0]
        return self.model(**inputs).logits[0]

    def merged(self):
        """transformers' weights with the adapter in them: W + scale * B A."""
        weights = {}
        for name, w in self.model.named_parameters():
            if ".mlp.experts." in name:
                parts, p = [], KEY + name[:name.rindex(".") + 1]
                for m, part in zip(["w1", "w3"] if "gate_up" in name else ["w2"], w.chunk(2, 1) if "gate_up" in name else [w]):
                    if p + m + ".lora_A.weight" in self.params:
                        a, b = self.params[p + m + ".lora_A.weight"], self.params[p + m + ".lora_B.weight"]
                        part = part + self.scale * torch.matmul(b, a)  # a factor of one expert is broadcast to all
                    parts.append(part)
                weights[name] = torch.cat(parts, 1)
                continue
            a, b = (self.params.get(f"{KEY}{name.removesuffix('.weight')}.lora_{m}.weight") for m in "AB")
            weights[name] = w if a is None else w + self.scale * b @ a
        return weights

    def greedy(self, prompt):
        model = self.model
        if self.merges and self.params:
            model = copy.deepcopy(model)
            with torch.no_grad():
                for name, w in self.merged().items():
                    model.get_parameter(name).copy_(w)
        out = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
                                  max_new_tokens=NEW_TOKENS, do_sample=False)
        return out[0, len(prompt):].tolist()


def is_moe(folder):
    return json.load(open(os.path.join(folder, "config.json")))["model_type"].endswith("_moe")


def load(folder, dtype, **options):
    if is_moe(folder):  # the default wants sizes that are multiples of 16 bytes, and no float64
        options["experts_implementation"] = "eager"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def make_exact(model):
    """transformers computes RMSNorm, the router's softmax, and the cosine and sine of RoPE, in float32 even in a float64
    model. These replacements compute in float64, and leave the angles float32: those belong to the model."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    def rope(self, x, position_ids):
        angle = position_ids[..., None].float() * self.inv_freq.float()
        angle = torch.cat([angle, angle], -1).double()
        return angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling

    def router(self, x):
        logits = linear(x.reshape(-1, x.shape[-1]), self.weight)
        top = torch.softmax(logits, -1).topk(self.top_k, -1)
        weights = top.values
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, top.indices

    for m in model.modules():
        if type(m).__name__.endswith("TopKRouter"):
            m.forward = router.__get__(m)
        if type(m).__name__.endswith("RMSNorm"):
            m.forward = norm.__get__(m)
        if type(m).__name__.endswith("RotaryEmbedding"):
            m.forward = rope.__get__(m)


# --- writing models and adapters ---------------------------------------------------------------------


def write_model(folder, spec, gen):
    config_class, model_class = (getattr(transformers, n) for n in spec["family"])
    rope = dict(rope_type="default", rope_theta=spec["rope_theta"]) | spec.get("rope", {})
    config = config_class(**dict(rope_parameters=rope, rms_norm_eps=1e-6, max_position_embeddings=128) | spec["config"])
    model = model_class(config)
    with torch.no_grad():
        for name, p in model.named_parameters():  # the tied head is not listed twice
            r = torch.randn(p.shape, generator=gen)
            if "norm" in name:
                p.copy_(1 + 0.2 * r)
            elif name.endswith(".bias"):
                p.copy_(0.3 * r)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(r * 1.5 / p.shape[1] ** 0.5)  # logits of standard deviation 1.5
            elif name.endswith("mlp.gate.weight"):
                p.copy_(r * 2.5 / p.shape[1] ** 0.5)  # choices that are clear, as those of a trained router
            else:
                p.copy_(r * 1.2 / p.shape[-1] ** 0.5)
    model.to(spec["dtype"]).save_pretrained(folder, max_shard_size=spec["shard"])
    if spec.get("fused"):  # as transformers holds them; save_pretrained writes a tensor per expert
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    if spec["old_config"]:
        path = os.path.join(folder, "config.json")
        c = json.load(open(path))
        rope = c.pop("rope_parameters")
        c["rope_theta"], c["rope_scaling"], c["torch_dtype"] = rope.pop("rope_theta"), None, c.pop("dtype")
        if rope["rope_type"] != "default":
            c["rope_scaling"] = rope
        c["transformers_version"] = "4.51.0"
        if "num_local_experts" in c:
            c["num_experts"] = c.pop("num_local_experts")
        write_text(path, json.dumps(dict(sorted(c.items())), indent=2))
    stored = read_weights(folder)
    assert ("lm_head.weight" in stored) != spec["config"]["tie_word_embeddings"]
    assert all(t.dtype == spec["dtype"] for t in stored.values())


def write_moe_adapter(folder, adapter, rank, targets, zero_b, gen):
    """What peft has no code for: the same file with the experts' factors, under the names of the Tinker service."""
    w, factors, modules = read_weights(folder), {}, {}
    c = json.load(open(os.path.join(folder, "config.json")))
    for name in w:
        module = name.removesuffix(".weight")
        if ".experts." in name:
            p = module[:module.index(".experts.") + 9]
            D, F, E = c["hidden_size"], c["moe_intermediate_size"], c.get("num_experts") or c["num_local_experts"]
            if "down_proj" in targets:
                modules.update({p + "w1": (1, D, E, F), p + "w3": (1, D, E, F), p + "w2": (E, F, 1, D)})
        elif module.rsplit(".", 1)[-1] in targets:
            modules[module] = (0, w[name].shape[1], 0, w[name].shape[0])
    for module in sorted(modules):
        ea, i, eb, o = modules[module]
        a = (2 * torch.rand(([ea] if ea else []) + [rank, i], generator=gen) - 1) / i ** 0.5
        b = torch.randn(([eb] if eb else []) + [o, rank], generator=gen) * (0 if zero_b else 0.03)
        factors[f"{KEY}{module}.lora_A.weight"], factors[f"{KEY}{module}.lora_B.weight"] = a, b
    path = os.path.join(folder, adapter)
    os.mkdir(path)
    save_file(factors, os.path.join(path, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = dict(base_model_name_or_path=os.path.basename(folder), bias="none", lora_alpha=ALPHA, lora_dropout=0.0, peft_type="LORA", r=rank,
                  target_modules=sorted({m.rsplit(".", 1)[-1] for m in modules}), task_type="CAUSAL_LM")
    write_text(os.path.join(path, "adapter_config.json"), json.dumps(config, indent=2))


def write_adapter(folder, adapter, rank, targets, zero_b, gen):
    if is_moe(folder):
        return write_moe_adapter(folder, adapter, rank, targets, zero_b, gen)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    embedding = base.get_input_embeddings().weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "tied", as above
        model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=targets,
                                                          lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_((2 * torch.rand(p.shape, generator=gen) - 1) / p.shape[1] ** 0.5)
            elif "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=gen) * (0 if zero_b else 0.03))
    # peft leaves the embedding alone, also where the head that carries the adapter is tied to it.
    assert type(base.get_input_embeddings()) is torch.nn.Embedding
    assert torch.equal(base.get_input_embeddings().weight, embedding)
    path = os.path.join(folder, adapter)
    for c in model.peft_config.values():
        c.base_model_name_or_path = os.path.basename(folder)
        c.target_modules = sorted(c.target_modules)  # a set would be written in random order
    # Left to itself, peft adds a copy of the base's head, because a target is named lm_head.
    model.save_pretrained(path, save_embedding_layers=False)
    os.remove(os.path.join(path, "README.md"))
    for c in model.peft_config.values():
        assert c.lora_alpha == ALPHA and c.r == rank


# --- evaluating --------------------------------------------------------------------------------------


def make_batch(vocab, gen):
    def tokens(n):
        return torch.randint(vocab, (n,), generator=gen).tolist()

    values = torch.tensor([0.0, 1.0, 1.0, 0.5, -0.75, 0.125, 1 / 3, 2.0])
    batch = []
    for i, n in enumerate(LENGTHS):
        seq = tokens(n + 1)
        if i == LOGITS_DATUM:
            seq[:3] = [0, vocab - 1, 0]  # the ends of the vocabulary
        targets = tokens(n) if n == 7 else seq[1:]  # one datum whose targets are not the next tokens
        weights = values[torch.randint(len(values), (n,), generator=gen)]
        weights[0] = 1.0 if n == 1 else 0.0
        batch.append(dict(tokens=seq[:n], target_tokens=targets, weights=weights.tolist()))
    every = [w for d in batch for w in d["weights"]]
    assert any(w == 0 for w in every) and any(w < 0 for w in every) and any(0 < w < 1 for w in every)
    return batch


def target_logprobs(run, tokens, targets):
    return log_softmax(run.logits(tokens), -1)[range(len(targets)), targets]


def batch_loss(run, batch):
    """L = -sum w·logprob over tokens and datums, each sequence alone."""
    logprobs = [target_logprobs(run, d["tokens"], d["target_tokens"]) for d in batch]
    loss = -sum((lp * torch.tensor(d["weights"], dtype=lp.dtype)).sum() for lp, d in zip(logprobs, batch))
    return loss, logprobs


def evaluate(run, batch):
    loss, logprobs = batch_loss(run, batch)
    grads = {}
    if run.params:
        loss.backward()
        grads = {k: p.grad.detach().clone() for k, p in run.params.items()}
    return dict(loss=loss.detach(), logprobs=[x.detach() for x in logprobs], grads=grads)


def train(run, batch):
    params = list(run.params.values())
    opt = torch.optim.AdamW(params, foreach=False)
    losses, norms = [], []
    for step in STEPS:
        opt.param_groups[0].update(lr=step["lr"], betas=(step["beta1"], step["beta2"]), eps=step["eps"],
                                   weight_decay=step["weight_decay"])
        opt.zero_grad()
        loss, _ = batch_loss(run, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, step["clip"] or float("inf"), foreach=False))
        opt.step()
        losses.append(loss.detach())
    return dict(losses=torch.stack(losses), norms=torch.stack(norms), final_loss=batch_loss(run, batch)[0].detach(),
                final={k: p.detach().clone() for k, p in run.params.items()})


def train_by_hand(run, batch):
    """AdamW and clipping written out (Loshchilov and Hutter 2019, algorithm 2 with torch's epsilon)."""
    m = {k: torch.zeros_like(p) for k, p in run.params.items()}
    v = {k: torch.zeros_like(p) for k, p in run.params.items()}
    for t, s in enumerate(STEPS, 1):
        loss, _ = batch_loss(run, batch)
        grads = dict(zip(run.params, torch.autograd.grad(loss, list(run.params.values()))))
        norm = sum(g.square().sum() for g in grads.values()).sqrt()
        factor = min(1.0, s["clip"] / (norm.item() + 1e-6)) if s["clip"] else 1.0
        for k, p in run.params.items():
            g = grads[k] * factor
            m[k] = s["beta1"] * m[k] + (1 - s["beta1"]) * g
            v[k] = s["beta2"] * v[k] + (1 - s["beta2"]) * g * g
            up = m[k] / (1 - s["beta1"] ** t) / ((v[k] / (1 - s["beta2"] ** t)).sqrt() + s["eps"])
            p.data = p.data - s["lr"] * s["weight_decay"] * p.data - s["lr"] * up
    return {k: p.detach() for k, p in run.params.items()}


def greedy(run, prompt):
    """Greedy tokens by full forwards, with the smallest lead of a winner over its runner-up."""
    seq, lead = list(prompt), float("inf")
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            top = run.logits(seq)[-1].topk(2)
            lead = min(lead, (top.values[0] - top.values[1]).item())
            seq.append(top.indices[0].item())
    return seq[len(prompt):], lead


def gap(a, b):
    """Largest absolute difference of two tensors, or of two equal lists or dicts of tensors."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((gap(a[k], b[k]) for k in a), default=0.0)
    if isinstance(a, (list, tuple)):
        return max(gap(x, y) for x, y in zip(a, b, strict=True))
    return (a.double() - b.double()).abs().max().item()


# --- one golden --------------------------------------------------------------------------------------


def runs(folder, adapter):
    """The float64 reference, its plain twin, and the float32 evaluations whose distance from the
    reference is the noise; the first of them is the one that is stored."""
    path = os.path.join(folder, adapter) if adapter else None
    exact = Reference(folder, path, torch.float64)
    plain = Plain(folder, path, torch.float64)
    single = [Reference(folder, path, torch.float32), Reference(folder, path, torch.float32, "eager"),
              Plain(folder, path, torch.float32), Plain(folder, path, torch.float32, chunk=8),
              Plain(folder, path, torch.float32, chunk=1)]
    return exact, plain, single


def noise(exact, singles):
    """How far float32 evaluations of one quantity lie from the float64 one, at the most. For a single
    number, at least the rounding of a float32 of its size: chance can put all of them on the float64
    value."""
    n = max(gap(exact, s) for s in singles)
    if isinstance(exact, torch.Tensor) and exact.dim() == 0:
        n = max(n, abs(exact.item()) * 2.0 ** -24)
    assert n > 0
    return n


def noises(exact, singles):
    return {k: noise(v, [s[k] for s in singles]) for k, v in exact.items()}


def numbers(x):
    return [numbers(y) for y in x] if isinstance(x, list) else x.double().tolist()


def eval_section(folder, adapter, batch, tensors):
    exact, plain, single = runs(folder, adapter)
    e, p, s = evaluate(exact, batch), evaluate(plain, batch), [evaluate(r, batch) for r in single]
    for k in e:
        assert gap(e[k], p[k]) < AGREE, (folder, adapter, k, gap(e[k], p[k]))
    out = dict(adapter=adapter, loss_f64=numbers(e["loss"]), loss_f32=numbers(s[0]["loss"]),
               loss_noise=noise(e["loss"], [x["loss"] for x in s]),
               logprobs_f64=numbers(e["logprobs"]), logprobs_f32=numbers(s[0]["logprobs"]),
               logprobs_noise=noise(e["logprobs"], [x["logprobs"] for x in s]),
               grads_noise=noises(e["grads"], [x["grads"] for x in s]))
    for k in e["grads"]:
        tensors[f"grad/{adapter}/f64/{k}"], tensors[f"grad/{adapter}/f32/{k}"] = e["grads"][k], s[0]["grads"][k]
    if not adapter:
        with torch.no_grad():
            tokens = batch[LOGITS_DATUM]["tokens"]
            ref, lg = exact.logits(tokens), [r.logits(tokens) for r in single]
            assert gap(ref, plain.logits(tokens)) < AGREE
            # What make_exact replaces is rounding, nothing more.
            stock = load(folder, torch.float64)
            assert gap(ref, stock(input_ids=torch.tensor([tokens])).logits[0]) < 1e-4
        print(f"  logits: standard deviation {ref.std():.3f}")
        tensors["logits/f64"], tensors["logits/f32"] = ref, lg[0]
        rope = exact.model.model.rotary_emb.inv_freq.float()
        out.update(rope_inv_freq=numbers(rope), logits_datum=LOGITS_DATUM, logits_noise=noise(ref, lg))
    return out


def train_section(folder, adapter, batch, tensors):
    exact, plain, single = runs(folder, adapter)
    e, p, s = train(exact, batch), train(plain, batch), [train(r, batch) for r in single]
    by_hand = train_by_hand(Plain(folder, os.path.join(folder, adapter), torch.float64), batch)
    for k in e:
        assert gap(e[k], p[k]) < 1e-8, (folder, k, gap(e[k], p[k]))
    assert gap(e["final"], by_hand) < 1e-8, gap(e["final"], by_hand)
    bound = [bool(t["clip"] and n > t["clip"]) for t, n in zip(STEPS, e["norms"])]
    assert 2 <= sum(bound) < sum(t["clip"] > 0 for t in STEPS)
    for k in e["final"]:
        tensors[f"final/f64/{k}"], tensors[f"final/f32/{k}"] = e["final"][k], s[0]["final"][k]
    steps = []
    loss_noise = norm_noise = 0.0
    for i, t in enumerate(STEPS):  # noise never falls from one step to the next: errors carry over
        loss_noise = max(loss_noise, noise(e["losses"][i], [x["losses"][i] for x in s]))
        norm_noise = max(norm_noise, noise(e["norms"][i], [x["norms"][i] for x in s]))
        steps.append(dict(**t, clipped=bound[i],
                          loss_f64=e["losses"][i].item(), loss_f32=s[0]["losses"][i].item(), loss_noise=loss_noise,
                          grad_norm_f64=e["norms"][i].item(), grad_norm_f32=s[0]["norms"][i].item(), grad_norm_noise=norm_noise))
    final = dict(loss_f64=e["final_loss"].item(), loss_f32=s[0]["final_loss"].item(),
                 loss_noise=max(loss_noise, noise(e["final_loss"], [x["final_loss"] for x in s])))
    return dict(adapter=adapter, steps=steps, final=final, tensors_noise=noises(e["final"], [x["final"] for x in s]))


def greedy_section(folder, vocab, gen):
    base, tuned = runs(folder, ""), runs(folder, "adapter")
    out = []
    for n in PROMPTS:
        for _ in range(1000):  # the first prompt whose tokens are clear, varied, and changed by the adapter
            prompt = torch.randint(vocab, (n,), generator=gen).tolist()
            base[1].margin = tuned[1].margin = float("inf")
            answers = [greedy(plain, prompt) for _, plain, _ in (base, tuned)]
            if (min(base[1].margin, tuned[1].margin) > ROUTER_MARGIN and all(lead > MARGIN and len(set(seq)) > 3 for seq, lead in answers) and answers[0][0] != answers[1][0]):
                break
        else:
            raise SystemExit(f"{folder}: no prompt of {n} tokens has clear greedy tokens")
        for adapter, (exact, plain, single), (seq, lead) in zip(["", "adapter"], (base, tuned), answers):
            assert exact.greedy(prompt) == seq, "generate disagrees with full forwards"
            full = prompt + seq

            def logprobs(run):
                with torch.no_grad():
                    return target_logprobs(run, full[:-1], full[1:])[n - 1:]

            ref, s = logprobs(exact), [logprobs(r) for r in single]
            assert gap(ref, logprobs(plain)) < AGREE
            out.append(dict(adapter=adapter, prompt=prompt, tokens=seq, logprobs_f64=numbers(ref), logprobs_f32=numbers(s[0]),
                            logprobs_noise=noise(ref, s), margin=lead))
    return out


def make(name, spec, folder, seed):
    print(name)
    gen = torch.Generator().manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder, spec, gen)
    for adapter, (targets, zero_b) in ADAPTERS.items():
        write_adapter(folder, adapter, spec["ranks"][adapter], targets, zero_b, gen)
    vocab = spec["config"]["vocab_size"]
    batch, tensors = make_batch(vocab, gen), {}
    for _ in range(1000):
        if not is_moe(folder) or routing_margin(folder, batch) > ROUTER_MARGIN:
            break
        batch = make_batch(vocab, gen)
    else:
        raise SystemExit(f"{folder}: no batch with clear choices of experts")
    golden = dict(format=FORMAT, name=name, seed=seed,
                  versions=dict(python=platform.python_version(), torch=torch.__version__.split("+")[0],
                                transformers=transformers.__version__, peft=peft.__version__,
                                safetensors=safetensors.__version__),
                  batch=batch,
                  base=eval_section(folder, "", batch, tensors),
                  adapter=eval_section(folder, "adapter", batch, tensors),
                  adapter_attn=eval_section(folder, "adapter_attn", batch, tensors),
                  train=train_section(folder, "adapter_start", batch, tensors),
                  greedy=greedy_section(folder, vocab, gen))
    assert golden["base"]["loss_f64"] != golden["adapter"]["loss_f64"]
    write_text(os.path.join(folder, "golden.json"), layout(golden))
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
    report(golden)


def routing_margin(folder, batch):
    """The closest choice of experts in all evaluations and all training steps."""
    least = float("inf")
    for adapter in ["", "adapter", "adapter_attn", "adapter_start"]:
        run = Plain(folder, os.path.join(folder, adapter) if adapter else "", torch.float64)
        if adapter != "adapter_start":
            evaluate(run, batch)
        elif least > ROUTER_MARGIN:
            train(run, batch)
        least = min(least, run.margin)
    return least


def report(g):
    for k in ("base", "adapter", "adapter_attn"):
        e = g[k]
        print(f"  {k}: loss {e['loss_f64']:.6f} noise {e['loss_noise']:.1e}, logprobs noise {e['logprobs_noise']:.1e}",
              f"logits noise {e['logits_noise']:.1e}" if not e["adapter"] else
              f"grads noise {min(e['grads_noise'].values()):.1e} to {max(e['grads_noise'].values()):.1e}")
    t = g["train"]
    print("  losses:", *(f"{s['loss_f64']:.4f}" for s in t["steps"]), f"-> {t['final']['loss_f64']:.4f}",
          f"noise {t['steps'][0]['loss_noise']:.1e} to {t['final']['loss_noise']:.1e}")
    print("  gradient norms:", *(f"{s['grad_norm_f64']:.3f}{'c' if s['clipped'] else ''}" for s in t["steps"]),
          f"noise {t['steps'][0]['grad_norm_noise']:.1e} to {t['steps'][-1]['grad_norm_noise']:.1e}")
    print(f"  final tensors noise {min(t['tensors_noise'].values()):.1e} to {max(t['tensors_noise'].values()):.1e}")
    for r in g["greedy"]:
        print(f"  greedy after {len(r['prompt'])} tokens, adapter {r['adapter']!r}: margin {r['margin']:.1e},",
              f"{len(set(r['tokens']))} different tokens, noise {r['logprobs_noise']:.1e}")


def layout(x, pad=""):
    """JSON with a line per key, but lists of numbers on one line."""
    inner = pad + " "
    if isinstance(x, dict) and x:
        return "{\n" + ",\n".join(f"{inner}{json.dumps(k)}: {layout(v, inner)}" for k, v in x.items()) + f"\n{pad}}}"
    if isinstance(x, list) and x and isinstance(x[0], (list, dict)):
        return "[\n" + ",\n".join(inner + layout(v, inner) for v in x) + f"\n{pad}]"
    return json.dumps(x)


def write_text(path, text):
    with open(path, "w") as f:
        f.write(text + "\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", default=here, help="folder that gets one folder per model (default: beside this script)")
    args.add_argument("--only", choices=list(MODELS), help="make this one alone")
    args.add_argument("--seed", type=int, default=SEED, help="the stored files have the default, %(default)s")
    args = args.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, spec in MODELS.items():
        if args.only in (None, name):
            make(name, spec, os.path.join(args.out, name), args.seed)
            gc.collect()


if __name__ == "__main__":
    main()
