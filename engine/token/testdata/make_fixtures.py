"""Makes the small tokenizer.json files here and what Hugging Face tokenizers does with them.

    pip install tokenizers==0.23.3 && python make_fixtures.py

For each kind: KIND.json (the tokenizer) and KIND.jsonl.gz, one object per line:
  {t, ids, ids_nospecial, keep, skip}  a text, its ids with and without special tokens, and what the
                                       first decode to with special tokens kept and skipped
  {ids, keep, skip}                    a sequence of random ids
sweep.json.gz holds a digest per block of 4096 code points of each splitting pattern's pieces and of NFC.
Nothing is downloaded, and the same version makes the same bytes.
"""
import gzip
import hashlib
import json
import os
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

VERSION = "0.23.3"
SEED = 20240229
HERE = os.path.dirname(os.path.abspath(__file__))

FOLD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = FOLD + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = FOLD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + FOLD + "?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + FOLD + "?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def special(*contents):
    return [AddedToken(c, special=True, normalized=False) for c in contents]


def plain(*contents):
    return [AddedToken(c, special=False, normalized=False) for c in contents]


def byte_level(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])


def train(tok, size, **options):
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **options)
    tok.train_from_iterator(corpus.training(random.Random(SEED)), trainer)
    return tok


def byte_bpe(size, pre, normalizer=None, post=None):
    tok = Tokenizer(models.BPE())
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = post or processors.ByteLevel(trim_offsets=False)
    return train(tok, size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def edited(tok, change):
    file = json.loads(tok.to_str())
    change(file)
    return Tokenizer.from_str(json.dumps(file, ensure_ascii=False)), file


def qwen3():
    tok = byte_bpe(2200, byte_level(QWEN2), normalizers.NFC())
    tok.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tok.add_tokens(plain("<tool_call>", "</tool_call>", "<think>", "</think>"))
    return tok, None


def llama3():
    tok = byte_bpe(2200, byte_level(LLAMA3))
    tok.add_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    bos = tok.token_to_id("<|begin_of_text|>")

    def change(file):
        model = file["model"]
        model["ignore_merges"] = True
        # Published vocabularies have tokens that no merge makes. Take merges away so that it matters.
        rng = random.Random(SEED)
        made = {"".join(m) for m in model["merges"]}
        parts = {p for m in model["merges"] for p in m}
        gone = set(rng.sample(sorted(made - parts), 60))
        model["merges"] = [m for m in model["merges"] if "".join(m) not in gone]
        text = {"Sequence": {"id": "A", "type_id": 0}}
        begin = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
        file["post_processor"] = {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing", "single": [begin, text],
             "pair": [begin, text, {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [bos], "tokens": ["<|begin_of_text|>"]}}}]}

    return edited(tok, change)


def gpt2():
    tok = byte_bpe(1500, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tok.add_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])

    def change(file):  # as the oldest files are written
        model = file["model"]
        del model["type"], model["byte_fallback"], model["ignore_merges"]
        model["continuing_subword_prefix"] = model["end_of_word_suffix"] = ""
        model["merges"] = ["#version: 0.2"] + [" ".join(m) for m in model["merges"]]
        del file["pre_tokenizer"]["use_regex"]

    return edited(tok, change)


def bytes_only():
    # The order of the bytes in GPT-2's alphabet, as the library itself writes them.
    written = {}
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for c in range(0x110000):
        if 0xD800 <= c <= 0xDFFF or len(written) == 256:
            continue
        for b, ch in zip(chr(c).encode(), pre.pre_tokenize_str(chr(c))[0][0]):
            written[b] = ch
    rest = [ch for ch in sorted(pre_tokenizers.ByteLevel.alphabet()) if ch not in written.values()]
    for b in range(256):  # bytes that no UTF-8 text has: any order does, but the usual one is best
        if b not in written:
            written[b] = chr(b) if chr(b) in rest else rest.pop()
    tok = Tokenizer(models.BPE({written[b]: b for b in range(256)}, []))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return tok, None


def gptoss():
    tok = byte_bpe(1800, byte_level(O200K))
    tok.add_tokens(special("<|startoftext|>", "<|endoftext|>", "<|channel|>", "<|message|>", "<|end|>"))
    end = tok.token_to_id("<|end|>")
    tok.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", end)])
    return tok, None


