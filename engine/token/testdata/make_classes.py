"""Writes ../classes.bin: the character classes that Hugging Face tokenizers' own engines use.

The classes are read out of the library itself, one code point at a time: categories and white space
from the regular expression engine behind the Split pre-tokenizer, word characters from the
single_word rule of added tokens. Run it again only to follow a new version of the library.

The file is a list of runs that cover U+0000..U+10FFFF in order: one byte, then the run's length as an
unsigned varint. The byte is the index of the general category in CATEGORIES (categories in
classes.go), or 31 for none of them (C), plus 32 for a word character, plus 64 for white space.

tokenizers 0.23.3 (Unicode 16.0 in both engines).
"""
import os

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

VERSION = "0.23.3"
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()
NONE, WORD, SPACE = 31, 32, 64
POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
BLOCK = 4096


def blocks():
    for i in range(0, len(POINTS), BLOCK):
        yield POINTS[i:i + BLOCK]


def members(pattern):
    """The code points that pattern matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    for block in blocks():
        others = {ch for piece, _ in split.pre_tokenize_str("".join(map(chr, block))) for ch in piece}
        for c in block:
            if chr(c) not in others:
                yield c


def main():
    assert tokenizers.__version__ == VERSION, tokenizers.__version__
    flags = bytearray([NONE]) * 0x110000
    for i, name in enumerate(CATEGORIES):
        for c in members(r"\p{%s}" % name):
            assert flags[c] == NONE, hex(c)
            flags[c] = i
    for c in members(r"\s"):
        flags[c] |= SPACE
    words = Tokenizer(models.BPE({"a": 0}, []))
    words.add_tokens([AddedToken("Q", single_word=True, normalized=False)])
    for block in blocks():
        for c, e in zip(block, words.encode_batch(["Q" + chr(c) for c in block])):
            if 1 not in e.ids:  # Q was not taken as the added token
                flags[c] |= WORD
    out, start = bytearray(), 0
    for c in range(1, 0x110001):
        if c == 0x110000 or flags[c] != flags[start]:
            out.append(flags[start])
            n = c - start
            while n >= 0x80:
                out.append(n & 0x7F | 0x80)
                n >>= 7
            out.append(n)
            start = c
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "classes.bin"), "wb") as f:
        f.write(out)
    print(len(out), "bytes")


main()
