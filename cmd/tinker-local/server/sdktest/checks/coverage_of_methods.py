"""Which public methods of the SDK's clients were called by the checks. The SDK is looked at, not changed: a profile function sees each call."""

from __future__ import annotations

import inspect
import sys
import threading
from types import CodeType, FrameType
from typing import Any

import tinker
from tinker.lib.public_interfaces import rest_client, sampling_client, service_client, training_client

CLIENTS = [service_client.ServiceClient, training_client.TrainingClient, sampling_client.SamplingClient, rest_client.RestClient]
if hasattr(tinker, "AdminClient"):  # since 0.38
    CLIENTS.append(tinker.AdminClient)


def code(member: Any) -> CodeType | None:
    """The code of a method below its decorators."""
    if isinstance(member, property):
        member = member.fget
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    return getattr(inspect.unwrap(member), "__code__", None)


def public() -> dict[str, CodeType]:
    found = {}
    for client in CLIENTS:
        for name in dir(client):
            body = code(inspect.getattr_static(client, name)) if not name.startswith("_") else None
            if body is not None:
                found[f"{client.__name__}.{name}"] = body
    return found


called: set[CodeType] = set()


def watch() -> None:
    wanted = set(public().values())

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in wanted:
            called.add(frame.f_code)

    threading.setprofile(see)  # an asyncio twin may run on a thread of the SDK's
    sys.setprofile(see)
