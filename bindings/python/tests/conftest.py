"""The package under test is the installed one, or, in a checkout, the sources with the library of `make build`."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]

try:
    import tinker_local
except ModuleNotFoundError:
    sys.path.insert(0, str(ROOT / "bindings" / "python" / "src"))
    os.environ.setdefault("TINKER_LOCAL_LIBRARY", str(ROOT / "bin" / "libtinker.so"))
    os.environ.setdefault("TINKER_LOCAL_PROGRAM", str(ROOT / "bin" / "tinker-local"))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # for the processes that tests start
    import tinker_local

from tinker_local import types  # noqa: E402

MODEL = "tinker-local/tiny"


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the checkpoints or models of whoever runs it."""
    monkeypatch.setenv("TINKER_LOCAL_STATE", ":memory:")
    monkeypatch.setenv("TINKER_LOCAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def kept() -> Iterator[tinker_local.ServiceClient]:
    """A client on an engine that all tests share, so that the model is loaded once."""
    yield tinker_local.ServiceClient(state=":memory:", models="/nonexistent", device="cpu")


@pytest.fixture
def service(kept: tinker_local.ServiceClient) -> tinker_local.ServiceClient:
    return tinker_local.ServiceClient(state=":memory:", models="/nonexistent", device="cpu")


@pytest.fixture
def training(service: tinker_local.ServiceClient) -> tinker_local.TrainingClient:
    return service.create_lora_training_client(MODEL, rank=4, seed=1)


def example(text: str = "hello world", weight: float = 1.0) -> types.Datum:
    """A text to learn, the embedded model's tokens being bytes."""
    ids = list(text.encode())
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": ids[1:], "weights": [weight] * (len(ids) - 1)},
    )


def counters(service: tinker_local.ServiceClient) -> dict[str, int]:
    """What the engine has computed with the embedded model, by part and kind of pass, layers summed up."""
    sums: dict[str, int] = {}
    for part, counts in service.engine.info()["bases"][MODEL].items():
        for one in counts if isinstance(counts, list) else [counts]:
            for kind, n in one.items():
                sums[f"{part} {kind}"] = sums.get(f"{part} {kind}", 0) + n
    return sums


def left_over(before: dict[str, Any]) -> dict[str, Any]:
    """What the library holds more than before, when all that was let go of is freed. Tokenizers are kept with the engine."""
    until = time.monotonic() + 20
    while True:
        gc.collect()
        now = tinker_local.debug_counts()
        more = {k: n - before["handles"][k] for k, n in now["handles"].items() if n > before["handles"][k] and k != "tokenizer"}
        if now["memory"]["blocks"] > before["memory"]["blocks"]:
            more["blocks"] = now["memory"]["blocks"] - before["memory"]["blocks"]
        if not more or time.monotonic() > until:
            return more
        time.sleep(0.05)  # the watcher lets go of the last future when it has told of it
