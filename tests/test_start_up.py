"""`import keras_griffin`: at once, and its names when they are asked for."""

import os
import subprocess
import sys

import keras
import pytest

import keras_griffin
from support.models import tiny_model

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


def run_python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


LIGHT = """
import sys
import keras_griffin

heavy = {"jax", "keras", "keras_hub", "numpy", "tensorflow", "torch"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(*dir(keras_griffin))
"""


@pytest.mark.backend_independent
def test_import_imports_nothing_and_lists_public_names():
    done = run_python(LIGHT)
    assert (done.returncode, done.stderr) == (0, "")
    names = done.stdout.split()
    assert names == sorted([*keras_griffin.__all__, "__version__"])
    assert names == dir(keras_griffin)


@pytest.mark.backend_independent
def test_import_refuses_an_older_keras_in_the_process():
    code = "import keras; keras.__version__ = '3.13.0'; import keras_griffin"
    done = run_python(code)
    assert done.returncode != 0
    assert "ImportError: keras_griffin needs keras>=" in done.stderr
    assert "Restart the session" in done.stderr


def test_import_needs_no_device():
    # JAX looks for this platform when something first asks for a device.
    code = "from keras_griffin import *\nGriffinCausalLM, kernels"
    done = run_python(code, JAX_PLATFORMS="no_such_platform")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_one_backend_is_enough():
    missing = OTHERS | {"tensorflow_text"}
    done = run_python(f"MISSING = {missing}" + WITHOUT + TINY_MODEL)
    assert done.returncode == 0, done.stderr


@pytest.mark.backend_independent
def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'GriffinLLM'"):
        keras_griffin.GriffinLLM  # noqa: B018


LOAD = """
import sys
{imports}
import keras

model = keras.saving.load_model(sys.argv[1])
assert type(model).__name__ == "GriffinCausalLM"
assert type(model.optimizer).__name__ == "GriffinAdamW"
layer = keras.saving.load_model(sys.argv[2])
assert type(layer.layers[-1]).__name__ == "CausalConv1D"
"""


@pytest.mark.backend_independent
def test_keras_finds_the_classes_of_its_files(tmp_path):
    """After `import keras_griffin`, where Keras was first, or one name."""
    model = tiny_model(num_layers=1, block_types=("recurrent",))
    model.compile(optimizer=keras_griffin.GriffinAdamW(1e-3))
    model.save(tmp_path / "model.keras")
    layer = keras_griffin.layers.CausalConv1D(kernel_size=2)
    layer = keras.Sequential([keras.Input((None, 3)), layer])
    layer.save(tmp_path / "layer.keras")
    files = tmp_path / "model.keras", tmp_path / "layer.keras"
    for imports in (
        "import keras; import keras_griffin",
        "from keras_griffin import GriffinTokenizer",
    ):
        done = run_python(LOAD.format(imports=imports), *files)
        assert done.returncode == 0, done.stderr
    # Without either, Keras says what to do.
    done = run_python(LOAD.format(imports="import keras_griffin"), *files)
    assert "make sure they are all imported" in done.stderr
