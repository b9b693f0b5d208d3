"""A model learns answers from instructions, and stops where they end."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_griffin
from support.checks import to_numpy
from support.conversations import END
from support.conversations import instruction_preprocessor
from support.conversations import model as answer
from support.conversations import user
from support.models import tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAIRS = {"prompts": ["to be", "or"], "responses": ["no", "not be"]}
CONVERSATIONS = [
    [user("to be"), answer("no")],
    [user("or"), answer("not be")],
]


@pytest.fixture(scope="module")
def model():
    preprocessor = instruction_preprocessor()
    model = tiny_model(
        vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
        num_layers=1,
        block_types=("recurrent",),
    )
    model.preprocessor = preprocessor
    model.compile(
        optimizer=keras.optimizers.Adam(3e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    return model


def loss(model, x, batch_size=2):
    outputs = model.evaluate(
        x, batch_size=batch_size, verbose=0, return_dict=True
    )
    return outputs["loss"]


@pytest.mark.backend_independent
def test_it_learns_answers_and_their_end(model, tmp_path):
    before = loss(model, PAIRS)
    assert loss(model, CONVERSATIONS) == pytest.approx(before, rel=1e-5)
    data = tf.data.Dataset.from_tensor_slices(PAIRS).batch(2)
    assert loss(model, data, batch_size=None) == pytest.approx(before, rel=1e-5)
    model.fit(
        PAIRS,
        batch_size=2,
        epochs=10,
        verbose=0,
        shuffle=False,
        validation_data=CONVERSATIONS,
    )
    model.fit(CONVERSATIONS, batch_size=2, epochs=10, verbose=0, shuffle=False)
    model.fit(data, epochs=10, verbose=0, shuffle=False)
    assert loss(model, PAIRS) < 0.05 * before

    # Both answers end long before the limit, by <end_of_turn>.
    replies = model.generate([[user("to be")], [user("or")]])
    assert replies == ["no", "not be"]
    assert model.generate([user("to be")]) == "no"
    assert "".join(model.generate_stream([user("or")])) == "not be"
    text = "<start_of_turn>user\nor<end_of_turn>\n<start_of_turn>model\n"
    assert model.generate(text) == f"{text}not be{END}"
    assert model.generate(text, strip_prompt=True) == f"not be{END}"
    replied = model.generate([user("or")], stop_token_ids=None, max_length=20)
    assert replied.startswith(f"not be{END}") and len(replied) > 20

    model.save_to_preset(str(tmp_path))
    again = keras_griffin.GriffinCausalLM.from_preset(str(tmp_path))
    again.compile(sampler="greedy")
    assert again.preprocessor.turn_format == "gemma"
    assert again.generate([user("or")]) == "not be"


@pytest.mark.backend_independent
def test_loss_is_that_of_the_answers_alone(model):
    x, y, weight = model.preprocessor(PAIRS)
    logits = to_numpy(model.predict_on_batch(PAIRS)).astype("float64")
    log_total = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, np.asarray(y)[..., None], -1)[..., 0]
    nats = (log_total - chosen) * np.asarray(weight)
    # Keras' mean is over all places, the pads too.
    expected = nats.sum() / nats.size
    assert loss(model, PAIRS) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.backend_independent
def test_messages_need_a_preprocessor():
    with pytest.raises(ValueError, match="needs a preprocessor"):
        tiny_model().generate_stream([user("to be")])


WITHOUT_TENSORFLOW = """
import sys

for name in ("tensorflow", "tensorflow_text", *sys.argv[1:]):
    sys.modules[name] = None  # `import` then raises an ImportError.
from support.models import tiny_model
from support.conversations import instruction_preprocessor

preprocessor = instruction_preprocessor()
model = tiny_model(
    vocabulary_size=preprocessor.tokenizer.vocabulary_size(), num_layers=1
)
model.preprocessor = preprocessor
conversations = [
    [
        {"role": "user", "content": "to be"},
        {"role": "model", "content": "no"},
    ]
]
x, y, weight = preprocessor(conversations)
print(int(weight.sum()))
model.compile(optimizer="sgd")
try:
    model.fit(conversations, verbose=0, shuffle=False)
    print("trained")
except ImportError as error:
    print(error)
"""


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="needs TensorFlow"
)
@pytest.mark.parametrize(
    "missing, expected", [((), "trained"), (("grain",), "pip install grain")]
)
def test_without_tensorflow(missing, expected):
    """KerasHub's `fit` on text then takes grain, or says that it would."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *missing],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    _, _, weight = instruction_preprocessor()(CONVERSATIONS[:1])
    assert int(lines[0]) == np.asarray(weight).sum()
    assert expected in process.stdout
