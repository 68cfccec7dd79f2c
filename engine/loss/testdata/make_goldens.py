"""Goldens of the built-in losses: value and weights (-dL/dlogprob) by torch autograd in float64.

Run: python make_goldens.py  (torch; writes losses.json beside this file)
Each case has the datums' inputs, the log-probabilities t, and what torch computes from the formulas

  cross_entropy        L = sum -w*t
  importance_sampling  L = sum -exp(t-q)*A
  ppo                  L = sum -min(r*A, clamp(r, lo, hi)*A)          r = exp(t-q)
  cispo                L = sum -stop_gradient(clamp(r, lo, hi))*t*A
  dro                  L = sum -(t*A - beta/2*(t-q)^2)
"""
import json
import os

import torch

torch.manual_seed(20261123)
HERE = os.path.dirname(os.path.abspath(__file__))


def f32(x):
    """Rounds to float32 and widens: the inputs are exact in both languages."""
    return x.to(torch.float32).to(torch.float64)


def evaluate(loss, config, datums):
    total, weights = torch.zeros((), dtype=torch.float64), []
    leaves = []
    for d in datums:
        t = f32(d["logprobs_model"]).clone().requires_grad_(True)
        leaves.append(t)
        if loss == "cross_entropy":
            total = total - (d["weights"] * t).sum()
            continue
        q, a = d["logprobs"], d["advantages"]
        lo = d.get("clip_low_threshold", torch.tensor(config.get("clip_low_threshold", {"ppo": 0.8, "cispo": 0.0}.get(loss, 0.0)), dtype=torch.float64))
        hi = d.get("clip_high_threshold", torch.tensor(config.get("clip_high_threshold", {"ppo": 1.2, "cispo": 4.0}.get(loss, 0.0)), dtype=torch.float64))
        r = torch.exp(t - q)
        if loss == "importance_sampling":
            total = total - (r * a).sum()
        elif loss == "ppo":
            total = total - torch.minimum(r * a, torch.clamp(r, lo, hi) * a).sum()
        elif loss == "cispo":
            total = total - (torch.clamp(r, lo, hi).detach() * t * a).sum()
        elif loss == "dro":
            total = total - (t * a - 0.5 * config["beta"] * (t - q) ** 2).sum()
    total.backward()
    for t in leaves:
        weights.append((-t.grad).flatten().tolist())
    return total.item(), weights


def case(loss, config, shapes, per_token_clip=False):
    datums = []
    for shape in shapes:
        d = {"logprobs_model": f32(-torch.rand(shape, dtype=torch.float64) * 4 - 0.01)}
        if loss == "cross_entropy":
            d["weights"] = f32(torch.randn(shape, dtype=torch.float64))
            d["weights"].view(-1)[0] = 0.0
        else:
            d["logprobs"] = f32(d["logprobs_model"] + torch.randn(shape, dtype=torch.float64) * 0.5)
            d["advantages"] = f32(torch.randn(shape, dtype=torch.float64))
            d["advantages"].view(-1)[0] = 0.0  # a masked position
        if per_token_clip:
            d["clip_low_threshold"] = f32(0.5 + 0.4 * torch.rand(shape, dtype=torch.float64))
            d["clip_high_threshold"] = f32(1.1 + 0.4 * torch.rand(shape, dtype=torch.float64))
        datums.append(d)
    value, weights = evaluate(loss, config, datums)
    return {
        "loss_fn": loss, "config": config, "loss": value, "weights": weights,
        "datums": [{k: {"shape": list(v.shape), "data": v.flatten().tolist()} for k, v in d.items()} for d in datums],
    }


cases = [
    case("cross_entropy", {}, [(7,), (3,)]),
    case("cross_entropy", {}, [(4, 3), (2, 1)]),
    case("importance_sampling", {}, [(9,), (5,)]),
    case("ppo", {}, [(40,), (5,)]),
    case("ppo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05}, [(40,)]),
    case("ppo", {}, [(40,)], per_token_clip=True),
    case("cispo", {}, [(40,), (5,)]),
    case("cispo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}, [(40,)]),
    case("cispo", {}, [(40,)], per_token_clip=True),
    case("dro", {"beta": 0.05}, [(12,), (5,)]),
]
with open(os.path.join(HERE, "losses.json"), "w") as f:
    json.dump({"torch": torch.__version__.split("+")[0], "cases": cases}, f)
