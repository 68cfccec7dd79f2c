"""Writes requests-VERSION.json: request bodies as the official SDK makes them, with what they say.

    python3 -m venv v && v/bin/pip install tinker==0.25.0 && v/bin/python make_goldens.py

Made with tinker 0.16.1 (JSON only), 0.25.0 and 0.38.0, numpy 2.4.6. The bodies come from the SDK's own models and converters, called
as its resources call them; what they must decode to is written down here, from the inputs.
"""

import base64
import json
import os

import numpy as np
import tinker
from tinker import types

VERSION = tinker.__version__
PROTO = VERSION != "0.16.1"
NEWEST = VERSION == "0.38.0"
CASES = []


def add(name, route, body, want, encoding="", content="application/json"):
    case = {"name": name, "route": route, "content_type": content, "want": want}
    if encoding:
        case["encoding"] = encoding
    if content == "application/json":
        case["text"] = body.decode()
    else:
        case["base64"] = base64.b64encode(body).decode()
    CASES.append(case)


def dumped(request):
    """JSON as the SDK's resources send it: up to 0.16 what was set, nulls too, later all that is not null."""
    options = {"exclude_none": True} if PROTO else {"exclude_unset": True}
    return json.dumps(request.model_dump(mode="json", **options), ensure_ascii=False, separators=(",", ":")).encode()


# --- forward_backward

def tensor(a):
    a = np.asarray(a)
    return {"dtype": "int64" if a.dtype.kind == "i" else "float32", "shape": list(a.shape), "data": a.flatten().tolist()}


def batch(name, datums, loss, config=None, forward=False, want_error=None, seq=1, encoding=""):
    """datums: lists of (chunks, inputs); a chunk is a list of ids or the SDK's object."""
    data, want = [], []
    for chunks, inputs in datums:
        objects = [types.EncodedTextChunk(tokens=c) if isinstance(c, list) else c for c in chunks]
        given, expected = {}, {}
        for key, value in inputs.items():
            given[key], expected[key] = value if isinstance(value, tuple) else (value, tensor(value))
        data.append(types.Datum(model_input=types.ModelInput(chunks=objects), loss_fn_inputs=given))
        want.append({"chunks": [c for c in chunks if isinstance(c, list)], "inputs": expected})
    wanted = {"model_id": "S1:train:0", "seq_id": seq, "forward_only": forward, "loss_fn": loss, "config": config or {}, "data": want}
    if want_error:
        wanted = {"error": want_error}
    inner = types.ForwardBackwardInput(data=data, loss_fn=loss, loss_fn_config=config)
    if not PROTO:
        if forward:
            add(name, "forward", dumped(types.ForwardRequest(forward_input=inner, model_id="S1:train:0", seq_id=seq)), wanted)
        else:
            add(name, "forward_backward", dumped(types.ForwardBackwardRequest(forward_backward_input=inner, model_id="S1:train:0", seq_id=seq)), wanted)
        return
    from tinker.proto.request_conv import forward_backward_request_to_proto

    message = forward_backward_request_to_proto(types.ForwardBackwardRequest(forward_backward_input=inner, model_id="S1:train:0", seq_id=seq))
    message.forward_only = forward
    body = message.SerializeToString(deterministic=True)
    if encoding:
        import zstandard

        body = zstandard.ZstdCompressor().compress(body)
    add(name, "forward_backward", body, wanted, encoding, "application/x-protobuf")


f32 = lambda v: np.asarray(v, dtype=np.float32)
i64 = lambda v: np.asarray(v, dtype=np.int64)

plain = [
    ([[1, 2, 3], [4, 2147483647]], {"target_tokens": i64([2, 3, 4, 5, 6]), "weights": f32([0, 1, 0.1, -2.5, 1e-30])}),
    ([[7]], {"target_tokens": i64([9007199254740993]), "weights": f32([3.4028234663852886e38])}),
]
batch("plain", plain, "cross_entropy")
batch("forward only", plain, "cross_entropy", forward=True, seq=2)
batch("lists", [([[1, 2]], {"target_tokens": ([5, 6], tensor(i64([5, 6]))), "weights": ([1, 0], tensor(f32([1, 0])))})], "cross_entropy")
batch("two dimensions", [([[1, 2]], {"target_tokens": i64([[1, 2, 3], [4, 5, 6]]), "weights": f32([[1, 0, 0], [0, 0.5, 0.25]])})], "cross_entropy")
batch("policy", [([[1, 2]], {"target_tokens": i64([2, 3]), "logprobs": f32([-0.5, -1.25]), "advantages": f32([1, -1])})],
      "ppo", config={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}, seq=2147483647)