def edge():
    """Every flag of an added token, overlaps, and a pre-tokenizer with several steps of its own."""
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                                   r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.Split("q", "merged_with_next"), pre_tokenizers.Split("z", "merged_with_previous"),
        pre_tokenizers.Split("--", "contiguous"), pre_tokenizers.Split("`", "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    tok = byte_bpe(1200, pre, normalizers.Sequence([normalizers.NFC()]))
    tok.add_tokens([
        AddedToken("<l>", lstrip=True, normalized=False, special=True), AddedToken("<r>", rstrip=True, normalized=False, special=True),
        AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
        AddedToken("Wört", single_word=True, lstrip=True, normalized=True), AddedToken("e\u0301x", normalized=True),
        AddedToken("<", normalized=False), AddedToken("<<", normalized=False), AddedToken("<<>", normalized=False),
        AddedToken("  ", normalized=False), AddedToken("ab", normalized=False), AddedToken("abc", normalized=True, special=True),
        AddedToken("the", normalized=True), AddedToken("é", normalized=True), AddedToken("船", normalized=False, special=True),
        AddedToken("bcd", normalized=True, rstrip=True), AddedToken("\n", normalized=False, special=True)])
    return tok, None


def sentencepiece(size, normalizer, pre, decoder, added, prefix=(), drop=(), fuse_unk=True, bos=True):
    """A vocabulary with byte tokens, as converted from SentencePiece: trained with Metaspace, then given its own pipeline."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    train(tok, size, limit_alphabet=90)  # most scripts are left to the bytes
    trained = json.loads(tok.to_str())["model"]
    names = ["<pad>", "<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256) if b not in drop]
    names += [n for n in trained["vocab"] if n not in names]
    model = models.BPE({n: i for i, n in enumerate(names)}, [tuple(m) for m in trained["merges"]],
                       unk_token="<unk>", fuse_unk=fuse_unk, byte_fallback=True)
    tok = Tokenizer(model)
    tok.normalizer, tok.decoder = normalizer, decoder
    if pre:
        tok.pre_tokenizer = pre
    tok.add_tokens(special("<unk>", "<s>", "</s>"))
    tok.add_tokens(added)
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return tok, None


def gemma():
    return sentencepiece(1500, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                         decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
                         special("<start_of_turn>", "<end_of_turn>") + plain("\n\n", "\n\n\n", "\t\t", "▁▁", "▁▁▁", "<table>"))


LLAMA2_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def llama2():
    return sentencepiece(1500, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                         decoders.Sequence(LLAMA2_DECODER), special("[INST]", "[/INST]") +
                         [AddedToken("<obj>", normalized=True), AddedToken("<sp>", normalized=True, special=True)])


def mistral3():
    return sentencepiece(1500, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
                         decoders.Sequence(LLAMA2_DECODER), special("[INST]", "[/INST]", "[TOOL_CALLS]"))


def unknowns():
    """Byte tokens that are missing, the unknown token, Metaspace with words, and its decoder."""
    return sentencepiece(800, normalizers.NFC(), pre_tokenizers.Metaspace(), decoders.Sequence([
        decoders.Strip("▁", 2, 0), decoders.Metaspace(), decoders.ByteFallback()]), plain("<think>") +
        [AddedToken("<r>", rstrip=True), AddedToken("<l>", lstrip=True)], drop=(0xE4, 0x8A, 0xB8, 0xF0), fuse_unk=False, bos=False)


KINDS = {"qwen3": qwen3, "llama3": llama3, "gpt2": gpt2, "bytes": bytes_only, "gptoss": gptoss, "edge": edge,
         "gemma": gemma, "llama2": llama2, "mistral3": mistral3, "unknowns": unknowns}


def dump(path, lines):
    with open(path, "wb") as f, gzip.GzipFile(filename="", mode="wb", fileobj=f, compresslevel=9, mtime=0) as z:
        for line in lines:
            z.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def fixtures(tok):
    added = [t.content for t in tok.get_added_tokens_decoder().values()]
    rng = random.Random(SEED + 1)
    for text in corpus.cases(rng, added[:12]):
        ids = tok.encode(text).ids
        yield {"t": text, "ids": ids, "ids_nospecial": tok.encode(text, add_special_tokens=False).ids,
               "keep": tok.decode(ids, skip_special_tokens=False), "skip": tok.decode(ids)}
    size = max(tok.get_vocab().values()) + 1
    for i in range(150):  # mostly single bytes and added tokens: ill-formed text is what matters here
        top = [size, 300, size + 5][i % 3]
        ids = [rng.choice([rng.randrange(top), rng.randrange(max(0, size - len(added)), size), rng.randrange(min(256, size))])
               for _ in range(rng.randint(1, 20))]
        yield {"ids": ids, "keep": tok.decode(ids, skip_special_tokens=False), "skip": tok.decode(ids)}


def sweep():
    """Digests over all code points, in blocks: pieces (joined by U+0001) in four contexts, and NFC."""
    splits = {name: pre_tokenizers.Split(Regex(p), "isolated") for name, p in
              {"gpt2": GPT2, "qwen2": QWEN2, "qwen35": QWEN35, "llama3": LLAMA3, "o200k": O200K}.items()}
    nfc = normalizers.NFC()
    for first in range(0, 0x110000, 4096):
        row = {"from": first}
        points = [chr(c) for c in range(first, first + 4096) if not 0xD800 <= c <= 0xDFFF and c > 1]
        if not points:
            continue
        for name, split in splits.items():
            h = hashlib.sha256()
            for i in range(0, len(points), 32):
                text = "".join("A%sb%s1 %s!%s\n%s" % (c, c, c, c, c) for c in points[i:i + 32])
                h.update("\x01".join(p for p, _ in split.pre_tokenize_str(text)).encode() + b"\n")
            row[name] = h.hexdigest()[:16]
        h = hashlib.sha256()
        for c in points:
            h.update(nfc.normalize_str("%sa\u0323%s\u0301\u0345%s" % (c, c, c)).encode() + b"\n")
        row["nfc"] = h.hexdigest()[:16]
        yield row


def main():
    assert tokenizers.__version__ == VERSION, tokenizers.__version__
    for name in sys.argv[1:] or list(KINDS) + ["sweep"]:
        if name == "sweep":
            dump(os.path.join(HERE, "sweep.jsonl.gz"), sweep())
            continue
        tok, file = KINDS[name]()
        file = file or json.loads(tok.to_str())
        with open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8", newline="\n") as f:
            json.dump(file, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        lines = list(fixtures(tok))
        dump(os.path.join(HERE, name + ".jsonl.gz"), lines)
        print(name, len(lines), "lines")


main()
