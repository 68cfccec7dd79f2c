"""Makes converted/*.gguf: adapters of engine/model/testdata as llama.cpp's own convert_lora_to_gguf.py writes them.

    python make_converted.py LLAMA_CPP [--only NAME]

LLAMA_CPP is a source tree of llama.cpp. The stored files were made with the one in llama-cpp-python 0.3.36 (gguf-py 0.19.0), torch 2.15.0,
transformers 5.24.0, safetensors 0.8.0 and numpy 2.4.6. There is no seed: the inputs are files.
../converted_test.go compares our tensors with these, bit for bit.

Two things are changed on the way, as in the test: a tied model's adapter loses lm_head, which the converter refuses; and the
mixture of experts keeps its layers 0 and 2 (the middle one is dense, which llama.cpp does not have), with an ordinary PEFT adapter for each
expert in which the shared factor is repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

here = Path(__file__).resolve().parent
models = here.parent.parent / "model" / "testdata"
PREFIX = "base_model.model."


def without_head(tensors):
    return {k: t for k, t in tensors.items() if ".lm_head." not in k}


def all_sparse(tensors, config):
    """Layers 0 and 2 as 0 and 1, and a module for every expert."""
    config.update(num_hidden_layers=2, mlp_only_layers=[])
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    out = {}
    for key, t in tensors.items():
        if ".layers.1." in key:
            continue
        key = key.replace(".layers.2.", ".layers.1.")
        if ".experts." not in key:
            out[key] = t
            continue
        path, module = key.split(".experts.")
        module, factor = module.split(".", 1)
        for e in range(config["num_experts"]):
            out[f"{path}.experts.{e}.{names[module]}.{factor}"] = t[e if t.shape[0] > 1 else 0].clone()
    return out


def convert(llama_cpp, name, source):
    folder = models / source
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    if config["tie_word_embeddings"]:
        tensors = without_head(tensors)
    if config.get("num_experts"):
        tensors = all_sparse(tensors, config)
    with tempfile.TemporaryDirectory() as tmp:
        base, adapter = Path(tmp, "base"), Path(tmp, "adapter")
        base.mkdir()
        adapter.mkdir()
        (base / "config.json").write_text(json.dumps(config))
        shutil.copy(folder / "adapter" / "adapter_config.json", adapter)
        save_file({k: t.contiguous() for k, t in sorted(tensors.items())}, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        out = here / "converted" / f"{name}.gguf"
        out.parent.mkdir(exist_ok=True)
        command = [sys.executable, llama_cpp / "convert_lora_to_gguf.py", "--outtype", "f32", "--base", base, "--outfile", out, adapter]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("llama_cpp", type=Path)
    p.add_argument("--only")
    args = p.parse_args()
    for name, source in {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3-tied": "qwen3-tied",
                         "qwen3-untied": "qwen3-untied", "qwen3moe": "qwen3moe-hub"}.items():
        if args.only in (None, name):
            convert(args.llama_cpp, name, source)
