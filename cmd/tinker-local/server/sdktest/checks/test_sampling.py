"""SamplingClient: tokens, log-probabilities, stops, seeds, snapshots, copies in other processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from clients import MODEL, WAIT, adam, datum, example, fails, ints, logprobs, refused, settled, since, sync
from tinker import types

TEXT = "hello world, hello "


def params(**kw: Any) -> types.SamplingParams:
    return types.SamplingParams(**({"max_tokens": 8, "temperature": 1.0, "seed": 7} | kw))


def test_sample(base: Any, do: Any) -> None:
    out = do(base, "sample", ints(TEXT), 3, params())
    assert len(out.sequences) == 3 and len({tuple(s.tokens) for s in out.sequences}) > 1
    for s in out.sequences:
        assert len(s.tokens) == len(s.logprobs) <= 8 and s.stop_reason in ("length", "stop") and all(lp <= 0 for lp in s.logprobs)
    again = do(base, "sample", ints(TEXT), 3, params())
    assert [(list(s.tokens), list(s.logprobs)) for s in again.sequences] == [(list(s.tokens), list(s.logprobs)) for s in out.sequences]
    assert out.prompt_logprobs is None and out.topk_prompt_logprobs is None
    assert [list(s.tokens) for s in do(base, "sample", ints(TEXT), 3, params(seed=8)).sequences] != [list(s.tokens) for s in out.sequences]


def test_seedless_samples_differ(base: Any) -> None:
    drawn = {tuple(settled(base.sample(ints(TEXT), 1, params(seed=None, temperature=2.0))).sequences[0].tokens) for _ in range(4)}
    assert len(drawn) > 1


def test_prompt_logprobs(base: Any, training: Any, do: Any) -> None:
    """The trainer's log-probabilities, bit for bit: a fresh adapter is the base model."""
    tokens = list(TEXT.encode())
    (trained,) = logprobs(settled(training.forward([datum(tokens[:-1], target_tokens=tokens[1:])], "cross_entropy")))
    out = do(base, "sample", ints(TEXT), 1, params(max_tokens=1), include_prompt_logprobs=True, topk_prompt_logprobs=3)
    alone = do(base, "compute_logprobs", ints(TEXT))
    for flat in (out.prompt_logprobs, alone):
        assert flat[0] is None and np.array_equal(np.array(flat[1:], np.float32), trained)
    assert out.topk_prompt_logprobs[0] is None and len(out.topk_prompt_logprobs) == len(tokens)
    for token, flat, top in zip(tokens[1:], trained, out.topk_prompt_logprobs[1:]):
        values = [lp for _, lp in top]
        assert len(top) == 3 and values == sorted(values, reverse=True)
        assert dict(top).get(token, flat) == pytest.approx(flat, abs=1e-6)


def test_trained_sampler(training: Any) -> None:
    """Sampling and training have the same bits after training, too; and what is trained later is not seen by a sampler of before."""
    settled(training.forward_backward([example("hello zebra")], "cross_entropy"))
    settled(training.optim_step(adam()))
    sampler = training.save_weights_and_get_sampling_client()
    tokens = list(b"hello zebra")

    def trained() -> np.ndarray:
        return logprobs(settled(training.forward([datum(tokens[:-1], target_tokens=tokens[1:])], "cross_entropy")))[0]

    def sampled() -> np.ndarray:
        return np.array(settled(sampler.compute_logprobs(ints("hello zebra")))[1:], np.float32)

    before = trained()
    assert np.array_equal(before, sampled())
    for _ in range(3):
        training.forward_backward([example("hello zebra")], "cross_entropy")
        training.optim_step(adam())
    assert not np.array_equal(trained(), before)
    assert np.array_equal(sampled(), before)


def test_drawn_logprobs_are_the_trainers(training: Any) -> None:
    """What a policy gradient rests on: log-probabilities of drawn tokens at temperature 1 are the trainer's bits, and the ratio is exactly 1."""
    sampler = training.save_weights_and_get_sampling_client()
    prompt = list(b"hello ")
    drawn = settled(sampler.sample(ints("hello "), 1, params())).sequences[0]
    tokens, n = prompt + list(drawn.tokens), len(drawn.tokens)
    pad = [0.0] * (len(prompt) - 1)
    one = datum(tokens[:-1], target_tokens=tokens[1:], logprobs=pad + list(drawn.logprobs), advantages=pad + [1.0] * n)
    out = settled(training.forward_backward([one], "importance_sampling"))
    assert np.array_equal(logprobs(out)[0][-n:], np.array(drawn.logprobs, np.float32))
    assert out.metrics["loss:sum"] == -n


