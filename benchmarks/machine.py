"""What a result must name: machine, commit, date, command. Standard library only."""

import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def output(*command):
    """First try at a command's output: "" when it is missing or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit():
    return output("git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*") or "unknown"


def cpu_name():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    except OSError:
        pass
    return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def memory_gib():
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def gpus():
    """One line per CUDA device as the driver names it; [] without a driver."""
    query = "--query-gpu=name,memory.total,driver_version"
    return output("nvidia-smi", query, "--format=csv,noheader").splitlines()


def describe():
    """The head of every result."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join([os.path.basename(sys.executable), *sys.argv]),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": memory_gib(),
            "system": platform.platform(),
            "gpus": gpus(),
        },
    }


def write(name, result):
    """Writes DATE-COMMIT-NAME.json and returns its path: below results/, or below build/ when the commit does
    not say what was measured."""
    at = commit()
    folder = ROOT / "build" / "results" if at.endswith("-dirty") else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d-%H%M")
    path = folder / f"{day}-{at}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
