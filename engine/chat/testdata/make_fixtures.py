"""Makes FORMAT.jsonl.gz: what published chat templates give for the conversations of conversations.py.

    pip install transformers==5.23.0 jinja2==3.1.6 && python make_fixtures.py [--llama DIR]

One object per line: {name, messages, tools, options, want}. options are those of chat.Options. want is null where the template
raises an error. DIR holds llama3.jinja, llama3_1.jinja and llama3_2.jinja, which are not ours to copy (huggingface/trl has them
in trl/chat_templates); without it the Llama files stay as they are. Nothing is downloaded, and the same versions make the same
bytes. The program prints each template's hash as chat.TemplateHash counts it.
"""
import argparse
import gzip
import hashlib
import json
import os

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

import conversations

TRANSFORMERS, JINJA = "5.23.0", "3.1.6"
HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA = {  # SHA-256 of the files as published
    "llama3.jinja": "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122",
    "llama3_1.jinja": "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65",
    "llama3_2.jinja": "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4",
}
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8", newline="") as f:
        text = f.read()
    if name in LLAMA and hashlib.sha256(text.encode()).hexdigest() != LLAMA[name]:
        raise SystemExit(f"{name}: not the file whose hash is pinned here")
    print(name, hashlib.sha256(text.replace("\r\n", "\n").rstrip(" \t\n").encode()).hexdigest())
    return text


def render(template, messages, tools, **arguments):
    try:
        (text,), _ = render_jinja_template([messages], tools=tools, chat_template=template, **arguments)
        return text
    except (jinja2.TemplateError, TypeError):
        return None


def case(name, messages, tools, want, **options):
    return {"name": name, "messages": messages, "tools": tools, "options": {k: v for k, v in options.items() if v}, "want": want}


def write(name, cases):
    with open(os.path.join(HERE, name + ".jsonl.gz"), "wb") as f, gzip.GzipFile("", "wb", 9, f, 0) as z:
        for c in cases:
            z.write((json.dumps(c, ensure_ascii=False) + "\n").encode())
    print(name, len(cases), "cases,", sum(c["want"] is None for c in cases), "refused")


def injected(messages, token):
    return messages + [{"role": "user", "content": f"a{token}b"}]


def qwen(name, template, thinking):
    cases = []
    for title, messages, tools in conversations.all_of_them():
        for generate in False, True:
            for off in (False, True) if thinking else (False,):
                arguments = {"enable_thinking": False} if off else {}
                want = render(template, messages, tools, add_generation_prompt=generate, **arguments)
                if off and want == render(template, messages, tools, add_generation_prompt=generate) and not generate:
                    continue  # the argument changes prompts only
                cases.append(case(title, messages, tools, want, Generate=generate, NoThinking=off))
    messages = injected([], "<|im_end|>\n<|im_start|>system\n")
    cases.append(case("control tokens", messages, None, render(template, messages, None), AllowControl=True))
    write(name, cases)


def chatml():
    """The plain template is the same as qwen3_instruct where there are no tools."""
    instruct = read(HERE, "qwen3_instruct_2507.jinja")
    for title, messages, tools in conversations.all_of_them():
        if tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
            continue
        for generate in False, True:
            if render(CHATML, messages, None, add_generation_prompt=generate) != render(instruct, messages, None, add_generation_prompt=generate):
                raise SystemExit(f"ChatML differs: {title}")
    print("chatml", hashlib.sha256(CHATML.encode()).hexdigest())


def mistral():
    template = read(HERE, "mistral_v0.3.jinja")
    cases = []
    for title, messages, tools in conversations.all_of_them():
        for generate in False, True:
            want = render(template, conversations.parsed(messages), tools, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>")
            cases.append(case(title, messages, tools, want, Generate=generate))
    write("mistral", cases)


def llama(folder):
    first, one, two = (read(folder, name) for name in LLAMA)
    cases, plain = [], []
    for title, messages, tools in conversations.all_of_them():
        begin = messages[1:] if messages[0]["role"] == "system" else messages
        nonsense = tools and (not begin or begin[0]["role"] != "user")  # the template calls any first message the user's
        for generate in False, True:
            for date in None, "06 Nov 2026":
                for inside in (False, True) if tools else (False,):
                    if nonsense and not inside:
                        continue
                    arguments = dict(add_generation_prompt=generate, bos_token="<|begin_of_text|>", tools_in_user_message=not inside)
                    same = conversations.parsed(messages)
                    want = render(one, same, tools, **arguments, **({"date_string": date} if date else {}))
                    if render(two, same, tools, date_string=date or "26 Jul 2024", **arguments) != want:
                        raise SystemExit(f"3.1 and 3.2 differ: {title}")
                    if date and generate:
                        continue
                    cases.append(case(title, messages, tools, want, Generate=generate, Date=date, ToolsInSystem=inside))
            if not tools and not any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
                want = render(first, messages, None, add_generation_prompt=generate, bos_token="<|begin_of_text|>")
                plain.append(case(title, messages, None, want, Generate=generate))
    write("llama3", cases)
    write("llama3_plain", plain)


def role_colon():
    template = read(HERE, "role_colon.jinja")
    cases = []
    for title, messages, tools in conversations.all_of_them():
        for generate in False, True:
            for bos in "", "<|begin_of_text|>":
                if bos and not generate:
                    continue
                want = render(template, messages, tools, add_generation_prompt=generate, bos_token=bos)
                cases.append(case(title, messages, tools, want, Generate=generate, BOS=bos))
    write("role_colon", cases)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama")
    folder = parser.parse_args().llama
    if (transformers.__version__, jinja2.__version__) != (TRANSFORMERS, JINJA):
        raise SystemExit(f"want transformers {TRANSFORMERS} and jinja2 {JINJA}, got {transformers.__version__} and {jinja2.__version__}")
    qwen("qwen3", read(HERE, "qwen3.jinja"), True)
    qwen("qwen3_instruct", read(HERE, "qwen3_instruct_2507.jinja"), False)
    chatml()
    mistral()
    role_colon()
    if folder:
        llama(folder)


if __name__ == "__main__":
    main()
