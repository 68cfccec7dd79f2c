"""The generated pre-training documents of the tiny base model.

document(rng) gives (prompt, answer): two byte strings, where the answer ends
with a newline (or with <|im_end|> in the chat form, written as IM_END).
Everything is drawn from one random.Random, so a seed fixes the data.

The quick-start teaches Pig Latin, so nothing here may teach it: no task looks
for a word's first vowel or for its leading consonants, no task depends on
whether a word begins with a vowel, no suffix contains "ay", and no task that
moves letters of a word to another place joins them with a dash.
check_documents() scans documents for any Pig Latin pair and for held-out words.
"""
import gzip
import hashlib
import os
import random
import re

HERE = os.path.dirname(os.path.abspath(__file__))
HELDOUT_BELOW = 26
VOWELS = set("aeiou")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Special tokens, kept as code points beyond the bytes until encoding.
EOT, IM_START, IM_END = 256, 257, 258


def held_out(word):
    return hashlib.sha256(word.encode("ascii")).digest()[0] < HELDOUT_BELOW


def load_words():
    with gzip.open(os.path.join(HERE, "words.txt.gz"), "rt") as f:
        return [(w, int(n)) for w, n in (l.split() for l in f)]


_all = load_words()
# Words of the prompt forms that the hash would hold out. They are in no list that a
# task draws from, and make_words.py keeps them out of words_heldout.txt.
EXEMPT = frozenset("answer for length number task user with without write".split())
HELD = frozenset(w for w, _ in _all if held_out(w) and w not in EXEMPT)
WORDS = [w for w, _ in _all if not held_out(w)]
COMMON = [w for w, n in _all if n <= 20 and not held_out(w)]

# ---------------------------------------------------------------- word functions

ROT = str.maketrans(LETTERS, LETTERS[1:] + "a")
ROT_BACK = str.maketrans(LETTERS, LETTERS[-1] + LETTERS[:-1])
NO_VOWELS = str.maketrans("", "", "aeiou")
NO_CONSONANTS = str.maketrans("", "", "".join(c for c in LETTERS if c not in VOWELS))
STAR_VOWELS = str.maketrans("aeiou", "*****")
STAR_CONSONANTS = str.maketrans({c: "*" for c in LETTERS if c not in VOWELS})


def rotl(w, k):
    k %= len(w)
    return w[k:] + w[:k]


def swap_pairs(w):
    b = list(w)
    for i in range(0, len(b) - 1, 2):
        b[i], b[i + 1] = b[i + 1], b[i]
    return "".join(b)


def swap_ends(w):
    return w[-1] + w[1:-1] + w[0]


def alternate(w):
    return "".join(c.upper() if i % 2 else c for i, c in enumerate(w))


def squeeze(w):
    return re.sub(r"(.)\1", r"\1", w)


