"""`import keras_griffin`: silent, on one backend, without an accelerator."""

import os
import subprocess
import sys

import keras
import pytest

from keras_griffin import start_up

pytestmark = pytest.mark.slow

BACKEND = keras.config.backend()
OTHERS = {"jax", "tensorflow", "torch"} - {BACKEND}

TINY_MODEL = """
import numpy as np
import keras_griffin

backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=8, num_layers=3, hidden_dim=8, intermediate_dim=8,
    num_query_heads=2, num_gate_blocks=2, attention_window_size=2,
)
model = keras_griffin.GriffinCausalLM(backbone)
token_ids = np.array([[1, 2, 3]])
logits = model({"token_ids": token_ids, "padding_mask": token_ids > 0})
assert logits.shape == (1, 3, 8)
"""

# Python finds no module of these names.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in MISSING:
            return super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if f is PathFinder else f for f in sys.meta_path]
"""


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_import_prints_nothing_and_needs_no_device():
    # JAX looks for this platform when something first asks for a device.
    done = run_python("import keras_griffin", JAX_PLATFORMS="no_such_platform")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_backend_is_enough():
    missing = OTHERS | {"tensorflow_text"}
    done = run_python(f"MISSING = {missing}" + WITHOUT + TINY_MODEL)
    assert done.returncode == 0, done.stderr


QUIET = """
import os, sys
import keras_griffin.start_up
{before}
with keras_griffin.start_up.quiet_tensorflow():
    for line in (
        "WARNING: All log messages before absl::InitializeLog() is called",
        "I0000 00:00:1795379651.680415    4284 port.cc:153] oneDNN custom",
        "To enable the following instructions: AVX2",
        "E0000 00:00:1795.680415    4284 fft.cc:1] Unable to register cuFFT",
        "E0000 00:00:1795.680415    4284 cuda.cc:5] failed call to cuInit: x",
        "E0000 00:00:1795.680415    4284 device.cc:2] out of memory",
        "something else",
    ):
        os.write(2, line.encode() + b"\\n")
    print("from Python", file=sys.stderr)
    {inside}
"""
# In a process where `import keras_griffin` itself leaves TensorFlow alone.
LIGHT = "import sys; sys.argv[0] = 'keras-griffin'\n"


@pytest.mark.backend_independent
def test_only_start_up_lines_are_dropped():
    pytest.importorskip("tensorflow")
    done = run_python(LIGHT + QUIET.format(before="", inside=""))
    assert done.stderr.splitlines() == [
        "E0000 00:00:1795.680415    4284 device.cc:2] out of memory",
        "something else",
        "from Python",
    ]


@pytest.mark.backend_independent
def test_lines_survive_an_error():
    code = QUIET.format(before="", inside="raise ValueError('the cause')")
    done = run_python(LIGHT + code)
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert "the cause" in done.stderr


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "before",
    [
        "os.environ['TF_CPP_MIN_LOG_LEVEL'] = '0'",
        "sys.modules['tensorflow'] = sys",
        "sys.meta_path.clear()",
    ],
    ids=["asked for", "imported before", "not installed"],
)
def test_all_lines_are_left_alone_where(before):
    done = run_python(LIGHT + QUIET.format(before=before, inside=""))
    assert len(done.stderr.splitlines()) == 8, done.stderr


@pytest.mark.backend_independent
def test_is_installed(monkeypatch):
    assert start_up.is_installed("keras")
    assert not start_up.is_installed("no_such_package")
    monkeypatch.setitem(sys.modules, "keras", None)
    assert not start_up.is_installed("keras")


@pytest.mark.backend_independent
def test_what_a_hook_keeps_away_is_not_installed(monkeypatch):
    class Hook:
        def find_spec(name, path, target=None):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hook])
    assert not start_up.is_installed("no_such_package")


@pytest.mark.backend_independent
def test_a_closed_standard_error_is_no_error():
    code = "import os; os.close(2)\n" + QUIET.format(before="", inside="")
    code = code.replace("os.write(2", "(lambda *_: None)(2")
    code = code.replace('print("from Python", file=sys.stderr)', "pass")
    done = run_python(LIGHT + code + "print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "program, original, expected",
    [
        ("-m", ["python", "-m", "keras_griffin", "presets"], True),
        ("-m", ["python", "-X", "dev", "-m", "keras_griffin"], True),
        ("-m", ["python", "-m", "other", "-m", "keras_griffin"], False),
        ("/usr/bin/keras-griffin", ["python", "x"], True),
        ("keras-griffin.exe", ["python", "x"], True),
        ("train.py", ["python", "train.py", "-m", "keras_griffin"], False),
        ("", ["python"], False),
    ],
)
def test_started_as_command(monkeypatch, program, original, expected):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", original)
    assert start_up.started_as_command() is expected


@pytest.mark.backend_independent
def test_started_without_arguments_is_no_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    assert start_up.started_as_command() is False
