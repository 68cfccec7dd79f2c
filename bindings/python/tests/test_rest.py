"""Checkpoints, runs and sessions."""

from __future__ import annotations

import asyncio
import concurrent.futures
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import example

import tinker_local
from tinker_local import types

STEP = types.AdamParams(learning_rate=1e-2)


@pytest.fixture
def stored(tmp_path: Path) -> tinker_local.ServiceClient:
    return tinker_local.ServiceClient(state=str(tmp_path / "state"), user_metadata={"who": "tests"})


def trained(service: tinker_local.ServiceClient) -> tinker_local.TrainingClient:
    client = service.create_lora_training_client("tinker-local/tiny", rank=4, seed=1, train_mlp=False, user_metadata={"what": "a run"})
    client.forward_backward([example()], "cross_entropy")
    client.optim_step(STEP).result()
    return client


def test_listing(stored: tinker_local.ServiceClient) -> None:
    client, rest = trained(stored), stored.create_rest_client()
    state = client.save_state("one", ttl_seconds=3600).result().path
    weights = client.save_weights_for_sampler("two").result().path
    assert state == f"tinker://{client.model_id}/weights/one" and weights == f"tinker://{client.model_id}/sampler_weights/two"

    listed = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type, c.tinker_path) for c in listed] == [
        ("sampler_weights/two", "sampler", weights),
        ("weights/one", "training", state),
    ]
    now = datetime.now(timezone.utc)
    assert all(abs(c.time - now) < timedelta(minutes=5) and c.size_bytes > 0 and not c.public for c in listed)
    assert listed[0].expires_at is None and abs(listed[1].expires_at - now - timedelta(hours=1)) < timedelta(minutes=5)

    page = rest.list_user_checkpoints(limit=1, offset=1).result()
    assert [c.tinker_path for c in page.checkpoints] == [state]
    assert (page.cursor.offset, page.cursor.limit, page.cursor.total_count) == (1, 1, 2)

    run = rest.get_training_run(client.model_id).result()
    assert (run.base_model, run.model_owner, run.is_lora, run.lora_rank) == ("tinker-local/tiny", "local", True, 4)
    assert run.user_metadata == {"who": "tests", "what": "a run"}
    assert run.last_checkpoint.tinker_path == state and run.last_sampler_checkpoint.tinker_path == weights
    assert rest.get_training_run_by_tinker_path(state).result() == run
    runs = rest.list_training_runs().result()
    assert runs.training_runs == [run] and runs.cursor.total_count == 1

    info = rest.get_weights_info_by_tinker_path(state).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == ("tinker-local/tiny", True, 4)
    assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, False, True)


def test_changing(stored: tinker_local.ServiceClient) -> None:
    client, rest = trained(stored), stored.create_rest_client()
    path = client.save_state("one").result().path

    def now() -> types.Checkpoint:
        return rest.list_checkpoints(client.model_id).result().checkpoints[0]

    for _ in range(2):
        assert rest.publish_checkpoint_from_tinker_path(path).result() is None
    assert now().public
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not now().public
    rest.set_checkpoint_ttl_from_tinker_path(path, 60).result()
    assert now().expires_at is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert now().expires_at is None
    with pytest.raises(tinker_local.BadRequestError):
        rest.set_checkpoint_ttl_from_tinker_path(path, 0).result()
    rest.delete_checkpoint(client.model_id, "weights/one").result()
    assert rest.list_checkpoints(client.model_id).result().checkpoints == []
    with pytest.raises(tinker_local.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()


def test_not_found(stored: tinker_local.ServiceClient) -> None:
    rest = stored.create_rest_client()
    missing = "tinker://no:train:0/weights/such"
    for ask in (
        lambda: rest.get_training_run("no:train:0"),
        lambda: rest.get_training_run_by_tinker_path(missing),
        lambda: rest.get_weights_info_by_tinker_path(missing),
        lambda: rest.publish_checkpoint_from_tinker_path(missing),
        lambda: rest.get_session("none"),
        lambda: rest.get_sampler("none"),
    ):
        with pytest.raises(tinker_local.NotFoundError) as e:
            ask().result()
        assert e.value.status_code == 404
    with pytest.raises(tinker_local.BadRequestError):
        rest.get_training_run_by_tinker_path("elsewhere").result()
    with pytest.raises(tinker_local.BadRequestError):
        rest.delete_checkpoint_from_tinker_path("elsewhere").result()


def test_sessions_and_samplers(stored: tinker_local.ServiceClient) -> None:
    client, rest = trained(stored), stored.create_rest_client()
    sampler = client.create_sampling_client(client.save_weights_for_sampler("a").result().path)
    session = rest.list_sessions().result().sessions[0]
    assert client.model_id.startswith(session + ":train:") and sampler.sampler_id.startswith(session + ":sample:")
    held = rest.get_session(session).result()
    assert held.training_run_ids == [client.model_id] and held.sampler_ids == [sampler.sampler_id]
    found = rest.get_sampler(sampler.sampler_id).result()
    assert (found.base_model, found.model_path) == ("tinker-local/tiny", f"tinker://{client.model_id}/sampler_weights/a")


def test_what_does_not_exist_in_process(stored: tinker_local.ServiceClient) -> None:
    rest = stored.create_rest_client()
    assert rest.get_audit_log().result().entries == []
    assert rest.get_billing_usage("2026-01-01", datetime.now()).result().data == []
    with pytest.raises(RuntimeError):
        rest.whoami().result()
    with pytest.raises(RuntimeError):
        rest.export_session_trace("s").result()
    with pytest.raises(tinker_local.UnprocessableEntityError):
        rest.assign_session_project("s", "p").result()


def test_twins_give_the_same(stored: tinker_local.ServiceClient) -> None:
    client, rest = trained(stored), stored.create_rest_client()
    path = client.save_state("one").result().path
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("get_training_run", (client.model_id,)),
        ("get_training_run_by_tinker_path", (path,)),
        ("list_training_runs", ()),
        ("list_checkpoints", (client.model_id,)),
        ("list_user_checkpoints", (10, 0)),
        ("list_sessions", ()),
        ("get_audit_log", ()),
        ("get_billing_usage", ("a", "b")),
        ("publish_checkpoint_from_tinker_path", (path,)),
        ("unpublish_checkpoint_from_tinker_path", (path,)),
        ("set_checkpoint_ttl_from_tinker_path", (path, None)),
    ]

    async def twins() -> list[Any]:
        return [await getattr(rest, name + "_async")(*arguments) for name, arguments in calls]

    futures = [getattr(rest, name)(*arguments) for name, arguments in calls]
    assert all(isinstance(f, concurrent.futures.Future) for f in futures)
    assert asyncio.run(twins()) == [f.result() for f in futures]