# name, short label, function. The name is what a prompt says.
WORD_FUNCTIONS = [
    ("copy", "Copy", lambda w: w),
    ("upper case", "Upper", str.upper),
    ("capitalize", "Title", str.capitalize),
    ("capital at the end", "End capital", lambda w: w[:-1] + w[-1].upper()),
    ("alternate case", "Alternate", alternate),
    ("reverse", "Reversed", lambda w: w[::-1]),
    ("rotate left", "Rotated", lambda w: rotl(w, 1)),
    ("rotate left 2", "Rotated 2", lambda w: rotl(w, 2)),
    ("rotate left 3", "Rotated 3", lambda w: rotl(w, 3)),
    ("rotate right", "Back", lambda w: rotl(w, -1)),
    ("rotate right 2", "Back 2", lambda w: rotl(w, -2)),
    ("drop first", "Rest", lambda w: w[1:] or w),
    ("drop first 2", "Rest 2", lambda w: w[2:] or w),
    ("drop first 3", "Rest 3", lambda w: w[3:] or w),
    ("drop last", "Most", lambda w: w[:-1] or w),
    ("drop last 2", "Most 2", lambda w: w[:-2] or w),
    ("keep first", "First", lambda w: w[:1]),
    ("keep first 2", "First 2", lambda w: w[:2]),
    ("keep first 3", "First 3", lambda w: w[:3]),
    ("keep first 4", "First 4", lambda w: w[:4]),
    ("keep last", "Last", lambda w: w[-1:]),
    ("keep last 2", "Last 2", lambda w: w[-2:]),
    ("keep last 3", "Last 3", lambda w: w[-3:]),
    ("double letters", "Doubled", lambda w: "".join(c + c for c in w)),
    ("double", "Twice", lambda w: w + w),
    ("double first", "Stutter", lambda w: w[0] + w),
    ("double last", "Last twice", lambda w: w + w[-1]),
    ("first to end too", "Loop", lambda w: w + w[0]),
    ("swap ends", "Swapped", swap_ends),
    ("swap pairs", "Pairs", swap_pairs),
    ("single letters", "Single", squeeze),
    ("vowels", "Vowels", lambda w: w.translate(NO_CONSONANTS) or "-"),
    ("consonants", "Consonants", lambda w: w.translate(NO_VOWELS) or "-"),
    ("mask vowels", "No vowels", lambda w: w.translate(STAR_VOWELS)),
    ("mask consonants", "No consonants", lambda w: w.translate(STAR_CONSONANTS)),
    ("upper vowels", "Upper vowels", lambda w: "".join(c.upper() if c in VOWELS else c for c in w)),
    ("upper consonants", "Upper consonants", lambda w: "".join(c if c in VOWELS else c.upper() for c in w)),
    ("mark letters", "Marks", lambda w: "".join("v" if c in VOWELS else "c" for c in w)),
    ("dash", "Dashed", lambda w: "-".join(w)),
    ("points", "Pointed", lambda w: ".".join(w)),
    ("shift up", "Shifted", lambda w: w.translate(ROT)),
    ("shift down", "Unshifted", lambda w: w.translate(ROT_BACK)),
    ("length", "Length", lambda w: str(len(w))),
    ("count vowels", "Vowel count", lambda w: str(sum(c in VOWELS for c in w))),
    ("odd letters", "Odd", lambda w: w[::2]),
    ("even letters", "Even", lambda w: w[1::2] or "-"),
    ("initial", "Initials", lambda w: w[0].upper() + "."),
    ("quote", "Quoted", lambda w: "'" + w + "'"),
    ("brackets", "In brackets", lambda w: "(" + w + ")"),
    ("reflect", "Reflected", lambda w: w + w[::-1]),
    ("sort letters", "Sorted", lambda w: "".join(sorted(w))),
]
# Functions that move letters, or drop leading ones: no dash may be added to these.
MOVES = {"reverse", "rotate left", "rotate left 2", "rotate left 3", "rotate right",
         "rotate right 2", "drop first", "drop first 2", "drop first 3", "keep first",
         "keep first 2", "keep first 3", "keep first 4", "first to end too", "swap ends",
         "swap pairs", "odd letters", "even letters", "reflect", "sort letters"}
# Drawn more often: copying, moving and selecting letters is what most string tasks need.
WEIGHTS = [3 if n in ("reverse", "rotate left", "rotate left 2", "rotate left 3", "copy",
                      "vowels", "consonants", "upper vowels", "mark letters") else
           2 if n in ("rotate right", "drop first", "drop first 2", "drop first 3", "mask vowels",
                      "shift up", "shift down", "drop last", "swap ends", "upper consonants") else 1
           for n, _, _ in WORD_FUNCTIONS]


def affix(rng, plain):
    """One to three letters, sometimes with a dash, never containing "ay"."""
    while True:
        s = "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 2, 2, 2, 3, 3))))
        if "ay" not in s:
            break
    if not plain and rng.random() < 0.5:
        return "-" + s, s + "-"
    return s, s


