"""`make gpu-check`: what needs a CUDA device, in one command that ends within its time budget.

It runs cudacheck (the driver, and our way to it), compiles and runs cuda/t1_t8.cu (when nvcc is there) and measures
transformers + peft (when torch is there), and writes one file into results/. It fails, and says why, where something could not
be checked.
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import time

import machine

HERE = pathlib.Path(__file__).resolve().parent
BUILD = machine.ROOT / "build" / "gpu"

# In order of worth: what does not fit into the budget is left out and named. Seconds are each one's bound.
PEERS = [
    ("G3-step-0.6b", 120, "train.py", "--goal", "G3"),
    ("G8-decode-0.6b", 150, "decode.py", "--shape", "qwen3-0.6b"),
    ("G1-train-8b", 200, "train.py", "--goal", "G1", "--steps", "8", "--warmup", "2"),
    ("G2-train-0.6b", 120, "train.py", "--goal", "G2", "--steps", "10", "--warmup", "3"),
    ("G4-train-moe", 150, "train.py", "--goal", "G4", "--steps", "8", "--warmup", "2"),
    ("G8-decode-8b", 200, "decode.py", "--shape", "qwen3-8b"),
    ("G2-train-4b", 150, "train.py", "--goal", "G2", "--shape", "qwen3-4b", "--steps", "8", "--warmup", "2"),
]


def driver_checks(seconds):
    """Runs kernels/cuda/internal/cudacheck: built here where Go is, carried here otherwise."""
    program, report = BUILD / "cudacheck", BUILD / "cudacheck.json"
    if shutil.which("go") and shutil.which("make"):
        build = ["make", "-C", str(machine.ROOT), "build/gpu/cudacheck"]
        built = subprocess.run(build, capture_output=True, text=True, timeout=seconds)
        if built.returncode != 0:
            return {"failed": "make build/gpu/cudacheck: " + built.stderr[-2000:]}
    if not program.exists():
        return {"skipped": f"{program.relative_to(machine.ROOT)} is not there, and no Go to build it: build it elsewhere and carry it"}
    BUILD.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [str(program), "-json", str(report), "-seconds", str(min(50, seconds))]
    for image in sorted(BUILD.glob("*.cubin")):
        command += ["-image", str(image)]
    print("== " + " ".join(command), flush=True)
    ran = subprocess.run(command, timeout=min(50, seconds) + 10)
    if not report.exists():
        return {"failed": f"cudacheck ended with {ran.returncode} and wrote no report"}
    out = json.loads(report.read_text())
    bad = [check["name"] for check in out["checks"] if not check["passed"]]
    if ran.returncode != 0:
        out["failed"] = out.get("stopped") or ", ".join(bad) or f"ended with {ran.returncode}"
    return out


def tensor_core_tests(seconds):
    """Runs t1_t8.cu for the device's own architecture."""
    end = time.monotonic() + seconds
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return {"skipped": "nvcc is not on the PATH"}
    capability = machine.output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").splitlines()[0]
    arch = capability.strip().replace(".", "")
    if arch == "90":
        arch = "90a"  # wgmma belongs to this target alone
    BUILD.mkdir(parents=True, exist_ok=True)
    program, report = BUILD / "t1_t8", BUILD / "t1_t8.json"
    report.unlink(missing_ok=True)
    compile_command = [nvcc, "-O2", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}",
                       "-o", str(program), str(HERE / "cuda" / "t1_t8.cu"), "-ldl"]
    print("== " + " ".join(compile_command), flush=True)
    compiled = subprocess.run(compile_command, capture_output=True, text=True, timeout=seconds)
    if compiled.returncode != 0:
        print(compiled.stderr)
        return {"failed": "nvcc: " + compiled.stderr[-2000:]}
    ran = subprocess.run([str(program), "--json", str(report)], timeout=max(1, end - time.monotonic()))
    if not report.exists():
        return {"failed": f"t1_t8 ended with {ran.returncode} and wrote no report"}
    out = json.loads(report.read_text())
    if ran.returncode != 0:
        out["failed"] = "a test failed: see its line"
    return out


