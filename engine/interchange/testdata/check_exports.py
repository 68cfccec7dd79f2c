"""Loads the PEFT folders that this project exports with peft, and compares log-probabilities with the engine's.

    TINKER_EXPORTS=DIR go test ./engine/local -run ForPython
    python check_exports.py DIR

Run by hand, with transformers 4 and with transformers 5; needs torch, transformers, peft.
"""

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM

print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
transformers.logging.set_verbosity_error()
root, failed = Path(sys.argv[1]), False


@torch.no_grad()
def logprobs(model, tokens):
    out = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
    return out[:-1].gather(1, torch.tensor(tokens)[1:, None])[:, 0]


def base(case):
    return AutoModelForCausalLM.from_pretrained(root / case / "base", dtype=torch.float32).eval()


for case in ("dense", "moe", "tied"):
    golden = json.loads((root / case / "golden.json").read_text())
    tokens, want = golden["tokens"], {k: torch.tensor(golden[k], dtype=torch.float64) for k in ("base", "keep", "drop")}
    want["merge"] = want["keep"]

    def report(what, got, key, expected=True):
        global failed
        error, effect = (got - want[key]).abs().max().item(), (want[key] - want["base"]).abs().max().item()
        ok = (error < 1e-4) == expected and (key == "base" or effect > 0.05)
        failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {case:5} {what:28} differs by {error:.1e}{'' if expected else ', as expected'} (the adapter's effect is {effect:.2f})")

    report("base", logprobs(base(case), tokens), "base")
    for how in ("keep", "drop", "merge"):
        folder = root / case / f"peft-{how}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(base(case), folder).eval()
        for w in said:
            if "key" in str(w.message).lower() or "tie" in str(w.message).lower():
                print("     peft says:", str(w.message)[:200])
        report(f"peft-{how}", logprobs(model, tokens), how)
        if case == "tied":  # the input side must stay the base's
            inner = model.get_base_model()
            embed, was = inner.get_input_embeddings().weight, base(case).get_input_embeddings().weight
            if not torch.equal(embed, was):
                failed = True
                print("FAIL the embedding changed")
        try:
            # peft merges the factors of a tied projection into the embedding, which changes the input as well.
            report(f"peft-{how}, merge_and_unload", logprobs(model.merge_and_unload(), tokens), how, (case, how) != ("tied", "keep"))
        except Exception as e:
            failed = True
            print(f"FAIL {case} peft-{how} merge_and_unload: {e!r}"[:300])
    try:
        model = base(case)
        model.load_adapter(str(root / case / "peft-keep"))
        report("peft-keep, load_adapter", logprobs(model, tokens), "keep")
    except Exception as e:
        failed = True
        print(f"FAIL {case} load_adapter: {e!r}"[:300])
sys.exit(failed)
