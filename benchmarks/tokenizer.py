"""Tokenizer speed, ours and that of the Hugging Face library `tokenizers`, in MB/s of UTF-8 text.

    pip install tokenizers==0.23.3
    python3 benchmarks/tokenizer.py [--threads N] [--rounds N] [TOKENIZER.json …]

The text is this repository's own, as committed: Go, Markdown and Python files, in documents of at most 4,000 characters.
Both programs get the same documents. They run in turn (A B A B); their ids are compared before any time counts, and the ratio is that
of neighbours in time, so that other load on the machine counts for both. The library is measured in its fastest form
(encode_batch_fast: no offsets), ours as training uses it.

The vocabularies of the tests are small (1,200 to 2,000 tokens) and published ones are not ours to copy, so one of full size
(151,643 tokens, Qwen's rules) is trained first, on the source code of the Go distribution.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import machine

DOCUMENT = 4000  # characters


def documents():
    names = machine.output("git", "ls-files", "*.go", "*.md", "*.py").splitlines()
    docs = []
    for name in names:
        text = (machine.ROOT / name).read_text(errors="replace")
        docs += [text[i:i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]
    return docs


def grow(path):
    """A byte-level BPE of full size with the splitting rules of Qwen3. The same Go version gives the same file."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    small = tokenizers.Tokenizer.from_file(str(machine.ROOT / "engine/token/testdata/qwen3.json"))
    full = tokenizers.Tokenizer(models.BPE())
    full.normalizer, full.pre_tokenizer, full.decoder = small.normalizer, small.pre_tokenizer, small.decoder
    full.post_processor = small.post_processor
    source = pathlib.Path(machine.output("go", "env", "GOROOT")) / "src"
    files = sorted(p for p in source.rglob("*") if p.suffix in {".go", ".s", ".md", ".txt", ".html"} and p.is_file())
    full.train_from_iterator((p.read_text(errors="replace") for p in files), trainers.BpeTrainer(
        vocab_size=151643, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    full.save(str(path))


class Ours:
    def __init__(self, program, tokenizer, docs):
        self.process = subprocess.Popen([program, tokenizer, docs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Library:
    """One process per number of threads: the library reads it once."""

    def __init__(self, tokenizer, docs, threads):
        env = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        code = f"import sys; sys.path.insert(0, {str(machine.ROOT / 'benchmarks')!r}); import tokenizer; tokenizer.peer({str(tokenizer)!r}, {str(docs)!r})"
        python = sys.executable
        self.process = subprocess.Popen([python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    ask = Ours.ask
    close = Ours.close


def peer(path, docs):
    """The peer's side of the protocol of benchmarks/tokenizer/main.go."""
    import tokenizers

    t = tokenizers.Tokenizer.from_file(path)
    docs = json.loads(pathlib.Path(docs).read_text())
    ids = []
    for line in sys.stdin:
        what = line.split()[0]
        begin = time.perf_counter()
        if what == "encode":
            encoded = t.encode_batch_fast(docs, add_special_tokens=False)
            answer = time.perf_counter() - begin
            ids = [e.ids for e in encoded]
        elif what == "decode":
            t.decode_batch(ids, skip_special_tokens=False)
            answer = time.perf_counter() - begin
        elif what == "version":
            answer = tokenizers.__version__
        else:
            answer = ids
        print(json.dumps(answer), flush=True)


def measure(name, tokenizer, docs_file, size, threads, rounds, program):
    ours, peer = Ours(program, tokenizer, docs_file), Library(tokenizer, docs_file, threads)
    version = peer.ask("version")
    for p in ours, peer:  # warm-up
        p.ask(f"encode {threads}")
    mine, theirs = ours.ask("ids"), peer.ask("ids")
    if mine != theirs:
        bad = next(i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b)
        raise SystemExit(f"{tokenizer}: document {bad} has other ids in the two programs")
    tokens = sum(map(len, mine))
    del mine, theirs
    result = {"tokenizer": name, "threads": threads, "tokens": tokens, "tokenizers": version}
    for what in "encode", "decode":
        times = {"ours": [], "peer": []}
        for _ in range(rounds):
            times["ours"].append(ours.ask(f"{what} {threads}"))
            times["peer"].append(peer.ask(f"{what} {threads}"))
        rates = {k: [size / s / 1e6 for s in v] for k, v in times.items()}
        result[what] = {k: {"MB/s": round(statistics.median(v), 2), "min": round(min(v), 2), "max": round(max(v), 2)} for k, v in rates.items()}
        ratios = [peer_s / ours_s for ours_s, peer_s in zip(times["ours"], times["peer"])]  # of neighbours in time: load of others cancels
        result[what]["ratio"] = {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2)}
        print(f"{result['tokenizer']:40} {threads} threads  {what}: ours {result[what]['ours']['MB/s']:8.2f} MB/s, "
              f"tokenizers {version} {result[what]['peer']['MB/s']:8.2f} MB/s, ratio {result[what]['ratio']}")
    ours.close()
    peer.close()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", help="tokenizer.json files; default: those of the tests")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    a = parser.parse_args()
    files = a.tokenizers or [machine.ROOT / "engine/token/testdata" / f"{k}.json" for k in ("qwen3", "llama3", "gpt2", "mistral3", "gemma")]
    docs = documents()
    size = sum(len(d.encode()) for d in docs)
    out = {"head": machine.describe(), "go": machine.output("go", "version"), "text": {"documents": len(docs), "bytes": size}, "results": []}
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "tokenizer")
        subprocess.run(["go", "build", "-o", program, "./benchmarks/tokenizer"], cwd=machine.ROOT, check=True, env=os.environ | {"CGO_ENABLED": "0"})
        docs_file = os.path.join(folder, "docs.json")
        pathlib.Path(docs_file).write_text(json.dumps(docs))
        named = [(os.path.relpath(f, machine.ROOT), f) for f in files]
        if not a.tokenizers:
            named.insert(0, ("full size, Qwen3's rules", os.path.join(folder, "grown.json")))
            grow(named[0][1])
        for name, file in named:
            for threads in sorted({1, a.threads}):
                out["results"].append(measure(name, str(file), docs_file, size, threads, a.rounds, program))
    print(machine.write("tokenizer", out))


if __name__ == "__main__":
    main()
