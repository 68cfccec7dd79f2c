"""Runs llama.cpp with ours/*.gguf, and compares its log-probabilities with transformers + peft.

    python -m pip install llama-cpp-python==0.3.36 gguf==0.19.0 numpy     # the first one builds llama.cpp: needs a C++ compiler
    python check_llamacpp.py [--only NAME]

For each family, on the tiny random models of engine/model/testdata and all sequences of their golden batches:

- "golden": the plain float64 decoder below against what transformers + peft computed (golden.json), base and adapter. It stands in for
  them where the adapter in ours/ is not the whole one: tied models lose lm_head, and qwen3moe is the model without its dense middle layer.
  llama-own-head is the tied llama whole, on a base whose GGUF has the embedding a second time as output.weight.
- "base": llama.cpp, the base written as GGUF here, against the decoder. A wrong base would make the next line say nothing.
- "adapted": llama.cpp with base and ours/NAME.gguf against the decoder with the same factors from the PEFT folder.
- "effect": how far the adapter moves llama.cpp's log-probabilities. It must be hundreds of times the errors.

The script fails unless golden is below 1e-6, base and adapted are below 1e-3 and effect is above 0.3. It uses the CPU, and float32 for weights and
cache. ours/ is made by `go test ./engine/gguf -update`.
"""

import argparse
import ctypes
import json
import struct
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