def phrase_words(rng, most=6):
    n = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 5, 6))
    if n > most:
        n = most
    pool = COMMON if rng.random() < 0.5 else WORDS
    return [rng.choice(pool) for _ in range(n)]


def word_task(rng):
    """A function mapped over the words of a phrase: (task name, label, input, output, words)."""
    words = phrase_words(rng)
    r = rng.random()
    if r < 0.10:  # rotation at a mark that the input shows
        cut = [rng.randrange(1, len(w)) if len(w) > 1 else 0 for w in words]
        text = " ".join(w[:k] + "|" + w[k:] for w, k in zip(words, cut))
        kind = rng.randrange(4)
        if kind == 0:
            name, label = "swap at the mark", "Swapped at mark"
            out = [w[k:] + w[:k] for w, k in zip(words, cut)]
        elif kind == 1:
            name, label = "after the mark", "After"
            out = [w[k:] for w, k in zip(words, cut)]
        elif kind == 2:
            name, label = "before the mark", "Before"
            out = [w[:k] or "-" for w, k in zip(words, cut)]
        else:
            name, label = "upper after the mark", "Upper after"
            out = [w[:k] + w[k:].upper() for w, k in zip(words, cut)]
        plain = True
    elif r < 0.20:  # a letter that the prompt names
        c, d = rng.choice("aeiorstln"), rng.choice(LETTERS)
        kind = rng.randrange(5)
        if kind == 0:
            name, label, f = f"replace {c} by {d}", f"{c} to {d}", lambda w: w.replace(c, d)
        elif kind == 1:
            name, label, f = f"remove {c}", f"No {c}", lambda w: w.replace(c, "") or "-"
        elif kind == 2:
            name, label, f = f"vowels to {d}", f"Vowels {d}", lambda w: "".join(d if x in VOWELS else x for x in w)
        elif kind == 3:
            name, label, f = f"upper {c}", f"Big {c}", lambda w: w.replace(c, c.upper())
        else:
            name, label, f = f"count {c}", f"Count {c}", lambda w: str(w.count(c))
        text, out, plain = " ".join(words), [f(w) for w in words], True
    elif r < 0.25:  # a choice by the word's end, length or letters
        (s1, _), (s2, _) = affix(rng, False), affix(rng, False)
        kind, c = rng.randrange(3), rng.choice("aeiorstln")
        if kind == 0:
            cond, f = "if it ends in a vowel", lambda w: w[-1] in VOWELS
        elif kind == 1:
            cond, f = "if it is long", lambda w: len(w) > 6
        else:
            cond, f = f"if it has {c}", lambda w: c in w
        name, label = f"add {s1} {cond}, else {s2}", f"{s1} or {s2} {cond}"
        text, out, plain = " ".join(words), [w + (s1 if f(w) else s2) for w in words], True
        return name, label, text, " ".join(out), words
    else:
        name, label, f = rng.choices(WORD_FUNCTIONS, WEIGHTS)[0]
        text, out, plain = " ".join(words), [f(w) for w in words], name in MOVES
        if name not in MOVES and rng.random() < 0.06:  # mixed-case input
            words2 = [rng.choice((w.capitalize(), w.upper(), w)) for w in words]
            if name in ("copy", "upper case"):
                text = " ".join(words2)
                out = [f(w) for w in words2]
            elif name == "capitalize":
                name, label, text, out = "lower case", "Lower", " ".join(words2), words
    if rng.random() < 0.33:
        suf, pre = affix(rng, plain)
        if rng.random() < 0.7:
            name, label = f"{name}, add {suf}", f"{label} + {suf}"
            out = [w + suf for w in out]
        else:
            name, label = f"{name}, put {pre} before", f"{label}, {pre}"
            out = [pre + w for w in out]
    return name, label, text, " ".join(out), words


