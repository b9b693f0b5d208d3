"""The whole test suite, from nothing: `python3.11 tests/run_all.py`.

Makes a virtual environment in `.venv-test`, installs the package and what its
tests need (versions in tests/constraints.txt), checks the style, and runs
pytest once a backend, two backends at a time. A second run finds the
environment up to date.

    python tests/run_all.py                          all of it
    python tests/run_all.py --backend torch          one backend, no style check
    python tests/run_all.py --backend jax -k rglru   the rest goes to pytest

Runs on the CPU. For an accelerator set JAX_PLATFORMS.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-test"
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
BACKENDS = ("jax", "tensorflow", "torch")
AT_A_TIME = 2  # a run keeps little more than one core busy
NO_TESTS_COLLECTED = 5  # pytest's exit code


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    arguments, pytest_arguments = parser.parse_known_args()

    python = ready_environment()
    results = {}
    if arguments.backend is None:
        results["style"] = check_style(python)
    backends = [arguments.backend] if arguments.backend else BACKENDS
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = {
            backend: pool.submit(
                run_tests,
                python,
                backend,
                first=backend == backends[0],
                pytest_arguments=pytest_arguments,
            )
            for backend in backends
        }
    results |= {backend: run.result() for backend, run in runs.items()}

    print("\nSummary")
    for name, (passed, seconds, last_line) in results.items():
        verdict = "passed" if passed else "FAILED"
        print(f"  {name:10}  {verdict}  {seconds:5.0f} s  {last_line}")
    closing = " ".join(last_line for _, _, last_line in results.values())
    counts = {
        what: sum(map(int, re.findall(rf"(\d+) {what}", closing)))
        for what in ("passed", "failed", "skipped")
    }
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return 0 if all(passed for passed, _, _ in results.values()) else 1


def ready_environment():
    """Makes or refreshes `.venv-test`; returns its Python."""
    folder = "Scripts" if os.name == "nt" else "bin"
    python = ENVIRONMENT / folder / "python"
    described = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes()
        + CONSTRAINTS.read_bytes()
        + sys.version.encode()
    ).hexdigest()
    stamp = ENVIRONMENT / "made-from.txt"
    if stamp.exists() and stamp.read_text() == described:
        return python

    start = time.monotonic()
    say(f"Installing into {ENVIRONMENT}")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    install = [python, "-m", "pip", "install", "-qq"]
    install += ["--constraint", CONSTRAINTS, "--editable", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    stamp.write_text(described)
    say(f"Installed in {time.monotonic() - start:.0f} s")
    return python


def check_style(python):
    start = time.monotonic()
    passed = True
    for command in (["check"], ["format", "--check"]):
        say("ruff " + " ".join(command))
        ruff = [python, "-m", "ruff", *command, "."]
        passed &= subprocess.run(ruff, cwd=ROOT).returncode == 0
    return passed, time.monotonic() - start, "ruff"


def run_tests(python, backend, first, pytest_arguments):
    """One run of pytest, shown as it goes behind the backend's name."""
    command = [python, "-m", "pytest", "--durations=10", *pytest_arguments]
    command += ["-p", "no:cacheprovider"]  # one folder for runs side by side
    if not first:
        command += ["-m", "not backend_independent"]
    say(f"KERAS_BACKEND={backend} pytest")
    environment = {
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONUNBUFFERED": "1",
    }
    start = time.monotonic()
    last_line = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            print(f"{backend:10} | {line}", end="", flush=True)
            last_line = line.strip("= \n") or last_line
    passed = process.returncode == 0
    if process.returncode == NO_TESTS_COLLECTED and pytest_arguments:
        passed = True  # a selection may be empty on one backend
    return passed, time.monotonic() - start, last_line


def say(line):
    print(f"\n>>> {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