here = Path(__file__).resolve().parent
models = here.parent.parent / "model" / "testdata"
PREFIX = "base_model.model."
CASES = {"llama": "llama", "llama-own-head": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3-tied": "qwen3-tied", "qwen3-untied": "qwen3-untied", "qwen3moe": "qwen3moe-hub"}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}


def safetensors(folder):
    """All tensors of a folder's safetensors files, widened to float64."""
    out = {}
    for path in sorted(folder.glob("*model*.safetensors")):
        raw = path.read_bytes()
        (head,) = struct.unpack("<Q", raw[:8])
        for name, e in json.loads(raw[8:8 + head]).items():
            if name == "__metadata__":
                continue
            b = raw[8 + head + e["data_offsets"][0]:8 + head + e["data_offsets"][1]]
            if e["dtype"] == "BF16":
                values = (np.frombuffer(b, "<u2").astype("<u4") << 16).view("<f4")
            else:
                assert e["dtype"] == "F32", e
                values = np.frombuffer(b, "<f4")
            out[name] = values.reshape(e["shape"]).astype(np.float64)
    return out


class Model:
    """A decoder in float64, one sequence at a time, with the adapter added to each product."""

    def __init__(self, config, weights):
        self.c, self.w = config, weights
        self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config.get("head_dim") or config["hidden_size"] // self.heads
        rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
        self.theta = rope["rope_theta"]
        pairs = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
        plain = (np.float32(1) / np.float32(self.theta) ** pairs).astype(np.float32)
        self.frequencies = plain
        self.factors = None  # by which llama.cpp divides the frequencies
        if rope.get("rope_type") == "llama3":
            # Wavelengths above original/low are divided by factor, those below original/high stay, between them is a ramp
            # (transformers, modeling_rope_utils.py).
            original, factor, low, high = (rope[k] for k in ("original_max_position_embeddings", "factor", "low_freq_factor", "high_freq_factor"))
            wave = 2 * np.pi / plain
            ramp = np.clip((original / wave - low) / (high - low), 0, 1)
            self.frequencies = ((1 - ramp) * plain / factor + ramp * plain).astype(np.float32)
            self.factors = plain / self.frequencies

    def linear(self, x, name, adapter):
        y = x @ self.w[name + ".weight"].T
        if name + ".bias" in self.w:
            y = y + self.w[name + ".bias"]
        if adapter and PREFIX + name + ".lora_A.weight" in adapter["tensors"]:
            a, b = (adapter["tensors"][f"{PREFIX}{name}.lora_{f}.weight"] for f in "AB")
            y = y + adapter["scale"] * (x @ a.T) @ b.T
        return y

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name + ".weight"]

    def rotated(self, x):  # [tokens, heads, size]
        angle = (np.arange(len(x), dtype=np.float32)[:, None] * self.frequencies).astype(np.float64)[:, None, :]
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = x[..., :self.size // 2], x[..., self.size // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, p, adapter):
        q = self.linear(x, p + "q_proj", adapter).reshape(len(x), self.heads, self.size)
        k = self.linear(x, p + "k_proj", adapter).reshape(len(x), self.kv, self.size)
        v = self.linear(x, p + "v_proj", adapter).reshape(len(x), self.kv, self.size)
        if p + "q_norm.weight" in self.w:
            q, k = self.norm(q, p + "q_norm"), self.norm(k, p + "k_norm")
        q, k = self.rotated(q), self.rotated(k)
        k, v = (np.repeat(t, self.heads // self.kv, axis=1) for t in (k, v))
        scores = np.einsum("qhc,khc->hqk", q, k) / np.sqrt(self.size)
        scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khc->qhc", scores, v).reshape(len(x), -1), p + "o_proj", adapter)

    def mlp(self, x, p, adapter):
        def silu(t):
            return t / (1 + np.exp(-t))

        if p + "gate.weight" not in self.w:
            gate, up = self.linear(x, p + "gate_proj", adapter), self.linear(x, p + "up_proj", adapter)
            return self.linear(silu(gate) * up, p + "down_proj", adapter)
        gates = np.exp(x @ self.w[p + "gate.weight"].T)
        gates /= gates.sum(-1, keepdims=True)
        out = np.zeros_like(x)
        for t in range(len(x)):
            chosen = np.argsort(-gates[t])[:self.c["num_experts_per_tok"]]
            total = gates[t][chosen].sum() if self.c["norm_topk_prob"] else 1
            for e in chosen:
                def expert(v, name, module):
                    y = self.w[f"{p}experts.{e}.{name}.weight"] @ v
                    if adapter and f"{PREFIX}{p}experts.{module}.lora_A.weight" in adapter["tensors"]:
                        a, b = (adapter["tensors"][f"{PREFIX}{p}experts.{module}.lora_{f}.weight"] for f in "AB")
                        y = y + adapter["scale"] * b[e % len(b)] @ (a[e % len(a)] @ v)  # the shared factor has length 1
                    return y
                h = silu(expert(x[t], "gate_proj", "w1")) * expert(x[t], "up_proj", "w3")
                out[t] += gates[t][e] / total * expert(h, "down_proj", "w2")
        return out

    def logprobs(self, tokens, adapter=None):
        """[tokens, vocabulary]"""
        x = self.w["model.embed_tokens.weight"][tokens]
        for i in range(self.c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, p + "input_layernorm"), p + "self_attn.", adapter)
            x = x + self.mlp(self.norm(x, p + "post_attention_layernorm"), p + "mlp.", adapter)
        x = self.norm(x, "model.norm")
        if self.c["tie_word_embeddings"]:
            self.w["lm_head.weight"] = self.w["model.embed_tokens.weight"]
        return log_softmax(self.linear(x, "lm_head", adapter))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def write_base(path, m):
    """The model as llama.cpp reads it, in float32. It has no vocabulary: prompts are token ids."""
    c, w = m.c, m.w
    family = c["model_type"]
    g = gguf.GGUFWriter(path, ARCHITECTURES[family])
    g.add_context_length(c["max_position_embeddings"])
    g.add_embedding_length(c["hidden_size"])
    g.add_block_count(c["num_hidden_layers"])
    g.add_feed_forward_length(c["intermediate_size"])
    g.add_head_count(m.heads)
    g.add_head_count_kv(m.kv)
    g.add_key_length(m.size)
    g.add_value_length(m.size)
    g.add_rope_dimension_count(m.size)
    g.add_rope_freq_base(m.theta)
    g.add_layer_norm_rms_eps(c["rms_norm_eps"])
    g.add_vocab_size(c["vocab_size"])
    g.add_tokenizer_model("none")
    if family == "qwen3_moe":
        g.add_expert_count(c["num_experts"])
        g.add_expert_used_count(c["num_experts_per_tok"])
        g.add_expert_feed_forward_length(c["moe_intermediate_size"])

    def add(name, t):
        g.add_tensor(name, np.ascontiguousarray(t, dtype=np.float32))

    def interleaved(t, heads):  # rows i and i + size/2 of a head become neighbours
        return t.reshape(heads, 2, m.size // 2, -1).swapaxes(1, 2).reshape(t.shape)

    add("token_embd.weight", w["model.embed_tokens.weight"])
    add("output_norm.weight", w["model.norm.weight"])
    if not c["tie_word_embeddings"]:
        add("output.weight", w["lm_head.weight"])
    if m.factors is not None:
        add("rope_freqs.weight", m.factors)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp"}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                t = w.get(f"{p}{ours}.{kind}")
                if t is None:
                    continue
                if ARCHITECTURES[family] == "llama" and ours == "self_attn.q_proj":
                    t = interleaved(t, m.heads)
                if ARCHITECTURES[family] == "llama" and ours == "self_attn.k_proj":
                    t = interleaved(t, m.kv)
                add(f"blk.{i}.{theirs}.{kind}", t)
        if p + "mlp.gate.weight" in w:
            for name in ("gate", "up", "down"):
                add(f"blk.{i}.ffn_{name}_exps.weight", np.stack([w[f"{p}mlp.experts.{e}.{name}_proj.weight"] for e in range(c["num_experts"])]))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()


@llama_cpp.llama_log_callback
def errors_only(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR; 5 continues another line
        print(text.decode(), end="")


def llama_logprobs(base, adapter, sequences):
    """llama.cpp's log-probabilities [tokens, vocabulary] of each sequence; adapter may be None."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(base).encode(), params)
    assert model, base
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # F32: the default cache is F16
    params.flash_attn_type = 0
    out = []
    lora = None
    if adapter is not None:
        lora = llama_cpp.llama_adapter_lora_init(model, str(adapter).encode())
        assert lora, adapter
    for tokens in sequences:
        context = llama_cpp.llama_init_from_model(model, params)
        if lora:
            one = (ctypes.c_float * 1)(1)
            assert llama_cpp.llama_set_adapters_lora(context, (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), 1, one) == 0
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, t in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = t, i, 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocabulary,)).astype(np.float64) for i in range(len(tokens))]
        out.append(log_softmax(np.stack(logits)))
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return out


def reduced(name, config, weights, tensors):
    """What of a fixture is in ours/: see the top."""
    if name.endswith("-own-head"):
        config = {**config, "tie_word_embeddings": False}
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    elif config["tie_word_embeddings"]:
        tensors = {k: t for k, t in tensors.items() if ".lm_head." not in k}
    if config.get("num_experts"):
        config = {**config, "num_hidden_layers": 2}
        weights, tensors = ({k.replace(".layers.2.", ".layers.1."): t for k, t in m.items() if ".layers.1." not in k} for m in (weights, tensors))
    return Model(config, weights), tensors


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


def check(name):
    folder = models / CASES[name]
    config, weights = json.loads((folder / "config.json").read_text()), safetensors(folder)
    settings, tensors = json.loads((folder / "adapter" / "adapter_config.json").read_text()), safetensors(folder / "adapter")
    scale = settings["lora_alpha"] / settings["r"]
    golden = json.loads((folder / "golden.json").read_text())
    sequences = [d["tokens"] for d in golden["batch"]]

    whole = Model(config, dict(weights))
    agree = 0
    for key, adapter in (("base", None), ("adapter", {"tensors": tensors, "scale": scale})):
        got = [whole.logprobs(d["tokens"], adapter)[np.arange(len(d["tokens"])), d["target_tokens"]] for d in golden["batch"]]
        agree = max(agree, distance(got, [np.array(v) for v in golden[key]["logprobs_f64"]]))

    part, tensors = reduced(name, config, weights, tensors)
    want_base = [part.logprobs(s) for s in sequences]
    want = [part.logprobs(s, {"tensors": tensors, "scale": scale}) for s in sequences]
    with tempfile.TemporaryDirectory() as tmp:
        base = Path(tmp, "base.gguf")
        write_base(base, part)
        plain = llama_logprobs(base, None, sequences)
        adapted = llama_logprobs(base, here / "ours" / f"{name}.gguf", sequences)
    errors = agree, distance(plain, want_base), distance(adapted, want)
    effect = distance(adapted, plain)
    print(f"{name:15} golden {errors[0]:.1e}  base {errors[1]:.1e}  adapted {errors[2]:.1e}  effect {effect:.2f}")
    assert errors[0] < 1e-6 and errors[1] < 1e-3 and errors[2] < 1e-3 and effect > 0.3, name


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=CASES)
    args = p.parse_args()
    llama_cpp.llama_log_set(errors_only, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    print("llama-cpp-python", llama_cpp.__version__, "numpy", np.__version__)
    for name in CASES:
        if args.only in (None, name):
            check(name)
