"""Futures: waiting, timeouts, threads, asyncio, callbacks, cancelling."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

import pytest
from conftest import example

import tinker_local
from tinker_local import types

LONG = types.SamplingParams(max_tokens=2000, temperature=1.0, seed=1)
SHORT = types.SamplingParams(max_tokens=4, temperature=0.0)
PROMPT = types.ModelInput.from_ints(list(b"hello"))


@pytest.fixture
def sampling(service: tinker_local.ServiceClient) -> tinker_local.SamplingClient:
    return service.create_sampling_client(base_model="tinker-local/tiny")


def test_result_any_number_of_times_from_any_thread(training: tinker_local.TrainingClient) -> None:
    future = training.forward([example()], "cross_entropy")
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(future.result())) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 8 and all(r is got[0] for r in got) and future.result() is got[0]


def test_timeout_leaves_the_operation_alone(training: tinker_local.TrainingClient) -> None:
    data = [example("x" * 1500)] * 8
    future = training.forward_backward(data, "cross_entropy")
    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.001)
    assert len(future.result().loss_fn_outputs) == 8


def test_order_is_that_of_the_calls(training: tinker_local.TrainingClient) -> None:
    passes = []
    for _ in range(5):
        passes.append(training.forward_backward([example()], "cross_entropy"))
        training.optim_step(types.AdamParams(learning_rate=1e-3))  # nobody waits for it, and it happens
    losses = [f.result().metrics["loss:sum"] for f in passes]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5


def test_many_threads_submit(service: tinker_local.ServiceClient) -> None:
    def work(seed: int) -> float:
        client = service.create_lora_training_client("tinker-local/tiny", rank=2, seed=seed)
        for _ in range(3):
            client.forward_backward([example(), example("other")], "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        return client.forward([example()], "cross_entropy").result().metrics["loss:sum"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, [1, 2, 3, 4] * 2))
    assert together[:4] == together[4:] == [work(seed) for seed in (1, 2, 3, 4)]


def test_sampling_gives_concurrent_futures(sampling: tinker_local.SamplingClient) -> None:
    futures = [sampling.sample(PROMPT, 1, SHORT) for _ in range(20)]
    assert all(isinstance(f, concurrent.futures.Future) for f in futures)
    called = threading.Event()
    futures[0].add_done_callback(lambda f: called.set())
    done = list(concurrent.futures.as_completed(futures, timeout=30))
    assert len(done) == 20 and called.wait(5)
    assert len({tuple(f.result().sequences[0].tokens) for f in done}) == 1
    assert futures[0].done() and futures[0].exception() is None
    with pytest.raises(TimeoutError):
        sampling.sample(PROMPT, 32, LONG).result(timeout=0)


def test_a_training_future_as_a_concurrent_one(training: tinker_local.TrainingClient) -> None:
    future = training.forward([example()], "cross_entropy")
    assert concurrent.futures.wait([future.future()], timeout=30).not_done == set()  # type: ignore[attr-defined]
    assert future.future().result() is future.result()  # type: ignore[attr-defined]


def test_awaitable_concurrent_future() -> None:
    inner: concurrent.futures.Future[int] = concurrent.futures.Future()
    future = tinker_local.AwaitableConcurrentFuture(inner)
    threading.Timer(0.05, inner.set_result, [5]).start()

    async def main() -> list[int]:
        return [await future, await future.result_async(1)]

    assert asyncio.run(main()) == [5, 5] and future.result() == 5 and future.future() is inner


def test_asyncio_many(sampling: tinker_local.SamplingClient) -> None:
    async def main() -> None:
        answers = await asyncio.gather(*(sampling.sample_async(PROMPT, 1, SHORT) for _ in range(200)))
        assert len({tuple(a.sequences[0].tokens) for a in answers}) == 1
        logprobs = await asyncio.gather(*(sampling.compute_logprobs_async(PROMPT) for _ in range(20)))
        assert all(lp == logprobs[0] for lp in logprobs)
        assert (await asyncio.wrap_future(sampling.sample(PROMPT, 1, SHORT))).sequences[0].tokens == answers[0].sequences[0].tokens
        assert (await sampling.sample(PROMPT, 1, SHORT)).sequences[0].tokens == answers[0].sequences[0].tokens

    asyncio.run(main())


def test_the_event_loop_runs_meanwhile(training: tinker_local.TrainingClient) -> None:
    async def main() -> int:
        task = asyncio.ensure_future(training.forward_backward([example("x" * 1500)] * 4, "cross_entropy").result_async())
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.002)
            ticks += 1
        await task
        return ticks

    assert asyncio.run(main()) > 3


def test_a_cancelled_wait_leaves_the_operation_alone(training: tinker_local.TrainingClient) -> None:
    async def main() -> Any:
        future = training.forward_backward([example("x" * 1500)] * 4, "cross_entropy")
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(future.result_async(), 0.001)
        with pytest.raises(TimeoutError):
            await future.result_async(timeout=0.001)
        return await future

    assert len(asyncio.run(main()).loss_fn_outputs) == 4


def test_an_event_loop_that_ends_first(training: tinker_local.TrainingClient) -> None:
    future = training.forward_backward([example("x" * 1500)] * 4, "cross_entropy")

    async def main() -> None:
        asyncio.ensure_future(future.result_async())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert len(future.result().loss_fn_outputs) == 4


def test_cancelling_stops_sampling(sampling: tinker_local.SamplingClient) -> None:
    future = sampling.sample(PROMPT, 8, LONG)
    began = time.monotonic()
    assert future.cancel()
    with pytest.raises(tinker_local.RequestFailedError):
        future.result(timeout=30)
    whole = sampling.sample(PROMPT, 1, types.SamplingParams(max_tokens=50, seed=1)).result()
    assert whole.sequences and time.monotonic() - began < 30


def test_a_failed_operation_raises_each_time(training: tinker_local.TrainingClient) -> None:
    future = training.forward_backward([example()], "no such loss")
    for _ in range(2):
        with pytest.raises(tinker_local.RequestFailedError):
            future.result()

    async def main() -> None:
        await future

    with pytest.raises(tinker_local.RequestFailedError):
        asyncio.run(main())
    assert isinstance(future.future().exception(5), tinker_local.RequestFailedError)  # type: ignore[attr-defined]