def peer(name, seconds, trying, script, *args):
    """Runs one peer script in a process of its own: a crash there loses that row only."""
    BUILD.mkdir(parents=True, exist_ok=True)
    report = BUILD / f"{name}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "peer" / script), *args, "--seconds", str(seconds), "--out", str(report)]
    if trying:
        command += ["--device", "cpu", "--tiny"]
    print("== " + " ".join(command[1:]), flush=True)
    try:
        ran = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        return {"failed": f"still running {seconds + 30} s after its start"}
    if not report.exists():
        return {"failed": f"{script} ended with {ran.returncode} and wrote no report"}
    out = json.loads(report.read_text())
    if ran.returncode != 0:
        out["failed"] = out.get("stopped", f"ended with {ran.returncode}")
    for row in out["results"]:
        share = row.get("share_of_gemm", row.get("share_of_limit", 0))
        print(f"   {row['form']:<16} {row['tokens_per_s']:>12.1f} tokens/s   {100 * share:.1f} % of the ceiling", flush=True)
    return out


def guarded(work, *args):
    """A part that breaks is a part that failed; the others still run."""
    try:
        return work(*args)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as err:
        return {"failed": f"{type(err).__name__}: {err}"}


def table(parts):
    """What the parts found, one line for each thing worth one."""
    for name, part in parts.items():
        why = next((word for word in ("failed", "skipped", "left_out") if word in part), "ok")
        yield f"{name:<18} {why:<9} {part.get(why, '')}".rstrip()
        for check in part.get("checks", []):
            if not check["passed"]:
                yield f"    FAIL {check['name']}: {check['text']}"
        for m in part.get("measures", []):
            yield f"    {m['name']:<46} {m['median']:>12.3f} {m['unit']:<5} ({m['least']:.3f} to {m['most']:.3f})"
        verdicts = [test["verdict"] for test in part.get("tests", [])]
        if verdicts:
            yield "    " + ", ".join(f"{verdicts.count(v)} {v}" for v in ("PASS", "FAIL", "SKIP"))
        for test in part.get("tests", []):
            if test["verdict"] != "PASS":
                yield f"    {test['verdict']} {test['test']} {test['text']}"
        for row in part.get("results", []):
            share = row.get("share_of_gemm", row.get("share_of_limit", 0))
            yield f"    {row['form']:<46} {row['tokens_per_s']:>12.1f} tokens/s, {100 * share:.1f} % of the ceiling"


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=int, default=540, help="time budget of the whole command")
    flags.add_argument("--only", action="append", help="parts to run: driver, t1_t8 or a name such as G3-step-0.6b; may be repeated")
    flags.add_argument("--try", dest="trying", action="store_true",
                       help="try this script out without a GPU: toy shapes on the CPU, nothing into results/")
    args = flags.parse_args()
    if not args.trying:
        if not machine.gpus():
            sys.exit("gpu-check: no CUDA device (nvidia-smi is not on the PATH or names none): nothing was checked")
        print("\n".join(machine.gpus()))
        print("The engine has no CUDA device yet: this checks the chip and the way to it, and measures the peer, not us.", flush=True)

    end = time.monotonic() + args.seconds
    result = {**machine.describe(), "parts": {}}
    parts = result["parts"]
    known = ["driver", "t1_t8", *(row[0] for row in PEERS)]
    unknown = set(args.only or ()) - set(known)
    if unknown:
        sys.exit(f"--only {sorted(unknown)[0]}: want one of {', '.join(known)}")

    def wanted(name):
        return not args.only or name in args.only

    if wanted("driver") and not args.trying:
        parts["driver"] = guarded(driver_checks, min(60, args.seconds))
    if wanted("t1_t8") and not args.trying:
        parts["t1_t8"] = guarded(tensor_core_tests, min(150, args.seconds))
    missing = [m for m in ("torch", "transformers", "peft") if importlib.util.find_spec(m) is None]
    for name, seconds, script, *rest in PEERS:
        if not wanted(name):
            continue
        left = int(end - time.monotonic())
        if missing:
            parts[name] = {"skipped": f"{', '.join(missing)} not installed in {sys.executable} "
                                      "(PYTHON=... chooses another; see peer/requirements.txt)"}
        elif left < min(seconds, 90):
            parts[name] = {"left_out": f"{left} s of {args.seconds} s were left; --only {name} runs it alone"}
        else:
            parts[name] = guarded(peer, name, min(seconds, left), args.trying, script, *rest)

    if not args.trying:
        path = machine.write("gpu-check", result)
        print(f"\nwritten: {path.relative_to(machine.ROOT)}")
    print()
    for row in table(parts):
        print(row)
    sys.exit(1 if any("failed" in part or "skipped" in part for part in parts.values()) else 0)


if __name__ == "__main__":
    main()
