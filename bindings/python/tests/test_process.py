"""The process around the engine: Ctrl-C, fork, spawn, the end of the program, garbage, the command line program."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
from conftest import example, left_over

import tinker_local
from tinker_local import types

PROMPT = types.ModelInput.from_ints(list(b"hello"))
SHORT = types.SamplingParams(max_tokens=4, temperature=0.0)


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, **options)


BEGIN = """
    import os, signal, sys, threading, time
    import tinker_local
    from tinker_local import types
    service = tinker_local.ServiceClient(state=":memory:")
    client = service.create_lora_training_client("tinker-local/tiny", rank=4)
    datum = types.Datum(types.ModelInput.from_ints([1] * 1500), {"target_tokens": [2] * 1500})
"""


@pytest.mark.parametrize("wait", ["future.result()", "future.future().result()", "client.forward_backward_custom([datum] * 80, loss)"])
def test_ctrl_c_ends_a_wait(wait: str) -> None:
    """And the process, its engine included, goes on working."""
    out = run(
        BEGIN
        + f"""
    loss = tinker_local.numpy_loss(lambda data, logprobs: (0.0, {{}}, logprobs))
    future = client.forward_backward([datum] * 80, "cross_entropy")
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        {wait}
    except KeyboardInterrupt:
        print("interrupted")
    client.close()
    other = service.create_lora_training_client("tinker-local/tiny", rank=2)
    print(len(other.forward([datum], "cross_entropy").result().loss_fn_outputs))
    """
    )
    assert out.stdout.split() == ["interrupted", "1"], out.stderr


def test_ctrl_c_comes_soon(training: tinker_local.TrainingClient) -> None:
    future = training.forward_backward([example("x" * 1500)] * 30, "cross_entropy")
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(0.1, send).start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    assert time.monotonic() - sent[0] < 1.0  # a tenth of a second, and what a busy machine adds
    training.close()


def in_a_spawned_process(sampler: tinker_local.SamplingClient) -> list[int]:
    return sampler.sample(PROMPT, 1, SHORT).result().sequences[0].tokens


def test_spawn(service: tinker_local.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="tinker-local/tiny")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(in_a_spawned_process, [sampler]) == in_a_spawned_process(sampler)


def test_what_cannot_be_pickled(training: tinker_local.TrainingClient) -> None:
    with pytest.raises(TypeError, match="save_peft"):
        pickle.dumps(training.save_weights_and_get_sampling_client())
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(training)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork() -> None:
    """Every way to use the engine says why it cannot; nothing hangs, and the parent goes on."""
    out = run(
        BEGIN
        + """
    import asyncio
    sampler = service.create_sampling_client(base_model="tinker-local/tiny")
    prompt, params = types.ModelInput.from_ints([1]), types.SamplingParams(max_tokens=500)
    pending, sampling = client.forward([datum], "cross_entropy"), sampler.sample(prompt, 16, params)
    rest = service.create_rest_client()
    rest.list_sessions().result()
    pid = os.fork()
    if pid == 0:
        tries = [
            lambda: client.forward([datum], "cross_entropy").result(),
            lambda: sampler.sample(prompt, 1, params).result(),
            lambda: pending.result(), lambda: sampling.result(), lambda: asyncio.run(pending.result_async()),
            lambda: client.save_state("a").result(), lambda: rest.list_sessions().result(),
            lambda: pending.future(), lambda: pending.cancel(), lambda: client.get_tokenizer(), lambda: pending.done(),
            lambda: client.get_info(), lambda: tinker_local.ServiceClient(state=":memory:"), lambda: client.close(),
            lambda: service.engine.info(), lambda: tinker_local.debug_counts(),
        ]
        for i, one in enumerate(tries):
            try:
                one()
                print("no error from", i)
            except tinker_local.ForkedError as e:
                assert "spawn" in str(e)
        del tries, client, sampler, pending, sampling, rest, service
        import gc; gc.collect()
        sys.stdout.flush()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    print(len(client.forward([datum], "cross_entropy").result().loss_fn_outputs), len(sampling.result().sequences))
    """
    )
    assert out.stdout.split() == ["1", "16"], out.stdout + out.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_before_the_first_call() -> None:
    out = run(
        """
    import os
    import tinker_local
    pid = os.fork()
    service = tinker_local.ServiceClient(state=":memory:")
    os.write(1, b"%d " % len(service.get_server_capabilities().supported_models))
    if pid: os.waitpid(pid, 0)
    """
    )
    assert out.stdout.split() == ["1", "1"], out.stderr


@pytest.mark.parametrize(
    "end",
    [
        "",
        "client.forward_backward([datum] * 40, 'cross_entropy')",
        "client.save_state('a')",
        "threading.Thread(target=client.forward_backward([datum] * 40, 'cross_entropy').future().exception, daemon=True).start(); time.sleep(0.2)",
        "service.create_sampling_client(base_model='tinker-local/tiny').sample(types.ModelInput.from_ints([1]), 64, types.SamplingParams())",
        "service.engine.close(); service.engine.close()",
        "sys.exit(0)",
    ],
)
def test_the_end_of_a_program(end: str) -> None:
    out = run(BEGIN + f"\n    {end}\n")
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_garbage_in_any_order(kept: tinker_local.ServiceClient) -> None:
    """Whatever is let go of first, nothing stays."""
    gc.collect()
    before = tinker_local.debug_counts()
    for seed in range(6):
        rng = random.Random(seed)
        service = tinker_local.ServiceClient(state=":memory:", models="/nonexistent", device="cpu")
        client = service.create_lora_training_client("tinker-local/tiny", rank=2, seed=seed)
        sampler = client.save_weights_and_get_sampling_client()
        things: list[Any] = [
            client,
            sampler,
            service.create_rest_client(),
            client.forward_backward([example()], "cross_entropy"),
            client.forward_backward([example()], "no such loss"),
            client.optim_step(types.AdamParams()),
            client.save_state(f"s{seed}"),
            sampler.sample(PROMPT, 2, SHORT),
            client.forward([example()], "cross_entropy"),
            client.get_tokenizer(),
            service,
        ]
        del service, client, sampler
        rng.shuffle(things)
        while things:
            thing = things.pop()
            if rng.random() < 0.5 and hasattr(thing, "result"):
                try:
                    thing.result()
                except tinker_local.RequestFailedError:
                    pass  # the loss that does not exist, or a run that was let go of first
            del thing
            if rng.random() < 0.3:
                gc.collect()
    assert left_over(before) == {}


def test_loops_do_not_leak(training: tinker_local.TrainingClient) -> None:
    def once() -> None:
        training.forward_backward([example()], "cross_entropy").result()
        training.optim_step(types.AdamParams()).result()

    once()
    before = tinker_local.debug_counts()
    for _ in range(50):
        once()
    assert left_over(before) == {}


def test_engines_are_shared(tmp_path: Any) -> None:
    state = str(tmp_path / "state")
    one, two = tinker_local.ServiceClient(state=state), tinker_local.ServiceClient(state=state)
    assert one.engine is two.engine
    with pytest.raises(tinker_local.RateLimitError, match="use"):
        tinker_local.ServiceClient(state=state, dtype="float32")  # another engine on the same folder
    path = one.create_lora_training_client("tinker-local/tiny", rank=2).save_state("a").result().path
    del one, two
    again = tinker_local.ServiceClient(state=state, dtype="float32")  # the folder is free again
    assert again.create_rest_client().list_user_checkpoints().result().checkpoints[0].tinker_path == path


def test_a_closed_engine_makes_room_for_another(tmp_path: Any) -> None:
    state = str(tmp_path / "state")
    one = tinker_local.ServiceClient(state=state)
    client = one.create_lora_training_client("tinker-local/tiny", rank=2)
    one.engine.close()
    with pytest.raises(tinker_local.RequestFailedError, match="closed"):
        client.forward([example()], "cross_entropy").result()
    two = tinker_local.ServiceClient(state=state)
    assert two.engine is not one.engine
    assert two.create_lora_training_client("tinker-local/tiny", rank=2).forward([example()], "cross_entropy").result().metrics


def test_connection_arguments_are_ignored_with_a_note() -> None:
    with pytest.warns(UserWarning, match="api_key, base_url is ignored"):
        tinker_local.ServiceClient(base_url="http://example.invalid", api_key="tml-x", state=":memory:", models="/nonexistent", device="cpu")


def test_import_needs_no_library_and_no_torch() -> None:
    out = run(
        """
    import sys
    sys.modules["torch"] = None
    import tinker_local
    from tinker_local import types
    types.Datum(types.ModelInput.from_ints([1]), {"target_tokens": [1]})
    print(sorted(m for m in sys.modules if m in ("pydantic", "httpx", "transformers")))
    """,
        env={**os.environ, "TINKER_LOCAL_LIBRARY": "/no/such/library"},
    )
    assert out.stdout.strip() == "[]", out.stderr


def test_the_command_line_program() -> None:
    out = subprocess.run([sys.executable, "-m", "tinker_local", "version"], capture_output=True, text=True, timeout=60)
    if "there is no program" in out.stderr:
        pytest.skip("the program is not built: make build")
    assert out.returncode == 0 and out.stdout.startswith("tinker-local ")
    assert subprocess.run([sys.executable, "-m", "tinker_local", "no-such-command"], capture_output=True, timeout=60).returncode != 0
