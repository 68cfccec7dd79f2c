#!/usr/bin/env python3
"""Goldens of the bundled loss plugins through a whole model: what torch autograd says about the loss, the gradient of every
log-probability and of every factor of a LoRA adapter.

    python make_plugin_goldens.py      (versions as in the file; writes plugin_goldens.json beside this script; ten seconds)

Model and adapter are engine/model/testdata/qwen3-untied (3 layers, rank 2 on all projections and the head). Its make_goldens.py
gives the evaluations: transformers + peft in float64 (what is stored), a plain decoder in float64 that must agree to 1e-10, and five
float32 evaluations whose largest distance from the float64 value is the noise. The losses are the functions of plugins/losses/testdata/make_goldens.py,
written as in their sources. In a float32 evaluation they see float32 log-probabilities, and what is differentiated is -sum weights * logprob with
weights rounded to float32, as an engine does it; in float64 both ways must agree.

Of the gradient g of a factor, n values row by row, four numbers are stored: its norm and p_k = sum_i g_i cos((i+1) (k+1)), k = 0, 1, 2.
"""
import ast
import json
import os
import pathlib
import platform
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
MODELS = ROOT / "engine" / "model" / "testdata"
sys.path.insert(0, str(MODELS))
import make_goldens as models  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402

SEED = 20261127
MODEL, ADAPTER, VOCAB = "qwen3-untied", "adapter", 53
KINK = 1e-4  # log-probabilities may be off by this much, and no clip begins or ends to hold