batch("no inputs", [([[1, 2]], {})], "cross_entropy")
batch("no values", [([[1]], {"target_tokens": i64([]), "weights": f32([])})], "cross_entropy")
batch("image", [([[1], types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=3)], {})], "cross_entropy",
      want_error=["unsupported", "datum 0: chunk 1: the chunk is of type \"image\""])
if PROTO:
    batch("NaN", [([[1]], {"weights": f32([0, float("nan")])})], "cross_entropy", want_error=["bad_request", "datum 0: loss input \"weights\": value 1 is NaN"])
    sparse = types.TensorData(data=i64([5, 6, 7]), dtype="int64", shape=[3, 4], sparse_crow_indices=[0, 1, 1, 3], sparse_col_indices=[2, 0, 3])
    dense = tensor(i64([[0, 0, 5, 0], [0, 0, 0, 0], [6, 0, 0, 7]]))
    some = types.TensorData(data=f32([0.5]), dtype="float32", shape=[3, 4], sparse_crow_indices=[0, 0, 1, 1], sparse_col_indices=[1])
    batch("csr", [([[1, 2, 3]], {"target_tokens": (sparse, dense), "weights": (some, tensor(f32([[0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]])))})], "cross_entropy")
    batch("zstd", plain, "cross_entropy", encoding="zstd")
    batch("dmel", [([types.DmelChunk(dmel=b"\x00\x01\x05")], {})], "cross_entropy", want_error=["unsupported", "datum 0: chunk 0: the chunk is of type \"dmel\""])
if NEWEST:
    batch("text in the config", plain, "gspo", config={"a": 1.5, "ratio": "sequence"}, want_error=["unsupported", "loss_fn_config[\"ratio\"]: the value is a text"])
    from tinker.types.provenance_spans import PromptProvenanceSpan, SampledProvenanceSpan  # they are skipped

    spans = [PromptProvenanceSpan(sequence_id="a", offset=0, length=1), SampledProvenanceSpan(sequence_id="b", offset=0, length=1)]
    make = types.Datum
    types.Datum = lambda **k: make(**k).with_provenance(model_input=spans, loss_fn_inputs=spans)
    batch("provenance", [([[1, 2]], {"target_tokens": i64([2, 3])})], "cross_entropy")
    types.Datum = make

# --- JSON

lora = {"rank": 16, "seed": 5, "train_unembed": False, "train_mlp": True, "train_attn": True}
add("create_model", "create_model", dumped(types.CreateModelRequest(
    session_id="S1", model_seq_id=0, base_model="Qwen/Qwen3-8B", user_metadata={"note": "ü", "n": 3, "list": [1, "a"]}, lora_config=types.LoraConfig(rank=16, seed=5, train_unembed=False))),
    {"session_id": "S1", "model_seq_id": 0, "request": {"base_model": "Qwen/Qwen3-8B", "lora_config": lora, "user_metadata": {"note": "ü", "n": "3", "list": "[1,\"a\"]"}}})
add("adam defaults", "optim_step", dumped(types.OptimStepRequest(model_id="m", seq_id=3, adam_params=types.AdamParams())),
    {"model_id": "m", "seq_id": 3, "request": {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0, "grad_clip_norm": 0}})
add("adam", "optim_step", dumped(types.OptimStepRequest(model_id="m", seq_id=3, adam_params=types.AdamParams(learning_rate=0, beta1=0, beta2=0.5, eps=1e-8, weight_decay=0.01, grad_clip_norm=1))),
    {"model_id": "m", "seq_id": 3, "request": {"learning_rate": 0, "beta1": 0, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.01, "grad_clip_norm": 1}})
