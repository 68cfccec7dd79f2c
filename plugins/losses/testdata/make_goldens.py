"""Goldens of the bundled losses: value, weights (-dloss/dlogprob) and metrics by torch autograd, in float64.

    python make_goldens.py        (torch 2.x; writes goldens.json beside this file)

The formulas are written as in the sources that ../losses.go names, with padding-free lists of tensors. Inputs are exact in float32.
"""
import json
import pathlib

import torch
import torch.nn.functional as F

rng = torch.Generator().manual_seed(20261127)


def f32(x):
    return x.to(torch.float32).to(torch.float64)


def some(shape, scale=1.0):
    return f32(torch.randn(shape, generator=rng, dtype=torch.float64) * scale)


def lp(shape):
    return f32(-torch.rand(shape, generator=rng, dtype=torch.float64) * 4 - 0.01)


def near(x, by=0.3):
    return f32(torch.clamp(x.detach() + some(x.shape, by), max=-0.001))


def score(d, ref=True):
    return (d["weights"] * (d["$"] - (d["ref_logprobs"] if ref else 0))).sum()


def mean(xs):
    return sum(xs) / len(xs)


def dpo(data, c):
    beta, e = c.get("beta", 0.1), c.get("label_smoothing", 0)
    losses, right, up, down = [], [], [], []
    for a, b in zip(data[::2], data[1::2]):
        x, y = beta * score(a), beta * score(b)
        h = x - y - (a["margin"][0] if "margin" in a else 0)
        losses.append(-(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h))
        right.append(float(x > y)), up.append(x), down.append(y)
    return mean(losses), {"accuracy:mean": mean(right), "margin:mean": mean(up) - mean(down),
                          "chosen_reward:mean": mean(up), "rejected_reward:mean": mean(down)}


def bradley_terry(data, c):
    beta, margin = c.get("beta", 1), c.get("margin", 0)
    def s(d):
        total = score(d, ref=False)
        return total / d["weights"].sum() if c.get("average") and d["weights"].sum() else total
    up, down = [s(d) for d in data[::2]], [s(d) for d in data[1::2]]
    return mean([-F.logsigmoid(beta * (x - y) - margin) for x, y in zip(up, down)]), {
        "accuracy:mean": mean([float(x > y) for x, y in zip(up, down)]), "margin:mean": beta * (mean(up) - mean(down)),
        "chosen_score:mean": mean(up), "rejected_score:mean": mean(down)}


def kto(data, c):
    beta, good, bad = c.get("beta", 0.1), c.get("desirable_weight", 1), c.get("undesirable_weight", 1)
    label = [int(d["label"][0]) for d in data]
    s = [score(d) for d in data]
    z = [x for x, l in zip(s, label) if l < 0]
    z0 = torch.clamp(mean(z), min=0).detach() if z else torch.tensor(0.0, dtype=torch.float64)
    losses = [good * (1 - torch.sigmoid(beta * (x - z0))) if l else bad * (1 - torch.sigmoid(beta * (z0 - x)))
              for x, l in zip(s, label) if l >= 0]
    up, down = [beta * x for x, l in zip(s, label) if l == 1], [beta * x for x, l in zip(s, label) if l == 0]
    metrics = {"kl:mean": z0}
    if up:
        metrics["chosen_reward:mean"] = mean(up)
    if down:
        metrics["rejected_reward:mean"] = mean(down)
    if up and down:
        metrics["margin:mean"] = mean(up) - mean(down)
    return mean(losses), metrics


def by_group(data):
    groups = {}
    for d in data:
        groups.setdefault(int(d["group"][0]), []).append(d)
    return list(groups.values())


def advantages(group, scale):
    r = torch.cat([d["reward"] for d in group])
    std = r.std() if len(r) > 1 else torch.zeros(())
    return (r - r.mean()) / (std + 1e-4) if scale else r - r.mean(), std


def grpo(data, c):
    low, high, beta = c.get("clip_low_threshold", 0.8), c.get("clip_high_threshold", 1.2), c.get("beta", 0)
    norm = c.get("length_norm", 0)
    total, clip, kls, stds, refs = [], [], [], [], False
    for group in by_group(data):
        adv, std = advantages(group, c.get("scale_rewards", 1))
        parts = []
        for d, a in zip(group, adv):
            on = d["weights"] != 0 if "weights" in d else torch.ones_like(d["$"]) > 0
            t = d["$"][on]
            q = d["logprobs"][on] if "logprobs" in d else t.detach()
            ratio = torch.exp(t - q)
            free, held = ratio * a, torch.clamp(ratio, low, high) * a
            l, k = -torch.minimum(free, held), torch.zeros_like(t)
            if "ref_logprobs" in d:
                p = d["ref_logprobs"][on]
                k, refs = torch.exp(p - t) - (p - t) - 1, True
            parts.append(l + beta * k)
            clip.append((held < free).double().sum() / max(len(t), 1))
            kls.append(k.sum() / max(len(t), 1))
            stds.append(std)
        if norm == 0:
            total.append(mean([p.sum() / max(len(p), 1) for p in parts]))
        elif norm == 1:
            total.append(sum(p.sum() for p in parts) / max(sum(len(p) for p in parts), 1))
        else:
            total.append(mean([p.sum() for p in parts]))
    metrics = {"reward:mean": mean([d["reward"][0] for d in data]), "reward_std:mean": mean(stds), "clip_frac:mean": mean(clip)}
    if refs:
        metrics["kl:mean"] = mean(kls)
    return mean(total), metrics


