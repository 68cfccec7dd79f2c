"""The conversations that make_fixtures.py renders: (name, messages, tools or None)."""
import json


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thought=None, calls=None):
    m = {"role": "assistant", "content": text}
    if thought is not None:
        m["reasoning_content"] = thought
    if calls:
        m["tool_calls"] = calls
    return m


def call(name, arguments, number=1):
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, number=1):
    return {"role": "tool", "content": text, "tool_call_id": f"call{number:05d}", "name": "tool"}


def function(name, description, parameters, **more):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters, **more}}


CONTENTS = {
    "empty": "",
    "plain": "How many moons has Mars?",
    "padded": "  \n\tpadded on both sides \n\n ",
    "newlines": "\n\nfirst\n\n\nsecond\n",
    "unicode": "Größe 北京 🚀👩‍👩‍👧 नमस्ते مرحبا é é ﬁ",
    "spaces": "\u3000wide\u00a0no-break\u2028line\u0085next\u001cfile\u200bzero\u3000",
    "separators": "\u001f\u001c \u0085a\u001db\u2003\u001e",
    "control": "bell\u0007 null-ish\u0001 delete\u007f tab\tend",
    "code": 'if (a < b && c > "d") { print(\'\\n\' + `x`); } // 100%',
    "jinja": "{{ messages[0] }} {% if x %} {# no #} {{ '{{' }}",
    "markup": "<b>bold</b> <think> is a tag? </s not> [INST",
    "long": "word " * 300,
    "json": '{"name": "x", "parameters": {"a": [1, 2.50, null]}}',
}

WEATHER = function("get_weather", "Current weather of a place", {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "City, e.g. \"São Paulo\" <&'>"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
    },
    "required": ["location"],
})
NESTED = function("book", "Books a trip.\nTakes \"legs\" of it.", {
    "required": ["legs"],
    "type": "object",
    "properties": {
        "legs": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {
            "to": {"type": "string"}, "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
            "price": {"type": "number", "minimum": 0.5, "maximum": 1e21, "multipleOf": 1e-07}}, "required": []}},
        "zzz": {}, "aaa": {"const": None, "examples": [True, False, -0.0, 10.0, 12345678901234567890, 1e16, 123456.789, 0.0001, 0.00001]},
        "größe": {"title": "Größe 🚀 \u2028\u0001\u007f/\\"},
    },
    "additionalProperties": False,
}, strict=True)
NOTHING = function("now", "", {"type": "object", "properties": {}})
RETURNS = function("area", "Area", {"type": "object", "properties": {"r": {"type": "number"}}}, **{"return": {"type": "number"}})
BARE = {"function": {"parameters": {"type": "object"}, "name": "odd_order"}, "type": "function", "extra": [1, {"k": "v"}]}

ASK = user("Is it cold in 北京?")
CALL = call("get_weather", {"location": "北京", "unit": "celsius"})
DEEP = call("book", {"legs": [{"to": "Oslo", "price": 10.50, "at": None}, {}], "big": 1e100, "ok": True, "s": "a\"b\\c\n/é<&>"})


