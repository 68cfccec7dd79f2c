"""The structures and numbers of tinker.h. tests/test_header.py compares every one of them with the header."""

from __future__ import annotations

import ctypes
import operator
from ctypes import c_char_p, c_double, c_int32, c_int64, c_uint32, c_void_p

# Status: tinker_status.
OK = 0
PENDING = 15

FLOAT32, INT64 = 1, 3
STOP = 1


def int32(name: str, value: int) -> int:
    """An argument that is an int32_t in C. ctypes would cut off what does not fit."""
    value = operator.index(value)
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{name} is {value}, which does not fit into 32 bits")
    return value


def int64(value: int) -> int:
    """A seed: any whole number, of which 64 bits count."""
    return ctypes.c_int64(value).value


# Pointers to arrays are c_void_p here: ctypes hands their addresses out as plain integers, which is what copying needs.


class EngineOptions(ctypes.Structure):
    """tinker_engine_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("log_fd", c_int32),
        ("log_level", c_int32),
        ("reserved", c_uint32),
        ("device", c_char_p),
        ("dtype", c_char_p),
        ("models", c_char_p),
        ("state", c_char_p),
        ("hub_cache", c_char_p),
        ("limits", c_void_p),
    ]


class Lora(ctypes.Structure):
    """tinker_lora."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("rank", c_int32),
        ("train_attn", c_int32),
        ("train_mlp", c_int32),
        ("train_unembed", c_int32),
        ("has_seed", c_int32),
        ("seed", c_int64),
    ]


class Pair(ctypes.Structure):
    """tinker_pair."""

    _fields_ = [("name", c_char_p), ("value", c_double)]


class Tensor(ctypes.Structure):
    """tinker_tensor."""

    _fields_ = [
        ("name", c_char_p),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("values", c_void_p),
        ("count", c_int64),
        ("columns", c_int64),
        ("offsets", c_void_p),
    ]


class Datums(ctypes.Structure):
    """tinker_datums."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("tensor_size", c_uint32),
        ("count", c_int64),
        ("tokens", c_void_p),
        ("token_offsets", c_void_p),
        ("tensors", c_void_p),
        ("tensor_count", c_int64),
    ]


class Adam(ctypes.Structure):
    """tinker_adam."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
        ("grad_clip_norm", c_double),
    ]


class SaveOptions(ctypes.Structure):
    """tinker_save_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("overwrite", c_int32),
        ("ttl_seconds", c_int64),
        ("keep_last", c_int64),
        ("user_metadata", c_void_p),
    ]


class Sampling(ctypes.Structure):
    """tinker_sampling."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("num_samples", c_int32),
        ("max_tokens", c_int64),
        ("has_seed", c_int32),
        ("top_k", c_int32),
        ("seed", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("stop", c_void_p),
        ("stop_count", c_int64),
        ("stop_tokens", c_void_p),
        ("stop_token_count", c_int64),
        ("prompt_logprobs", c_int32),
        ("topk_prompt_logprobs", c_int32),
        ("no_stop_tokens", c_int32),
        ("reserved", c_int32),
    ]


class Output(ctypes.Structure):
    """tinker_output."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("count", c_int64),
        ("offsets", c_void_p),
        ("columns", c_void_p),
        ("logprobs", c_void_p),
        ("metric_count", c_int64),
        ("metrics", ctypes.POINTER(Pair)),
    ]


class Samples(ctypes.Structure):
    """tinker_samples."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("count", c_int64),
        ("offsets", c_void_p),
        ("tokens", c_void_p),
        ("logprobs", c_void_p),
        ("raw_logprobs", c_void_p),
        ("stop_reasons", c_void_p),
        ("prompt_count", c_int64),
        ("prompt_logprobs", c_void_p),
        ("topk_offsets", c_void_p),
        ("topk_tokens", c_void_p),
        ("topk_logprobs", c_void_p),
    ]


class Matrix(ctypes.Structure):
    """tinker_matrix."""

    _fields_ = [("name", c_char_p), ("values", c_void_p), ("shape", c_void_p), ("rank", c_int64)]


class Weights(ctypes.Structure):
    """tinker_weights."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("rank", c_int32),
        ("scale", c_double),
        ("version", c_int64),
        ("count", c_int64),
        ("matrices", ctypes.POINTER(Matrix)),
    ]
