"""What the checks share: small inputs, one way to call a method and its asyncio twin, and the official command line."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tinker
from click.testing import CliRunner
from tinker import types
from tinker.cli.__main__ import main_cli as program

VERSION = tuple(int(n) for n in tinker.__version__.split(".")[:2])
MODEL = "tinker-local/tiny"
WAIT = 120  # seconds; a result that takes longer is a hang

try:
    import torch  # noqa: F401

    TORCH = True
except ImportError:
    TORCH = False
needs_torch = pytest.mark.skipif(not TORCH, reason="torch is not installed here: make acceptance has it")


def since(*version: int) -> Any:
    return pytest.mark.skipif(VERSION < version, reason=f"SDK {tinker.__version__} does not have it")


def until(*version: int) -> Any:
    return pytest.mark.skipif(VERSION >= version, reason=f"SDK {tinker.__version__} does not have it any more")


def settled(x: Any) -> Any:
    """The value of a future; anything else as it is."""
    return x.result(timeout=WAIT) if callable(getattr(x, "result", None)) else x


def sync(of: Any, method: str, *args: Any, **kw: Any) -> Any:
    return settled(getattr(of, method)(*args, **kw))


def in_loop(of: Any, method: str, *args: Any, **kw: Any) -> Any:
    """The same through the method's asyncio twin, or by awaiting what a method without one returns."""

    async def go() -> Any:
        x = getattr(of, method + "_async", getattr(of, method))(*args, **kw)
        if VERSION == (0, 25) and method == "get_audit_log":  # a slip of that version: this one works in the client's own loop only
            x = of.holder.run_coroutine_threadsafe(x)
        for _ in range(2):  # training methods give a future in a coroutine
            if inspect.isawaitable(x):
                x = await asyncio.wait_for(x, WAIT)
        return x

    return asyncio.run(go())


def ints(text: str) -> types.ModelInput:
    """The embedded model's tokens are bytes."""
    return types.ModelInput.from_ints(list(text.encode()))


def example(text: str = "hello world", weight: float = 1.0) -> types.Datum:
    """A text to learn."""
    tokens = list(text.encode())
    return datum(tokens[:-1], target_tokens=tokens[1:], weights=[weight] * (len(tokens) - 1))


def datum(tokens: list[int], **inputs: Any) -> types.Datum:
    """Inputs are arrays, as any client may send them, or TensorData."""
    made = {k: v if isinstance(v, types.TensorData) else np.array(v, np.int64 if k == "target_tokens" else np.float32) for k, v in inputs.items()}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=made)


def logprobs(out: types.ForwardBackwardOutput) -> list[np.ndarray]:
    arrays = []
    for one in out.loss_fn_outputs:
        t = one["logprobs"]
        arrays.append(np.asarray(t.data, np.float32).reshape(t.shape or [-1]))
    return arrays


def adam(**kw: Any) -> types.AdamParams:
    return types.AdamParams(**({"learning_rate": 1e-2} | kw))


@contextlib.contextmanager
def fails(match: str, category: str = "user") -> Iterator[None]:
    """Work that was accepted and failed: RequestFailedError with its category."""
    with pytest.raises(tinker.RequestFailedError, match=match) as e:
        yield
    assert str(getattr(e.value.category, "value", e.value.category)).lower() == category, e.value


@contextlib.contextmanager
def refused(match: str, *statuses: int) -> Iterator[None]:
    """A request that was refused at once, with a status that clients do not repeat; or, for those that only start work, work that failed."""
    with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError), match=match) as e:
        yield
    if isinstance(e.value, tinker.APIStatusError):
        assert e.value.status_code in (statuses or (400, 404)), e.value
    else:
        assert str(getattr(e.value.category, "value", e.value.category)).lower() == "user", e.value


def unload(run: str) -> None:
    """Gives a run up, so that hundreds of checks do not hold hundreds of runs. No public method of the SDK sends this request."""
    body = json.dumps({"model_id": run, "type": "unload_model"}).encode()
    headers = {"X-API-Key": os.environ["TINKER_API_KEY"], "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(os.environ["TINKER_BASE_URL"] + "/api/v1/unload_model", body, headers), timeout=WAIT).close()


commands_run: list[tuple[str, ...]] = []


def cli(*args: str, format: str = "", fails: bool = False, process: bool = False) -> Any:
    """Runs the official command line; gives its output, read when the format is json, or its complaint when it has to fail.

    It runs in this process, which saves the second that Python and its imports take, unless a process of its own is asked for."""
    commands_run.append(args)
    words = [*(["-f", format] if format else []), *args]
    if process:
        env = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-m", "tinker.cli", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=WAIT, env=env)
        code, out, complaint = done.returncode, done.stdout, done.stderr
    else:
        ran = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(program, words)
        code, out, complaint = ran.exit_code, ran.stdout, ran.stderr + (f"\n{ran.exception!r}" if ran.exception else "")
    assert code == int(fails), (args, out, complaint)
    if fails:
        return complaint
    return json.loads(out) if format == "json" else out