def phrase_task(rng):
    """A function of the whole phrase."""
    words = phrase_words(rng)
    kind = rng.randrange(13)
    text = " ".join(words)
    c = rng.choice(("/", ",", "_", ":", " and ", ", ", "+"))
    if kind == 0:
        return "reverse the words", "Backwards", text, " ".join(words[::-1]), words
    if kind == 1:
        return "sort the words", "In order", text, " ".join(sorted(words)), words
    if kind == 2:
        return "first word", "First word", text, words[0], words
    if kind == 3:
        return "last word", "Last word", text, words[-1], words
    if kind == 4:
        return "longest word", "Longest", text, max(words, key=len), words
    if kind == 5:
        return "acronym", "Acronym", text, "".join(w[0] for w in words).upper(), words
    if kind == 6:
        return f"join with {c.strip()}", f"Joined {c.strip()}", text, c.join(words), words
    if kind == 7:
        return "count the words", "Count", text, str(len(words)), words
    if kind == 8:
        return "swap first and last word", "Outer swapped", text, \
            " ".join(words[-1:] + words[1:-1] + words[:1]) if len(words) > 1 else text, words
    if kind == 9:
        k = rng.randrange(len(words))
        return f"word {k + 1}", f"Word {k + 1}", text, words[k], words
    if kind == 10:
        return "number the words", "Numbered", text, " ".join(f"{i + 1}.{w}" for i, w in enumerate(words)), words
    if kind == 11:
        k = rng.randrange(len(words))
        return f"without {words[k]}", f"No {words[k]}", text, " ".join(words[:k] + words[k + 1:]) or "-", words
    return "repeat", "Again", text, text + " " + text, words


LIST_NAMES = ["Input", "Text", "Words", "Phrase", "Given", "Plain", "Source", "Line"]


def wrap(rng, name, label, text, out):
    """One of the prompt forms; the answer starts with a space where text precedes it."""
    r = rng.randrange(10)
    if r <= 3:
        head = rng.choice(LIST_NAMES)
        return f"{head}: {text}\n{label}:", f" {out}\n"
    if r == 4:
        return f"{name}: {text}\nAnswer:", f" {out}\n"
    if r == 5:
        return f"Task: {name}\nInput: {text}\nOutput:", f" {out}\n"
    if r == 6:
        return f"{text} -> {name}:", f" {out}\n"
    if r == 7:
        return f"{text}\n{label}:", f" {out}\n"
    if r == 8:
        return f"Q: {name} \"{text}\"\nA:", f" {out}\n"
    return chat(f"{name}: {text}", out)


def chat(user, assistant):
    return ("\ue000user\n" + user + "\ue001\n\ue000assistant\n", assistant + "\ue001\n")


# ---------------------------------------------------------------- other documents

NAMES = [n for n in "Maria Omar Lena Ivan Ruth Carlos Nadia Peter Aisha Tom Ingrid Hugo Mina Oscar Vera Jonas Sofia Karl Amina Felix Greta Pablo Nora Leo Clara".split()
         if not held_out(n.lower())]
ITEMS = [w for w in "apples lamps nails chairs books pots drums ropes maps shoes bricks coins hats tables plates knives boxes bottles stones bells candles baskets buttons spoons pencils".split()
         if not held_out(w)]
COLORS = [w for w in "red green yellow black white brown grey pink purple orange silver gold".split() if not held_out(w)]
PLACES = [w for w in "garden kitchen market school river forest station harbor office village library tower field bridge cellar museum".split()
          if not held_out(w)]
VERBS = [w for w in "sold gave sent lent showed threw passed handed brought".split() if not held_out(w)]
ANIMALS = [w for w in "dog cat horse cow goat duck fox owl bear wolf hen mouse frog crow sheep".split() if not held_out(w)]
ACTS = [w for w in "sleeps waits eats runs hides stands sits walks jumps turns".split() if not held_out(w)]
ADJS = [w for w in "old small big young quiet happy tired hungry tall slow clean warm cold".split() if not held_out(w)]
MONTHS = "January February March April May June July August September October November December".split()