def gspo(data, c):
    low, high = c.get("clip_low_threshold", 0.9997), c.get("clip_high_threshold", 1.0004)
    total, ratios, clip = [], [], []
    for group in by_group(data):
        adv, _ = advantages(group, c.get("scale_rewards", 1))
        parts = []
        for d, a in zip(group, adv):
            on = d["weights"] != 0 if "weights" in d else torch.ones_like(d["$"]) > 0
            ratio = torch.exp((d["$"] - d["logprobs"])[on].sum() / max(int(on.sum()), 1))
            free, held = ratio * a, torch.clamp(ratio, low, high) * a
            parts.append(-torch.minimum(free, held))
            ratios.append(ratio), clip.append(float(held < free))
        total.append(mean(parts))
    return mean(total), {"reward:mean": mean([d["reward"][0] for d in data]), "ratio:mean": mean(ratios), "clip_frac:mean": mean(clip)}


def logprob_variance(data, c):
    x = torch.cat([d["$"].flatten() for d in data])
    return torch.var(x), {"variance_loss:mean": torch.var(x), "logprob:mean": x.mean()}


def topk_distillation(data, c):
    total, mass = [], [[], []]
    for d in data:
        here = [[], []]
        for t in range(d["$"].shape[0]):
            w = d["weights"][t] if "weights" in d else torch.ones_like(d["$"][t])
            on = w != 0
            if not on.any():
                continue
            q, p, w = d["$"][t][on], d["teacher_logprobs"][t][on], w[on]
            here[0].append(p.exp().sum()), here[1].append(q.exp().sum())
            if c.get("renormalize"):
                q, p = torch.log_softmax(q, 0), torch.log_softmax(p, 0)
            kl = q.exp() * (q - p) if c.get("divergence") else p.exp() * (p - q)
            total.append((w * kl).sum())
        for i in range(2):
            mass[i].append(mean(here[i]) if here[i] else torch.zeros(()))
    return sum(total), {"teacher_mass:mean": mean(mass[0]), "student_mass:mean": mean(mass[1])}


def answer(n, prompt):
    """weights of an answer that begins after prompt tokens"""
    return torch.tensor([0.0] * prompt + [1.0] * (n - prompt), dtype=torch.float64)


def scored(n, prompt, ref=True):
    d = {"$": lp(n), "weights": answer(n, prompt)}
    if ref:
        d["ref_logprobs"] = near(d["$"])
    return d


def pairs(*sizes, ref=True):
    return [scored(n, prompt, ref) for n, prompt in sizes]


def labelled(*rows):
    out = []
    for n, prompt, label, shift in rows:
        d = scored(n, prompt)
        d["ref_logprobs"] = f32(d["ref_logprobs"] - shift)
        out.append({**d, "label": torch.tensor([label])})
    return out


def group_of(rows, skip=(), by=0.3):
    out = []
    for n, prompt, group, reward in rows:
        x = lp(n)
        d = {"$": x, "group": torch.tensor([group]), "reward": torch.tensor([reward], dtype=torch.float64),
             "weights": answer(n, prompt), "logprobs": near(x, by), "ref_logprobs": near(x, by)}
        out.append({k: v for k, v in d.items() if k not in skip})
    return out


def candidates(*shapes, weights=False):
    out = []
    for shape in shapes:
        d = {"$": f32(torch.log_softmax(some((shape[0], shape[1] + 3)), 1)[:, : shape[1]])}
        d["teacher_logprobs"] = f32(torch.log_softmax(some((shape[0], shape[1] + 3), 2), 1)[:, : shape[1]])
        if weights:
            d["weights"] = f32(torch.rand(shape, generator=rng, dtype=torch.float64))
            d["weights"][0, -1] = 0
            d["weights"][-1, :] = 0
        out.append(d)
    return out


def with_margin(data, **at):
    for i, m in at.items():
        data[int(i[1:])]["margin"] = torch.tensor([m], dtype=torch.float64)
    return data


