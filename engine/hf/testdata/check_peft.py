"""Loads testdata/ours, which WriteAdapter makes, with peft, and compares with the adapter merged by hand.

    python check_peft.py [ADAPTER_FOLDER]

Run by hand; needs torch, transformers, peft and safetensors (see make_fixtures.py for versions).
"""

import copy
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file

from make_fixtures import model

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "ours")
factors = load_file(folder / "adapter_model.safetensors")
config = peft.PeftConfig.from_pretrained(folder)
scale = config.lora_alpha / config.r
tokens = torch.randint(37, (2, 17), generator=torch.Generator().manual_seed(3))


def merged(base):
    m = copy.deepcopy(base)
    m.lm_head.weight = torch.nn.Parameter(m.lm_head.weight.detach().clone())  # tied models: the head alone is adapted
    for key in factors:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = factors[key], factors[key.replace("lora_A", "lora_B")]
            m.get_submodule(module).weight.data += scale * (b @ a)
    return m


@torch.no_grad()
def check(tied):
    base = model(tied)
    plain, want = base(tokens).logits, merged(base)(tokens).logits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    said = [str(w.message) for w in said if "key" in str(w.message)]
    assert not said, said
    parameters = {k.replace(".default.", "."): p for k, p in adapted.named_parameters() if ".lora_" in k}
    assert parameters.keys() == factors.keys(), parameters.keys() ^ factors.keys()
    assert all(torch.equal(p, factors[k]) for k, p in parameters.items())
    got = adapted(tokens).logits
    error, effect = (got - want).abs().max().item(), (got - plain).abs().max().item()
    assert error < 1e-4 and effect > 0.1, (error, effect)
    print(f"tied={tied}: {len(factors)} factors equal; logits differ from the hand-merged model by {error:.1e}, from the base by {effect:.2f}")
    with tempfile.TemporaryDirectory() as tmp:  # the folder names its base, as users have it
        base.save_pretrained(tmp + "/base")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            text = (folder / name).read_bytes().replace(b'"tiny/qwen3"', f'"{tmp}/base"'.encode())
            Path(tmp, name).write_bytes(text)
        auto = AutoPeftModelForCausalLM.from_pretrained(tmp).eval()
        assert (auto(tokens).logits - want).abs().max().item() < 1e-4
        print(f"tied={tied}: AutoPeftModelForCausalLM agrees")


print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
check(tied=False)
check(tied=True)
with tempfile.TemporaryDirectory() as tmp:
    save_file(factors, tmp + "/x", metadata={"format": "pt"})
    assert Path(tmp, "x").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
print("safetensors writes the same bytes")