def sentence(rng):
    k = rng.randrange(5)
    if k == 0:
        a, b = rng.sample(NAMES, 2)
        n, p = rng.randrange(2, 20), rng.randrange(2, 60)
        return f"{a} {rng.choice(VERBS)} {n} {rng.choice(ITEMS)} to {b} for {p} dollars."
    if k == 1:
        return f"The {rng.choice(ADJS)} {rng.choice(ANIMALS)} {rng.choice(ACTS)} in the {rng.choice(PLACES)}."
    if k == 2:
        return f"{rng.choice(NAMES)} has {rng.randrange(2, 20)} {rng.choice(COLORS)} {rng.choice(ITEMS)}."
    if k == 3:
        return f"The {rng.choice(ITEMS)} in the {rng.choice(PLACES)} are {rng.choice(COLORS)} and {rng.choice(ADJS)}."
    return f"{rng.choice(NAMES)} {rng.choice(('put', 'lost', 'saw', 'painted'))} a {rng.choice(COLORS)} {rng.choice(ANIMALS)} in the {rng.choice(PLACES)}."


def other(rng):
    """Sums, lists, dates, questions, key/value text, sentences."""
    k = rng.randrange(20)
    if k <= 4:
        big = rng.choice((10, 10, 30, 100, 100))
        a, b = rng.randrange(big), rng.randrange(big)
        op = rng.choice("++-")
        if op == "-" and a < b:
            a, b = b, a
        v = a + b if op == "+" else a - b
        f = rng.randrange(4)
        if f == 0:
            return f"{a} {op} {b} =", f" {v}\n"
        if f == 1:
            return f"Q: {a} {op} {b}\nA:", f" {v}\n"
        if f == 2:
            return f"{a}{op}{b}=", f"{v}\n"
        return chat(f"{a} {op} {b}", str(v))
    if k <= 7:
        xs = [rng.randrange(100) for _ in range(rng.randrange(2, 7))]
        name, label, v = rng.choice((
            ("sort", "Sorted", " ".join(map(str, sorted(xs)))),
            ("largest", "Max", str(max(xs))),
            ("smallest", "Min", str(min(xs))),
            ("reverse", "Reversed", " ".join(map(str, xs[::-1]))),
            ("plus one", "Plus 1", " ".join(str(x + 1) for x in xs)),
            ("pad to three", "Padded", " ".join(f"{x:03d}" for x in xs)),
            ("count", "Count", str(len(xs)))))
        return wrap(rng, name, label, " ".join(map(str, xs)), v)
    if k == 8:
        m = rng.randrange(12)
        d, y = rng.randrange(1, 29), rng.randrange(1900, 2100)
        s = rng.choice((f"{d} {MONTHS[m]} {y}", f"{MONTHS[m]} {d}, {y}"))
        name, v = rng.choice((("year", str(y)), ("day", str(d)), ("month", MONTHS[m]),
                              ("month number", str(m + 1)), ("short month", MONTHS[m][:3])))
        return wrap(rng, name, name.capitalize(), s, v)
    if k <= 10:
        a, b = rng.sample(NAMES, 2)
        n, p, it, v = rng.randrange(2, 20), rng.randrange(2, 60), rng.choice(ITEMS), rng.choice(VERBS)
        s = f"{a} {v} {n} {it} to {b} for {p} dollars."
        q, w = rng.choice((("who gives?", a), ("who gets?", b), ("what count?", n), ("what?", it), ("price?", p)))
        return f"{s}\nQ: {q}\nA:", f" {w}\n"
    if k <= 13:
        keys = rng.sample(COMMON, rng.randrange(1, 4))
        vals = [rng.choice((rng.choice(COMMON), str(rng.randrange(1000)))) for _ in keys]
        plain = "; ".join(f"{a}={b}" for a, b in zip(keys, vals))
        js = "{" + ", ".join(f'"{a}": ' + (b if b.isdigit() else f'"{b}"') for a, b in zip(keys, vals)) + "}"
        r = rng.randrange(3)
        if r == 0:
            return wrap(rng, "to JSON", "JSON", plain, js)
        if r == 1:
            return wrap(rng, "from JSON", "Pairs", js, plain)
        i = rng.randrange(len(keys))
        return wrap(rng, f"value of {keys[i]}", f"Value of {keys[i]}", rng.choice((plain, js)), vals[i])
    n = rng.choice((1, 1, 2, 3))
    text = " ".join(sentence(rng) for _ in range(n))
    r = rng.randrange(4)
    if r == 0:
        return chat(f"Write {('a sentence', 'two sentences', 'three sentences')[n - 1]}.", text)
    if r == 1:
        return f"Write {('a sentence', 'two sentences', 'three sentences')[n - 1]}.\n", text + "\n"
    if r == 2:
        return "Sentence:", f" {text}\n"
    return "", text + "\n"