def loss_functions():
    """The functions of the losses' own script, without its cases."""
    tree = ast.parse((ROOT / "plugins" / "losses" / "testdata" / "make_goldens.py").read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    names = {"torch": torch, "F": F}
    exec(compile(tree, "make_goldens.py", "exec"), names)
    return names


L = loss_functions()
rng = torch.Generator().manual_seed(SEED)


def f32(x):
    return x.to(torch.float32).to(torch.float64)


def tokens(n):
    return torch.randint(VOCAB, (n,), generator=rng).tolist()


def some(shape, scale):
    return torch.randn(shape, generator=rng, dtype=torch.float64) * scale


def near(x, by):
    return f32(torch.clamp(x + some(x.shape, by), max=-0.001))


def logprobs(run, d):
    """[T] or [T, K], the log-probabilities of the targets."""
    lp = torch.log_softmax(run.logits(d["tokens"]), -1)
    t = torch.tensor(d["target_tokens"])
    return lp.gather(1, t) if t.dim() == 2 else lp.gather(1, t[:, None])[:, 0]


def sequence(n, prompt, *inputs, by=0.3, **given):
    """A sequence of n targets; the first ones, of the prompt, have weight 0."""
    seq = tokens(n + 1)
    d = dict(tokens=seq[:-1], target_tokens=seq[1:], **given)
    with torch.no_grad():
        lp = logprobs(EXACT, d)
    d["weights"] = torch.tensor([0.0] * prompt + [1.0] * (n - prompt), dtype=torch.float64)
    for name in inputs:
        d[name] = near(lp, by)
    return d


def number(x):
    return torch.tensor([x], dtype=torch.float64)


def pairs(*sizes, inputs=("ref_logprobs",)):
    return [sequence(n, prompt, *inputs) for n, prompt in sizes]


def group(rows, by, *inputs):
    return [sequence(n, prompt, *inputs, by=by, group=torch.tensor([g]), reward=number(r)) for n, prompt, g, r in rows]


def candidates(*shapes):
    """Sequences of which each position has K targets, different ones, with a teacher's log-probabilities; the last position counts for nothing."""
    out = []
    for n, k in shapes:
        d = dict(tokens=tokens(n), target_tokens=[torch.randperm(VOCAB, generator=rng)[:k].tolist() for _ in range(n)])
        d["teacher_logprobs"] = f32(torch.log_softmax(some((n, VOCAB), 2), 1)[:, :k])
        d["weights"] = f32(0.25 + torch.rand((n, k), generator=rng, dtype=torch.float64))
        d["weights"][-1] = 0
        out.append(d)
    return out


ROWS = [(7, 2, 3, 1.0), (6, 0, 8, -1.0), (5, 1, 3, 0.0), (1, 0, 8, 2.0), (4, 2, 8, 0.0), (9, 4, 3, 0.5), (3, 1, 40, 1.5), (12, 3, 8, 0.25)]


def make_cases():
    margin = pairs((6, 2), (9, 2), (4, 1), (3, 1), (1, 0), (11, 5))
    margin[0]["margin"], margin[2]["margin"] = number(0.25), number(-0.5)
    labels = [sequence(n, p, "ref_logprobs", label=torch.tensor([label])) for n, p, label in
              [(6, 2, 1), (9, 2, -1), (4, 1, 0), (3, 1, -1), (1, 0, 1), (8, 4, 0)]]
    plain = [sequence(n, 0) for n in (5, 1, 8)]
    for d in plain:
        del d["weights"]
    return [
        ("dpo", {"beta": 0.5, "label_smoothing": 0.1}, margin),
        ("bradley_terry", {"beta": 2.0, "margin": 0.5, "average": 1.0}, pairs((6, 2), (9, 2), (1, 0), (3, 1), inputs=())),
        ("kto", {"beta": 0.5, "desirable_weight": 1.5}, labels),
        ("grpo", {"beta": 0.04}, group(ROWS, 0.3, "logprobs", "ref_logprobs")),
        ("gspo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, group(ROWS, 0.1, "logprobs")),
        ("logprob_variance", {}, plain),
        ("topk_distillation", {}, candidates((4, 5), (1, 2), (9, 3))),
        ("topk_distillation", {"divergence": 1.0, "renormalize": 1.0}, candidates((4, 5), (6, 3))),
    ]


def evaluate_loss(loss, config, data, lps):
    """Value, and weights of every log-probability, in float64."""
    lps = [lp.detach().double().requires_grad_() for lp in lps]
    value = L[loss]([{**d, "$": lp} for d, lp in zip(data, lps)], config)[0]
    grads = torch.autograd.grad(value, lps, allow_unused=True)
    return value.detach(), [-g if g is not None else torch.zeros_like(lp) for g, lp in zip(grads, lps)]


def evaluate(run, loss, config, data):
    lps = [logprobs(run, d) for d in data]
    value, weights = evaluate_loss(loss, config, data, lps)
    if lps[0].dtype == torch.float32:
        weights = [f32(w) for w in weights]
    surrogate = -sum((w.to(lp.dtype) * lp).sum() for w, lp in zip(weights, lps))
    grads = dict(zip(run.params, torch.autograd.grad(surrogate, list(run.params.values()))))
    return dict(value=value, weights=weights, logprobs=[lp.detach() for lp in lps], sums={k: sums(g) for k, g in grads.items()}, grads=grads)


def sums(g):
    """Norm and three projections."""
    g = g.detach().double().flatten()
    i = torch.arange(1, len(g) + 1, dtype=torch.float64)
    return torch.stack([g.norm()] + [(g * torch.cos(i * k)).sum() for k in (1, 2, 3)])


def whole(run, loss, config, data):
    """The gradient of the loss itself, without weights between."""
    lps = [logprobs(run, d) for d in data]
    value = L[loss]([{**d, "$": lp} for d, lp in zip(data, lps)], config)[0]
    return dict(zip(run.params, torch.autograd.grad(value, list(run.params.values()))))


def no_kink_near(loss, config, data, lps, weights):
    for _ in range(20):
        moved = evaluate_loss(loss, config, data, [lp + some(lp.shape, KINK) for lp in lps])[1]
        assert models.gap(moved, weights) < 100 * KINK * max(w.abs().max() for w in weights), (loss, "a kink is near")


def spread(x, what):
    """The largest distance of any float32 evaluation from the exact one, at least the rounding of a float32."""
    exact, singles = x[0][what], [s[what] for s in x[1]]
    size = max(t.abs().max().item() for t in (exact if isinstance(exact, list) else [exact]))
    return short(max(max(models.gap(exact, s) for s in singles), size * 2.0 ** -24))


def short(x):
    return float(f"{x:.3g}")


def flat(x):
    """Inputs, exact in float32."""
    return [float(v) for v in x.double().flatten()]


def result(x):
    return [float(f"{v:.12g}") for v in flat(x)]


torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
EXACT, PLAIN, SINGLE = models.runs(str(MODELS / MODEL), ADAPTER)
names = list(EXACT.params)
cases = []
for loss, config, data in make_cases():
    e, p, s = (evaluate(EXACT, loss, config, data), evaluate(PLAIN, loss, config, data), [evaluate(r, loss, config, data) for r in SINGLE])
    for what in ("value", "weights", "logprobs", "grads"):
        assert models.gap(e[what], p[what]) < models.AGREE, (loss, what)
    assert models.gap(e["grads"], whole(EXACT, loss, config, data)) < models.AGREE
    no_kink_near(loss, config, data, e["logprobs"], e["weights"])
    gradients = []
    for k in names:
        noise = models.noise(e["sums"][k], [x["sums"][k] for x in s])
        gradients.append(result(e["sums"][k]) + [short(max(noise, e["sums"][k][0].item() * 2.0 ** -24))])
    cases.append({
        "loss": loss, "config": config, "value": e["value"].item(), "value_noise": spread((e, s), "value"),
        "weights_noise": spread((e, s), "weights"), "logprobs_noise": spread((e, s), "logprobs"),
        "data": [{"tokens": d["tokens"], "target_tokens": torch.tensor(d["target_tokens"]).flatten().tolist(), "dims": list(lp.shape),
                  "logprobs": result(lp), "weights": result(w),
                  "floats": {k: flat(v) for k, v in d.items() if torch.is_tensor(v) and v.dtype == torch.float64},
                  "ints": {k: v.tolist() for k, v in d.items() if torch.is_tensor(v) and v.dtype == torch.int64}}
                 for d, lp, w in zip(data, e["logprobs"], e["weights"])],
        "gradients": gradients})
    print(f"{loss}: {e['value'].item():.6f}, noise {cases[-1]['value_noise']:.1e}; weights up to {max(w.abs().max() for w in e['weights']):.3f}, noise {cases[-1]['weights_noise']:.1e};",
          f"gradients of norm {sum(g[0] ** 2 for g in gradients) ** 0.5:.3f}, noise {min(g[-1] for g in gradients):.1e} to {max(g[-1] for g in gradients):.1e}")

golden = {"format": 1, "seed": SEED, "model": MODEL, "adapter": ADAPTER,
          "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__},
          "factors": names, "cases": cases}
models.write_text(HERE / "plugin_goldens.json", models.layout(golden))
