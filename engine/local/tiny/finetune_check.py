#!/usr/bin/env python3
"""Fine-tune the exported tiny model on the quick-start's task in torch, and report exact match.

    python3 finetune_check.py --seeds 1,2,3,4

LoRA as the engine does it: A uniform in ±sqrt(1/fan_in) (kaiming with a=sqrt 5),
B zero, scale alpha/rank, on every linear and on the unembedding (output side
only); AdamW; the loss is the sum of the answer tokens' negative
log-likelihoods divided by their number. Float32 on the weights rounded to bf16.

Greedy decoding is exact when the argmax at every answer position is right, so
one forward pass over the right answers decides; --decode runs the decoding.
"""
import argparse
import math
import os
import random
import time

import torch
import torch.nn.functional as F

import tasks
import tinymodel
from tinymodel import CONFIG, LINEARS


def read(name):
    with open(os.path.join(tasks.HERE, name)) as f:
        return f.read().split()


def pairs(words, n, rng, lengths):
    out, seen = [], set()
    while len(out) < n:
        ws = [rng.choice(words) for _ in range(rng.choice(lengths))]
        text = " ".join(ws)
        if text in seen:
            continue
        seen.add(text)
        out.append((f"English: {text}\nPig Latin:", " " + " ".join(map(tasks.pig_latin_word, ws)) + "\n", len(ws)))
    return out


def batch(items):
    enc = [(p.encode(), a.encode()) for p, a, _ in items]
    width = max(len(p) + len(a) for p, a in enc)
    ids = torch.full((len(enc), width), tasks.EOT)
    w = torch.zeros(len(enc), width)
    for i, (p, a) in enumerate(enc):
        ids[i, :len(p) + len(a)] = torch.tensor(list(p + a))
        w[i, len(p) - 1:len(p) + len(a) - 1] = 1
    return ids, w, sum(len(p) + len(a) - 1 for p, a in enc)


@torch.no_grad()
def exact(model, items, lora=None):
    ok = []
    for at in range(0, len(items), 64):
        ids, w, _ = batch(items[at:at + 64])
        best = model(ids, lora=lora)[:, :-1].argmax(-1)
        ok += ((best == ids[:, 1:]) | (w[:, :-1] == 0)).all(1).tolist()
    return ok


@torch.no_grad()
def decode(model, items, lora=None, most=128):
    ok = []
    for p, a, _ in items:
        ids = torch.tensor([list(p.encode())])
        out = []
        while len(out) < most:
            t = model(ids, lora=lora)[0, -1].argmax().item()
            out.append(t)
            ids = torch.cat([ids, torch.tensor([[t]])], 1)
            if t == 10:
                break
        ok.append(out == list(a.encode()))
    return ok


def new_lora(model, rank, alpha, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {f"{i}.{n}": getattr(l, n).shape for i, l in enumerate(model.layers) for n in LINEARS}
    shapes["head.head"] = model.embed.shape
    lora = {}
    for name, (rows, cols) in shapes.items():
        a = (torch.rand(rank, cols, generator=g) * 2 - 1) / math.sqrt(cols)
        lora[name] = (a.requires_grad_(), torch.zeros(rows, rank).requires_grad_(), alpha / rank)
    return lora


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default=tasks.HERE)
    ap.add_argument("--seeds", default="1")
    ap.add_argument("--pairs", type=int, default=1000)
    ap.add_argument("--steps", type=int, default=80)
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--rank", type=int, default=16)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--eps", type=float, default=1e-12)
    ap.add_argument("--clip", type=float, default=1.0)
    ap.add_argument("--warm", type=int, default=10)
    ap.add_argument("--end", type=float, default=0.1)
    ap.add_argument("--lengths", default="1,2,3,4,5", help="numbers of words to draw from, in training")
    ap.add_argument("--heldout", type=int, default=400)
    ap.add_argument("--every", type=int, default=0, help="held-out score every so many steps")
    ap.add_argument("--decode", action="store_true")
    ap.add_argument("--show", type=int, default=0, help="wrong answers to show")
    ap.add_argument("--threads", type=int, default=1)
    o = ap.parse_args()
    torch.set_num_threads(o.threads)
    model = tinymodel.load(o.model)
    for p in model.parameters():
        p.requires_grad_(False)
    train_words, held_words = read("words_train.txt"), read("words_heldout.txt")
    assert not set(train_words) & set(held_words)
    for seed in map(int, o.seeds.split(",")):
        rng = random.Random(seed)
        train = pairs(train_words, o.pairs, rng, list(map(int, o.lengths.split(","))))
        held = pairs(held_words, o.heldout, rng, [1, 2, 3, 4, 5])
        check = decode if o.decode else exact
        before = check(model, held)
        lora = new_lora(model, o.rank, 32, seed)
        opt = torch.optim.AdamW([t for a, b, _ in lora.values() for t in (a, b)], lr=o.lr,
                                betas=(0.9, 0.95), eps=o.eps, weight_decay=0)
        order, tokens, answers, start, spent = [], 0, 0, time.time(), 0.0
        for step in range(o.steps):
            items = []
            while len(items) < o.batch:
                if not order:
                    order = list(range(len(train)))
                    rng.shuffle(order)
                items.append(train[order.pop()])
            ids, w, n = batch(items)
            tokens += n
            answers += int(w.sum())
            lr = o.lr * min((step + 1) / o.warm, 1 - (1 - o.end) * max(0, step - o.warm) / max(1, o.steps - o.warm))
            opt.param_groups[0]["lr"] = lr
            logits = model(ids, lora=lora)[:, :-1]
            nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            loss = (nll * w[:, :-1].flatten()).sum() / w.sum()
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], o.clip)
            opt.step()
            if o.every and (step + 1) % o.every == 0:
                t = time.time()
                ok = exact(model, held, lora)
                print(f"  step {step + 1} loss {loss.item():.3f} tokens {tokens} held-out {sum(ok) / len(ok):.3f}", flush=True)
                spent += time.time() - t
        wall = time.time() - start - spent
        ok = check(model, held, lora)
        by = [[k for k, (_, _, n) in zip(ok, held) if n == m] for m in (1, 2, 3, 4, 5)]
        print(f"seed {seed} pairs {o.pairs} steps {o.steps}x{o.batch} rank {o.rank} lr {o.lr} tokens {tokens} ({answers} answer) "
              f"wall {wall:.1f}s loss {loss.item():.4f} before {sum(before) / len(before):.3f} after {sum(ok) / len(ok):.3f} "
              f"by words {' '.join(f'{sum(b) / max(1, len(b)):.2f}' for b in by)}", flush=True)
        shown = 0
        for k, it in zip(ok, held):
            if not k and shown < o.show:
                shown += 1
                ids, w, _ = batch([it])
                with torch.no_grad():
                    b = model(ids, lora=lora)[0, :-1].argmax(-1)[w[0, :-1] > 0].tolist()
                print("   ", repr(it[1]), repr(bytes(x for x in b if x < 256).decode("latin-1")))


if __name__ == "__main__":
    main()
