"""English to Pig Latin, the embedded model's task, learnt through the official client. Words and rules are the quick-start's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from clients import adam, datum, settled
from tinker import types

VOWELS = "aeiou"


def pig_latin(phrase: str) -> str:
    """Leading consonants move behind a dash and "ay" is added; y is a vowel unless it is first; a word that begins with a vowel gets "-way"."""

    def word(w: str) -> str:
        n = next((i for i, c in enumerate(w) if c in VOWELS or c == "y" and i > 0), len(w))
        return w + "-way" if n == 0 else f"{w[n:]}-{w[:n]}ay"

    return " ".join(map(word, phrase.split()))


def phrases(root: Path, which: str, n: int, longest: int, seed: int) -> list[str]:
    words = [w for w in (root / f"engine/local/tiny/words_{which}.txt").read_text().split() if "q" not in w]
    draw = random.Random(seed)
    return [" ".join(draw.sample(words, draw.randint(1, longest))) for _ in range(n)]


def prompt(phrase: str) -> list[int]:
    return list(f"English: {phrase}\nPig Latin:".encode())


def pair(phrase: str) -> types.Datum:
    asked, answer = prompt(phrase), list(f" {pig_latin(phrase)}\n".encode())
    tokens = asked + answer
    return datum(tokens[:-1], target_tokens=tokens[1:], weights=[0.0] * (len(asked) - 1) + [1.0] * len(answer))


def train(run: Any, texts: list[str], steps: int, batch: int) -> list[float]:
    """The loss per trained token, step by step; every step is sent before the one before it is awaited."""
    sent = []
    for k in range(steps):
        part = [pair(texts[(k * batch + i) % len(texts)]) for i in range(batch)]
        n = sum(float(np.sum(d.loss_fn_inputs["weights"].data)) for d in part)
        sent.append((n, run.forward_backward(part, "cross_entropy")))
        run.optim_step(adam(learning_rate=3e-3 * min(1.0, (k + 1) / 10) * (1 - 0.9 * k / steps), grad_clip_norm=1.0))
    return [settled(f).metrics["loss:sum"] / n for n, f in sent]


def right(sampler: Any, texts: list[str]) -> float:
    """The part of the phrases that are translated to the last letter."""
    params = types.SamplingParams(max_tokens=60, temperature=0, stop=["\n"])
    asked = [sampler.sample(types.ModelInput.from_ints(prompt(t)), 1, params) for t in texts]
    answers = [bytes(t for t in settled(f).sequences[0].tokens if t < 256).decode(errors="replace") for f in asked]
    return sum(a == f" {pig_latin(t)}\n" for a, t in zip(answers, texts)) / len(texts)
