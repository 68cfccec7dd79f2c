"""The server's address and a key are in the environment, as any user would set them; nothing else about the SDK is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage_of_methods
import pytest
import tinker
from clients import MODEL, in_loop, sync, unload


def pytest_configure(config: pytest.Config) -> None:
    coverage_of_methods.watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == "test_coverage.py")  # looks at what the others did


@pytest.fixture(scope="session")
def service() -> tinker.ServiceClient:
    return tinker.ServiceClient(user_metadata={"purpose": "checks"})


@pytest.fixture(scope="session")
def rest(service: tinker.ServiceClient) -> Any:
    return service.create_rest_client()


@pytest.fixture
def training(service: tinker.ServiceClient) -> Iterator[Any]:
    """A fresh run. It is used as scripts of every version use it, whether it is a client or, since 0.38, a future of one."""
    run = service.create_lora_training_client(MODEL, rank=4, seed=1)
    yield run
    unload(sync(run, "get_info").model_id)


@pytest.fixture(scope="session")
def base(service: tinker.ServiceClient) -> Any:
    return service.create_sampling_client(base_model=MODEL)


@pytest.fixture(params=[sync, in_loop], ids=["sync", "async"])
def do(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout, for goldens."""
    return Path(os.environ["TINKER_LOCAL_ROOT"])


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
