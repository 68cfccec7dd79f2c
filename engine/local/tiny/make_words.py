#!/usr/bin/env python3
"""Make words.txt.gz, words_train.txt and words_heldout.txt from SCOWL.

    python3 make_words.py /usr/share/dict/scowl        (Debian package "scowl")

words.txt.gz holds "word level" lines: the SCOWL lists english-words and
american-words of levels 10 to 50, filtered to 2-10 letters a-z with a vowel.
Some words (rude, or unpleasant in a demo) are taken out: removed.txt holds the
first eight hex digits of the SHA-256 of each.

A word is held out when the first byte of the SHA-256 of its letters is below
26 (10.2 % of all words). No held-out word is in any pre-training document.
words_train.txt and words_heldout.txt are the quick-start's two lists. Both
come from levels 10 and 20, the most common words; the second holds held-out
words only, without the words of tasks.EXEMPT.
"""
import gzip
import hashlib
import io
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
LEVELS = (10, 20, 35, 40, 50)
HELDOUT_BELOW = 26
N_TRAIN, N_HELDOUT = 3000, 800
EXEMPT = frozenset("answer for length number task user with without write".split())  # as in tasks.py


def digest(word):
    return hashlib.sha256(word.encode("ascii")).digest()


def held_out(word):
    return digest(word)[0] < HELDOUT_BELOW


def good(word):
    return re.fullmatch(r"[a-z]{2,10}", word) is not None and (
        re.search(r"[aeiou]", word) is not None or "y" in word[1:])


def main():
    src = sys.argv[1]
    with open(os.path.join(HERE, "removed.txt")) as f:
        removed = {l.strip() for l in f if not l.startswith("#")}
    level = {}
    for n in LEVELS:
        for kind in ("english", "american"):
            with open(f"{src}/{kind}-words.{n}", encoding="latin-1") as f:
                for w in f.read().split():
                    if good(w) and digest(w).hex()[:8] not in removed:
                        level.setdefault(w, n)
    raw = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as z:
        z.write("".join(f"{w} {level[w]}\n" for w in sorted(level)).encode())
    with open(os.path.join(HERE, "words.txt.gz"), "wb") as f:
        f.write(raw.getvalue())
    common = [w for w in level if level[w] <= 20]
    common.sort(key=lambda w: digest("quickstart " + w))
    for name, part in (
        ("words_train.txt", [w for w in common if not held_out(w)][:N_TRAIN]),
        ("words_heldout.txt", [w for w in common if held_out(w) and w not in EXEMPT][:N_HELDOUT]),
    ):
        with open(os.path.join(HERE, name), "w") as f:
            f.write("".join(w + "\n" for w in sorted(part)))
        print(name, len(part))
    print("words", len(level), "held out", sum(map(held_out, level)), "common", len(common))


if __name__ == "__main__":
    main()
