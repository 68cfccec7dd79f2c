#!/usr/bin/env python3
"""Pre-train the tiny base model on generated documents and export it.

    python3 make_tiny.py                       # the whole run, or what is left of it
    python3 make_tiny.py --minutes 10          # stop after ten minutes; the next call goes on
    python3 make_tiny.py --export-only --out . # export the state reached so far

Needs torch and safetensors (a CPU will do). The state is written every minute
and read at the start, so the run may be stopped at any point. The documents of
a step depend on the seed and the step's number only.

Muon on the matrices, Adam on the embedding and the norms; learning rates warm
up, stay constant until --flat of the tokens, and fall linearly to 1 %. What is
exported is a running average of the weights.
"""
import os

# Large blocks go back to the heap, not to the system: fewer page faults in torch on a CPU.
_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "268435456"}
if __name__ == "__main__" and os.environ.get("MALLOC_MMAP_MAX_") != "0":
    import sys
    os.environ.update(_MALLOC)
    os.execv(sys.executable, [sys.executable] + sys.argv)

import argparse
import collections
import random
import re
import signal
import time

import torch
import torch.nn.functional as F

import tasks
import tinymodel
from tinymodel import CONFIG, Tiny

ROWS, WIDTH = 32, 256  # 8192 tokens a step
PROMPT_WEIGHT = 0.1


def pack(rng, rows=ROWS, width=WIDTH):
    """Documents laid end to end in rows, each with its own positions and attention."""
    ids = torch.full((rows, width), tasks.EOT)
    pos = torch.zeros(rows, width, dtype=torch.long)
    doc = torch.zeros(rows, width, dtype=torch.long)
    target = torch.zeros(rows, width, dtype=torch.long)
    weight = torch.zeros(rows, width)
    pool = []
    for r in range(rows):
        at, n = 0, 0
        while True:
            while len(pool) < 24:
                p, a = tasks.document(rng)
                p, a = tasks.encode(p), tasks.encode(a) + [tasks.EOT]
                if len(p) + len(a) <= width:
                    pool.append((p, a))
            if at == 0:
                k = 0
            else:
                fits = [i for i, (p, a) in enumerate(pool) if len(p) + len(a) <= width - at]
                if not fits:
                    break
                k = max(fits, key=lambda i: len(pool[i][0]) + len(pool[i][1]))
                k = k if width - at < 120 else fits[0]
            p, a = pool.pop(k)
            t = p + a
            m = len(t)
            n += 1
            ids[r, at:at + m] = torch.tensor(t)
            pos[r, at:at + m] = torch.arange(m)
            doc[r, at:at + m] = n
            target[r, at:at + m - 1] = torch.tensor(t[1:])
            weight[r, at:at + m - 1] = PROMPT_WEIGHT
            weight[r, at + max(len(p), 1) - 1:at + m - 1] = 1.0
            at += m
    return ids, pos, doc, target, weight


def losses(model, ids, pos, doc, target, weight, causal):
    mask = ((doc[:, :, None] == doc[:, None, :]) & causal)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, pos, mask)
    nll = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    w = weight.flatten()
    answer = (w == 1.0).float()
    return (nll * w).sum() / w.sum(), (nll * answer).sum() / answer.sum()


class Muon:
    """Momentum whose update is made nearly orthogonal by five Newton-Schulz steps."""

    def __init__(self, params, momentum=0.95, decay=0.05):
        self.momentum, self.decay = momentum, decay
        groups = collections.defaultdict(list)
        for p in params:
            groups[tuple(sorted(p.shape))].append(p)
        self.groups = list(groups.values())
        self.buf = [[torch.zeros_like(p) for p in g] for g in self.groups]

    def step(self, lr):
        for g, bufs in zip(self.groups, self.buf):
            us = []
            for p, b in zip(g, bufs):
                b.mul_(self.momentum).add_(p.grad)
                u = p.grad + self.momentum * b
                us.append(u if u.shape[0] <= u.shape[1] else u.t())
            x = torch.stack(us).bfloat16()
            x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
            for p, u in zip(g, x.float()):
                rows, cols = p.shape
                p.mul_(1 - lr * self.decay)
                p.add_(u if rows <= cols else u.t(), alpha=-lr * max(1.0, rows / cols) ** 0.5)


def schedule(tokens, total, flat, warm=300_000):
    if tokens < warm:
        return (tokens + 8192) / (warm + 8192)
    if tokens < flat * total:
        return 1.0
    return max(0.01, 1 - 0.99 * (tokens - flat * total) / (total - flat * total))


