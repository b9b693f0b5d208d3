"""How much of the package one call passes through, counted in a new process.

The numbers may fall; a reason to let one rise belongs into this file.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPT = Path(__file__).parent / "support" / "walk.py"

# Frames from `RGLRU.mix` to the loop over time, both included.
FRAMES = {"jax": 8, "tensorflow": 7, "torch": 6}
# Files and functions, on the backend where there are most (JAX). They rose from
# 175 and 142 with what a call is asked for today: arguments and states that are
# looked at, masks of Keras, weights that stay when a step raises; with 16-bit
# and int8 weights that are multiplied as they are, and a first prompt that sees
# no empty slots; with the MLP's barriers for TPUs; with arrays that vary alike
# in a `shard_map`, of which Triton's kernels tell as Pallas' do.
LIMITS = {"generate": (35, 194), "fit": (35, 164)}
if keras.config.backend() == "torch":
    # Norm, convolution and loss have gradients of their own, each in a file:
    # PyTorch fuses nothing, so that its own pass over whole arrays too often.
    LIMITS["fit"] = (37, 173)


@pytest.fixture(scope="module")
def counts():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", LIMITS)
def test_a_call_passes_few_files_and_functions(counts, call):
    files, functions = LIMITS[call]
    assert counts[call]["files"] <= files, counts
    assert counts[call]["functions"] <= functions, counts


def test_the_loop_is_near_the_layer(counts):
    frames = FRAMES[keras.config.backend()]
    assert counts["generate"]["frames"] <= frames, counts
    assert counts["fit"]["frames"] <= frames, counts
