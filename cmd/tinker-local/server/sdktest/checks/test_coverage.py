"""Runs last: what the others did not call."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from clients import TORCH, commands_run
from coverage_of_methods import called, public
from tinker.cli.__main__ import main_cli as program

# What needs torch has its checks here too; they are skipped where torch is not installed.
NEEDS_TORCH = {"ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom", "TrainingClient.forward_backward_custom_async"}
# Interactive, with the hosted service's web pages.
HOSTED_ONLY = {("auth", "login"), ("auth", "logout")}


@pytest.fixture(autouse=True)
def all_were_run(request: pytest.FixtureRequest) -> None:
    here = Path(__file__).parent
    if request.config.option.keyword or {i.path.name for i in request.session.items} != {p.name for p in here.glob("test_*.py")}:
        pytest.skip("only some checks are run")


def test_each_public_method_has_a_check() -> None:
    methods = public()
    assert len(methods) > 70
    missing = {name for name, body in methods.items() if body not in called}
    if not TORCH:
        missing -= NEEDS_TORCH
    assert not missing, "no check calls these methods of the SDK"


def test_each_command_has_a_check() -> None:
    def leaves(c: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not isinstance(c, click.Group):
            return [path]
        with click.Context(c) as ctx:
            return [leaf for name in c.list_commands(ctx) for leaf in leaves(c.get_command(ctx, name), (*path, name))]

    commands = leaves(program, ())
    assert len(commands) > 8
    missing = {c for c in commands if not any(run[: len(c)] == c for run in commands_run)}
    assert not missing - HOSTED_ONLY, "no check runs these commands"
