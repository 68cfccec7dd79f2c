"""Saving and loading a training state of 1.1 GB: rank 32 on all modules of Qwen3-8B, with Adam's moments.

    pip install torch transformers peft        # without them the peer is left out
    python3 benchmarks/checkpoint.py [--rank N] [--rounds N] [--folder DIR]

Our store, one plain safetensors file, and what users of peft have: save_pretrained for the adapter and torch.save for the moments. All
write to the same disk, and the clock stops when the data are synced there. They run in turn (A B C A B C); ratios are of neighbours in time.
Reading is from the system's cache on all sides; the store verifies every byte, the others do not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import machine


class Program:
    """A process that answers lines with JSON."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args[0]} ended at {line!r}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def peer(folder, rank):
    """The peer's side of the protocol of benchmarks/checkpoint/main.go."""
    import peft
    import safetensors.torch
    import torch
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        vocab_size=151936, tie_word_embeddings=False)
    with torch.device("meta"):  # the base's weights are not needed
        base = transformers.AutoModelForCausalLM.from_config(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    moments = {}
    for name, p in list(model.named_parameters()):
        if "lora_" not in name:
            continue
        owner, _, leaf = name.rpartition(".")
        value = torch.nn.Parameter(torch.randn(p.shape) * 0.01)
        setattr(model.get_submodule(owner), leaf, value)
        moments[name] = {"exp_avg": torch.randn(p.shape) * 1e-4, "exp_avg_sq": (torch.randn(p.shape) * 1e-4) ** 2, "step": torch.tensor(1.0)}
    adapter, optimizer = os.path.join(folder, "peft"), os.path.join(folder, "optimizer.pt")
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        if line.startswith("save"):
            shutil.rmtree(adapter, ignore_errors=True)
            if os.path.exists(optimizer):
                os.remove(optimizer)
            begin = time.perf_counter()
            model.save_pretrained(adapter, save_embedding_layers=False)
            torch.save(moments, optimizer)
            files = [os.path.join(adapter, f) for f in os.listdir(adapter)] + [optimizer]
            for name in files:
                with open(name, "rb+") as f:
                    os.fsync(f.fileno())
        else:
            files = [os.path.join(adapter, "adapter_model.safetensors"), optimizer]
            safetensors.torch.load_file(files[0])
            torch.load(optimizer, weights_only=True)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "bytes": sum(map(os.path.getsize, files))}), flush=True)


def summary(values):
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk that is to be measured; default: the temporary folder")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        program = os.path.join(folder, "checkpoint")
        subprocess.run(["go", "build", "-o", program, "./benchmarks/checkpoint"], cwd=machine.ROOT, check=True, env=os.environ | {"CGO_ENABLED": "0"})
        ours, other, versions = Program(program, folder, str(a.rank)), None, None
        try:
            import peft  # noqa: F401
        except ImportError as e:
            print(f"the peer is left out: {e}", file=sys.stderr)
        else:
            code = f"import sys; sys.path.insert(0, {str(machine.ROOT / 'benchmarks')!r}); import checkpoint; checkpoint.peer({folder!r}, {a.rank})"
            other = Program(sys.executable, "-c", code)
            versions = json.loads(other.process.stdout.readline())
        steps = [(name, ours, name) for name in ("save store", "again store", "save plain", "load store", "load plain")]
        if other:
            steps[3:3] = [("save peft", other, "save")]
            steps += [("load peft", other, "load")]
        results = {name: [] for name, _, _ in steps}
        for round in range(a.rounds + 1):  # the first is a warm-up
            for name, who, command in steps:
                answer = who.ask(command)
                if round:
                    results[name].append(answer)
        ours.close()
        if other:
            other.close()
    out = {"head": machine.describe(), "go": machine.output("go", "version"), "peer": versions, "rank": a.rank, "results": {}, "ratios": {}}
    for name, answers in results.items():
        out["results"][name] = {"seconds": summary([x["seconds"] for x in answers]), "bytes": answers[-1]["bytes"]}
        print(f"{name:12} {out['results'][name]['seconds']['median']:7.3f} s  {answers[-1]['bytes'] / 1e6:9.1f} MB")
    for what in "save", "load":
        for peer_name in ("plain", "peft") if other else ("plain",):
            pairs = zip(results[f"{what} store"], results[f"{what} {peer_name}"])
            out["ratios"][f"{what}: store / {peer_name}"] = summary([x["seconds"] / y["seconds"] for x, y in pairs])
    print(json.dumps(out["ratios"], indent=2))
    print(machine.write("checkpoint", out))


if __name__ == "__main__":
    main()