def test_training_goes_on_bit_for_bit(stored: tinker_local.ServiceClient) -> None:
    def two_steps(client: tinker_local.TrainingClient) -> list[float]:
        out = []
        for _ in range(2):
            out.append(client.forward_backward([example()], "cross_entropy").result().metrics["loss:sum"])
            client.optim_step(STEP).result()
        return out

    client = trained(stored)
    path = client.save_state("one").result().path
    wanted = two_steps(client)
    assert two_steps(stored.create_training_client_from_state_with_optimizer(path)) == wanted
    weights_only = two_steps(stored.create_training_client_from_state(path))
    assert weights_only[0] == wanted[0] and weights_only[1] != wanted[1]
    client.load_state_with_optimizer(path).result()
    assert two_steps(client) == wanted
    loaded = client.load_state(path).result()
    assert (loaded.path, loaded.model_id) == (path, client.model_id)
    assert two_steps(client) == weights_only
    on_another_model = stored.create_training_client_from_state_with_optimizer(path, base_model="tinker-local/tiny")
    assert two_steps(on_another_model) == wanted


def test_twins_of_the_service(stored: tinker_local.ServiceClient) -> None:
    async def main() -> None:
        client = await stored.create_lora_training_client_async("tinker-local/tiny", rank=2)
        path = (await (await client.save_state_async("a"))).path
        assert (await stored.create_training_client_from_state_async(path)).get_info().lora_rank == 2
        assert (await stored.create_training_client_from_state_with_optimizer_async(path, "tinker-local/tiny")).model_id != client.model_id
        await (await client.load_state_async(path))
        await (await client.load_state_with_optimizer_async(path))
        weights = (await (await client.save_weights_for_sampler_async("w"))).path
        samplers = [
            await client.create_sampling_client_async(weights),
            await client.save_weights_and_get_sampling_client_async(),
            await stored.create_sampling_client_async(model_path=weights),
        ]
        prompt, params = types.ModelInput.from_ints([1, 2]), types.SamplingParams(max_tokens=3, temperature=0)
        drawn = [(await s.sample_async(prompt, 1, params)).sequences[0].tokens for s in samplers]
        assert drawn[0] == drawn[1] == drawn[2]
        assert await samplers[0].get_base_model_async() == (await client.get_info_async()).model_name
        assert (await stored.get_server_capabilities_async()).supported_models[0].max_context_length > 0

    asyncio.run(main())


def test_peft_folders(stored: tinker_local.ServiceClient, tmp_path: Path) -> None:
    client = trained(stored)
    client.save_peft(tmp_path / "adapter").result()
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    prompt, params = types.ModelInput.from_ints(list(b"hello")), types.SamplingParams(max_tokens=5, temperature=0)
    own = client.save_weights_and_get_sampling_client().sample(prompt, 1, params).result().sequences[0]
    read = stored.create_sampling_client(model_path=str(tmp_path / "adapter"), base_model="tinker-local/tiny").sample(prompt, 1, params).result()
    assert (read.sequences[0].tokens, read.sequences[0].logprobs) == (own.tokens, own.logprobs)
    before = client.forward([example()], "cross_entropy").result().metrics
    client.forward_backward([example()], "cross_entropy")
    client.optim_step(STEP)
    client.load_peft(tmp_path / "adapter").result()
    assert client.forward([example()], "cross_entropy").result().metrics == before
