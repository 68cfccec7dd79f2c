#!/usr/bin/env python3
"""Check the exported folder with transformers and tokenizers.

The same logits as the training model, byte ids equal to byte values, and exact
decoding of every byte and of text in several scripts.
"""
import random
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
import tinymodel

folder = sys.argv[1] if len(sys.argv) > 1 else tasks.HERE
torch.set_num_threads(1)
tok = Tokenizer.from_file(folder + "/tokenizer.json")
chars = tinymodel.byte_chars()
assert tok.get_vocab_size() == 259
assert all(tok.token_to_id(chars[b]) == b for b in range(256))
assert [tok.token_to_id(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [256, 257, 258]
rng = random.Random(1)
texts = ["", " ", "a", " leading and trailing ", "line\nline\r\n\ttab", "naïve café – ñ", "Привет", "日本語", "🙂 ok", "".join(map(chr, range(128)))]
texts += ["".join(chr(rng.choice((rng.randrange(1, 128), rng.randrange(128, 0x800), rng.randrange(0x3000, 0xD800), rng.randrange(0x10000, 0x11000))))
                  for _ in range(rng.randrange(1, 40))) for _ in range(2000)]
for t in texts:
    e = tok.encode(t)
    assert e.ids == list(t.encode()), (t, e.ids)
    assert tok.decode(e.ids) == t, t
assert tok.encode("<|im_start|>user\nhi<|im_end|>\n").ids == [257] + list(b"user\nhi") + [258, 10]
auto = AutoTokenizer.from_pretrained(folder)
assert auto("héllo world").input_ids == list("héllo world".encode())
chat = auto.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", chat
assert auto.eos_token_id == 256

ours = tinymodel.load(folder)
theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
n = sum(p.numel() for p in theirs.parameters())
ids = torch.randint(0, 259, (3, 300), generator=torch.Generator().manual_seed(2))
ids[0, :60] = torch.tensor(list(("Words: coffee break\nReversed:" + " " * 60).encode())[:60])
with torch.no_grad():
    a, b = ours(ids), theirs(ids).logits
err = (a - b).abs().max().item()
assert err < 1e-3, err
print(f"{type(theirs).__name__}: {n} parameters, largest logit difference {err:.1e} of {b.abs().max().item():.1f}; tokenizer exact")