def draw(rng):
    r = rng.random()
    if r < 0.72:
        name, label, text, out, _ = word_task(rng)
        return wrap(rng, name, label, text, out)
    if r < 0.80:
        name, label, text, out, _ = phrase_task(rng)
        return wrap(rng, name, label, text, out)
    return other(rng)


TOKEN = re.compile(r"[a-z]{2,}")
PIECE = re.compile(r"[a-z-]{3,}")


def pig_latin_word(w):
    """The rule that the quick-start teaches; here only to check that no document shows it."""
    k = 0
    while k < len(w) and not (w[k] in VOWELS or (w[k] == "y" and k > 0)):
        k += 1
    if k == 0:
        return w + "-way"
    return w[k:] + "-" + w[:k] + "ay"


def clean(prompt, answer):
    """Reports whether a document holds neither a held-out word nor a Pig Latin pair."""
    text = (prompt + " " + answer).lower()
    words = set(TOKEN.findall(text))
    if not HELD.isdisjoint(words):
        return False
    if "ay" in text:
        pieces = set(PIECE.findall(text))
        for w in words:
            p = pig_latin_word(w)
            if p in text or p.replace("-", "") in pieces:
                return False
    return True


def document(rng):
    while True:
        prompt, answer = draw(rng)
        if clean(prompt, answer):
            return prompt, answer


class held_out_words:
    """While open, documents are drawn from the held-out words and not scanned: for evaluation."""

    def __enter__(self):
        global WORDS, COMMON
        self.keep = WORDS, COMMON
        WORDS = sorted(HELD)
        COMMON = [w for w, n in _all if n <= 20 and w in HELD]

    def __exit__(self, *_):
        global WORDS, COMMON
        WORDS, COMMON = self.keep


def encode(s):
    """Token ids of a string: its UTF-8 bytes, and the special tokens."""
    if "\ue000" not in s and "\ue001" not in s:
        return list(s.encode())
    return [IM_START if c == "\ue000" else IM_END if c == "\ue001" else ord(c) for c in s]


def check_documents(n, seed):
    """Asserts on n documents what this file promises, independently of clean()."""
    rng = random.Random(seed)
    for _ in range(n):
        prompt, answer = document(rng)
        text = (prompt + answer).lower()
        assert "pig latin" not in text, text
        words = re.findall(r"[a-z]+", text)
        pieces = re.split(r"[^a-z-]+", text)
        for w in words:
            assert w not in HELD, (w, text)
            if len(w) > 1:
                p = pig_latin_word(w)
                assert p not in text and p.replace("-", "") not in pieces, (w, text)


if __name__ == "__main__":
    check_documents(200000, 5)
    print("200000 documents hold no Pig Latin pair and no held-out word")
