import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from support.models import tiny_model
from support.models import tokens

pytestmark = pytest.mark.slow

SCRIPT = (
    Path(__file__).resolve().parents[2]
    / "benchmarks/speed/exported_generation.py"
)
FORMATS = {
    "jax": ["tf_saved_model"],
    "tensorflow": ["tf_saved_model", "litert"],
    "torch": ["onnx", "torch"],
}
# Keras and this package are not there for who runs the files.
WITHOUT_KERAS = """
import runpy, sys
sys.modules.update(keras=None, keras_hub=None, keras_griffin=None)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def small_model(**changes):
    return tiny_model(
        num_layers=2, block_types=("recurrent", "local_attention"), **changes
    )


# What the exporters of the backends say to themselves.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", FORMATS[keras.config.backend()])
def test_files_generate_what_the_model_does(tmp_path, format):
    model = small_model()
    model.export_steps(tmp_path, format=format, batch_size=2, prompt_length=8)
    ids = tokens(1, 19)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, SCRIPT, tmp_path, "--new", "10"]
        + ["--ids", *map(str, ids[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = model.generate(
        {"token_ids": ids},
        max_new_tokens=10,
        stop_token_ids=None,
        strip_prompt=True,
    )["token_ids"][0, :10]
    received = [int(word) for word in done.stdout.splitlines()[-1].split()]
    np.testing.assert_array_equal(received, expected)


def test_formats_of_other_backends(tmp_path):
    unknown = {name for names in FORMATS.values() for name in names}
    unknown = {"openvino", *unknown} - {*FORMATS[keras.config.backend()]}
    for format in sorted(unknown):
        with pytest.raises(ValueError, match="Set KERAS_BACKEND"):
            small_model().export_steps(tmp_path, format=format)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="ONNX is written on PyTorch"
)
def test_onnx_is_float32(tmp_path):
    with pytest.raises(ValueError, match="in float32 alone"):
        small_model(dtype="bfloat16").export_steps(tmp_path, format="onnx")
