"""`make bench`: runs the Go benchmarks several times and writes median and spread of each."""

import argparse
import collections
import re
import statistics
import subprocess
import sys

import machine

# BenchmarkName-2   100   123.4 ns/op   5.6 GFLOP/s   0 B/op   0 allocs/op
LINE = re.compile(r"^(Benchmark\S+?)(?:-\d+)?\s+\d+\s+(.+)$")


def run(command):
    """Streams the command's output and yields (package, benchmark, unit, value)."""
    process = subprocess.Popen(command, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True)
    package = ""
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        if line.startswith("pkg: "):
            package = line[5:].strip()
        elif found := LINE.match(line):
            fields = found[2].split()
            for value, unit in zip(fields[::2], fields[1::2]):
                yield package, found[1], unit, float(value)
    if process.wait() != 0:
        sys.exit(process.returncode)


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--bench", default=".", help="benchmarks to run, as go test -bench takes it")
    flags.add_argument("--count", type=int, default=6, help="runs of each; medians want at least 5")
    flags.add_argument("--packages", default="./...")
    flags.add_argument("--timeout", default="60m")
    args = flags.parse_args()

    command = ["go", "test", "-run", "^$", "-bench", args.bench, "-benchmem", "-count", str(args.count)]
    command += ["-timeout", args.timeout, args.packages]
    values = collections.defaultdict(list)
    for package, name, unit, value in run(command):
        values[package, name, unit].append(value)
    if not values:
        sys.exit(f"no benchmark matches {args.bench!r} in {args.packages}")

    rows = []
    for (package, name, unit), samples in values.items():
        middle = statistics.median(samples)
        rows.append({
            "package": package, "benchmark": name, "unit": unit, "median": middle,
            "min": min(samples), "max": max(samples), "runs": len(samples),
            "spread_percent": round(100 * (max(samples) - min(samples)) / middle, 1) if middle else 0.0,
        })
    print(f"\n{'benchmark':<56} {'median':>14} {'unit':<12} spread")
    for row in rows:
        print(f"{row['benchmark']:<56} {row['median']:>14.6g} {row['unit']:<12} {row['spread_percent']} %")
    path = machine.write("bench", {**machine.describe(), "go_test": command, "results": rows})
    print(f"\nwritten: {path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
