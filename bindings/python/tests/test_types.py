"""Value types: what they make of what they are given, and what they give back."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from tinker_local import types
from tinker_local.types._sampling import topk_matrices


def test_model_input() -> None:
    one = types.ModelInput.from_ints([1, 2])
    two = one.append_int(3).append(types.EncodedTextChunk(tokens=np.array([4, 5], np.int64)))
    assert (one.to_ints(), two.to_ints(), two.length) == ([1, 2], [1, 2, 3, 4, 5], 5)
    assert two.ids().dtype == np.int32 and two.ids().tolist() == two.to_ints()
    assert types.ModelInput.empty().to_ints() == [] and types.ModelInput.empty().length == 0
    assert types.ModelInput(chunks=[{"type": "encoded_text", "tokens": [7]}]).to_ints() == [7]  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        one.chunks = []  # type: ignore[misc]
    own = np.array([1, 2, 3], np.int32)
    assert np.shares_memory(types.ModelInput.from_ints(own).ids(), own)


def test_chunks() -> None:
    image = types.ImageChunk(data=base64.b64encode(b"abc").decode(), format="png", expected_tokens=5)  # type: ignore[arg-type]
    assert image.data == b"abc" and image.length == 5
    assert json.loads(image.model_dump_json())["data"] == base64.b64encode(b"abc").decode()
    for unknown in (types.ImageChunk(data=b"", format="png"), types.DmelChunk(dmel=b""), types.ImageAssetPointerChunk(format="png", location="l")):
        with pytest.raises(ValueError):
            _ = unknown.length
    with pytest.raises(ValueError, match="image"):
        types.ModelInput(chunks=[image]).to_ints()


def test_tensor_data() -> None:
    own = np.arange(6, dtype=np.float32).reshape(3, 2)
    t = types.TensorData.from_numpy(own)
    assert (t.dtype, t.shape, t.data, t.tolist()) == ("float32", [3, 2], [0, 1, 2, 3, 4, 5], own.tolist())
    assert np.shares_memory(t.to_numpy(), own)
    assert types.TensorData.from_numpy(np.array([1.0])).array.dtype == np.float32
    assert types.TensorData.from_numpy(np.array([1], np.int16)).array.dtype == np.int64
    assert types.TensorData([1, 2, 3, 4], "int64", [2, 2]).tolist() == [[1, 2], [3, 4]]
    read_only = np.frombuffer(b"\0" * 8, np.int64)
    assert types.TensorData(read_only, "int64").array.flags.writeable
    for wrong in (lambda: types.TensorData([1]), lambda: types.TensorData([1], "int8"), lambda: types.TensorData.from_numpy(np.array([1], np.uint8))):  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            wrong()


def test_sparse() -> None:
    t = types.TensorData([5, 6, 7], "int64", [3, 4], [0, 2, 2, 3], [0, 3, 1])
    assert t.tolist() == [[5, 0, 0, 6], [0, 0, 0, 0], [0, 7, 0, 0]] and t.data == [5, 6, 7]


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors are not tried")
    dense = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.bfloat16)
    t = types.TensorData.from_torch(dense)
    assert t.dtype == "float32" and t.tolist() == dense.tolist() and torch.equal(t.to_torch(), dense.float())
    wide = torch.zeros(4, 100, dtype=torch.int64)
    wide[1, 7], wide[3, 99] = 5, 6
    d = types.Datum(types.ModelInput.from_ints([1] * 4), {"target_tokens": wide, "weights": dense, "advantages": wide.float()})
    assert d.loss_fn_inputs["target_tokens"].sparse_crow_indices == [0, 0, 1, 1, 2]
    assert torch.equal(d.loss_fn_inputs["target_tokens"].to_torch(), wide)
    assert d.loss_fn_inputs["weights"].sparse_crow_indices is None and d.loss_fn_inputs["advantages"].sparse_crow_indices is None


def test_lists_by_name() -> None:
    d = types.Datum(types.ModelInput.from_ints([1]), {"target_tokens": [[1, 2]], "weights": [1], "clip_low_threshold": [0.5], "advantages": []})  # type: ignore[dict-item]
    assert {k: (v.dtype, v.shape) for k, v in d.loss_fn_inputs.items()} == {
        "target_tokens": ("int64", [1, 2]),
        "weights": ("float32", [1]),
        "clip_low_threshold": ("float32", [1]),
        "advantages": ("float32", [0]),
    }


def test_numbers() -> None:
    p = types.SamplingParams(max_tokens=np.int64(5), temperature=1, seed=None)  # type: ignore[arg-type]
    assert (type(p.max_tokens), type(p.temperature), p.seed) == (int, float, None)
    assert types.AdamParams(learning_rate=np.float32(0.5)).learning_rate == 0.5  # type: ignore[arg-type]
    assert p.model_copy(update={"top_k": 3}).top_k == 3 and p.top_k == -1
    with pytest.raises(ValueError, match="top_k"):
        p.model_copy(update={"top_k": True})


def test_dumps() -> None:
    at = datetime(2026, 1, 2, tzinfo=timezone.utc)
    c = types.Checkpoint(checkpoint_id="weights/a", checkpoint_type="training", time=at, tinker_path="tinker://r/weights/a")
    listing = types.CheckpointsListResponse(checkpoints=[c], cursor=types.Cursor(offset=0, limit=1, total_count=1))
    assert listing.model_dump()["checkpoints"][0]["time"] is at
    assert json.loads(listing.model_dump_json())["checkpoints"][0]["time"] == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    "path", ["", "tinker://", "tinker://a/b", "tinker://a/weights/b/c", "tinker://a/other/b", "a/weights/b", "tinker:///weights/b"]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        types.ParsedCheckpointTinkerPath.from_tinker_path(path)


def test_sampled() -> None:
    s = types.SampledSequence("stop", np.array([1, 2], np.int32), np.array([-1, -2], np.float32))
    assert (s.tokens, s.logprobs) == ([1, 2], [-1.0, -2.0])
    assert types.SampledSequence("length", _tokens_list=[1]).tokens == [1] and types.SampledSequence("length").logprobs is None
    r = types.SampleResponse([s], np.array([np.nan, -1], np.float32))
    assert r.prompt_logprobs == [None, -1.0] and r.topk_prompt_logprobs is None
    top = topk_matrices(np.array([0, 0, 2, 3]), np.array([5, 6, 7], np.int32), np.array([-1, -2, -3], np.float32))
    assert top.token_ids.tolist() == [[0, 0], [5, 6], [7, 0]]
    assert types.SampleResponse([s], None, top).topk_prompt_logprobs == [None, [(5, -1.0), (6, -2.0)], [(7, -3.0)]]
    assert topk_matrices(np.array([0, 0]), np.array([], np.int32), np.array([], np.float32)).logprobs.shape == (1, 0)


@pytest.mark.parametrize(
    "value",
    [
        types.ModelInput.from_ints([1, 2]),
        types.AdamParams(learning_rate=0.5),
        types.SamplingParams(stop=["a"]),
        types.RequestErrorCategory.Server,
        types.Cursor(offset=0, limit=1, total_count=2),
    ],
)
def test_pickles(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_datum_pickles() -> None:
    d = types.Datum(types.ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3]})  # type: ignore[dict-item]
    copy = pickle.loads(pickle.dumps(d))
    assert copy.model_input == d.model_input and copy.loss_fn_inputs["target_tokens"].tolist() == [2, 3]
