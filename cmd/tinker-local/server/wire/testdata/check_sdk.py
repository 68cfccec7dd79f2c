"""Reads responses.json, what package wire writes, with the official SDK's own converters and models.

    v/bin/python check_sdk.py           compares with decoded-VERSION.json
    v/bin/python check_sdk.py --write   writes it

Run it in one environment per version (see make_goldens.py). The Go tests compare decoded-VERSION.json with what was encoded, and its digest with
responses.json, so CI needs no Python.
"""

import base64
import hashlib
import json
import math
import os
import sys

import tinker
from tinker import types

VERSION = tinker.__version__
HERE = os.path.dirname(os.path.abspath(__file__))


def plain(v):
    """JSON has no NaN: as a string."""
    if isinstance(v, float) and not math.isfinite(v):
        return "NaN" if v != v else "Infinity" if v > 0 else "-Infinity"
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    return v


def output(r):
    return {"loss_fn_output_type": r.loss_fn_output_type, "metrics": r.metrics, "loss_fn_outputs": [
        {k: {"dtype": t.dtype, "shape": list(t.shape), "data": list(t.data), "numpy": t.to_numpy().flatten().tolist()} for k, t in o.items()} for o in r.loss_fn_outputs]}


def sampled(r):
    view = {"prompt_logprobs": r.prompt_logprobs, "topk_prompt_logprobs": r.topk_prompt_logprobs,
            "sequences": [{"stop_reason": s.stop_reason, "tokens": list(s.tokens), "logprobs": s.logprobs} for s in r.sequences]}
    for s, of in zip(view["sequences"], r.sequences):
        if getattr(of, "topk_logprobs", None) is not None:
            s["topk_logprobs"] = of.topk_logprobs
    t = getattr(r, "target_prompt_logprobs", None)
    if t is not None:
        view["target_prompt_logprobs"] = {"dtype": t.dtype, "shape": list(t.shape), "data": list(t.data)}
        if t.sparse_crow_indices is not None:
            view["target_prompt_logprobs"].update(sparse_crow_indices=list(t.sparse_crow_indices), sparse_col_indices=list(t.sparse_col_indices))
    alt = getattr(r, "prompt_alt_tokens", None)
    if alt is not None:
        assert (alt.tokens.dtype, alt.logprobs.dtype, list(alt.tokens.shape)) == ("int64", "float32", list(alt.logprobs.shape))
        view["prompt_alt_tokens"] = {"tokens": list(alt.tokens.data), "logprobs": list(alt.logprobs.data), "shape": list(alt.tokens.shape)}
    return view


def find(name):
    """A class by its name; some live beside the public ones."""
    if hasattr(types, name):
        return getattr(types, name)
    if name == "SelfApiKeyResponse":
        try:
            from tinker.cli.auth_api import SelfApiKeyResponse
        except ImportError:
            return None
        return SelfApiKeyResponse
    for module in ("request_failed_response", "telemetry_response", "session_heartbeat_response", "health_response", "futures_retrieve_response", "save_weights_for_sampler_response",
                   "_pydantic_types.save_weights_external_response"):
        try:
            found = getattr(__import__("tinker.types." + module, fromlist=["x"]), name, None)
        except ImportError:
            found = None
        if found:
            return found
    return None


def decode(case):
    """What the SDK makes of a case; None when this version has no such thing."""
    cls = find(case["class"])
    if cls is None or case.get("since", "") > VERSION:
        return None
    if "base64" in case:
        try:
            from tinker.proto.response_conv import deserialize_proto_response
        except ImportError:
            return None
        r = deserialize_proto_response(base64.b64decode(case["base64"]), cls)
    else:
        if not hasattr(cls, "model_validate"):
            return None  # later versions read these in protobuf alone
        value = json.loads(case["text"])
        if VERSION != "0.38.0" and value.get("checkpoint_type") == "external":
            return None  # they know no such kind, and are not shown any
        r = cls.model_validate(value)
    if case["class"] == "ForwardBackwardOutput":
        return output(r)
    if case["class"] == "SampleResponse":
        return sampled(r)
    return r.model_dump(mode="json" if case.get("finite", True) else "python")


with open(os.path.join(HERE, "responses.json"), "rb") as f:
    raw = f.read()
decoded = {}
for case in json.loads(raw)["cases"]:
    value = decode(case)
    if value is not None:
        decoded[case["name"]] = plain(value)
result = {"sdk": VERSION, "sha256": hashlib.sha256(raw).hexdigest(), "decoded": decoded}
path = os.path.join(HERE, f"decoded-{VERSION}.json")
if "--write" in sys.argv:
    with open(path, "w") as f:
        lines = ",\n".join(json.dumps(k) + ": " + json.dumps(v) for k, v in decoded.items())
        f.write('{"sdk": "%s", "sha256": "%s", "decoded": {\n%s\n}}\n' % (VERSION, result["sha256"], lines))
else:
    with open(path) as f:
        if json.load(f) != json.loads(json.dumps(result)):
            sys.exit(f"{VERSION} reads something else than {path} has")
print(VERSION, "reads", len(decoded), "bodies:", " ".join(decoded))
