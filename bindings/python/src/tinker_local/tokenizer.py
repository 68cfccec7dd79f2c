"""A model's tokenizer and chat format, without other libraries. The methods are those of Hugging Face tokenizers that programs call most."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping, Sequence
from ctypes import byref, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from ._library import Handle, call_json, check, encode, lib, take_array, take_text
from .exceptions import NotFoundError


class Tokenizer:
    """Text to token ids and back. Get one from `TrainingClient.get_tokenizer()` or `SamplingClient.get_tokenizer()`."""

    def __init__(self, handle: Handle, model: str) -> None:
        self._handle = handle
        self.name_or_path = model
        info = call_json("tinker_tokenizer_info", handle.value)
        self.chat_format: str = info["chat_format"]
        self.eos_token_ids: list[int] = info.get("eos_token_ids") or []
        self.eos_token: str | None = info.get("eos_token") or None
        self.bos_token: str | None = info.get("bos_token") or None
        self._size: int = info["size"]

    def __len__(self) -> int:
        """One more than the largest id."""
        return self._size

    @property
    def vocab_size(self) -> int:
        """As len()."""
        return self._size

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text; None if there is none."""
        if self.eos_token:
            return self.convert_tokens_to_ids(self.eos_token)
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text; None if there is none."""
        return self.convert_tokens_to_ids(self.bos_token) if self.bos_token else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids. add_special_tokens: with those that the tokenizer puts around a text."""
        ids: list[int] = self.encode_np(text, add_special_tokens).tolist()
        return ids

    def encode_np(self, text: str, add_special_tokens: bool = True) -> npt.NDArray[np.int32]:
        """encode as an array int32 [n]."""
        data = text.encode("utf-8", "surrogatepass")
        ids, count = c_void_p(), c_int64()
        check(lib().tinker_tokenizer_encode(self._handle.value, data, len(data), bool(add_special_tokens), byref(ids), byref(count)))
        return take_array(ids.value, count.value, np.int32)

    def decode(self, token_ids: int | Sequence[int] | npt.NDArray[Any], skip_special_tokens: bool = False) -> str:
        """Ids to text. Unknown ids give nothing."""
        ids = np.ascontiguousarray(np.atleast_1d(np.asarray(token_ids, np.int64)), np.int32)
        text, count = c_void_p(), c_int64()
        check(lib().tinker_tokenizer_decode(self._handle.value, ids.ctypes.data, ids.size, bool(skip_special_tokens), byref(text), byref(count)))
        try:
            return ctypes.string_at(text.value or 0, count.value).decode("utf-8", "replace")
        finally:
            lib().tinker_free(text.value)

    def batch_decode(self, sequences: Iterable[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """decode of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token by its name, such as "<|im_end|>"; None if there is none."""
        out = c_int32()
        try:
            check(lib().tinker_tokenizer_id(self._handle.value, encode(token), byref(out)))
        except NotFoundError:
            return None
        return out.value

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """{"input_ids", "attention_mask"} of a text, or lists of them of several."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        many = [self.encode(t, add_special_tokens) for t in text]
        return {"input_ids": many, "attention_mask": [[1] * len(ids) for ids in many]}

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        enable_thinking: bool = True,
        **options: Any,
    ) -> list[int] | str:
        """A conversation as ids, or as text with tokenize=False, in the model's chat format. See render for options."""
        out = self.render(conversation, tools=tools, generate=add_generation_prompt, no_thinking=not enable_thinking, **options)
        result: list[int] | str = out["tokens"].tolist() if tokenize else out["text"]
        return result

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """A conversation with all that goes with it: {"tokens" int32 [n], "weights" float32 [n], "text", "format", "stop_tokens", "stop"}.

        weights is 1 where a loss is to be taken: nowhere without train_on. options are those of tinker_chat_render in tinker.h: tools, format,
        generate, prefill, train_on, no_thinking, keep_thinking, tools_in_system, allow_control, date.
        """
        request = {"messages": list(messages), **{k: v for k, v in options.items() if v is not None and v is not False}}
        ids, trained, text, count = c_void_p(), c_void_p(), c_void_p(), c_int64()
        body = encode(json.dumps(request))
        check(lib().tinker_chat_render(self._handle.value, body, byref(ids), byref(trained), byref(count), byref(text)))
        tokens = take_array(ids.value, count.value, np.int32)
        weights = take_array(trained.value, count.value, np.uint8).astype(np.float32)
        return {"tokens": tokens, "weights": weights, **json.loads(take_text(text.value))}

    def parse(self, text: str, **options: Any) -> dict[str, Any]:
        """Reads a sampled reply, decoded with special tokens: {"message", "end", "problems"}. options as they were rendered with."""
        return call_json("tinker_chat_parse", self._handle.value, encode(json.dumps(options)), encode(text))  # type: ignore[no-any-return]
