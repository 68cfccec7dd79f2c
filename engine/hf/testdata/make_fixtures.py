"""Writes the fixtures of this folder with the official libraries, from fixed seeds:

    python make_fixtures.py

Made with safetensors 0.8.0, torch 2.11.0, transformers 5.23.0, peft 0.21.2 (CPU).

    dtypes.safetensors   safetensors.torch.save_file: F32, F16, BF16, types that are not read, odd shapes
    dtypes.json          what torch says these tensors hold
    sharded/             Qwen3ForCausalLM.save_pretrained in bfloat16, three shards with an index
    sharded.json         what torch says a few of its tensors hold
    peft_all/            peft save_pretrained: every projection and lm_head, r 3, alpha 32, float32
    peft_rs/             peft save_pretrained: q and v by a pattern, rsLoRA, bfloat16
    peft.json            the factors of both, as torch has them
"""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent


def bits(t):
    """The values as float32 bit patterns, so that JSON cannot round them."""
    values = t.detach().to(torch.float32).flatten().tolist()
    return [struct.unpack("<I", struct.pack("<f", v))[0] for v in values]


def digest(t):
    """SHA-256 of the values as little-endian float32."""
    return hashlib.sha256(t.detach().to(torch.float32).contiguous().numpy().tobytes()).hexdigest()


def model(tied):
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=37, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64, rope_theta=10000.0,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=[2, 3],
    )
    return Qwen3ForCausalLM(config).eval()


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, sort_keys=True) + "\n")


def dtypes():
    torch.manual_seed(1)
    special = torch.tensor([0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8, -3e-5, float("inf"), float("-inf"), 1e-3, 3.14159, 0.333])
    read = {
        "f32": torch.cat([special, torch.randn(9)]).reshape(3, 7),
        "f16": torch.cat([special, torch.randn(9)]).reshape(7, 3).half(),
        "bf16": torch.cat([special, torch.randn(8)]).reshape(5, 2, 2).bfloat16(),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 3),
        "one value": torch.tensor([-1.25], dtype=torch.float16),
        "naïve <&> name": torch.tensor([1.0, 2.0]),
    }
    other = {
        "i8": torch.tensor([-1, 2, 3], dtype=torch.int8),
        "u8": torch.tensor([255], dtype=torch.uint8),
        "i64": torch.tensor([[-1]], dtype=torch.int64),
        "f64": torch.tensor([0.1], dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "f8": torch.tensor([1.0, -0.5]).to(torch.float8_e4m3fn),
    }
    save_file({**read, **other}, HERE / "dtypes.safetensors", metadata={"format": "pt"})
    write_json("dtypes.json", {k: {"shape": list(v.shape), "bits": bits(v)} for k, v in read.items()})


def sharded():
    m = model(tied=False).to(torch.bfloat16)
    shutil.rmtree(HERE / "sharded", ignore_errors=True)
    m.save_pretrained(HERE / "sharded", max_shard_size="4KB")
    state = m.state_dict()
    some = ["lm_head.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
    write_json("sharded.json", {k: {"shape": list(state[k].shape), "sha256": digest(state[k])} for k in some})


def adapter(name, dtype, **lora):
    m = get_peft_model(model(tied=False), LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path="tiny/qwen3", **lora))
    torch.manual_seed(11)
    want = {}
    for key, p in m.named_parameters():
        if ".lora_" in key:
            torch.nn.init.normal_(p.data, std=0.3)
            p.data = p.data.to(dtype)
            want[key.replace(".default.", ".")] = {"shape": list(p.shape), "sha256": digest(p)}
    shutil.rmtree(HERE / name, ignore_errors=True)
    m.save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()  # the card's template
    config = json.loads((HERE / name / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # a set in peft: any order
    config["base_model_name_or_path"] = "tiny/qwen3"
    (HERE / name / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    return want


if __name__ == "__main__":
    dtypes()
    sharded()
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    write_json("peft.json", {
        "peft_all": adapter("peft_all", torch.float32, r=3, lora_alpha=32, target_modules=linear),
        "peft_rs": adapter("peft_rs", torch.bfloat16, r=4, lora_alpha=10, use_rslora=True, target_modules=r".*layers\.\d+\.self_attn\.(q|v)_proj"),
    })
