"""Makes cookbook.jsonl.gz: what tinker-cookbook trains on, and how it reads replies.

    pip install torch==2.11.0 pydantic==2.14.3 && python make_cookbook.py DIR

DIR is a checkout of thinking-machines-lab/tinker-cookbook at the commit below. Its renderers run unchanged on a tokenizer of
single characters; modules that only carry data are stood in for. Lines:
  {format, name, messages, options, many, want}  the training texts: for each a list of [text, trained], in turn
  {format, reply, options, want}                 a sampled reply and {content, thinking, calls, bad, end}
want is null where the cookbook raises an error. Nothing is downloaded, and the same versions make the same bytes.
"""
import dataclasses
import gzip
import importlib
import json
import os
import re
import sys
import types

import conversations

COMMIT = "9dfcc3a2cf44432d621a01005073dc6d76a1e87a"
HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FIRST = 0x200000


@dataclasses.dataclass
class Chunk:
    tokens: list

    @property
    def length(self):
        return len(self.tokens)


@dataclasses.dataclass
class Input:
    chunks: list

    def to_ints(self):
        return [t for c in self.chunks for t in c.tokens]


def module(name, **names):
    m = types.ModuleType(name)
    m.__dict__.update(names)
    sys.modules[name] = m
    return m


def stand_ins():
    kinds = module("tinker.types", EncodedTextChunk=Chunk, ModelInputChunk=Chunk, ModelInput=Input, ImageChunk=type("ImageChunk", (), {}))
    module("tinker", types=kinds, EncodedTextChunk=Chunk, ModelInputChunk=Chunk, ModelInput=Input, ImageChunk=kinds.ImageChunk)
    image = module("PIL.Image", Image=type("Image", (), {}))
    module("PIL", Image=image)
    module("tinker_cookbook.image_processing_utils", ImageProcessor=object)
    module("tinker_cookbook.tokenizer_utils", Tokenizer=object)


class Characters:
    """A token for each character and each special name."""
    name_or_path = "characters"
    bos_token = None
    eos_token_id = FIRST + SPECIAL.index("<|endoftext|>")

    def encode(self, text, add_special_tokens=False, split_special_tokens=False):
        out = []
        for part in [text] if split_special_tokens else re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text):
            out += [FIRST + SPECIAL.index(part)] if part in SPECIAL and not split_special_tokens else map(ord, part)
        return out

    def decode(self, ids):
        return "".join(SPECIAL[i - FIRST] if i >= FIRST else chr(i) for i in ids)


def get_renderer(name, tokenizer):
    where = {"qwen3": "qwen3.Qwen3Renderer", "qwen3_disable_thinking": "qwen3.Qwen3DisableThinkingRenderer",
             "qwen3_instruct": "qwen3.Qwen3InstructRenderer", "llama3": "llama3.Llama3Renderer", "role_colon": "role_colon.RoleColonRenderer"}
    file, kind = where[name].split(".")
    return getattr(importlib.import_module("tinker_cookbook.renderers." + file), kind)(tokenizer)


def structured(message):
    """Thoughts as a part of the content, which is how the cookbook has them."""
    m = {k: v for k, v in message.items() if k in ("role", "content")}
    thought = message.get("reasoning_content")
    if thought is not None:
        m["content"] = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": m["content"]}]
    return m


def runs(tokenizer, example):
    ids, weights = example[0].to_ints(), example[1].tolist()
    out = []
    for i, w in zip(ids, weights, strict=True):
        if not out or out[-1][1] != bool(w):
            out.append([[], bool(w)])
        out[-1][0].append(i)
    return [[tokenizer.decode(ids), trained] for ids, trained in out]