if NEWEST:
    from tinker.types.optimizer import DimuonOptimizerConfig, DimuonParams

    add("another optimizer", "optim_step", dumped(types.OptimStepRequest(model_id="m", seq_id=3, optim_params=DimuonParams(learning_rate=0.1))),
        {"error": ["unsupported", "optimizer_params are of \"dimuon\", wanted adam_params"]})
    add("another family", "create_model", dumped(types.CreateModelRequest(session_id="S", model_seq_id=0, base_model="b", lora_config=types.LoraConfig(rank=1), optimizer_config=DimuonOptimizerConfig())),
        {"error": ["unsupported", "optimizer_config asks for \"dimuon\""]})
add("save", "save_weights", dumped(types.SaveWeightsRequest(model_id="m", path="step-000010", seq_id=4)),
    {"model_id": "m", "seq_id": 4, "name": "step-000010", "ttl": 0, "overwrite": False})
if PROTO:
    add("save for a while", "save_weights", dumped(types.SaveWeightsRequest(model_id="m", path="x", seq_id=4, ttl_seconds=7200, overwrite=True)),
        {"model_id": "m", "seq_id": 4, "name": "x", "ttl": 7200, "overwrite": True})
add("load", "load_weights", dumped(types.LoadWeightsRequest(model_id="m", path="tinker://S1:train:0/weights/x", seq_id=1, optimizer=True)),
    {"model_id": "m", "session_id": "", "seq_id": 1, "path": "tinker://S1:train:0/weights/x", "optimizer": True})
if PROTO:
    add("load as a new model", "load_weights", dumped(types.LoadWeightsRequest(session_id="S", model_seq_id=2, path="tinker://r/sampler_weights/x", optimizer=False)),
        {"model_id": "", "session_id": "S", "seq_id": 0, "path": "tinker://r/sampler_weights/x", "optimizer": False})
add("sampler, named", "save_weights_for_sampler", dumped(types.SaveWeightsForSamplerRequest(model_id="m", path="final", seq_id=5)),
    {"model_id": "m", "seq_id": 5, "name": "final", "session_seq_id": None})
add("sampler, ephemeral", "save_weights_for_sampler", dumped(types.SaveWeightsForSamplerRequest(model_id="m", seq_id=5, sampling_session_seq_id=0)),
    {"model_id": "m", "seq_id": 5, "name": "", "session_seq_id": 0})
if NEWEST:
    add("sampler, in flight", "save_weights_for_sampler", dumped(types.SaveWeightsForSamplerRequest(model_id="m", seq_id=5, sampling_session_seq_id=0, kind="inflight")),
        {"model_id": "m", "seq_id": 5, "name": "", "session_seq_id": 0, "inflight": True})
    add("sampler, named and in flight", "save_weights_for_sampler", dumped(types.SaveWeightsForSamplerRequest(model_id="m", seq_id=5, path="x", kind="inflight")),
        {"error": ["bad_request", "kind is \"inflight\", wanted a sampling session"]})
    add("save with notes", "save_weights", dumped(types.SaveWeightsRequest(model_id="m", path="x", seq_id=4, user_metadata={"k": "v"})),
        {"model_id": "m", "seq_id": 4, "name": "x", "ttl": 0, "overwrite": False, "metadata": {"k": "v"}})
    add("sampler, with notes", "save_weights_for_sampler", dumped(types.SaveWeightsForSamplerRequest(model_id="m", path="final", seq_id=5, user_metadata={"k": "v"})),
        {"model_id": "m", "seq_id": 5, "name": "final", "session_seq_id": None, "metadata": {"k": "v"}})
    add("copy", "copy_weights", dumped(types.CopyWeightsRequest(source_path="tinker://r/weights/x", destination_project_id="p", ttl_seconds=3600, weights_access_token="tml-x")),
        {"path": "tinker://r/weights/x", "project": "p", "session_id": "", "model_seq_id": 0, "ttl": 3600, "token": "tml-x"})
    add("copy into a session", "copy_weights", dumped(types.CopyWeightsRequest(source_path="tinker://r/sampler_weights/x", session_id="S", model_seq_id=3)),
        {"path": "tinker://r/sampler_weights/x", "project": "", "session_id": "S", "model_seq_id": 3, "ttl": 0, "token": ""})
    add("external", "save_weights_external", dumped(types.SaveWeightsExternalRequest(model_id="m", seq_id=5, path="out", ttl_seconds=3600)),
        {"model_id": "m", "seq_id": 5, "name": "out", "ttl": 3600})
    add("external, encrypted", "save_weights_external", dumped(types.SaveWeightsExternalRequest(model_id="m", seq_id=5, path="out", age_encryption_recipients=["age1x"])),
        {"error": ["unsupported", "age_encryption_recipients has 1 entries"]})
    add("load as a new model, all", "load_weights", dumped(types.LoadWeightsRequest(
        session_id="S", model_seq_id=2, path="tinker://r/weights/x", optimizer=False, base_model="b", user_metadata={"k": "v"}, optimizer_config=types.AdamOptimizerConfig(), weights_access_token="tml-x")),
        {"model_id": "", "session_id": "S", "seq_id": 0, "path": "tinker://r/weights/x", "optimizer": False})
