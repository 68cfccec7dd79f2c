"""Timing, ceilings, and the time budget that the peer scripts share."""

import contextlib
import json
import pathlib
import signal
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import machine  # noqa: E402


class OutOfTime(Exception):
    """The budget of --seconds ran out."""


def add_flags(flags):
    flags.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    flags.add_argument("--tiny", action="store_true", help="a toy of the same architecture, to try the script out")
    flags.add_argument("--seconds", type=int, default=300, help="time budget of the whole script")
    flags.add_argument("--out", help="write the JSON here; stdout when not given")


class Budget:
    """Counts down from the start of the script and interrupts what outlasts it, a compiler included."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
        signal.signal(signal.SIGALRM, self._ring)
        signal.alarm(seconds)

    @staticmethod
    def _ring(signum, frame):
        raise OutOfTime()

    def left(self):
        return self.end - time.monotonic()


def sync(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def wall(device, work):
    """Seconds of one call on the clock of the host, with the device idle before and after."""
    sync(device)
    began = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - began


def repeat(device, work, warmup, runs, budget, floor=5):
    """Times of `runs` calls after `warmup` calls: fewer when the budget nears its end, at least `floor`."""
    for _ in range(warmup):
        wall(device, work)
    times = []
    while len(times) < runs:
        if len(times) >= floor and budget.left() < 3 * times[-1] + 5:
            break
        times.append(wall(device, work))
    return times


def summary(times):
    return {
        "runs": len(times), "median_s": statistics.median(times), "min_s": min(times), "max_s": max(times),
    }


def ceilings(device, tiny):
    """What this device reaches today: an 8192^3 bfloat16 product of random matrices, and a copy that
    reads and writes 8.6 GB together."""
    n, copy_bytes = (256, 1 << 22) if tiny else (8192, 1 << 32)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    b = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    c = torch.empty_like(a)
    source = torch.empty(copy_bytes, device=device, dtype=torch.uint8).random_(0, 255)
    target = torch.empty_like(source)

    def middle(work):
        for _ in range(3):
            wall(device, work)
        return statistics.median(wall(device, work) for _ in range(10))

    gemm, copy = middle(lambda: torch.mm(a, b, out=c)), middle(lambda: target.copy_(source))
    del a, b, c, source, target
    release(device)
    return {
        "gemm_size": n, "gemm_tflops": 2 * n**3 / gemm / 1e12,
        "copy_bytes_read_and_written": 2 * copy_bytes, "copy_tb_per_s": 2 * copy_bytes / copy / 1e12,
    }


def release(device):
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def peak_gib(device):
    if torch.device(device).type != "cuda":
        return None
    return round(torch.cuda.max_memory_reserved(device) / 2**30, 2)


def head(args):
    """The part of a result that names the run."""
    import peft
    import transformers

    cuda = torch.device(args.device).type == "cuda"
    return {
        **machine.describe(),
        "versions": {
            "python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__, "cuda": torch.version.cuda,
        },
        "device": torch.cuda.get_device_name(args.device) if cuda else "cpu",
        "tiny": args.tiny,
    }


@contextlib.contextmanager
def reporting(args, result):
    """Runs the measurement and writes what there is, also when time or memory runs out in the middle."""
    status = 1
    try:
        yield
        status = 0
    except OutOfTime:
        result["stopped"] = f"time budget of {args.seconds} s ran out"
        status = 0 if result.get("results") else 1
    except torch.OutOfMemoryError as err:
        result["stopped"] = str(err).splitlines()[0]
    finally:
        signal.alarm(0)
        text = json.dumps(result, indent=1)
        if args.out:
            pathlib.Path(args.out).write_text(text + "\n")
        print(text, flush=True)
    sys.exit(status)


def refuse_without_device(args):
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: torch sees none (--device cpu --tiny tries the script out)")
    if torch.device(args.device).type == "cpu" and not args.tiny:
        sys.exit("--device cpu needs --tiny: the full shapes are measured on a CUDA device")
