import functools
import gc
import os
import signal
import socket
import sys

import pytest

# Read when Keras is imported, which is later.
os.environ.setdefault("KERAS_BACKEND", "jax")

# A job in a shell's background ignores Ctrl-C, and its children would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ["KERAS_BACKEND"] == "torch":
    import torch

    # The tests' matrices are tiny: waiting for a second thread costs more
    # than it brings, a hundredfold on a busy machine.
    torch.set_num_threads(1)
    # Read when Triton is imported, which is later: its kernels run in Python.
    os.environ.setdefault("TRITON_INTERPRET", "1")

QUICK_FUSIONS = " --xla_cpu_use_fusion_emitters=false"  # of run_all.py
if os.environ["KERAS_BACKEND"] == "jax" and QUICK_FUSIONS in os.environ.get(
    "XLA_FLAGS", ""
):
    import jax

    # The TPU's compiler reads the flags when it is loaded, and refuses this
    # one. The CPU's has read them with its first program.
    jax.jit(lambda x: x)(0.0)
    flags = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = flags.replace(QUICK_FUSIONS, "")

LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same numbers, alone or among others."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that would download something fails at once, and says so."""
    connect = socket.socket.connect

    def local_connect(self, address):
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if internet and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"Tests use no network. Received: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_connect)


@functools.cache
def look_at_all_objects_once(folder):
    """Lets the next collection look at all objects, see `quick_collection`."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quick_collection(request):
    """Makes `gc.collect` cheap: Keras calls it for every variable it deletes.

    Millions of objects of libraries and their caches would be looked at each
    time: two seconds. What is alive when a test begins is left alone until the
    tests of its folder end.
    """
    look_at_all_objects_once(request.path.parent)
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Spares pytest's five looks through all objects: a minute of TensorFlow's.

    One is left, so that a warning of what nobody holds any more is still seen.
    """
    gc.collect()
    gc.freeze()
