"""What the Python door adds to a call and to a token, and a training loop in-process beside torch and peft on the CPU.

    make build && python3 -m pip install ./bindings/python
    python3 benchmarks/doors.py calls [--rounds N]
    python3 -m pip install torch transformers peft
    python3 benchmarks/doors.py train [--rounds N] [--steps N] [--threads N] [--compile]

calls: the C functions are replaced by ones that do nothing (doors/stub.c, needs a C compiler), so the time is that of the Python code and of ctypes.
Least of the rounds, as what is added by others' work on the machine is not the door's.

train: the embedded model, one set of texts, rank 8 on attention and MLP, the same initial adapter, AdamW with the same numbers, one process. Losses
are compared first. The two take turns (A B A B), ratios are of neighbours in time. The peer's batch is padded; --compile compiles its model.
"""

import argparse
import ctypes
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import machine
import numpy as np
import tinker_local
from tinker_local import _library, types

MODEL = "tinker-local/tiny"


def least(do, rounds, calls):
    """Seconds of one call of do."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            do()
        best = min(best, (time.perf_counter() - begin) / calls)
    return best


def stub(folder):
    library = pathlib.Path(folder) / "stub.so"
    source = machine.ROOT / "benchmarks" / "doors" / "stub.c"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-I", machine.ROOT / "include", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.stub_shape.argtypes = [ctypes.c_int64, ctypes.c_int64]
    for name, arguments in _library._PROTOTYPES.items():
        if hasattr(loaded, name):
            getattr(loaded, name).argtypes = arguments
    return loaded


def calls(a):
    service = tinker_local.ServiceClient(state=":memory:")
    client = service.create_lora_training_client(MODEL, rank=4)
    sampler = client.save_weights_and_get_sampling_client()
    adam, params = types.AdamParams(), types.SamplingParams(max_tokens=64)

    def data(datums, tokens, kind):
        ids = kind(np.arange(tokens, dtype=np.int32))
        weights = kind(np.ones(tokens, np.float32))
        targets = kind(np.arange(tokens, dtype=np.int64))
        return lambda: [types.Datum(types.ModelInput.from_ints(ids), {"target_tokens": targets, "weights": weights}) for _ in range(datums)]

    def step(make):
        return lambda: client.forward_backward(make(), "cross_entropy").result()

    def again(made):
        return lambda: client.forward_backward(made, "cross_entropy").result()

    array, listed = np.asarray, np.ndarray.tolist
    prompt = np.arange(64, dtype=np.int32)
    cases = {
        "optim_step": (1, 1, lambda: client.optim_step(adam).result(), 2000),
        "forward_backward 1x8 arrays": (1, 8, step(data(1, 8, array)), 1000),
        "forward_backward 1x8 lists": (1, 8, step(data(1, 8, listed)), 1000),
        "forward_backward 64x256 arrays": (64, 256, step(data(64, 256, array)), 50),
        "forward_backward 64x256 lists": (64, 256, step(data(64, 256, listed)), 10),
        "forward_backward 1x8, data made before": (1, 8, again(data(1, 8, array)()), 1000),
        "forward_backward 64x256, data made before": (64, 256, again(data(64, 256, array)()), 100),
        "forward_backward 1x16384 arrays": (1, 16384, step(data(1, 16384, array)), 500),
        "forward_backward 1x16384 lists": (1, 16384, step(data(1, 16384, listed)), 20),
        "sample 64 tokens (submit, wait, result)": (
            1,
            64,
            lambda: sampler._sample(types.ModelInput.from_ints(prompt), 1, params, False, 0).result(),
            1000,
        ),
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        nothing = stub(folder)
        real, _library._loaded = _library._loaded, nothing
        try:
            for name, (datums, tokens, do, n) in cases.items():
                nothing.stub_shape(datums, tokens)
                do()
                seconds = least(do, a.rounds, n)
                results[name] = {"microseconds": round(seconds * 1e6, 2)}
                if datums * tokens > 1000:
                    results[name]["nanoseconds_a_token"] = round(seconds * 1e9 / (datums * tokens), 2)
                print(f"{name:42} {seconds * 1e6:9.1f} us", results[name].get("nanoseconds_a_token", ""))
        finally:
            _library._loaded = real
    print(machine.write("doors-calls", {"head": machine.describe(), "versions": versions(), "rounds": a.rounds, "results": results}))


def versions():
    out = {"python": sys.version.split()[0], "numpy": np.__version__, "libtinker": tinker_local.__version__}
    for name in ("torch", "transformers", "peft"):
        if name in sys.modules:
            out[name] = sys.modules[name].__version__
    return out


def examples(count, length):
    """Texts of letters of a few lengths, the model's tokens being bytes."""
    rng = np.random.default_rng(1)
    return [rng.integers(97, 123, n).astype(np.int32) for n in rng.integers(length // 2, length, count)]


class Ours:
    def __init__(self, texts, folder):
        self.client = tinker_local.ServiceClient(state=":memory:").create_lora_training_client(MODEL, rank=8, seed=1, train_unembed=False)
        self.data = [
            types.Datum(types.ModelInput.from_ints(t[:-1]), {"target_tokens": t[1:], "weights": np.ones(len(t) - 1, np.float32)}) for t in texts
        ]
        self.client.save_peft(folder).result()

    def step(self):
        done = self.client.forward_backward(self.data, "cross_entropy")
        self.client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        return done.result().metrics["loss:sum"]


class Peer:
    def __init__(self, texts, folder, compiled, threads):
        import peft
        import torch
        import transformers

        self.torch = torch
        if threads:
            torch.set_num_threads(threads)
        base = transformers.AutoModelForCausalLM.from_pretrained(machine.ROOT / "engine" / "local" / "tiny", dtype=torch.float32)
        self.model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
        self.run = torch.compile(self.model) if compiled else self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
        longest = max(map(len, texts)) - 1
        self.ids, self.targets = torch.zeros(len(texts), longest, dtype=torch.long), torch.full((len(texts), longest), -100)
        self.mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for i, t in enumerate(texts):
            n = len(t) - 1
            self.ids[i, :n], self.targets[i, :n], self.mask[i, :n] = torch.from_numpy(t[:-1]), torch.from_numpy(t[1:]), 1

    def step(self):
        logits = self.run(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), ignore_index=-100, reduction="sum")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def train(a):
    texts = examples(a.datums, a.length)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(texts, folder)
        peer = Peer(texts, folder, a.compile, a.threads)
        losses = [(ours.step(), peer.step()) for _ in range(3)]
        for x, y in losses:
            if abs(x - y) > 1e-3 * abs(y):
                raise SystemExit(f"the losses differ: {losses}")
        times = {"ours": [], "peer": []}
        for _ in range(a.rounds):
            for name, who in (("ours", ours), ("peer", peer)):
                begin = time.perf_counter()
                for _ in range(a.steps):
                    who.step()
                times[name].append((time.perf_counter() - begin) / a.steps)
    tokens = sum(len(t) - 1 for t in texts)
    ratios = [y / x for x, y in zip(times["ours"], times["peer"])]
    out = {
        "head": machine.describe(),
        "versions": versions(),
        "peer_configuration": "compiled" if a.compile else "eager",
        "threads": peer.torch.get_num_threads(),
        "tokens_a_step": tokens,
        "losses_of_the_first_steps": losses,
        "milliseconds_a_step": {
            k: {"median": round(statistics.median(v) * 1e3, 2), "min": round(min(v) * 1e3, 2), "max": round(max(v) * 1e3, 2)}
            for k, v in times.items()
        },
        "peer_over_ours": {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2)},
    }
    print(out["milliseconds_a_step"], out["peer_over_ours"])
    print(machine.write("doors-train", out))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["calls", "train"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--datums", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0: what they choose. 1 where others use the machine, too")
    a = parser.parse_args()
    if a.threads:
        os.environ["GOMAXPROCS"] = os.environ["OMP_NUM_THREADS"] = str(a.threads)  # before libtinker and torch are loaded
    {"calls": calls, "train": train}[a.what](a)


if __name__ == "__main__":
    main()