def test_temperature(base: Any) -> None:
    """Drawn tokens are reported with the distribution they were drawn from; 0 is the most probable token with its temperature 1 value."""
    greedy = settled(base.sample(ints(TEXT), 2, params(temperature=0, max_tokens=3)))
    assert list(greedy.sequences[0].tokens) == list(greedy.sequences[1].tokens)
    top = settled(base.sample(ints(TEXT), 1, params(max_tokens=1), topk_prompt_logprobs=1))
    assert top.topk_prompt_logprobs
    wide = settled(base.sample(ints(TEXT), 40, params(temperature=2.0, max_tokens=1)))
    flat = {s.tokens[0]: s.logprobs[0] for s in wide.sequences}
    plain = {s.tokens[0]: s.logprobs[0] for s in settled(base.sample(ints(TEXT), 40, params(temperature=1.0, max_tokens=1))).sequences}
    both = sorted(set(flat) & set(plain))
    assert len(both) >= 2
    for a, b in zip(both, both[1:]):
        assert flat[a] - flat[b] == pytest.approx((plain[a] - plain[b]) / 2, abs=1e-4)


def test_filters(base: Any) -> None:
    likely = settled(base.sample(ints(TEXT), 20, params(top_k=1, max_tokens=2)))
    assert len({tuple(s.tokens) for s in likely.sequences}) == 1
    nucleus = settled(base.sample(ints(TEXT), 20, params(top_p=1e-6, max_tokens=2)))
    assert {tuple(s.tokens) for s in nucleus.sequences} == {tuple(likely.sequences[0].tokens)}


def test_stops(base: Any) -> None:
    free = list(settled(base.sample(ints(TEXT), 1, params(temperature=0, max_tokens=12))).sequences[0].tokens)
    text = bytes(free).decode()
    for stop in (text[2:4], [text[2:4], "never"], [free[3]]):
        s = settled(base.sample(ints(TEXT), 1, params(temperature=0, max_tokens=12, stop=stop))).sequences[0]
        end = free.index(free[3]) + 1 if isinstance(stop, list) and isinstance(stop[0], int) else text.index(text[2:4]) + 2
        assert (s.stop_reason, list(s.tokens)) == ("stop", free[:end]), stop
    s = settled(base.sample(ints(TEXT), 1, params(temperature=0, max_tokens=12))).sequences[0]
    assert s.stop_reason == "length" or s.tokens[-1] in (256, 258)


@since(0, 38)
def test_stop_at_nothing(base: Any) -> None:
    """An empty list: generation goes on after the end of the text."""
    s = base.sample(types.ModelInput.from_ints(list(b"English: a\n") + [256]), 1, params(temperature=0, max_tokens=20, stop=[])).result().sequences[0]
    assert len(s.tokens) == 20 and s.sequence_id


@since(0, 25)
def test_until_the_context_is_full(base: Any, service: Any) -> None:
    """Without max_tokens."""
    (longest,) = (m.max_context_length for m in settled(service.get_server_capabilities()).supported_models if m.model_name == MODEL)
    prompt = types.ModelInput.from_ints([97] * (longest - 5))
    s = settled(base.sample(prompt, 1, types.SamplingParams(temperature=0))).sequences[0]
    assert 1 <= len(s.tokens) <= 6


