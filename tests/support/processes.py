"""Runs a script of the tests in processes of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def xla_flags(devices):
    """This process' flags, and a number of CPU devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return f"{os.environ.get('XLA_FLAGS', '')} {count}"


def start(script, *arguments, backend="jax", devices=1, **environment):
    """Starts a script of `tests/` under a backend, with CPU devices."""
    paths = [ROOT, ROOT / "tests", os.environ.get("PYTHONPATH")]
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / script, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(devices),
            "PYTHONPATH": os.pathsep.join(str(p) for p in paths if p),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes, returncode=0, timeout=900):
    """Waits for processes; if one fails, ends all and shows what it said."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            assert process.returncode == returncode, output[-5000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def run(script, *arguments, returncode=0, **options):
    finish(start(script, *arguments, **options), returncode=returncode)


def free_port():
    """A port on this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
