"""Writes custom_losses.json: three losses over several sequences and their gradients by torch autograd, in float64.

    python custom_losses.py        (torch 2.x; nothing here depends on its version)

Log-probabilities and inputs are multiples of 1/1024 or 0/1, exact in float32.
"""

import json
import pathlib

import torch
import torch.nn.functional as F


def variance(lp, inputs, config):
    return torch.var(torch.cat(lp))


def score(lp, inputs):
    return (lp * torch.tensor(inputs["weights"], dtype=torch.float64)).sum()


def bradley_terry(lp, inputs, config):
    s = [score(x, i) for x, i in zip(lp, inputs)]
    return sum(-F.logsigmoid(s[i] - s[i + 1]) for i in range(0, len(s), 2))


def dpo(lp, inputs, config):
    gain = [score(x - torch.tensor(i["reference"], dtype=torch.float64), i) for x, i in zip(lp, inputs)]
    pairs = range(0, len(gain), 2)
    return sum(-F.logsigmoid(config["beta"] * (gain[i] - gain[i + 1])) for i in pairs) / len(pairs)


def main():
    rng = torch.Generator().manual_seed(7)

    def values(n):
        return (-torch.randint(1, 6 * 1024, (n,), generator=rng).double() / 1024).tolist()

    out = []
    for loss, config in (variance, {}), (bradley_terry, {}), (dpo, {"beta": 0.25}):
        lengths = [5, 3, 4, 6]
        logprobs = [values(n) for n in lengths]
        inputs = [{"weights": [0.0] * (n // 2) + [1.0] * (n - n // 2), "reference": values(n)} for n in lengths]
        lp = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in logprobs]
        value = loss(lp, inputs, config)
        value.backward()
        out.append({"loss": loss.__name__, "config": config, "logprobs": logprobs, "inputs": inputs,
                    "value": value.item(), "gradients": [x.grad.tolist() for x in lp]})
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(out, indent=1) + "\n")


main()
