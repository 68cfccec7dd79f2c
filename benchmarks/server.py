"""What the server adds to a request, and what the official SDK can ask for at all.

    python3 benchmarks/server.py [--rounds N] [--seconds S] [--sdk VERSION]

64 clients ask for one piece of work after another and fetch each result, as the SDK does. The work is next to nothing: a model of a few hundred
parameters. It is measured four ways, by turns in every round: through the Go API (engine), through the real server over HTTP (server), through a server that answers at
once with fixed bytes (null; it is net/http and nothing else), and with the official SDK, one process, against both servers. What the server adds to a piece of work is its
processor time less that of the engine and that of net/http. On few cores the clients take most of the time: processor times tell more than latencies.

The packages of the SDK are those of the tests (make test); they are installed into build/sdk if they are not there.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

import machine

KINDS = ("protobuf", "json", "step", "sample")
TESTS = machine.ROOT / "cmd" / "tinker-local" / "server" / "sdktest"


class Server:
    """A server of the Go half, and its processor time."""

    def __init__(self, program, mode):
        self.process = subprocess.Popen([program, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()

    def processor(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def run(*command, **environment):
    out = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if out.returncode:
        raise SystemExit(f"{command}: {out.stderr[-3000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def figures(r, server_seconds=None):
    """Of one measurement. The servers' processor time is that of the warm-up, too: a quarter more work."""
    took = sorted(r["took"])
    n = len(took)
    out = {
        "per_second": n / r["seconds"],
        "median_ms": 1e3 * statistics.median(took),
        "p99_ms": 1e3 * took[int(0.99 * (n - 1))],
        "client_us": 1e6 * r["processor"] / n,
    }
    if server_seconds is not None:
        out["server_us"] = 1e6 * server_seconds / n / 1.25
    return out


def summary(rounds):
    """Medians of the rounds, with the least and the most."""
    return {
        name: {k: {"median": statistics.median(v), "least": min(v), "most": max(v)} for k in rounds[0][name] for v in [[r[name][k] for r in rounds]]}
        for name in rounds[0]
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    versions = (TESTS / "versions.txt").read_text().split()
    parser.add_argument("--sdk", default=versions[-1], choices=versions)
    a = parser.parse_args()
    sdk = pathlib.Path(subprocess.check_output(
        ["python3", TESTS / "environment.py", "--versions", TESTS / "versions.txt", machine.ROOT / "build" / "sdk", TESTS / "requirements.txt"], text=True).strip())
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "server")
        subprocess.run(["go", "build", "-o", program, "./benchmarks/server"], cwd=machine.ROOT, check=True)
        rounds = []
        for _ in range(a.rounds):
            servers = {mode: Server(program, mode) for mode in ("serve", "null")}
            found = {}

            def against(name, mode, *command, **environment):
                before = servers[mode].processor()
                r = run(*command, **environment)
                found[name] = figures(r, servers[mode].processor() - before)

            for kind in KINDS:
                found[f"engine {kind}"] = figures(run(program, "engine", kind, str(a.seconds)))
                against(f"server {kind}", "serve", program, "load", servers["serve"].url, kind, str(a.seconds))
                against(f"null {kind}", "null", program, "load", servers["null"].url, kind, str(a.seconds))
                e, s, n = (found[f"{who} {kind}"] for who in ("engine", "server", "null"))
                found[f"added {kind}"] = {"us": s["server_us"] - e["client_us"] - n["server_us"], "us_with_net_http": s["server_us"] - e["client_us"]}
            for work in ("train", "sample"):
                for mode in ("serve", "null"):
                    found[f"sdk {mode} {work}"] = figures(run(
                        str(sdk / "venv" / "bin" / "python"), str(machine.ROOT / "benchmarks" / "server" / "sdk.py"), work, str(a.seconds),
                        PYTHONPATH=str(sdk / f"tinker-{a.sdk}"), TINKER_BASE_URL=servers[mode].url, TINKER_API_KEY="tml-benchmark", TINKER_TELEMETRY="0"))
            for s in servers.values():
                s.close()
            rounds.append(found)
    result = {**machine.describe(), "sdk": a.sdk, "clients": 64, "rounds": a.rounds, "seconds": a.seconds, "results": summary(rounds)}
    for name, v in result["results"].items():
        print(f"{name:18}", "  ".join(f"{k} {x['median']:.5g}" for k, x in v.items()))
    print(machine.write("server", result))


if __name__ == "__main__":
    main()
