"""Saving, loading, names, times to live, publishing, deleting, archives."""

from __future__ import annotations

import io
import json
import tarfile
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import tinker
from clients import MODEL, adam, example, ints, logprobs, refused, settled, since, sync, until
from safetensors.numpy import load as safetensors
from tinker import types


def step(run: Any) -> None:
    run.forward_backward([example()], "cross_entropy")
    settled(run.optim_step(adam()))


def seen(run: Any) -> np.ndarray:
    return logprobs(settled(run.forward([example()], "cross_entropy")))[0]


@pytest.fixture
def saved(training: Any) -> tuple[str, str, str]:
    """Id, training state and sampler weights of a run that has made a step."""
    step(training)
    return sync(training, "get_info").model_id, settled(training.save_state("state")).path, settled(training.save_weights_for_sampler("sampler")).path


def test_paths(saved: tuple[str, str, str], rest: Any, do: Any) -> None:
    run, state, sampler = saved
    assert (state, sampler) == (f"tinker://{run}/weights/state", f"tinker://{run}/sampler_weights/sampler")
    listed = {c.tinker_path: c for c in do(rest, "list_checkpoints", run).checkpoints}
    assert {p: (c.checkpoint_id, c.checkpoint_type, c.public, c.expires_at) for p, c in listed.items()} == {
        state: ("weights/state", "training", False, None),
        sampler: ("sampler_weights/sampler", "sampler", False, None),
    }
    assert all(c.size_bytes > 1000 and abs(c.time - datetime.now(timezone.utc)) < timedelta(minutes=5) for c in listed.values())
    info = settled(rest.get_weights_info_by_tinker_path(sampler))
    assert (info.base_model, info.is_lora, info.lora_rank) == (MODEL, True, 4)
    record = do(rest, "get_training_run", run)
    assert record.last_checkpoint.tinker_path == state and record.last_sampler_checkpoint.tinker_path == sampler
    assert not record.corrupted


def test_save_and_load(training: Any, do: Any) -> None:
    step(training)
    path = do(training, "save_state", "a").path
    at_save = seen(training)
    step(training)
    one_on = seen(training)
    assert do(training, "load_state_with_optimizer", path).path in (path, None)
    assert np.array_equal(seen(training), at_save)
    step(training)
    assert np.array_equal(seen(training), one_on), "with its optimiser a run goes on with the same bits"
    do(training, "load_state", path)
    step(training)
    assert not np.array_equal(seen(training), one_on), "without it the moments are fresh"


def test_sampler_weights_can_be_trained_on(training: Any, saved: Any) -> None:
    before = seen(training)
    step(training)
    settled(training.load_state(saved[2]))
    assert np.array_equal(seen(training), before)


def test_names(training: Any, do: Any) -> None:
    first = seen(training)
    path = do(training, "save_state", "a").path
    step(training)
    with refused("a.*exists|exists.*a|taken"):
        do(training, "save_state", "a")
    do(training, "save_weights_for_sampler", "a")
    with refused("a.*exists|exists.*a|taken"):
        do(training, "save_weights_for_sampler", "a")
    settled(training.load_state(path))
    assert np.array_equal(seen(training), first), "what was saved first stays"
    for name in ("../up", "a/b", "", "x" * 300, "sp ace", "."):
        if name:
            with refused("name|path"):
                do(training, "save_state", name)


@since(0, 25)
def test_overwrite(training: Any, do: Any) -> None:
    settled(training.save_state("a"))
    step(training)
    second = seen(training)
    path = do(training, "save_state", "a", overwrite=True).path
    step(training)
    settled(training.load_state(path))
    assert np.array_equal(seen(training), second)


def test_time_to_live(training: Any, rest: Any, service: Any, do: Any) -> None:
    run = sync(training, "get_info").model_id
    state = do(training, "save_state", "short", ttl_seconds=7200).path
    sampler = do(training, "save_weights_for_sampler", "short", ttl_seconds=1).path

    def expiry(path: str) -> Any:
        return {c.tinker_path: c.expires_at for c in settled(rest.list_checkpoints(run)).checkpoints}.get(path, "gone")

    soon = datetime.now(timezone.utc) + timedelta(hours=2)
    assert abs(expiry(state) - soon) < timedelta(minutes=5)
    do(rest, "set_checkpoint_ttl_from_tinker_path", state, None)
    assert expiry(state) is None
    do(rest, "set_checkpoint_ttl_from_tinker_path", state, 1)
    for seconds in (0, -5):
        with refused("ttl"):
            do(rest, "set_checkpoint_ttl_from_tinker_path", state, seconds)
    time.sleep(1.6)
    for path in (state, sampler):
        assert expiry(path) == "gone"
        with refused("short"):
            settled(training.load_state(path))
    with refused("short"):
        sync(service.create_sampling_client(model_path=sampler), "sample", ints("a"), 1, types.SamplingParams(max_tokens=1))
    with refused("short"):
        do(rest, "set_checkpoint_ttl_from_tinker_path", state, None)


