#!/usr/bin/env python3
"""Runs official recipes and tools, as their wheels carry them, against tinker-local serve, and prints what came of each case.

    run.py [CASE...]        without arguments: all cases

All is made below build/acceptance: the environment, the folder in which recipes run, logs. ACCEPTANCE_SITE may name a folder of packages that
has torch; it is not installed then. The exit code is 1 when a case fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from catalogue import CASES, Case, Failed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "acceptance"
WORK = BUILD / "work"
PATIENCE = 900  # seconds for one command of a case


@dataclass
class Stage:
    """What a case runs on: an interpreter with the official packages, a server, a folder with models and data."""

    python: Path
    url: str
    log: Path

    root, work, out = ROOT, WORK, BUILD / "out"

    def run(self, *command: object, fails: str = "", home: Path = BUILD / "home") -> str:
        """Runs a command in the working folder and gives its standard output. One that has to fail must say what is given."""
        words = [str(c) for c in command]
        env = os.environ | {
            "TINKER_BASE_URL": self.url, "TINKER_API_KEY": "tml-local", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HOME": str(home),
            "HF_HOME": str(BUILD / "home" / "hf"), "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1",
            "TINKER_LOCAL_ROOT": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip
        with open(self.log, "a+") as log:
            print("$", *words, file=log, flush=True)
            begin = log.tell()
            try:
                done = subprocess.run(words, cwd=WORK, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed(f"it runs on after {PATIENCE} s: {' '.join(words)}") from None
            log.seek(begin)
            complaint = log.read()
            log.write(done.stdout)
        if fails:
            if done.returncode == 0 or fails not in done.stdout + complaint:
                raise Failed(f"exit code {done.returncode}, wanted a failure that says {fails!r}")
        elif done.returncode:
            last = [line for line in (done.stdout + complaint).splitlines() if line.strip()][-1:]
            raise Failed(f"exit code {done.returncode}: {''.join(last)[:160]}")
        return done.stdout

    def recipe(self, module: str, *args: str, fails: str = "") -> str:
        """Runs a module of the cookbook. -P: the working folder has one called openai."""
        return self.run(self.python, "-P", "-m", f"tinker_cookbook.{module}", *args, fails=fails)

    def script(self, name: str, *args: str) -> str:
        return self.run(self.python, "-P", HERE / "cases" / f"{name}.py", *args)


def main() -> None:
    unknown = set(sys.argv[1:]) - {c.id for c in CASES}
    if unknown:
        sys.exit(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(c.id for c in CASES)}")
    chosen = [c for c in CASES if not sys.argv[1:] or c.id in sys.argv[1:]]
    python = environment()
    for folder in (WORK, BUILD / "state", BUILD / "out", BUILD / "logs", BUILD / "home"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    subprocess.run([python, HERE / "fixture.py", ROOT, WORK], check=True, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    with open(BUILD / "logs" / "server.log", "w") as log:
        server = subprocess.Popen(
            [ROOT / "bin" / "tinker-local", "serve", "--listen", "127.0.0.1:0", "--models", WORK, "--state", BUILD / "state"],
            stderr=log, env=os.environ | {"HF_HUB_CACHE": str(WORK)},
        )  # fmt: skip
    try:
        url = ready(server, BUILD / "logs" / "server.log")
        results = [(case, *play(case, Stage(python, url, BUILD / "logs" / f"{case.id}.log"))) for case in chosen]
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    table(results)
    if code:
        print(f"The server ended with exit code {code}.")
    sys.exit(bool(code) or any(r[1] == "FAIL" for r in results))


def environment() -> Path:
    site = os.environ.get("ACCEPTANCE_SITE")
    requirements = [HERE / "requirements.txt", *([] if site else [HERE / "requirements-torch.txt"])]
    command = [sys.executable, ROOT / "cmd/tinker-local/server/sdktest/environment.py", *(["--site", site] if site else []), BUILD / "environment", *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("The official packages cannot be installed here.")
    return Path(done.stdout.strip()) / "venv" / "bin" / "python"


def ready(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        for line in log.read_text().splitlines():
            if "ready on " in line:
                return line.split("ready on ")[1]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit(f"The server is not ready:\n{log.read_text()}")


def play(case: Case, stage: Stage) -> tuple[str, str, float]:
    print(f"{case.id:<12} {case.what} … ", end="", flush=True)
    began, verdict, why = time.monotonic(), "pass", ""
    if case.skip:
        verdict, why = "skip", case.skip
    else:
        try:
            why = case.play(stage) or ""
        except Failed as e:
            verdict, why = "FAIL", str(e)
        except Exception as e:  # what a command gave is not what the case can read
            verdict, why = "FAIL", f"{type(e).__name__}: {str(e)[:300]}"
    took = time.monotonic() - began
    print(f"{verdict} ({took:.0f} s)", flush=True)
    return verdict, why, took


def table(results: list[tuple[Case, str, str, float]]) -> None:
    print()
    for case, verdict, why, took in results:
        print(f"{case.id:<12} {verdict:<5} {took:4.0f} s  {case.what}{': ' + why if why else ''}")
    count = {v: sum(r[1] == v for r in results) for v in ("pass", "FAIL", "skip")}
    print(f"\n{count['pass']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    if count["FAIL"]:
        print(f"Logs are in {os.path.relpath(BUILD / 'logs')}.")


if __name__ == "__main__":
    main()