add("sampling session", "create_sampling_session", dumped(types.CreateSamplingSessionRequest(session_id="S", sampling_session_seq_id=1, base_model="b", model_path="tinker://r/sampler_weights/x")),
    {"session_id": "S", "seq_id": 1, "base_model": "b", "path": "tinker://r/sampler_weights/x"})
add("sampling session of a base", "create_sampling_session", dumped(types.CreateSamplingSessionRequest(session_id="S", sampling_session_seq_id=0, base_model="b")),
    {"session_id": "S", "seq_id": 0, "base_model": "b", "path": ""})


def sample(name, params, want, prompt=[1, 2, 3], error=None, extra={}, **more):
    request = types.SampleRequest(sampling_session_id="S:sample:0", seq_id=0, prompt=types.ModelInput.from_ints(prompt), sampling_params=types.SamplingParams(**params), **more)
    full = {"max_tokens": None, "seed": None, "stop": None, "stop_tokens": None, "temperature": 1, "top_k": -1, "top_p": 1}
    full.update(want)
    add(name, "asample", dumped(request), {"error": error} if error else {
        "session_id": "S:sample:0", "seq_id": 0, "tokens": prompt, "params": full, "num_samples": more.get("num_samples", 1),
        "prompt_logprobs": bool(more.get("prompt_logprobs")), "topk": more.get("topk_prompt_logprobs", 0), **extra})


sample("sample", {}, {})
sample("all parameters", dict(max_tokens=10, seed=7, stop=["\n", "<end>"], temperature=0.0, top_k=5, top_p=0.5),
       dict(max_tokens=10, seed=7, stop=["\n", "<end>"], temperature=0, top_k=5, top_p=0.5), num_samples=4, prompt_logprobs=True, topk_prompt_logprobs=20)
sample("stop text", dict(stop="ü\"\u2028"), dict(stop=["ü\"\u2028"]))
sample("stop tokens", dict(stop=[151645, 1]), dict(stop_tokens=[151645, 1]))
sample("never stop", dict(stop=[]), dict(stop_tokens=[]))
sample("large seed", dict(seed=2**64 - 1), dict(seed=-1))
sample("logprobs only", dict(max_tokens=1), dict(max_tokens=1), prompt_logprobs=True)
if NEWEST:
    from tinker.lib.public_interfaces.sampling_client import _tensor_data_to_model

    ids = types.TensorData(data=[-1, 5, 6, 7], dtype="int64", shape=[2, 2])
    sparse = types.TensorData(data=[5, 6], dtype="int64", shape=[2, 9], sparse_crow_indices=[0, 0, 2], sparse_col_indices=[1, 8])
    sample("alternatives", {}, {}, extra={"alt": 2}, prompt_alt_tokens_k=2)
    sample("last tokens", {}, {}, extra={"last": 2}, prompt_logprobs=True, prompt_logprobs_last_n=2)
    sample("last tokens of nothing", {}, {}, error=["bad_request", "prompt_logprobs_last_n is given without prompt_logprobs"], prompt_logprobs_last_n=2)
    sample("sampled top-k", {}, {}, extra={"sampled_topk": 2}, topk_sample_logprobs=2)
    sample("other tokens", {}, {}, extra={"targets": [[-1, 5], [6, 7]]}, target_prompt_logprobs=_tensor_data_to_model(ids))
    sample("other tokens, sparse", {}, {}, extra={"targets": [[], [5, 6]]}, target_prompt_logprobs=_tensor_data_to_model(sparse))
    sample("stability", {}, {}, error=["unsupported", "record_stability_info is not supported"], record_stability_info=True)

