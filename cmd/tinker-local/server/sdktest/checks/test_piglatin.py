"""A fine-tuning from end to end: before, training, after, saved, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clients import MODEL, settled
from piglatin import phrases, right, train


def test_pig_latin(service: Any, base: Any, root: Path) -> None:
    texts, heldout = phrases(root, "train", 640, 2, 1), phrases(root, "heldout", 40, 2, 2)
    assert right(base, heldout) == 0
    run = service.create_lora_training_client(MODEL, rank=16, seed=1)
    losses = train(run, texts, 40, 16)
    assert losses[-1] < losses[0] / 10, losses
    path = settled(run.save_weights_for_sampler("final")).path
    score = right(run.save_weights_and_get_sampling_client(), heldout)
    assert score >= 0.5, (score, losses)
    assert right(service.create_sampling_client(model_path=path), heldout) == score
