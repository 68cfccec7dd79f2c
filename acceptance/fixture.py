"""Makes the folder in which official recipes run without a network: small models and data sets under the names that the recipes use.

    fixture.py CHECKOUT FOLDER

What is asked for by a name such as Qwen/Qwen3-8B is found in the working directory before a hub is asked, by transformers, by datasets and by
the server, whose models folder it is, too. The Qwen3 models are the one that is embedded in tinker-local, which can learn; the others have random weights.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

TEXT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # of the embedded model's tokenizer, from token 256 on
LLAMA = ("<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def main() -> None:
    root, folder = Path(sys.argv[1]), Path(sys.argv[2])
    tiny = root / "engine/local/tiny"
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-8B-Base"):
        tokenizer(tiny, folder / name, TEXT)
        shutil.copy(tiny / "config.json", folder / name)
        shutil.copy(tiny / "generation_config.json", folder / name)
        shutil.copy(tiny / "model.safetensors", folder / name)
    small = dict(vocab_size=320, max_position_embeddings=4096, eos_token_id=256, pad_token_id=256, bos_token_id=None)
    llama = transformers.LlamaConfig(
        **small, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True
    )
    for name in ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B-Instruct"):
        tokenizer(tiny, folder / name, LLAMA)
        weights(folder / name, transformers.LlamaForCausalLM, llama)
    experts = transformers.Qwen3MoeConfig(
        **small, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True, tie_word_embeddings=False,
    )  # fmt: skip
    tokenizer(tiny, folder / "Qwen/Qwen3-30B-A3B", TEXT)
    weights(folder / "Qwen/Qwen3-30B-A3B", transformers.Qwen3MoeForCausalLM, experts)
    data(root, folder)


def tokenizer(tiny: Path, folder: Path, special: tuple[str, ...]) -> None:
    """The embedded model's tokenizer, bytes and a few special tokens, which may have other names."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads((tiny / "tokenizer.json").read_text())
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    plain = model["added_tokens"][0]
    model["added_tokens"] = [plain | {"id": 256 + i, "content": name} for i, name in enumerate(special)]
    config["added_tokens_decoder"] = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in model["added_tokens"]
    }
    config |= {"eos_token": special[0], "pad_token": special[0], "additional_special_tokens": list(special[1:])}
    (folder / "tokenizer.json").write_text(json.dumps(model))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def weights(folder: Path, family: Any, config: Any) -> None:
    torch.manual_seed(7)
    model = family(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.normal_(std=p.shape[-1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder)


def data(root: Path, folder: Path) -> None:
    """Data sets of made-up rows with the columns that recipes read. Conversations teach Pig Latin, so that a loss can fall."""
    sys.path.insert(0, str(root / "cmd/tinker-local/server/sdktest/checks"))
    from piglatin import phrases, pig_latin

    draw = random.Random(3)
    texts = phrases(root, "train", 480, 2, 4)

    def talk(text: str) -> dict[str, Any]:
        return {
            "prompt": text, "prompt_id": f"{abs(hash(text))}", "category": "Rewrite", "source": "made up", "id": text,
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": pig_latin(text)}],
        }  # fmt: skip

    def sum_of(a: int, b: int) -> dict[str, str]:
        return {"question": f"What is {a} plus {b}?", "answer": f"{a} and {b} are <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}

    def better(text: str) -> dict[str, str]:
        ask = f"\n\nHuman: {text}\n\nAssistant: "
        return {"chosen": ask + pig_latin(text), "rejected": ask + text}

    rows(folder / "HuggingFaceH4/no_robots", train=map(talk, texts[:400]), test=map(talk, texts[400:432]))
    rows(folder / "allenai/tulu-3-sft-mixture", train=map(talk, texts[:64]))
    said = [{"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": pig_latin(t)}]} for t in texts[:64]]
    rows(folder / "open-thoughts/OpenThoughts3-1.2M", train=said)
    rows(folder / "Anthropic/hh-rlhf", train=map(better, texts[:96]), test=map(better, texts[96:112]))
    sums = [sum_of(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(160)]
    rows(folder / "openai/gsm8k", "main", train=sums[:144], test=sums[144:])
    hard = [{"question": s["question"], "final_answer": s["answer"].split("#### ")[1], "difficulty": 1.0} for s in sums]
    rows(folder / "zwhe99/DeepMath-103K", train=hard)
    science = [
        {
            "question": s["question"], "domain": "Chemistry", "type": "mcq-4-choices", "answer": "", "answerKey": "A",
            "choices": {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]},
            "prompt": {"default": "Choose."}, "details": {"level": "L3", "task": "sums", "subtask": "", "source": ""},
        }
        for s in sums
    ]  # fmt: skip
    rows(folder / "hicai-zju/SciKnowEval", test=science)


def rows(folder: Path, config: str = "default", **splits: Any) -> None:
    """A data set of JSON lines; the header of its README names the configuration, as recipes ask for one."""
    folder.mkdir(parents=True, exist_ok=True)
    header = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, items in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in items))
        header += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]))


if __name__ == "__main__":
    main()
