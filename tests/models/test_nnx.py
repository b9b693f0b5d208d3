"""Models under Keras' `KERAS_NNX_ENABLED`, where layers are Flax modules.

Keras reads the variable when it is imported, so a process of its own.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend_independent

SCRIPT = """
import sys
import keras
import numpy as np
import keras_griffin
from flax import nnx

assert keras.config.is_nnx_enabled()
backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=9, num_layers=2, hidden_dim=8, intermediate_dim=8,
    num_query_heads=2, num_gate_blocks=2, attention_window_size=2,
    block_types=("recurrent", "local_attention"),
)
model = keras_griffin.GriffinCausalLM(backbone)
assert isinstance(model, nnx.Module)
ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
model.compile("sgd", sampler="greedy")
before = model.evaluate(inputs, ids, verbose=0)[0]
model.fit(inputs, ids, epochs=4, verbose=0)
assert model.evaluate(inputs, ids, verbose=0)[0] < before
prompts = {**inputs, "padding_mask": ids % 4 < 3}
texts = model.generate(prompts, stop_token_ids=None)["token_ids"]
path = sys.argv[1] + "/model.keras"
model.save(path)
model.save_to_preset(sys.argv[1] + "/preset")
for again in (
    keras.saving.load_model(path),
    keras_griffin.GriffinCausalLM.from_preset(sys.argv[1] + "/preset"),
):
    again.compile("sgd", sampler="greedy")
    found = again.generate(prompts, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(found, texts)
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
"""


def test_build_fit_generate_save_load(tmp_path):
    pytest.importorskip("flax")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:keras_griffin"]
        + ["-c", SCRIPT, str(tmp_path)],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "KERAS_NNX_ENABLED": "true",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
