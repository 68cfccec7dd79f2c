"""RestClient: lists, sessions, samplers, and what a hosted service would bill and audit."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import tinker
from clients import MODEL, ints, refused, settled, since, sync
from tinker import types


@pytest.fixture(scope="module")
def lists() -> Any:
    """A client with runs and checkpoints of its own."""
    service = tinker.ServiceClient(user_metadata={"purpose": "lists"})
    runs = [service.create_lora_training_client(MODEL, rank=r, user_metadata={"n": str(r)}) for r in (1, 2, 3)]
    for run in runs:
        settled(run.save_state("s"))
    return service, [sync(r, "get_info").model_id for r in runs]


def test_training_runs(lists: Any, rest: Any, do: Any) -> None:
    _, ids = lists
    everything, offset = [], 0
    while True:
        page = do(rest, "list_training_runs", limit=7, offset=offset)
        assert (page.cursor.offset, page.cursor.limit) == (offset, 7) and len(page.training_runs) <= 7
        everything += page.training_runs
        offset += 7
        if not page.training_runs:
            break
    assert page.cursor.total_count >= len(ids)
    found = {r.training_run_id: r for r in everything}
    assert [found[i].lora_rank for i in ids] == [1, 2, 3] and {found[i].base_model for i in ids} == {MODEL}
    assert all(found[i].last_checkpoint.tinker_path == f"tinker://{i}/weights/s" for i in ids)
    for scope in ("owned", "accessible"):
        assert do(rest, "get_training_run", ids[0], scope).user_metadata == {"n": "1"}
        assert do(rest, "get_training_run_by_tinker_path", f"tinker://{ids[1]}/weights/s", scope).lora_rank == 2
    with refused("nobody"):
        do(rest, "get_training_run", "nobody:train:0")
    with refused("limit|offset"):
        do(rest, "list_training_runs", limit=-1)


def test_user_checkpoints(lists: Any, rest: Any, do: Any) -> None:
    _, ids = lists
    page = do(rest, "list_user_checkpoints", limit=1000)
    paths = [c.tinker_path for c in page.checkpoints]
    mine = [p for p in paths if p.split("/")[2] in ids]
    assert mine == [f"tinker://{i}/weights/s" for i in reversed(ids)], "newest first"
    assert page.cursor is None or page.cursor.total_count >= 3
    assert len(do(rest, "list_user_checkpoints", limit=2, offset=1).checkpoints) == 2
    assert do(rest, "list_checkpoints", ids[0]).checkpoints[0].tinker_path == mine[-1]


def test_sessions(lists: Any, rest: Any, do: Any) -> None:
    service, ids = lists
    sampler = service.create_sampling_client(base_model=MODEL)
    settled(sampler.sample(ints("a"), 1, types.SamplingParams(max_tokens=1)))
    sessions = do(rest, "list_sessions", limit=1000).sessions
    session = ids[0].split(":train:")[0]
    assert session in sessions and len(set(sessions)) == len(sessions)
    assert len(do(rest, "list_sessions", limit=1).sessions) == 1
    content = do(rest, "get_session", session)
    assert content.training_run_ids == ids and len(content.sampler_ids) in (1, 2)
    s = do(rest, "get_sampler", content.sampler_ids[0])
    assert (s.sampler_id, s.base_model, s.model_path) == (content.sampler_ids[0], MODEL, None)
    for method, thing in (("get_session", "nobody"), ("get_sampler", "nobody")):
        with refused("nobody"):
            do(rest, method, thing)


@since(0, 25)
def test_projects(lists: Any, rest: Any, do: Any) -> None:
    _, ids = lists
    do(rest, "assign_session_project", ids[0].split(":train:")[0], "mine")


@since(0, 25)
def test_trace(lists: Any, rest: Any, do: Any) -> None:
    """There is none, and the client says why."""
    with pytest.raises(RuntimeError, match="trace"):
        do(rest, "export_session_trace", lists[1][0].split(":train:")[0])


@since(0, 25)
def test_whoami(rest: Any, do: Any) -> None:
    """The SDK reads it from the token that it was given for its key."""
    assert do(rest, "whoami").user_urn.endswith(":local")


@since(0, 25)
def test_audit_and_billing(rest: Any, do: Any) -> None:
    """Valid, and empty: nothing costs anything here."""
    assert do(rest, "get_audit_log").entries == [] and do(rest, "get_audit_log", "checkpoints", date.today()).entries == []
    end = datetime.now(timezone.utc)
    usage = do(rest, "get_billing_usage", end - timedelta(days=1), end)
    assert usage.data == [] and usage.sessions == {}
    assert do(rest, "get_billing_usage", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z").data == []


@since(0, 38)
def test_storage(lists: Any, rest: Any, do: Any) -> None:
    usage = do(rest, "get_current_checkpoint_storage_usage")
    assert usage is not None


@since(0, 38)
def test_admin(do: Any) -> None:
    admin = tinker.AdminClient()
    end = datetime.now(timezone.utc)
    assert do(admin, "get_audit_log").entries == []
    assert do(admin, "get_billing_usage", end - timedelta(days=1), end).data == []
    assert do(admin, "get_current_checkpoint_storage_usage") is not None
    assert admin.get_telemetry() is not None


@since(0, 38)
def test_search(lists: Any, rest: Any, do: Any) -> None:
    found = do(rest, "search_sessions", types.SessionSearchRequest())
    assert found is not None


@since(0, 38)
def test_capabilities_without_a_session(rest: Any, do: Any) -> None:
    assert MODEL in [m.model_name for m in do(rest, "get_server_capabilities").supported_models]
