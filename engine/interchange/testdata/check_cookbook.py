"""Gives the archives that this project exports to the tools of the Tinker cookbook, and compares log-probabilities with the engine's.

    TINKER_EXPORTS=DIR go test ./engine/local -run ForPython
    python check_cookbook.py DIR

Run by hand; needs tinker_cookbook (thinking-machines-lab/tinker-cookbook), torch, transformers, peft.
"""

import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from tinker_cookbook import weights
from tinker_cookbook.weights._download import _safe_extract_tar
from transformers import AutoModelForCausalLM

print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
transformers.logging.set_verbosity_error()
root, failed = Path(sys.argv[1]), False


@torch.no_grad()
def logprobs(model, tokens):
    out = torch.log_softmax(model.float().eval()(torch.tensor([tokens])).logits[0].double(), -1)
    return out[:-1].gather(1, torch.tensor(tokens)[1:, None])[:, 0]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


for case in ("dense", "moe", "tied"):
    golden = json.loads((root / case / "golden.json").read_text())
    tokens, want = golden["tokens"], torch.tensor(golden["keep"], dtype=torch.float64)
    base = str(root / case / "base")
    for name in ("archive.tar", "state.tar"):
        with tempfile.TemporaryDirectory() as tmp:
            adapter = Path(tmp, "adapter")
            adapter.mkdir()
            _safe_extract_tar(root / case / name, adapter)
            assert (adapter / "checkpoint_complete").exists()

            def report(what, model, expected=True):
                global failed
                error = (logprobs(model, tokens) - want).abs().max().item()
                ok = (error < 1e-4) == expected
                failed |= not ok
                print(f"{'ok  ' if ok else 'FAIL'} {case:5} {name:11} {what:30} differs by {error:.1e}{'' if expected else ', as expected'}")

            # Both tools put the factors of the output projection on the embedding of a tied model, where they act on the input, too.
            untied = case != "tied"
            weights.build_lora_adapter(base_model=base, adapter_path=str(adapter), output_path=tmp + "/peft")
            if untied:
                report("build_lora_adapter, peft", peft.PeftModel.from_pretrained(load(base), tmp + "/peft"))
            for strategy in ("shard", "full"):
                weights.build_hf_model(base_model=base, adapter_path=str(adapter), output_path=f"{tmp}/{strategy}", merge_strategy=strategy, dtype="float32")
                report(f"build_hf_model, {strategy}", load(f"{tmp}/{strategy}"), untied)
sys.exit(failed)
