#!/usr/bin/env python3
"""Makes rope.json: the rotary inverse frequencies that transformers computes in float32 for the sizes of published models.

    python make_rope.py

Versions as in README.md.
"""

import json
import os

import torch
import transformers

LLAMA3 = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
CASES = [  # head_dim, rope_theta, scaling
    (64, 5e5, dict(LLAMA3, factor=32.0)),  # Llama 3.2 1B
    (128, 5e5, dict(LLAMA3, factor=32.0)),  # Llama 3.2 3B
    (64, 5e5, dict(LLAMA3, factor=8.0)),
    (128, 5e5, dict(LLAMA3, factor=8.0)),  # Llama 3.1 8B, 70B; 3.3
    (80, 1e4, dict(LLAMA3, factor=3.0, low_freq_factor=1.5, high_freq_factor=3.7, original_max_position_embeddings=1000)),
    (128, 5e5, dict(rope_type="default")),  # Llama 3 8B
    (128, 1e6, dict(rope_type="default")),  # Qwen3, Qwen2.5, Mistral v0.3
    (64, 1e6, dict(rope_type="default")),  # Qwen2.5 0.5B
    (128, 1e4, dict(rope_type="linear", factor=4.0)),
    (96, 1e4, dict(rope_type="linear", factor=2.5)),
]


def main():
    rows = []
    for dim, theta, scaling in CASES:
        config = transformers.LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=131072,
                                          rope_parameters=dict(scaling, rope_theta=theta))
        rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        assert rope.inv_freq.dtype == torch.float32 and rope.attention_scaling == 1
        rows.append(dict(head_dim=dim, rope_theta=theta, rope_scaling=scaling, inv_freq=rope.inv_freq.double().tolist()))
    versions = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rope.json")
    with open(path, "w") as f:
        f.write(json.dumps(dict(versions=versions, cases=["@"])).replace('"@"', "\n " + ",\n ".join(map(json.dumps, rows)) + "\n") + "\n")


if __name__ == "__main__":
    main()
