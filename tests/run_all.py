"""The whole test suite, from nothing: `python3.11 tests/run_all.py`.

Makes a virtual environment in `.venv-test`, installs the package and what its
tests need (versions in tests/constraints.txt), checks the style, and runs
pytest once a backend and once for the tests that depend on none, two runs at a
time. A second call finds the environment up to date.

Before a release: `--newest`. On the newest Python that is found (pyenv's are)
the newest releases, tests/newest.txt, go through the quick tests of kernels,
layers and models on PyTorch, in `.venv-newest`.

    python tests/run_all.py                          all of it
    python tests/run_all.py --quick                  before each commit
    python tests/run_all.py --backend torch          one backend, no style check
    python tests/run_all.py --backend jax -k rglru   the rest goes to pytest
    python tests/run_all.py --newest                 the newest releases alone

`--quick` runs PyTorch's tests, which compile nothing, and those of no backend,
without the ones marked `slow`. Tests run on the CPU; for an accelerator set
JAX_PLATFORMS. Programs are compiled quickly, see QUICK_COMPILATION; pytest by
itself compiles them as users do.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
BACKENDS = ("jax", "tensorflow", "torch")
INDEPENDENT = "independent"  # the run of what no backend changes
NEWEST = "newest"  # the run of the newest Python and releases
RUNS = ("tensorflow", "jax", "torch", INDEPENDENT)  # the longest first
QUICK_RUNS = ("torch", INDEPENDENT)
AT_A_TIME = 2  # a run keeps little more than one core busy
# Most of the time goes into compiling programs that run once. LLVM's
# optimizations are a third of it; XLA's own stay. Code for fusions is another
# third (jax 0.12 has no switch for it).
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
QUICK_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
NO_TESTS_COLLECTED = 5  # pytest's exit code
# jax: a test of its kernels' plan is of all backends.
NEWEST_EXTRAS = "torch,jax,grain"
NEWEST_PACKAGES = ("flax", "pytest", "safetensors")
NEWEST_TESTS = ("tests/kernels", "tests/layers", "tests/models")
NEWER_PYTHONS = ("3.13", "3.12")  # the newest first


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    parser.add_argument(
        "--quick", action="store_true", help="PyTorch, and no slow tests"
    )
    parser.add_argument(
        "--newest", action="store_true", help="the newest releases alone"
    )
    arguments, rest = parser.parse_known_args()

    results = {}
    names = QUICK_RUNS if arguments.quick else RUNS
    names = [arguments.backend] if arguments.backend else names
    if arguments.newest:
        names = [NEWEST]
    else:
        python = ready_environment(
            ".venv-test", sys.executable, "test", (), "constraints.txt"
        )
        if arguments.backend is None:
            results["style"] = check_style(python)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        runs = {
            name: pool.submit(run_newest, rest)
            if name == NEWEST
            else pool.submit(
                run_tests, python, name, selection(name, arguments), rest
            )
            for name in names
        }
    results |= {name: run.result() for name, run in runs.items()}

    print("\nSummary")
    for name, (passed, seconds, last_line) in results.items():
        verdict = "passed" if passed else "FAILED"
        print(f"  {name:11}  {verdict}  {seconds:5.0f} s  {last_line}")
    closing = " ".join(last_line for _, _, last_line in results.values())
    counts = {
        what: sum(map(int, re.findall(rf"(\d+) {what}", closing)))
        for what in ("passed", "failed", "skipped")
    }
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    return 0 if all(passed for passed, _, _ in results.values()) else 1


def ready_environment(name, base, extras, packages, constraints):
    """Makes or refreshes a virtual environment; returns its Python.

    Args:
        name: str. Its folder.
        base: path of the Python that it is made of.
        extras: str. Extras of this package, which is installed into it.
        packages: names of others.
        constraints: str. A file of `tests/`.
    """
    environment, constraints = ROOT / name, TESTS / constraints
    folder = "Scripts" if os.name == "nt" else "bin"
    python = environment / folder / "python"
    described = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes()
        + constraints.read_bytes()
        + f"{base} {sys.version} {extras} {packages}".encode()
    ).hexdigest()
    stamp = environment / "made-from.txt"
    if stamp.exists() and stamp.read_text() == described:
        return python

    start = time.monotonic()
    say(f"Installing into {environment}")
    if not python.exists():
        subprocess.run([base, "-m", "venv", environment], check=True)
    install = [python, "-m", "pip", "install", "-qq", *packages]
    install += ["--constraint", constraints, "--editable", f"{ROOT}[{extras}]"]
    subprocess.run(install, check=True)
    stamp.write_text(described)
    say(f"Installed in {time.monotonic() - start:.0f} s")
    return python


def newest_python():
    """The newest Python found that is newer than this one, or `None`."""
    for version in NEWER_PYTHONS:
        if sys.version_info >= tuple(map(int, version.split("."))):
            return None
        folders = Path.home().glob(f".pyenv/versions/{version}.*/bin")
        # pyenv's own python3.13 on the path may be of a version not in use.
        for python in (
            shutil.which(f"python{version}"),
            *(folder / "python" for folder in folders),
        ):
            if (
                python
                and not subprocess.run(
                    [python, "-c", ""], stderr=subprocess.DEVNULL
                ).returncode
            ):
                return python
    return None


def run_newest(pytest_arguments):
    """The quick tests with the newest releases, as `run_tests`."""
    base = newest_python()
    if base is None:
        return True, 0, "no newer Python found"
    python = ready_environment(
        ".venv-newest", base, NEWEST_EXTRAS, NEWEST_PACKAGES, "newest.txt"
    )
    return run_tests(
        python, NEWEST, "not slow", [*pytest_arguments, *NEWEST_TESTS]
    )


def check_style(python):
    start = time.monotonic()
    passed = True
    for command in (["check"], ["format", "--check"]):
        say("ruff " + " ".join(command))
        ruff = [python, "-m", "ruff", *command, "."]
        passed &= subprocess.run(ruff, cwd=ROOT).returncode == 0
    return passed, time.monotonic() - start, "ruff"


def selection(name, arguments):
    """pytest's expression of markers for one run."""
    marks = []
    if arguments.backend is None:
        negation = "" if name == INDEPENDENT else "not "
        marks.append(negation + "backend_independent")
    if arguments.quick:
        marks.append("not slow")
    return " and ".join(marks)


def run_tests(python, name, marks, pytest_arguments):
    """One run of pytest, shown as it goes behind the run's name."""
    # PyTorch compiles nothing, so it is the quickest where all do the same.
    backend = "torch" if name in (INDEPENDENT, NEWEST) else name
    command = [python, "-m", "pytest", "--durations=50", *pytest_arguments]
    command += ["-p", "no:cacheprovider"]  # one folder for runs side by side
    if marks:
        command += ["-m", marks]
    say(f"KERAS_BACKEND={backend} {' '.join(command[1:])}")
    flags = QUICK_COMPILATION
    if name != NEWEST:
        flags += " " + QUICK_FUSIONS
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
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
            print(f"{name:11} | {line}", end="", flush=True)
            last_line = line.strip("= \n") or last_line
    passed = process.returncode == 0
    if process.returncode == NO_TESTS_COLLECTED and pytest_arguments:
        passed = True  # a selection may be empty in one run
    return passed, time.monotonic() - start, last_line


def say(line):
    print(f"\n>>> {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