def training(renderers, tokenizer, errors):
    modes = list(renderers.TrainOnWhat)
    for format in "qwen3", "qwen3_disable_thinking", "qwen3_instruct", "llama3", "role_colon":
        renderer = renderers.get_renderer(format, tokenizer)
        for name, messages, tools in conversations.all_of_them():
            if tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages):
                continue
            for mode in modes:
                for many in (False, True) if "assistant" in mode.value and mode.value != "customized" else (False,):
                    chat = [structured(m) for m in messages]
                    given = [dict(m) for m in messages]
                    if mode.value == "customized":
                        for k, (m, g) in enumerate(zip(chat, given)):
                            m["trainable"] = g["trainable"] = k % 2 == 1
                    try:
                        made = renderer.build_supervised_examples(chat, mode) if many else [renderer.build_supervised_example(chat, mode)]
                        want = [runs(tokenizer, e) for e in made]
                    except errors:
                        want = None
                    yield {"format": format, "name": name, "messages": given, "options": {"Train": mode.value}, "many": many, "want": want}


REPLIES = {
    "qwen3": ["4<|im_end|>", "<think>\neasy\n</think>\n\n4<|im_end|>", "<think>\n\n</think>\n\n4<|im_end|>", "4", "", "<|im_end|>",
              "<think>a</think>b<think>c</think>d<|im_end|>",
              '<think>\nlook\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": [2.5, null]}}\n</tool_call><|im_end|>',
              '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {"é": "\\u00e9"}}\n</tool_call><|im_end|>',
              "<tool_call>\nnot json\n</tool_call><|im_end|>", '<tool_call>{"name": 1, "arguments": {}}</tool_call><|im_end|>',
              '<tool_call>{"name": "f", "arguments": "x"}</tool_call><|im_end|>', "<tool_call>[1]</tool_call><|im_end|>",
              '<tool_call>{"name": "f", "arguments": {}, "id": "x1"}</tool_call><|im_end|>', "a</tool_call>b<|im_end|>"],
    "qwen3_instruct": ["4<|im_end|>", "4", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'],
    "llama3": ["4<|eot_id|>", "4", "<|eot_id|>", " 4 \n<|eot_id|>", '{"a": 1}<|eot_id|>'],
    "role_colon": [" 4\n\nUser:", "4\n\nUser:", " 4", " 4\n\n", "4<|endoftext|>", " 4\n\n<|endoftext|>", "\n\nUser:", " a\n\nUser: b\n\nUser:",
                   " 4\n\nUser:<|endoftext|>", "", "<|endoftext|>", "  4  \n\n\n\nUser:"],
}


def reading(renderers, tokenizer, errors):
    for format, replies in REPLIES.items():
        renderer = renderers.get_renderer(format, tokenizer)
        for reply in replies:
            try:
                m, end = renderer.parse_response(tokenizer.encode(reply))
            except errors:
                continue
            content = m["content"] if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]
            want = {"content": "".join(p["text"] for p in content if p["type"] == "text"),
                    "thinking": "".join(p["thinking"] for p in content if p["type"] == "thinking"),
                    "calls": [{"id": c.id or "", "name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in m.get("tool_calls", [])],
                    "bad": len(m.get("unparsed_tool_calls", [])), "end": end.value}
            yield {"format": format, "reply": reply, "options": {"EOS": "<|endoftext|>"}, "want": want}


def main():
    (folder,) = sys.argv[1:]
    stand_ins()
    sys.path.insert(0, folder)
    package = module("tinker_cookbook.renderers", __path__=[os.path.join(folder, "tinker_cookbook", "renderers")])  # without all its formats
    package.base = importlib.import_module("tinker_cookbook.renderers.base")
    renderers = types.SimpleNamespace(TrainOnWhat=package.base.TrainOnWhat, get_renderer=get_renderer)
    from tinker_cookbook.exceptions import RendererError
    tokenizer = Characters()
    errors = (RendererError, NotImplementedError, AssertionError)
    with open(os.path.join(HERE, "cookbook.jsonl.gz"), "wb") as f, gzip.GzipFile("", "wb", 9, f, 0) as z:
        count = 0
        for make in training, reading:
            for line in make(renderers, tokenizer, errors):
                z.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                count += 1
    print(count, "lines")


if __name__ == "__main__":
    main()