add("session", "create_session", dumped(types.CreateSessionRequest(tags=["a"], user_metadata={"k": "v"}, sdk_version=VERSION)),
    {"tags": ["a"], "user_metadata": {"k": "v"}, "sdk_version": VERSION})
add("session without notes", "create_session", dumped(types.CreateSessionRequest(tags=[], user_metadata=None, sdk_version=VERSION)),
    {"tags": [], "user_metadata": None, "sdk_version": VERSION})
add("heartbeat", "session_heartbeat", dumped(types.SessionHeartbeatRequest(session_id="S")), {"id": "S"})
add("info", "get_info", dumped(types.GetInfoRequest(model_id="m")), {"id": "m"})
add("unload", "unload_model", dumped(types.UnloadModelRequest(model_id="m")), {"id": "m"})
add("result", "retrieve_future", dumped(types.FutureRetrieveRequest(request_id="r")), {"id": "r"})
if NEWEST:
    from tinker.types.session_status_query import ActiveSessionStatusQuery, ClientFinishedSessionStatusQuery

    from tinker.types.futures_retrieve_request import FuturesRetrieveRequest, SamplingSessionFuturesTarget

    add("join", "join_sampling_session", dumped(types.JoinSamplingSessionRequest(sampling_session_id="S:sample:0")), {"id": "S:sample:0"})
    target = SamplingSessionFuturesTarget(sampling_session_id="S:sample:0", cloned_sampler_id=3)
    add("ends", "retrieve_futures", dumped(FuturesRetrieveRequest(target=target)), {"id": "S:sample:0", "client": 3, "cursor": 0, "wait": 25, "retrieved": []})
    add("ends, at once", "retrieve_futures", dumped(FuturesRetrieveRequest(target=target, prev_cursor=9, timeout=0, retrieved_request_ids=["a", "b"])),
        {"id": "S:sample:0", "client": 3, "cursor": 9, "wait": 0, "retrieved": ["a", "b"]})
    add("custom loss", "create_custom_loss", dumped(types.CreateCustomLossRequest(session_id="S", custom_loss_seq_id=2, name="f", inputs=[types.CustomLossInput(name="logprobs", rank=1)], graph=types.CustomLossGraph(
        nodes=[types.CustomLossNode(op="placeholder", name="logprobs", target="logprobs"), types.CustomLossNode(op="output", name="output", target="output", args=[{"ref": "logprobs"}])]))),
        {"id": "S", "seq_id": 2, "name": "f"})
    add("finish", "finish", b'{"reason":{"type":"errored"},"detail":"no luck"}', {"reason": "errored", "detail": "no luck"})
    add("search for all", "sessions/search", dumped(types.SessionSearchRequest()), {"session": "", "name": "", "metadata": {}, "projects": None, "owner": "own", "urns": None, "statuses": None, "limit": 50, "cursor": None})
    add("search", "sessions/search", dumped(types.SessionSearchRequest(
        session_id="S", display_name="a b", project_ids=["p"], user_metadata={"k": "v"}, owner=types.UserSearchOwner(owner_urns=["u"]), limit=7,
        statuses=[ActiveSessionStatusQuery(), ClientFinishedSessionStatusQuery(reasons=["success"])],
        cursor=types.SessionSearchCursor(last_created_at="2026-11-27T22:00:00.123456+01:00", last_session_id="T"))),
        {"session": "S", "name": "a b", "metadata": {"k": "v"}, "projects": ["p"], "owner": "user", "urns": ["u"], "limit": 7,
         "statuses": [{"type": "active", "reasons": None}, {"type": "client_finished", "reasons": ["success"]}],
         "cursor": {"last_created_at": "2026-11-27T21:00:00.123456Z", "last_session_id": "T"}})
if PROTO:
    add("config", "client/config", dumped(types.ClientConfigRequest(sdk_version=VERSION)), {"id": VERSION})
add("keep", "ttl", b'{"ttl_seconds":null}', {"ttl": 0})
add("expire", "ttl", b'{"ttl_seconds":3600}', {"ttl": 3600})
add("weights", "weights_info", b'{"tinker_path":"tinker://r/weights/x"}', {"id": "tinker://r/weights/x"})

path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"requests-{VERSION}.json")
with open(path, "w") as out:
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in CASES)
    out.write('{"sdk": "%s", "cases": [\n%s\n]}\n' % (VERSION, lines))
print(path, len(CASES), "cases")
