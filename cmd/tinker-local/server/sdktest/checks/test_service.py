"""ServiceClient: what the server can do, runs and samplers from nothing and from checkpoints, sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tinker
from clients import MODEL, VERSION, adam, example, ints, logprobs, refused, settled, since, sync
from tinker import types


def test_capabilities(service: Any, do: Any) -> None:
    models = {m.model_name: m for m in do(service, "get_server_capabilities").supported_models}
    if hasattr(models[MODEL], "max_context_length"):  # since 0.25
        assert models[MODEL].max_context_length > 100
    assert "goldens/llama" in models


@pytest.mark.parametrize("flags", [{}, {"train_mlp": False}, {"train_unembed": False, "train_attn": False}])
def test_create_lora_training_client(service: Any, do: Any, flags: dict[str, bool]) -> None:
    run = do(service, "create_lora_training_client", MODEL, rank=3, seed=5, user_metadata={"a": "b"}, **flags)
    info = sync(run, "get_info")
    assert (info.model_data.model_name, info.is_lora, info.lora_rank) == (MODEL, True, 3)
    record = sync(service.create_rest_client(), "get_training_run", info.model_id)
    assert (record.base_model, record.lora_rank, record.user_metadata) == (MODEL, 3, {"a": "b"})


def test_seeds(service: Any) -> None:
    def after_a_step(seed: int | None) -> np.ndarray:
        run = service.create_lora_training_client(MODEL, rank=2, seed=seed)
        settled(run.forward_backward([example()], "cross_entropy"))
        settled(run.optim_step(adam()))
        return logprobs(settled(run.forward([example()], "cross_entropy")))[0]

    one, again, other, free, freer = (after_a_step(s) for s in (1, 1, 2, None, None))
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(free, freer)


def test_unknown_model(service: Any, do: Any) -> None:
    with refused("no/such"):
        do(service, "create_lora_training_client", "no/such")
    with refused("no/such"):
        sampler = do(service, "create_sampling_client", base_model="no/such")
        sync(sampler, "sample", ints("a"), 1, types.SamplingParams(max_tokens=1))


def test_absurd_rank(service: Any) -> None:
    with refused("rank is 100000, wanted 1 to 512"):
        settled(service.create_lora_training_client(MODEL, rank=100000))


def test_create_from_state(service: Any, training: Any, do: Any) -> None:
    """Weights alone, and weights with optimiser: the second goes on with the bits of the run that was never interrupted."""
    for _ in range(3):
        training.forward_backward([example()], "cross_entropy")
        training.optim_step(adam())
    path = settled(training.save_state("here")).path

    def go_on(run: Any) -> list[np.ndarray]:
        seen = []
        for _ in range(3):
            out = run.forward_backward([example()], "cross_entropy")
            run.optim_step(adam())
            seen.append(logprobs(settled(out))[0])
        return seen

    uninterrupted = go_on(training)
    resumed = do(service, "create_training_client_from_state_with_optimizer", path, user_metadata={"resumed": "yes"})
    assert all(np.array_equal(a, b) for a, b in zip(uninterrupted, go_on(resumed)))
    cold = go_on(do(service, "create_training_client_from_state", path))
    assert np.array_equal(cold[0], uninterrupted[0]) and not np.array_equal(cold[2], uninterrupted[2])
    info = sync(resumed, "get_info")
    assert (info.lora_rank, info.model_data.model_name) == (4, MODEL)
    assert sync(service.create_rest_client(), "get_training_run", info.model_id).user_metadata == {"resumed": "yes"}


@since(0, 25)
def test_create_from_state_for_a_named_base(service: Any, training: Any) -> None:
    path = settled(training.save_state("here")).path
    assert sync(service.create_training_client_from_state(path, base_model=MODEL), "get_info").model_data.model_name == MODEL
    with refused("shape .4 128., wanted .4 24.|goldens/llama"):
        settled(service.create_training_client_from_state(path, base_model="goldens/llama"))


def test_create_from_nothing(service: Any, do: Any) -> None:
    for path in ("tinker://nobody:train:0/weights/x", "tinker://../weights/x", "not a path"):
        for method in ("create_training_client_from_state", "create_training_client_from_state_with_optimizer"):
            with refused("nobody|path"):
                do(service, method, path)


def test_create_sampling_client(service: Any, training: Any, do: Any) -> None:
    path = settled(training.save_weights_for_sampler("s")).path
    for choice in ({"base_model": MODEL}, {"model_path": path}, {"base_model": MODEL, "model_path": path}):
        sampler = do(service, "create_sampling_client", **choice)
        assert sync(sampler, "get_base_model") == MODEL
        assert len(sync(sampler, "sample", ints("abc"), 1, types.SamplingParams(max_tokens=2, temperature=0)).sequences[0].tokens) == 2
    with pytest.raises(ValueError):
        do(service, "create_sampling_client")


@since(0, 38)
def test_optimizer_of_a_run(service: Any) -> None:
    run = service.create_lora_training_client(MODEL, rank=2, optimizer=types.AdamOptimizerConfig())
    settled(run.optim_step(adam()))
    with refused("wanted .adamw."):
        settled(service.create_lora_training_client(MODEL, rank=2, optimizer=tinker.DimuonOptimizerConfig()))


@since(0, 38)
def test_new_manner(service: Any) -> None:
    """Since 0.38 clients are made by futures; older scripts use the future as the client, which the other checks do."""
    run = service.create_lora_training_client(MODEL, rank=2).result()
    assert type(run) is tinker.TrainingClient
    assert type(run.save_weights_and_get_sampling_client().result()) is tinker.SamplingClient
    assert [m.model_name for m in tinker.RestClient().get_server_capabilities().result().supported_models].count(MODEL) == 1


@since(0, 38)
def test_close() -> None:
    with tinker.ServiceClient(display_name="short") as service:
        run = service.create_lora_training_client(MODEL, rank=2).result()
        assert service.get_console_url() and run.get_console_url()
    with pytest.raises(RuntimeError):
        service.create_lora_training_client(MODEL)
    service = tinker.ServiceClient()
    service.create_sampling_client(base_model=MODEL).result()
    service.close("errored", detail="on purpose").result()


@since(0, 25)
def test_tags_and_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TAGS", "a,b")
    service = tinker.ServiceClient(user_metadata={"k": "v"}, project_id="p")
    run = service.create_lora_training_client(MODEL, rank=2)
    assert settled(run.forward([example()], "cross_entropy"))


def test_telemetry(service: Any, training: Any, base: Any, rest: Any) -> None:
    """It is on, as it is for every user, and the server swallows it."""
    for client in (service, training, base, rest):
        telemetry = client.get_telemetry()
        assert telemetry is not None
        telemetry.log("checks", event_data={"a": 1})


@since(0, 25)
def test_holder(service: Any) -> None:
    assert service.holder.get_session_id()


def test_wrong_key_prefix() -> None:
    """The SDK's own rule, on which the server's keys rest."""
    with pytest.raises(Exception, match="tml-"):
        client = tinker.ServiceClient(api_key="sk-1")
        client.create_rest_client().list_training_runs()
        settled(client.create_lora_training_client(MODEL))


def test_old_and_new_versions_are_told_apart() -> None:
    assert VERSION in ((0, 16), (0, 25), (0, 38))
