"""The shapes that are measured. Weights are random: speed does not depend on their values, and nothing is
downloaded. Sizes are those of the published config.json files."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3MoeConfig

ROPE = {"rope_type": "default", "rope_theta": 1e6}


def qwen3(hidden, layers, heads, ffn, tied):
    return Qwen3Config(
        vocab_size=151936, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        tie_word_embeddings=tied, rope_parameters=dict(ROPE))


SHAPES = {
    "llama-8b": lambda: LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "qwen3-8b": lambda: qwen3(4096, 36, 32, 12288, False),
    "qwen3-4b": lambda: qwen3(2560, 36, 32, 9728, True),
    "qwen3-0.6b": lambda: qwen3(1024, 28, 16, 3072, True),
    # 8 of the 48 layers: enough to time a layer, and it fits beside its adapters on one card.
    "qwen3-30b-a3b-8-layers": lambda: Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_hidden_layers=8, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1,
        max_position_embeddings=40960, tie_word_embeddings=False, rope_parameters=dict(ROPE)),
}


def shrink(config):
    """The same architecture, small enough for a CPU: it proves that a script runs, never a speed."""
    config.vocab_size, config.hidden_size, config.intermediate_size = 512, 64, 96
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 4, 2
    config.head_dim = 16
    if hasattr(config, "num_experts"):
        config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size = 8, 2, 32
    return config


def build(name, device, tiny=False):
    """A randomly initialised model in bfloat16 on the device, and its configuration."""
    config = SHAPES[name]()
    if tiny:
        config = shrink(config)
    torch.manual_seed(1)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.to(device), config


def linear_parameters(config):
    """Active parameters per token: (N in the layers' linear maps, Vd in the head)."""
    c = config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    attention = c.hidden_size * head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    if getattr(c, "num_experts", 0):
        mlp = 3 * c.hidden_size * c.moe_intermediate_size * c.num_experts_per_tok + c.hidden_size * c.num_experts
    else:
        mlp = 3 * c.hidden_size * c.intermediate_size
    return c.num_hidden_layers * (attention + mlp), c.vocab_size * c.hidden_size


def train_flops_per_token(config, sequence, lora_parameters):
    """The least work a LoRA step needs: 4(N + Vd) + 3 attention + 6 P. No gradient of frozen weights is
    formed, and attention is causal."""
    n, head = linear_parameters(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * 2 * sequence * config.num_attention_heads * head_dim
    return 4 * (n + head) + 3 * attention + 6 * lora_parameters
