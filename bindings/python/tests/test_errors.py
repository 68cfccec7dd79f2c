"""Mistakes of the caller: said by the future, with category "user", never a crash."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import example

import tinker_local
from tinker_local import types

D, M = types.Datum, types.ModelInput.from_ints

BAD_DATA: dict[str, Any] = {
    "nothing": [],
    "no targets": [D(M([1, 2]), {})],
    "no tokens": [D(M([]), {"target_tokens": []})],
    "other length": [D(M([1, 2, 3]), {"target_tokens": [1, 2]})],
    "no such token": [D(M([1, 10**6]), {"target_tokens": [1, 2]})],
    "negative token": [D(M([1, -1]), {"target_tokens": [1, 2]})],
    "no such target": [D(M([1, 2]), {"target_tokens": [1, 10**6]})],
    "token of 64 bits": [D(M([1, 2**40]), {"target_tokens": [1, 2]})],
    "a float as a token": [D(M([1.5, 2]), {"target_tokens": [1, 2]})],  # type: ignore[list-item]
    "text as a token": [D(M(["a"]), {"target_tokens": [1]})],  # type: ignore[list-item]
    "three dimensions": [D(M([1, 2]), {"target_tokens": np.zeros((2, 1, 1), np.int64)})],
    "no dimension": [D(M([1]), {"target_tokens": np.array(1)})],
    "no columns": [D(M([1, 2]), {"target_tokens": np.zeros((2, 0), np.int64)})],
    "a name that is none": [D(M([1]), {"target_tokens": [1], "a\0b": np.ones(1)})],
    "a name that is a number": [D(M([1]), {"target_tokens": [1], 5: np.ones(1)})],  # type: ignore[dict-item]
    "NaN": [D(M([1, 2]), {"target_tokens": [1, 2], "weights": [np.nan, 1.0]})],
    "an image": [D(types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png")]), {"target_tokens": [1]})],
    "no datum": [None],
    "no list": 5,
    "too long": [example("x" * 5000)],
    "a sparse tensor that is none": [D(M([1, 2]), {"target_tokens": types.TensorData([1], "int64", [2, 2], [0, 5, 1], [0])})],
    "a sparse tensor without its shape": [D(M([1, 2]), {"target_tokens": types.TensorData([1], "int64", None, [0, 1, 1], [0])})],
    "a column that is not there": [D(M([1, 2]), {"target_tokens": types.TensorData([1], "int64", [2, 2], [0, 1, 1], [7])})],
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data(training: tinker_local.TrainingClient, what: str) -> None:
    for submit in (training.forward_backward, training.forward):
        future = submit(BAD_DATA[what], "cross_entropy")
        with pytest.raises(tinker_local.RequestFailedError) as e:
            future.result()
        assert e.value.category == types.RequestErrorCategory.User == "user"
        assert e.value.message and e.value.request_id
    assert training.forward([example()], "cross_entropy").result().metrics  # the run is as good as before


@pytest.mark.parametrize(
    "loss, config",
    [("no such", None), ("ppo", {"epsilon": 1.0}), ("ppo", {"clip_low_threshold": "low"}), ("cross_entropy", {5: 1.0}), ("wasm:none", None)],
)
def test_bad_loss(training: tinker_local.TrainingClient, loss: str, config: Any) -> None:
    with pytest.raises(tinker_local.RequestFailedError) as e:
        training.forward_backward([example()], loss, config).result()
    assert e.value.category == "user"


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_k": 2**32 + 5},
        {"stop": ["a", 1]},
        {"stop": [""]},
        {"stop": [2**40]},
    ],
)
def test_bad_sampling(service: tinker_local.ServiceClient, params: dict[str, Any]) -> None:
    sampler = service.create_sampling_client(base_model="tinker-local/tiny")
    with pytest.raises(tinker_local.RequestFailedError) as e:
        sampler.sample(M([1, 2]), 1, types.SamplingParams(**{"max_tokens": 2, **params})).result()
    assert e.value.category == "user"


def test_bad_requests_to_sample(service: tinker_local.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="tinker-local/tiny")
    ok = types.SamplingParams(max_tokens=1)
    image = types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png")])
    for prompt, n, params, top in (
        (M([]), 1, ok, 0),
        (M([10**6]), 1, ok, 0),
        (image, 1, ok, 0),
        (M([1]), 0, ok, 0),
        (M([1]), 1, ok, -1),
        (M([1]), "x", ok, 0),
        (M([1]), 2**32 + 1, ok, 0),
        (M([1]), 1, ok, 2**32 + 1),
        (M([1]), 1, None, 0),
        (None, 1, ok, 0),
    ):
        with pytest.raises(tinker_local.RequestFailedError) as e:
            sampler.sample(prompt, n, params, topk_prompt_logprobs=top).result()  # type: ignore[arg-type]
        assert e.value.category == "user"
    with pytest.raises(tinker_local.RequestFailedError):
        sampler.compute_logprobs(M([])).result()


def test_values_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        types.AdamParams(learning_rate="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens"):
        types.SamplingParams(max_tokens=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank"):
        types.LoraConfig(rank="8")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        types.AdamParams(lr=1e-3)  # type: ignore[call-arg]
    with pytest.raises(KeyError):
        D(M([1]), {"my_input": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        D(M([1]), {"weights": [[1.0], [1.0, 2.0]]})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        D(M([1]), {"weights": np.array([True])})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        D(M([1]), {"weights": "1"})  # type: ignore[dict-item]


def test_opening_what_is_not_there(service: tinker_local.ServiceClient) -> None:
    with pytest.raises(tinker_local.RequestFailedError) as failed:
        service.create_lora_training_client("no/such")
    assert failed.value.category == "user" and "no/such" in failed.value.message
    for rank in (0, -1, 2**32 + 8):
        with pytest.raises(tinker_local.RequestFailedError):
            service.create_lora_training_client("tinker-local/tiny", rank=rank)
    with pytest.raises(tinker_local.NotFoundError):
        service.create_sampling_client(base_model="no/such")
    with pytest.raises(tinker_local.NotFoundError):
        service.create_sampling_client(model_path="tinker://no:train:0/sampler_weights/such")
    with pytest.raises(tinker_local.BadRequestError):
        service.create_sampling_client(model_path="elsewhere")
    with pytest.raises(ValueError):
        service.create_sampling_client()
    with pytest.raises(tinker_local.NotFoundError):
        asyncio.run(service.create_sampling_client_async(base_model="no/such"))
    with pytest.raises(tinker_local.RequestFailedError):
        service.create_training_client_from_state("tinker://no:train:0/weights/such")
    with pytest.raises(TypeError, match="device_name"):
        tinker_local.ServiceClient(device_name="cpu")
    with pytest.raises(tinker_local.UnprocessableEntityError):
        tinker_local.ServiceClient(device="cuda:77", state=":memory:")


def test_names_of_checkpoints(training: tinker_local.TrainingClient) -> None:
    for name in ("", "a/b", "..", "x" * 500):
        with pytest.raises(tinker_local.RequestFailedError) as e:
            training.save_state(name).result()
        assert e.value.category == "user"
    with pytest.raises(tinker_local.RequestFailedError, match="ttl_seconds"):
        training.save_state("a", ttl_seconds=0).result()
    training.save_state("a").result()
    with pytest.raises(tinker_local.RequestFailedError):
        training.save_state("a").result()
    training.save_state("a", overwrite=True).result()
    with pytest.raises(tinker_local.RequestFailedError) as e:
        training.load_state("tinker://other:train:0/weights/a").result()
    assert e.value.category == "user"


def test_closed(training: tinker_local.TrainingClient) -> None:
    training.close()
    with pytest.raises(tinker_local.RequestFailedError, match="closed") as e:
        training.forward([example()], "cross_entropy").result()
    assert e.value.category == "server"


def test_exceptions_are_those_of_the_sdk() -> None:
    e = tinker_local
    assert issubclass(e.NotFoundError, e.APIStatusError) and issubclass(e.APIStatusError, e.APIError) and issubclass(e.APIError, e.TinkerError)
    assert issubclass(e.APITimeoutError, e.APIConnectionError) and issubclass(e.SidecarDiedError, e.SidecarError)
    assert issubclass(e.RequestFailedError, e.TinkerError) and not issubclass(e.RequestFailedError, e.APIError)


def test_exceptions_can_be_pickled() -> None:
    failed = tinker_local.RequestFailedError("m", "r", types.RequestErrorCategory.User)
    copy = pickle.loads(pickle.dumps(failed))
    assert (str(copy), copy.request_id, copy.category) == ("m", "r", "user")
    for error in (
        tinker_local.NotFoundError("m", None, {"detail": "m"}),
        tinker_local.APITimeoutError(),
        tinker_local.APIResponseValidationError(),
        tinker_local.ForkedError(),
        tinker_local.SidecarDiedError("m"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and copy.__dict__ == error.__dict__