def test_publish(saved: Any, rest: Any, do: Any) -> None:
    run, state, sampler = saved

    def public() -> set[str]:
        return {c.tinker_path for c in settled(rest.list_checkpoints(run)).checkpoints if c.public}

    for _ in range(2):  # again is no error: clients repeat a 409 for minutes
        do(rest, "publish_checkpoint_from_tinker_path", sampler)
        assert public() == {sampler}
    for _ in range(2):
        do(rest, "unpublish_checkpoint_from_tinker_path", sampler)
        assert public() == set()
    for method in ("publish_checkpoint_from_tinker_path", "unpublish_checkpoint_from_tinker_path", "delete_checkpoint_from_tinker_path"):
        with refused("none"):
            do(rest, method, f"tinker://{run}/weights/none")


def test_delete(saved: Any, training: Any, rest: Any, do: Any) -> None:
    run, state, sampler = saved
    do(rest, "delete_checkpoint", run, "weights/state")
    assert {c.tinker_path for c in settled(rest.list_checkpoints(run)).checkpoints} == {sampler}
    do(rest, "delete_checkpoint_from_tinker_path", sampler)
    assert settled(rest.list_checkpoints(run)).checkpoints == []
    for path in (state, sampler):
        with refused("state|sampler"):
            settled(training.load_state(path))
    settled(training.save_state("state"))


@until(0, 38)
def test_archive(saved: Any, rest: Any, do: Any) -> None:
    """By a signed address, which urllib fetches without any header."""
    run, _, sampler = saved
    for answer in (do(rest, "get_checkpoint_archive_url", run, "sampler_weights/sampler"), do(rest, "get_checkpoint_archive_url_from_tinker_path", sampler)):
        assert answer.expires > (datetime.now(timezone.utc) if answer.expires.tzinfo else datetime.now())
        with urllib.request.urlopen(answer.url, timeout=60) as response:
            body = response.read()
            assert int(response.headers["Content-Length"]) == len(body)
        with tarfile.open(fileobj=io.BytesIO(body), mode="r") as tar:
            assert all(m.isfile() for m in tar)
            files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        adapter(files)
        assert "checkpoint_complete" in files
    with pytest.raises(urllib.error.HTTPError):  # another path with the same signature
        urllib.request.urlopen(answer.url.replace("sampler", "sampled", 1), timeout=60)
    with refused("none"):
        do(rest, "get_checkpoint_archive_url", run, "sampler_weights/none")


@since(0, 38)
def test_external_weights(training: Any, rest: Any, do: Any) -> None:
    """What replaces archives: files of an adapter, each by its signed address."""
    step(training)
    path = do(training, "save_weights_external", "out", ttl_seconds=3600).path
    answer = do(rest, "get_external_weights_urls", path)
    files = {}
    for name, url in answer.urls.items():
        with urllib.request.urlopen(url, timeout=60) as response:
            files[name] = response.read()
    adapter(files)
    do(rest, "delete_checkpoint_from_tinker_path", path)


@since(0, 38)
def test_external_weights_of_experts(service: Any, rest: Any) -> None:
    """In the one form that the official tools read: the factors of all experts of a layer in one tensor, what they share once."""
    run = service.create_lora_training_client("goldens/qwen3moe-hub", rank=3).result()
    answer = rest.get_external_weights_urls(run.save_weights_external("out").result().path).result()
    tensors = safetensors(urllib.request.urlopen(answer.urls["adapter_model.safetensors"], timeout=60).read())
    shapes = {k.split("layers.0.mlp.experts.")[1]: v.shape for k, v in tensors.items() if "layers.0.mlp.experts." in k}
    d, f, n = 22, 9, 6
    assert shapes == {
        "w1.lora_A.weight": (1, 3, d), "w1.lora_B.weight": (n, f, 3), "w3.lora_A.weight": (1, 3, d), "w3.lora_B.weight": (n, f, 3),
        "w2.lora_A.weight": (n, 3, f), "w2.lora_B.weight": (1, d, 3),
    }  # fmt: skip


def adapter(files: dict[str, bytes]) -> None:
    config = json.loads(files["adapter_config.json"])
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 32, "LORA")
    tensors = safetensors(files["adapter_model.safetensors"])
    a = [v for k, v in tensors.items() if k.endswith("lora_A.weight")]
    b = [v for k, v in tensors.items() if k.endswith("lora_B.weight")]
    assert len(a) == len(b) == 4 * 7 + 1, "q, k, v, o, gate, up, down of four layers, and the head"
    assert all(t.dtype == np.float32 and t.shape[0] == 4 for t in a) and all(t.shape[1] == 4 and np.any(t) for t in b)


@since(0, 38)
def test_copies(saved: Any, service: Any, rest: Any, training: Any, do: Any) -> None:
    run, state, sampler = saved
    want = seen(training)
    copy = do(rest, "copy_weights", state, "a-project")
    settled(rest.delete_checkpoint_from_tinker_path(state))
    assert copy.split("/")[2] != run
    assert np.array_equal(seen(service.create_training_client_from_state(copy)), want)
    other = settled(tinker.ServiceClient(project_id="b-project").copy_weights(sampler, ttl_seconds=3600))
    assert settled(service.create_sampling_client(model_path=other).compute_logprobs(ints("abc"))) == settled(
        service.create_sampling_client(model_path=sampler).compute_logprobs(ints("abc"))
    )