@torch.no_grad()
def evaluate(model, n=40, seed=99):
    """Exact match on held-out words by task: greedy decoding is right when every argmax is."""
    rng = random.Random(seed)
    by = collections.defaultdict(list)
    with tasks.held_out_words():
        for _ in range(20000):
            name, label, text, out, _ = tasks.word_task(rng)
            key = re.sub(r", (add|put) .*", "", name)
            key = re.sub(r"^add .* if .*", "add X if, else Y", key)
            key = re.sub(r"^replace . by .", "replace X by Y", key)
            key = re.sub(r"^vowels to .", "vowels to X", key)
            key = re.sub(r"^(remove|upper|count) [a-z]$", r"\1 X", key)
            if len(by[key]) < n:
                by[key].append(tasks.wrap(rng, name, label, text, out))
        for _ in range(3000):
            name, label, text, out, _ = tasks.phrase_task(rng)
            key = re.sub(r"^(without|join with|word) .*", r"\1 X", name)
            if len(by[key]) < n:
                by[key].append(tasks.wrap(rng, name, label, text, out))
    while len(by["sums"]) < n:
        a, b = rng.randrange(100), rng.randrange(100)
        by["sums"].append((f"Q: {a} + {b}\nA:", f" {a + b}\n"))
    score = {}
    for key, docs in by.items():
        enc = [(tasks.encode(p), tasks.encode(a)) for p, a in docs]
        width = max(len(p) + len(a) for p, a in enc)
        ids = torch.full((len(enc), width), tasks.EOT)
        for i, (p, a) in enumerate(enc):
            ids[i, :len(p) + len(a)] = torch.tensor(p + a)
        best = model(ids).argmax(-1)
        ok = [torch.equal(best[i, len(p) - 1:len(p) + len(a) - 1], ids[i, len(p):len(p) + len(a)])
              for i, (p, a) in enumerate(enc)]
        score[key] = sum(ok) / len(ok)
    return score


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--tokens", type=float, default=31e6, help="tokens of the whole run")
    ap.add_argument("--flat", type=float, default=0.6, help="share of the tokens with a constant learning rate")
    ap.add_argument("--minutes", type=float, default=1e9, help="stop after this time, to be resumed")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--lr", type=float, default=0.02, help="of Muon")
    ap.add_argument("--adam-lr", type=float, default=0.004)
    ap.add_argument("--ema", type=float, default=0.995)
    ap.add_argument("--state", default="tiny.state")
    ap.add_argument("--out", default=tasks.HERE, help="folder of the exported model")
    ap.add_argument("--export-only", action="store_true")
    ap.add_argument("--eval", action="store_true", help="report held-out accuracy by task after the export")
    ap.add_argument("--eager", action="store_true", help="do not use torch.compile")
    o = ap.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)

    model = Tiny(CONFIG)
    params = dict(model.named_parameters())
    matrices = [p for n, p in params.items() if p.dim() == 2 and n != "embed"]
    rest = [p for n, p in params.items() if p.dim() != 2 or n == "embed"]
    muon = Muon(matrices)
    adam = torch.optim.Adam(rest, lr=o.adam_lr, betas=(0.9, 0.98), eps=1e-10)
    ema = {n: p.detach().clone() for n, p in params.items()}
    step, seconds = 0, 0.0
    if os.path.exists(o.state):
        s = torch.load(o.state, weights_only=True)
        model.load_state_dict(s["model"])
        adam.load_state_dict(s["adam"])
        ema, step, seconds = s["ema"], s["step"], s["seconds"]
        for g, saved in zip(muon.buf, s["muon"]):
            for b, v in zip(g, saved):
                b.copy_(v)
        print(f"resumed at step {step}, {step * ROWS * WIDTH / 1e6:.1f} M tokens", flush=True)

    def save():
        torch.save({"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.buf, "ema": ema,
                    "step": step, "seconds": seconds}, o.state + ".new")
        os.replace(o.state + ".new", o.state)

    stop = []
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda *_: stop.append(1))
    if not o.export_only and step * ROWS * WIDTH < o.tokens:
        tasks.check_documents(20000, o.seed)
        fn = losses if o.eager else torch.compile(losses, dynamic=False)
        causal = torch.tril(torch.ones(WIDTH, WIDTH, dtype=torch.bool))
        begin = last = saved = time.time()
        acc, count = 0.0, 0
        while step * ROWS * WIDTH < o.tokens and not stop and time.time() - begin < o.minutes * 60:
            batch = pack(random.Random(f"{o.seed}/{step}"))
            loss, answer = fn(model, *batch, causal)
            for p in params.values():
                p.grad = None
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            f = schedule(step * ROWS * WIDTH, o.tokens, o.flat)
            with torch.no_grad():
                muon.step(o.lr * f)
                adam.param_groups[0]["lr"] = o.adam_lr * f
                adam.step()
                d = min(o.ema, (step + 1) / (step + 20))
                torch._foreach_lerp_(list(ema.values()), list(params.values()), 1 - d)
            step += 1
            acc, count = acc + answer.item(), count + 1
            now = time.time()
            if count == 50:
                rate = count * ROWS * WIDTH / (now - last)
                seconds += now - last
                print(f"step {step} tokens {step * ROWS * WIDTH / 1e6:.2f}M answer loss {acc / count:.4f} "
                      f"lr {f:.3f} tok/s {rate:.0f} time {seconds:.0f}s", flush=True)
                last, acc, count = now, 0.0, 0
            if now - saved > 60:
                save()
                saved = now
        save()
    tinymodel.export(ema, o.out)
    print("exported to", o.out, "after", step * ROWS * WIDTH, "tokens", flush=True)
    if o.eval:
        m = tinymodel.load(o.out)
        score = evaluate(m)
        for k, v in sorted(score.items(), key=lambda x: x[1]):
            print(f"{v:5.2f} {k}")
        print(f"mean {sum(score.values()) / len(score):.3f}")


if __name__ == "__main__":
    main()