def all_of_them():
    out = []

    def add(name, *messages, tools=None):
        out.append((name, list(messages), tools))

    for name, text in CONTENTS.items():
        add(f"user {name}", user(text))
        add(f"assistant {name}", user("Go on."), assistant(text))
    for name in "empty", "padded", "unicode", "code":
        add(f"system {name}", system(CONTENTS[name]), user("Hi"))
        add(f"history {name}", system("Be brief."), user(CONTENTS[name]), assistant(CONTENTS[name]), user(CONTENTS[name]))
    add("five turns", user("a"), assistant("b"), user("c"), assistant("d"), user("e"))
    add("six turns", system("s"), user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f"))
    add("same question twice", user("again"), assistant("b"), user("again"))
    add("same question twice, tools", user("again"), assistant("b"), user("again"), tools=[WEATHER])
    add("system alone", system("Only me."))
    add("two systems", system("One."), system("Two."), user("Hi"))
    add("system late", user("Hi"), system("Late."), assistant("ok"))
    add("two users", user("One."), user("Two."))
    add("two assistants", user("One."), assistant("1"), assistant("2"))
    add("assistant first", assistant("Welcome."), user("Hi"))
    add("assistant alone", assistant("Just me."))

    # thoughts
    add("thought last", user("2+2?"), assistant("4", "easy"))
    add("thought padded", user("2+2?"), assistant("\n\n4\n", "\n\n easy \n\n"))
    add("thought empty", user("2+2?"), assistant("4", ""))
    add("thought newline", user("2+2?"), assistant("4", "\n"))
    add("thought only", user("2+2?"), assistant("", "hm"))
    add("thought in history", user("2+2?"), assistant("4", "easy"), user("3+3?"))
    add("thoughts twice", system("s"), user("2+2?"), assistant("4", "easy"), user("3+3?"), assistant("6", "also"))
    add("thought inline", user("2+2?"), assistant("<think>\neasy\n</think>\n\n4"))
    add("thought inline in history", user("2+2?"), assistant("<think>\neasy\n</think>\n\n4"), user("3+3?"))
    add("thought inline, words before", user("2+2?"), assistant("Well <think>a</think>b"))
    add("thought inline, two", user("2+2?"), assistant("<think>a</think>b<think>c</think>d"))
    add("thought inline, two opened", user("2+2?"), assistant("<think>a<think>\nb\n\n</think>\nc"))
    add("thought inline, not opened", user("2+2?"), assistant("a\n\n</think>\n\nb"))
    add("thought inline, not closed", user("2+2?"), assistant("<think>a"))
    add("thought inline and apart", user("2+2?"), assistant("<think>a</think>b", "c"))
    add("thought inline and empty apart", user("2+2?"), assistant("<think>a</think>b", ""))
    add("thought, no user", system("s"), assistant("4", "easy"))
    add("thought, two assistants", user("2+2?"), assistant("wait", "hm"), assistant("4", "easy"))
    add("thought, two assistants, one thinks", user("2+2?"), assistant("wait"), assistant("4", "easy"))

    # tools
    add("tool", user("Hi"), tools=[WEATHER])
    add("tool and system", system("Be brief."), user("Hi"), tools=[WEATHER])
    add("tool and empty system", system(""), user("Hi"), tools=[NOTHING])
    add("tools", system("Be brief."), ASK, tools=[WEATHER, NESTED, NOTHING, RETURNS, BARE])
    add("tool nested", user(" \n padded "), tools=[NESTED])
    add("tool, history", user("a"), assistant("b"), user("c"), assistant("d"), tools=[WEATHER])
    add("tool, system, history", system("s"), user("a"), assistant("b"), user("c"), tools=[WEATHER])
    add("call", ASK, assistant("", calls=[CALL]), tools=[WEATHER])
    add("call null content", ASK, assistant(None, calls=[CALL]), tools=[WEATHER])
    add("call with words", ASK, assistant("Let me see.", calls=[CALL]), tools=[WEATHER])
    add("call with words, newline", ASK, assistant("\nLet me see.\n", calls=[CALL]), tools=[WEATHER])
    add("call with a newline", ASK, assistant("\n", calls=[CALL]), tools=[WEATHER])
    add("call with thought", ASK, assistant("", "must look", calls=[CALL]), tools=[WEATHER])
    add("call with thought inline", ASK, assistant("<think>\nmust look\n</think>\n\n", calls=[CALL]), tools=[WEATHER])
    add("call text arguments", ASK, assistant("", calls=[call("get_weather", '{"location":"北京",  "n":1.50}')]), tools=[WEATHER])
    add("call no arguments", ASK, assistant("", calls=[call("now", {})]), tools=[NOTHING])
    add("call deep", ASK, assistant("", calls=[DEEP]), tools=[NESTED])
    add("call without tools", ASK, assistant("", calls=[CALL]), result("-3"))
    add("calls", ASK, assistant("", calls=[CALL, call("now", {}, 2)]), tools=[WEATHER, NOTHING])
    add("calls with words", ASK, assistant("Both.", calls=[CALL, call("now", {}, 2)]), tools=[WEATHER, NOTHING])
    add("result", ASK, assistant("", calls=[CALL]), result('{"t": -3.50, "sky": "klar ☀"}'), tools=[WEATHER])
    add("result, no call before", ASK, result("-3"), tools=[WEATHER])
    add("result empty", ASK, assistant("", calls=[CALL]), result(""), tools=[WEATHER])
    add("result odd", ASK, assistant("", calls=[CALL]), result(' "q"\\\n\t{% x %}\u0001é\n '), tools=[WEATHER])
    add("results", ASK, assistant("", calls=[CALL]), result("-3"), result("noon", 2), tools=[WEATHER])
    add("results of calls", ASK, assistant("x", calls=[CALL, call("now", {}, 2)]), result("-3"), result("noon", 2), assistant("Yes."),
        tools=[WEATHER, NOTHING])
    add("answer", ASK, assistant("", calls=[CALL]), result("-3"), assistant("Yes, -3 °C."), tools=[WEATHER])
    add("answer, system", system("s"), ASK, assistant("", calls=[CALL]), result("-3"), assistant("Yes."), tools=[WEATHER])
    add("answer with thoughts", ASK, assistant("", "must look", calls=[CALL]), result("-3"), assistant("Yes.", "below zero"), tools=[WEATHER])
    add("answer with late thought", ASK, assistant("", calls=[CALL]), result("-3"), assistant("Yes.", "below zero"), tools=[WEATHER])
    add("next question", system("s"), ASK, assistant("", "look", calls=[CALL]), result("-3"), assistant("Yes.", "cold"), user("And now?"),
        tools=[WEATHER])
    add("next call", ASK, assistant("", "look", calls=[CALL]), result("-3"), assistant("Yes.", "cold"), user("And now?"),
        assistant("", "again", calls=[call("now", {}, 2)]), result("noon", 2), tools=[WEATHER, NOTHING])
    add("result as user", ASK, assistant("", "look", calls=[CALL]), user("<tool_response>\n-3\n</tool_response>"), assistant("Yes.", "cold"),
        tools=[WEATHER])
    add("result as user, padded", ASK, assistant("", "look", calls=[CALL]), user("<tool_response>\n-3\n</tool_response> "),
        assistant("Yes.", "cold"), tools=[WEATHER])
    add("result first", result("-3"), assistant("Yes."))
    return out


def count():
    return len(all_of_them())


def parsed(messages):
    """A copy in which arguments are objects, as servers make them for templates that expect that."""
    messages = json.loads(json.dumps(messages))
    for m in messages:
        for c in m.get("tool_calls", []):
            if isinstance(c["function"]["arguments"], str):
                c["function"]["arguments"] = json.loads(c["function"]["arguments"])
    return messages