def soft(data):
    """weights other than 0 and 1, one of them negative"""
    for d in data:
        d["weights"] = f32(d["weights"] * some(d["weights"].shape))
    return data


ROWS = [(7, 2, 3, 1.0), (5, 1, 3, 0.0), (9, 4, 3, 0.5), (6, 0, 8, -1.0), (1, 0, 8, 2.0), (12, 3, 8, 0.25), (4, 2, 8, 0.0)]
MIXED = [ROWS[0], ROWS[3], ROWS[1], ROWS[4], ROWS[6], ROWS[2], (3, 1, 40, 1.5), ROWS[5]]  # groups interleaved, one of a single datum

cases = [
    (dpo, {}, pairs((6, 2), (9, 2), (4, 1), (3, 1))),
    (dpo, {"beta": 0.5, "label_smoothing": 0.1}, with_margin(pairs((5, 1), (1, 0), (1, 0), (8, 3), (21, 5), (13, 5)), _0=0.25, _2=-0.5)),
    (dpo, {"beta": 1.0}, soft(pairs((6, 2), (9, 2), (4, 4), (3, 3)))),
    (bradley_terry, {}, pairs((6, 2), (9, 2), (4, 1), (3, 1), ref=False)),
    (bradley_terry, {"beta": 2.0, "margin": 0.5, "average": 1}, pairs((6, 2), (9, 2), (1, 0), (3, 1), (5, 5), (2, 0), ref=False)),
    (kto, {}, labelled((6, 2, 1, 0), (9, 2, 0, 0), (4, 1, 1, 0), (3, 1, 0, 0))),
    (kto, {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.75},
     labelled((6, 2, 1, 0), (9, 2, -1, 0.5), (4, 1, 0, 0), (3, 1, -1, 0.1), (1, 0, 1, 0))),
    (kto, {"beta": 0.5}, labelled((6, 2, 1, 0), (9, 2, -1, -0.5), (4, 4, 1, 0))),
    (grpo, {}, group_of(ROWS, skip=("ref_logprobs",))),
    (grpo, {}, group_of(ROWS[:3], skip=("ref_logprobs", "weights", "logprobs"))),
    (grpo, {"beta": 0.04}, group_of(MIXED)),
    (grpo, {"beta": 0.1, "length_norm": 1, "clip_low_threshold": 0.9, "clip_high_threshold": 1.05}, group_of(MIXED)),
    (grpo, {"length_norm": 2, "scale_rewards": 0}, group_of(MIXED)[:3] + group_of(MIXED, skip=("logprobs", "ref_logprobs"))[3:]),
    (gspo, {}, group_of(ROWS, skip=("ref_logprobs",))),
    (gspo, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, group_of(MIXED, skip=("ref_logprobs",))),
    (gspo, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1, "scale_rewards": 0},
     group_of(MIXED, skip=("ref_logprobs", "weights"), by=0.1)),
    (logprob_variance, {}, [{"$": lp(5)}, {"$": lp(1)}, {"$": lp(8)}]),
    (logprob_variance, {}, [{"$": lp((3, 4))}, {"$": lp((1, 2))}]),
    (topk_distillation, {}, candidates((4, 5), (1, 2), (3, 1))),
    (topk_distillation, {"divergence": 1}, candidates((4, 5), (2, 3))),
    (topk_distillation, {"renormalize": 1}, candidates((4, 5), (3, 3), weights=True)),
    (topk_distillation, {"renormalize": 1, "divergence": 1}, candidates((4, 5), (3, 3), weights=True)),
    (topk_distillation, {}, candidates((4, 5), (3, 3), weights=True)),
]

out = []
for loss, config, data in cases:
    for d in data:
        d["$"] = d["$"].clone().requires_grad_(True)
    value, metrics = loss(data, config)
    grads = torch.autograd.grad(value, [d["$"] for d in data], allow_unused=True)
    out.append({
        "loss": loss.__name__, "config": config, "value": float(value.detach()),
        "metrics": {k: float(v.detach() if torch.is_tensor(v) else v) for k, v in metrics.items()},
        "weights": [(-g if g is not None else torch.zeros_like(d["$"])).flatten().tolist() for g, d in zip(grads, data)],
        "data": [{"dims": [*d["$"].shape, 1][:2], "logprobs": d["$"].detach().flatten().tolist(),
                  "floats": {k: v.flatten().tolist() for k, v in d.items() if k != "$" and v.dtype == torch.float64},
                  "ints": {k: v.tolist() for k, v in d.items() if v.dtype == torch.int64}} for d in data],
    })
path = pathlib.Path(__file__).with_name("goldens.json")
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in out) + "\n]\n")
