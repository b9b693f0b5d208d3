"""Logits at the 2B's real size beside transformers': asked for by hand.

    REAL_SIZE=1 pytest tests/parity/test_real_size.py

It takes 11 GB of memory, 6 of disk and some minutes a backend.
"""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from support.tolerances import TOLERANCES

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "speed" / "real_size.py"
LAYERS = int(os.environ.get("REAL_SIZE_LAYERS", 26))


@pytest.mark.skipif(
    "REAL_SIZE" not in os.environ, reason="REAL_SIZE=1 asks for it"
)
def test_logits(tmp_path):
    folder = tmp_path / "checkpoint"
    command = [sys.executable, SCRIPT, "--folder", folder]
    backend = keras.config.backend()
    subprocess.run(
        [*command, *f"--layers {LAYERS} --tasks load --who {backend}".split()],
        check=True,
    )
    found = {}
    for who in ("transformers", backend):
        result = subprocess.run(
            [*command, "--process", who, "logits"],
            check=True,
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
        )
        found |= json.loads(result.stdout.splitlines()[-1])
    allowed = TOLERANCES["float32"].values * found["largest logit"]
    assert found["largest difference"] <= allowed, found
    assert found["same greedy tokens"] == 1
