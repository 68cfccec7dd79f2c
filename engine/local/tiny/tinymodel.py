"""The tiny base model in torch: a Qwen3 decoder, its export and its import."""
import json
import math
import os

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(vocab=320, layers=4, d=128, heads=4, kv_heads=2, head_dim=32, ffn=384,
              theta=1e4, eps=1e-6, max_pos=2048)


def rms(x, w, eps):
    return F.rms_norm(x, (x.shape[-1],), w, eps)


def rope_tables(n, head_dim, theta):
    inv = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    a = torch.arange(n, dtype=torch.float64)[:, None] * inv[None]
    a = torch.cat([a, a], -1)
    return a.cos().float(), a.sin().float()


def rotate(x, cos, sin):
    h = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., h:], x[..., :h]], -1) * sin


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, hd = c["d"], c["head_dim"]
        self.n1 = nn.Parameter(torch.ones(d))
        self.n2 = nn.Parameter(torch.ones(d))
        self.qn = nn.Parameter(torch.ones(hd))
        self.kn = nn.Parameter(torch.ones(hd))

        def mat(rows, cols, scale=1.0):
            return nn.Parameter(torch.randn(rows, cols) * (0.5 / math.sqrt(d)) * scale)
        out = 1 / math.sqrt(2 * c["layers"])
        self.q = mat(c["heads"] * hd, d)
        self.k = mat(c["kv_heads"] * hd, d)
        self.v = mat(c["kv_heads"] * hd, d)
        self.o = mat(d, c["heads"] * hd, out)
        self.gate = mat(c["ffn"], d)
        self.up = mat(c["ffn"], d)
        self.down = mat(d, c["ffn"], out)


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class Tiny(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c["vocab"], c["d"]) * (0.5 / math.sqrt(c["d"])))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.Parameter(torch.ones(c["d"]))
        cos, sin = rope_tables(c["max_pos"], c["head_dim"], c["theta"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids, pos=None, mask=None, lora=None):
        """ids [B,T]; mask [B,1,T,T] (true: may see), or None for plain causal rows."""
        c = self.c
        B, T = ids.shape
        x = self.embed[ids]
        cos, sin = (self.cos[:T], self.sin[:T]) if pos is None else (self.cos[pos][:, None], self.sin[pos][:, None])

        def lin(x, w, i, name):
            y = x @ w.t()
            if lora is not None:
                a, b, s = lora[f"{i}.{name}"]
                y = y + (x @ a.t()) @ b.t() * s
            return y

        for i, l in enumerate(self.layers):
            h = rms(x, l.n1, c["eps"])
            q = lin(h, l.q, i, "q").view(B, T, c["heads"], c["head_dim"]).transpose(1, 2)
            k = lin(h, l.k, i, "k").view(B, T, c["kv_heads"], c["head_dim"]).transpose(1, 2)
            v = lin(h, l.v, i, "v").view(B, T, c["kv_heads"], c["head_dim"]).transpose(1, 2)
            q = rotate(rms(q, l.qn, c["eps"]), cos, sin).to(v.dtype)
            k = rotate(rms(k, l.kn, c["eps"]), cos, sin).to(v.dtype)
            g = c["heads"] // c["kv_heads"]
            k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
            with torch.autocast("cpu", enabled=False):
                a = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None)
            x = x + lin(a.transpose(1, 2).reshape(B, T, -1), l.o, i, "o")
            h = rms(x, l.n2, c["eps"])
            x = x + lin(F.silu(lin(h, l.gate, i, "gate")) * lin(h, l.up, i, "up"), l.down, i, "down")
        h = rms(x, self.norm, c["eps"])
        return lin(h, self.embed, "head", "head")


HF_NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
            "n1": "input_layernorm", "n2": "post_attention_layernorm",
            "qn": "self_attn.q_norm", "kn": "self_attn.k_norm"}


def hf_state(params):
    """Our names (embed, norm, layers.N.x) to those of a Hugging Face Qwen3 checkpoint."""
    out = {}
    for name, t in params.items():
        if name == "embed":
            out["model.embed_tokens.weight"] = t
        elif name == "norm":
            out["model.norm.weight"] = t
        else:
            _, i, x = name.split(".")
            out[f"model.layers.{i}.{HF_NAMES[x]}.weight"] = t
    return out


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def byte_chars():
    """The printable character that byte-level BPE writes for each byte."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars, n = {}, 0
    for b in range(256):
        if b in printable:
            chars[b] = chr(b)
        else:
            chars[b] = chr(256 + n)
            n += 1
    return chars


def export(params, folder, c=CONFIG):
    """Writes the Hugging Face folder; params are float32 tensors by our names."""
    from safetensors.torch import save_file
    os.makedirs(folder, exist_ok=True)

    def put(name, obj):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(obj, f, indent=2, ensure_ascii=False)
            f.write("\n")

    put("config.json", {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "vocab_size": c["vocab"], "hidden_size": c["d"], "intermediate_size": c["ffn"],
        "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"], "head_dim": c["head_dim"],
        "max_position_embeddings": c["max_pos"], "rope_theta": c["theta"], "rope_scaling": None,
        "rms_norm_eps": c["eps"], "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": c["layers"],
        "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256, "torch_dtype": "bfloat16"})
    put("generation_config.json", {"do_sample": True, "temperature": 1.0,
                                   "eos_token_id": [256, 258], "pad_token_id": 256})
    chars = byte_chars()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    put("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 256 + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, s in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {chars[b]: b for b in range(256)}, "merges": []}})
    put("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_prefix_space": False,
        "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "added_tokens_decoder": {str(256 + i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                                                "single_word": False, "special": True} for i, s in enumerate(special)},
        "clean_up_tokenization_spaces": False, "model_max_length": c["max_pos"],
        "chat_template": CHAT_TEMPLATE})
    tensors = {n: t.detach().to(torch.bfloat16).contiguous() for n, t in hf_state(params).items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def load(folder, c=CONFIG):
    """The exported model, widened to float32."""
    from safetensors.torch import load_file
    t = load_file(os.path.join(folder, "model.safetensors"))
    m = Tiny(c)
    with torch.no_grad():
        names = dict(m.named_parameters())
        for (hf, p) in hf_state(names).items():
            p.copy_(t[hf].float())
    return m
