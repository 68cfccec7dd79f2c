"""The official command line, as tables for people and as JSON for programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from clients import MODEL, VERSION, adam, cli, example, settled, since, sync
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def made() -> tuple[str, str, str, str]:
    """A run with a training state and sampler weights, and its session."""
    run = tinker.ServiceClient().create_lora_training_client(MODEL, rank=4, seed=1)
    run.forward_backward([example()], "cross_entropy")
    run.optim_step(adam())
    state, sampler = settled(run.save_state("state")).path, settled(run.save_weights_for_sampler("sampler")).path
    run_id = sync(run, "get_info").model_id
    return run_id, state, sampler, run_id.split(":train:")[0]


def test_version() -> None:
    assert cli("version", process=True).split()[-1] == tinker.__version__


def test_run_list(made: Any) -> None:
    assert made[0] in cli("run", "list", "--limit", "0", process=True)
    listed = cli("run", "list", "--limit", "0", format="json")
    assert made[0] in json.dumps(listed)
    assert len(next(v for v in listed.values() if isinstance(v, list))) >= 1
    assert cli("run", "list", "--limit", "1", "--columns", "id,model") is not None


def test_run_info(made: Any) -> None:
    assert MODEL in cli("run", "info", made[0])
    info = cli("run", "info", made[0], format="json")
    assert made[0] in json.dumps(info) and MODEL in json.dumps(info)
    assert "nobody" in cli("run", "info", "nobody", fails=True, process=True)


def test_checkpoint_list(made: Any) -> None:
    run, state, sampler, _ = made
    for selection in ((), ("--run-id", run), ("--limit", "0")):
        text = json.dumps(cli("checkpoint", "list", *selection, format="json"))
        assert selection == () or state in text and sampler in text
    table = cli("checkpoint", "list", "--run-id", run)
    assert "weights/state" in table and "sampler_weights/sampler" in table


def test_checkpoint_info(made: Any) -> None:
    _, state, _, _ = made
    assert "state" in cli("checkpoint", "info", state)
    assert state in json.dumps(cli("checkpoint", "info", state, format="json"))
    assert cli("checkpoint", "info", state + "x", fails=True)


def test_publish_and_unpublish(made: Any) -> None:
    _, state, _, _ = made
    cli("checkpoint", "publish", state)
    assert '"public": true' in json.dumps(cli("checkpoint", "info", state, format="json")).lower()
    cli("checkpoint", "unpublish", state)
    assert '"public": false' in json.dumps(cli("checkpoint", "info", state, format="json")).lower()


def test_set_ttl(made: Any) -> None:
    _, state, _, _ = made
    cli("checkpoint", "set-ttl", state, "--ttl", "7200")
    info = cli("checkpoint", "info", state, format="json")
    assert "20" in str(next((v for k, v in walk(info) if k == "expires_at"), ""))
    cli("checkpoint", "set-ttl", state, "--remove")
    info = cli("checkpoint", "info", state, format="json")
    assert next((v for k, v in walk(info) if k == "expires_at"), None) in (None, "Never")


def walk(v: Any) -> Any:
    for k, x in v.items() if isinstance(v, dict) else []:
        yield k, x
        yield from walk(x)


def test_download(made: Any, in_tmp: Path) -> None:
    """Up to 0.25 sampler weights, as an archive; since 0.38 training state, exported by a run that the command makes and unmakes."""
    run, state, sampler, _ = made
    path = state if VERSION >= (0, 38) else sampler
    cli("checkpoint", "download", path)
    told = cli("checkpoint", "download", path, "-o", "other", format="json", process=True)
    name = path.removeprefix("tinker://").replace("/", "_")
    for folder in (Path(name), Path("other") / name):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert len(tensors) == 2 * 29 and all(np.any(v) for v in tensors.values())
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    assert told["destination"].endswith(name)
    assert "already exists" in cli("checkpoint", "download", path, fails=True)
    cli("checkpoint", "download", path, "--force")
    left = json.dumps(cli("checkpoint", "list", "--limit", "0", format="json"))
    assert "/external_weights/download" not in left


def test_push_hf_has_no_hub(made: Any) -> None:
    """The hub cannot be reached from here; the command says so."""
    assert cli("checkpoint", "push-hf", made[2], "--repo", "nobody/nothing", fails=True)


def test_delete(made: Any) -> None:
    run, state, sampler, _ = made
    if VERSION >= (0, 25):  # before, the command trips over a name of its own
        cli("checkpoint", "delete", state, "-y")
        assert cli("checkpoint", "delete", state, "-y", format="json")["failed"][0]["tinker_path"] == state
    else:
        cli("checkpoint", "delete", "--run-id", run, "--type", "weights", "-y")
    left = json.dumps(cli("checkpoint", "list", "--run-id", run, format="json"))
    assert state not in left and sampler in left
    assert cli("checkpoint", "delete", "--run-id", run, "--type", "sampler_weights", "-y", format="json") == {"deleted_count": 1, "failed": []}
    assert "weights/" not in json.dumps(cli("checkpoint", "list", "--run-id", run, format="json"))


@since(0, 25)
def test_export_trace(made: Any) -> None:
    assert "trace" in cli("session", "export-trace", made[3], fails=True)


@since(0, 25)
def test_billing(in_tmp: Path) -> None:
    assert cli("billing", "usage", "2026-01-01", "2026-01-02", format="json")["data"] == []
    assert cli("billing", "usage", "2026-01-01", "2026-01-02", "--csv", "usage.csv") is not None
    assert len(list(csv.reader(open("usage.csv")))) <= 1


@since(0, 38)
def test_billing_of_storage() -> None:
    for format in ("table", "json"):
        assert cli("billing", "checkpoint-storage", format=format) is not None


@since(0, 38)
def test_model_list() -> None:
    assert MODEL in cli("model", "list") and MODEL in json.dumps(cli("model", "list", "tiny", format="json"))


@since(0, 38)
def test_auth() -> None:
    assert cli("auth", "status") is not None
    assert ":local" in str(cli("auth", "whoami"))