def test_mistakes(base: Any, do: Any) -> None:
    for prompt, p, words in (
        (types.ModelInput.from_ints([9999]), params(), "9999"),
        (types.ModelInput.empty(), params(), "prompt"),
        (ints("a"), params(max_tokens=0), "max_tokens"),
        (ints("a"), params(temperature=-1), "temperature"),
        (ints("a"), params(top_p=7), "top_p"),
        (types.ModelInput.from_ints([1] * 100000), params(), "100000|long"),
        (types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png", expected_tokens=2)]), params(), "image"),
    ):
        with refused(words):
            do(base, "sample", prompt, 1, p)
    with refused("num_samples"):
        do(base, "sample", ints("a"), 0, params())
    assert do(base, "sample", ints("a"), 1, params()).sequences


@since(0, 38)
def test_scores_beside_a_sample(base: Any) -> None:
    """What the newest SDK can ask for: chosen tokens, other draws and the most probable tokens, at the prompt's places and at the drawn ones."""
    tokens = list(b"ab hello ")
    n = len(tokens) - 1
    chosen = np.full((n, 2), -1)
    chosen[-1], chosen[2, 0] = [97, 101], tokens[3]
    out = base.sample(
        types.ModelInput.from_ints(tokens), 2, params(max_tokens=4), include_prompt_logprobs=True, topk_sample_logprobs=3,
        target_prompt_logprobs=types.TensorData.from_numpy(chosen), prompt_alt_tokens_k=4,
    ).result(timeout=WAIT)  # fmt: skip
    scores = out.target_prompt_logprobs.to_numpy()
    assert scores.shape == (n, 2) and scores[2, 0] == np.float32(out.prompt_logprobs[3])
    assert np.all((scores < 0) == (chosen >= 0))
    draws, lps = out.prompt_alt_tokens.tokens.to_numpy(), out.prompt_alt_tokens.logprobs.to_numpy()
    assert draws.shape == lps.shape == (n, 4)
    asked = base.sample(types.ModelInput.from_ints(tokens), 1, params(max_tokens=1), target_prompt_logprobs=types.TensorData.from_numpy(draws))
    assert np.allclose(asked.result(timeout=WAIT).target_prompt_logprobs.to_numpy(), lps, atol=1e-5)
    for s in out.sequences:
        assert len(s.topk_logprobs) == len(s.tokens)
        for token, lp, top in zip(s.tokens, s.logprobs, s.topk_logprobs):
            assert len(top) == 3 and top[0][1] == max(v for _, v in top) and dict(top).get(token, lp) == pytest.approx(lp, abs=1e-6)
    end = base.sample(types.ModelInput.from_ints(tokens), 1, params(max_tokens=1), include_prompt_logprobs=True, prompt_logprobs_last_n=2)
    last = end.result(timeout=WAIT).prompt_logprobs
    assert last[:-2] == [None] * (n - 1) and last[-2:] == out.prompt_logprobs[-2:]


@since(0, 38)
def test_what_is_not_there_is_refused_by_name(service: Any, training: Any) -> None:
    with refused("record_stability_info"):
        service.create_sampling_client(base_model=MODEL, record_stability_info=True).sample(ints("a"), 1, params()).result(timeout=WAIT)
    with refused("age_encryption_recipients"):
        training.save_weights_external("x", age_encryption_recipients=["age1" + "q" * 58]).result(timeout=WAIT)


@since(0, 38)
def test_inflight_weights(training: Any) -> None:
    """Sampling clients of this kind have the weights of the latest save, also those that were made before it."""
    first = training.save_weights_and_get_sampling_client(kind="inflight").result(timeout=WAIT)
    before = first.compute_logprobs(ints(TEXT)).result(timeout=WAIT)
    settled(training.forward_backward([example()], "cross_entropy"))
    settled(training.optim_step(adam()))
    assert first.compute_logprobs(ints(TEXT)).result(timeout=WAIT) == before
    second = training.save_weights_and_get_sampling_client(kind="inflight").result(timeout=WAIT)
    after = training.save_weights_and_get_sampling_client().result(timeout=WAIT).compute_logprobs(ints(TEXT)).result(timeout=WAIT)
    assert after != before
    assert [s.compute_logprobs(ints(TEXT)).result(timeout=WAIT) for s in (first, second)] == [after, after]


def test_create_from_weights(service: Any, training: Any, do: Any) -> None:
    """Every way from trained weights to a sampler gives the same bits."""
    settled(training.forward_backward([example()], "cross_entropy"))
    settled(training.optim_step(adam()))
    path = settled(training.save_weights_for_sampler("s")).path
    samplers = [
        do(training, "save_weights_and_get_sampling_client"),
        do(training, "create_sampling_client", path),
        do(service, "create_sampling_client", path),
        sync(tinker.SamplingClient, "create", service.holder, model_path=path),
        sync(tinker.SamplingClient, "create", service.holder, base_model=MODEL, model_path=path),
    ]
    if hasattr(training, "save_weights_and_get_sampling_client_submit"):  # up to 0.16
        samplers.append(settled(training.save_weights_and_get_sampling_client_submit()))
    values = [do(s, "compute_logprobs", ints(TEXT)) for s in samplers]
    assert all(v == values[0] for v in values) and [do(s, "get_base_model") for s in samplers] == [MODEL] * len(samplers)


def test_sampler_of_nothing(service: Any, training: Any, do: Any) -> None:
    for path in (f"tinker://{sync(training, 'get_info').model_id}/sampler_weights/none", "tinker://nobody:train:0/sampler_weights/x"):
        with refused("none|nobody"):
            sampler = do(service, "create_sampling_client", path)
            sync(sampler, "sample", ints("a"), 1, params())


def test_tokenizer(base: Any) -> None:
    """The client looks for a tokenizer by the model's name: here in a folder of that name."""
    assert base.get_tokenizer().encode("hé") == [104, 195, 169]


def test_queue_states(base: Any) -> None:
    from tinker.lib.api_future_impl import QueueState

    base.on_queue_state_change(QueueState.ACTIVE, None)


def test_many_at_once(base: Any) -> None:
    alone = {n: settled(base.sample(ints("a" * n), 1, params(seed=n))).sequences[0].tokens for n in range(1, 40)}
    futures = {n: base.sample(ints("a" * n), 1, params(seed=n)) for n in range(1, 40)}
    assert {n: list(settled(f).sequences[0].tokens) for n, f in futures.items()} == {n: list(t) for n, t in alone.items()}

    async def gather() -> list[Any]:
        return await asyncio.gather(*(base.sample_async(ints("a" * n), 1, params(seed=n)) for n in range(1, 40)))

    assert [list(r.sequences[0].tokens) for r in asyncio.run(gather())] == [list(t) for t in alone.values()]


COPY = """
import pickle, sys, tinker
from tinker import types
sampler = pickle.loads(sys.stdin.buffer.read())
out = sampler.sample(types.ModelInput.from_ints(list(b"hello ")), 1, types.SamplingParams(max_tokens=6, seed=7)).result(timeout=60)
print(list(out.sequences[0].tokens))
"""


def test_copy_in_another_process(base: Any) -> None:
    here = list(settled(base.sample(ints("hello "), 1, params(max_tokens=6))).sequences[0].tokens)
    sampler = base.result() if hasattr(base, "result") else base
    done = subprocess.run([sys.executable, "-c", COPY], input=pickle.dumps(sampler), capture_output=True, timeout=WAIT)
    assert done.stdout.decode().strip() == str(here), done.stderr.decode()


@since(0, 38)
def test_handle(base: Any) -> None:
    handle = base.get_sampler_handle()
    copy = tinker.SamplingClient.from_sampler_handle(handle)
    assert copy.compute_logprobs(ints(TEXT)).result() == base.compute_logprobs(ints(TEXT)).result()


SIDECAR = """
import tinker, sys
from tinker import types
if __name__ == "__main__":
    sampler = tinker.ServiceClient().create_sampling_client(base_model="tinker-local/tiny")
    out = sampler.sample(types.ModelInput.from_ints(list(b"hello ")), 1, types.SamplingParams(max_tokens=6, seed=7)).result(timeout=60)
    print(list(out.sequences[0].tokens))
"""


def test_sampling_in_a_subprocess(base: Any, tmp_path: Path) -> None:
    """An option of the SDK: another process talks with the server, in the same session."""
    script = tmp_path / "sidecar.py"
    script.write_text(SIDECAR)
    here = list(settled(base.sample(ints("hello "), 1, params(max_tokens=6))).sequences[0].tokens)
    env = os.environ | {"TINKER_SUBPROCESS_SAMPLING": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=WAIT, env=env)
    assert done.stdout.decode().strip() == str(here), done.stderr.decode()


def test_loss_of_a_sampled_run(training: Any) -> None:
    with fails("advantages|logprobs"):
        settled(training.forward_backward([example()], "importance_sampling"))
