"""Text in, padded rows out, on every kind of input and without TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_griffin import GriffinBackbone
from keras_griffin import GriffinCausalLM
from keras_griffin import GriffinCausalLMPreprocessor
from keras_griffin import GriffinTokenizer

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = (
    ROOT
    / "presets"
    / "griffin_shakespeare_en"
    / "assets"
    / "tokenizer"
    / "vocabulary.spm"
)
PAD, END, START = 0, 1, 2
TEXTS = ["To be", "or not to be"]


@pytest.fixture(scope="module")
def tokenizer():
    return GriffinTokenizer(VOCABULARY.read_bytes())


@pytest.fixture(scope="module")
def ids(tokenizer):
    """Of `TEXTS`."""
    return tokenizer(TEXTS)


@pytest.fixture
def preprocessor(tokenizer):
    return GriffinCausalLMPreprocessor(tokenizer, sequence_length=12)


def arrays(outputs):
    return keras.tree.map_structure(np.asarray, outputs)


def assert_same(x, y):
    keras.tree.map_structure(np.testing.assert_array_equal, x, y)


KINDS = {
    "list": list,
    "numpy": np.array,
    "object": lambda texts: np.array(texts, object),
    "tensor": tf.constant,
}


@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS.keys())
def test_training_rows(preprocessor, ids, wrap):
    x, y, sample_weight = arrays(preprocessor(wrap(TEXTS)))
    for i, row in enumerate(ids):
        tokens = [START, *row, END]
        padded = tokens + [PAD] * (13 - len(tokens))
        assert x["token_ids"][i].tolist() == padded[:12]
        assert y[i].tolist() == padded[1:]
        real = np.arange(13) < len(tokens)
        assert x["padding_mask"][i].tolist() == real[:12].tolist()
        assert sample_weight[i].tolist() == real[1:].tolist()


def test_one_text_is_one_row(preprocessor):
    x, y, sample_weight = arrays(preprocessor(TEXTS[0]))
    batch = arrays(preprocessor(TEXTS[:1]))
    assert x["token_ids"].shape == (12,)
    assert_same(
        (x, y, sample_weight), keras.tree.map_structure(lambda a: a[0], batch)
    )


@pytest.mark.parametrize("batched", [False, True])
def test_in_tf_data(preprocessor, batched):
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    data = data.batch(2) if batched else data
    inputs = TEXTS if batched else TEXTS[0]
    outputs = next(data.map(preprocessor).as_numpy_iterator())
    assert_same(outputs, arrays(preprocessor(inputs)))
    outputs = next(
        data.map(preprocessor.generate_preprocess).as_numpy_iterator()
    )
    assert_same(outputs, arrays(preprocessor.generate_preprocess(inputs)))


@pytest.mark.backend_independent
def test_training_rows_are_cut_off(preprocessor, tokenizer):
    text = "a long text, " * 20
    x, y, sample_weight = arrays(preprocessor([text]))
    assert x["token_ids"][0, 0] == START
    assert np.all(sample_weight)
    assert y[0].tolist() == tokenizer([text])[0][:12]
    x, y, _ = arrays(preprocessor([text], sequence_length=300))
    assert x["token_ids"].shape == y.shape == (1, 300)


@pytest.mark.backend_independent
@pytest.mark.parametrize("kind", ["text", "pair"])
@pytest.mark.parametrize("add_start_token", [False, True])
def test_only_texts_that_fit_end(tokenizer, kind, add_start_token):
    """A text of which the end is cut off goes on; it does not end there."""
    text = "to be, or not to be, that is the question: whether 'tis nobler"
    inputs = (
        [text] if kind == "text" else {"prompts": [""], "responses": [text]}
    )
    tokens = [*tokenizer([text])[0], END]
    count = len(tokens) - (not add_start_token)
    for length in (count - 3, count - 2, count - 1, count, count + 1):
        preprocessor = GriffinCausalLMPreprocessor(
            tokenizer, sequence_length=length, add_start_token=add_start_token
        )
        _, y, sample_weight = arrays(preprocessor(inputs))
        expected = tokens if add_start_token else tokens[1:]
        real = y[0][sample_weight[0] > 0].tolist()
        assert real == expected[:length]


@pytest.mark.backend_independent
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_start_and_end_tokens(tokenizer, ids, start, end):
    preprocessor = GriffinCausalLMPreprocessor(
        tokenizer,
        sequence_length=20,
        add_start_token=start,
        add_end_token=end,
    )
    again = GriffinCausalLMPreprocessor.from_config(preprocessor.get_config())
    assert (again.add_start_token, again.add_end_token) == (start, end)
    expected = [START] * start + ids[0] + [END] * end
    x, _, _ = arrays(preprocessor(TEXTS[:1]))
    assert x["token_ids"][0][x["padding_mask"][0]].tolist() == expected
    prompt = arrays(preprocessor.generate_preprocess(TEXTS[:1]))
    prompt = prompt["token_ids"][0][prompt["padding_mask"][0]]
    assert prompt.tolist() == [START] * start + ids[0]


@pytest.mark.parametrize("wrap", KINDS.values(), ids=KINDS.keys())
def test_prompts(preprocessor, ids, wrap):
    prompts = arrays(preprocessor.generate_preprocess(wrap(TEXTS)))
    for i, row in enumerate(ids):
        tokens = [START, *row]
        mask = np.arange(12) < len(tokens)
        assert prompts["padding_mask"][i].tolist() == mask.tolist()
        padded = tokens + [PAD] * (12 - len(tokens))
        assert prompts["token_ids"][i].tolist() == padded


def test_prompts_come_back(preprocessor):
    for texts in (TEXTS, ["", "\n  é"], "one", ""):
        prompts = preprocessor.generate_preprocess(texts)
        assert preprocessor.generate_postprocess(prompts) == texts


@pytest.mark.backend_independent
def test_a_prompt_may_fill_the_row(preprocessor, ids):
    length = len(ids[1]) + 1
    prompts = preprocessor.generate_preprocess(TEXTS, sequence_length=length)
    assert np.asarray(prompts["token_ids"]).shape == (2, length)


@pytest.mark.backend_independent
@pytest.mark.parametrize("start", [False, True])
def test_a_prompt_that_is_too_long_is_refused(tokenizer, ids, start):
    preprocessor = GriffinCausalLMPreprocessor(
        tokenizer, sequence_length=500, add_start_token=start
    )
    needed = len(ids[1]) + start
    preprocessor.generate_preprocess(TEXTS, sequence_length=needed)
    for texts in (TEXTS, TEXTS[1], np.array(TEXTS), tf.constant(TEXTS)):
        with pytest.raises(
            ValueError,
            match=f"prompt must fit .*Received: max_length={needed - 1} and "
            rf"a prompt of {needed} tokens.*Shorten .*max_length=\.\.\.",
        ):
            preprocessor.generate_preprocess(texts, sequence_length=needed - 1)
    preprocessor.sequence_length = needed - 1
    with pytest.raises(ValueError, match="prompt must fit"):
        preprocessor.generate_preprocess(TEXTS)


@pytest.mark.backend_independent
@pytest.mark.parametrize("batched", [False, True])
def test_a_prompt_that_is_too_long_is_refused_in_tf_data(preprocessor, batched):
    data = tf.data.Dataset.from_tensor_slices(["a", "too long " * 10])
    data = data.batch(2) if batched else data
    data = data.map(preprocessor.generate_preprocess)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="prompt must fit .*max_length=12"
    ):
        list(data)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "inputs", [3, [1, 2], np.array([[1, 2]]), ["a", None], [["a"]], None]
)
def test_what_is_no_text_is_refused(preprocessor, inputs):
    with pytest.raises(ValueError, match="Text must be"):
        preprocessor(inputs)
    with pytest.raises(ValueError, match="Text must be"):
        preprocessor.generate_preprocess(inputs)


def test_token_ids_need_no_preprocessor(preprocessor):
    inputs = {"token_ids": np.array([[5, 6]]), "padding_mask": np.ones((1, 2))}
    with pytest.raises(ValueError, match="token_ids.*`preprocessor=None`"):
        preprocessor(inputs)
    with pytest.raises(ValueError, match="token_ids.*`preprocessor=None`"):
        preprocessor.generate_preprocess(inputs)


@pytest.mark.backend_independent
def test_tensors_of_ids_are_refused_in_tf_data(preprocessor):
    data = tf.data.Dataset.from_tensor_slices([1, 2])
    with pytest.raises(ValueError, match="Text must be"):
        data.map(preprocessor)


def small_model(tokenizer, preprocessor):
    backbone = GriffinBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        hidden_dim=16,
        intermediate_dim=16,
        num_query_heads=2,
        num_gate_blocks=2,
    )
    return GriffinCausalLM(backbone, preprocessor)


def test_inside_of_a_model(tokenizer, preprocessor, tmp_path):
    model = small_model(tokenizer, preprocessor)
    model.compile(sampler="greedy", loss=model.loss, optimizer="sgd")
    model.fit(TEXTS, batch_size=2, verbose=0, shuffle=False)
    texts = model.generate(TEXTS)
    assert [t[: len(p)] for t, p in zip(texts, TEXTS)] == TEXTS
    with pytest.raises(ValueError, match="prompt must fit"):
        model.generate(TEXTS, max_length=3)

    model.save_to_preset(tmp_path)
    again = GriffinCausalLMPreprocessor.from_preset(str(tmp_path))
    assert again.sequence_length == 12
    assert_same(arrays(again(TEXTS)), arrays(preprocessor(TEXTS)))
    longer = GriffinCausalLMPreprocessor.from_preset(
        str(tmp_path), sequence_length=30
    )
    assert longer.sequence_length == 30
    assert again.tokenizer.proto == tokenizer.proto


@pytest.mark.backend_independent
def test_from_a_hugging_face_folder(tokenizer, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "recurrent_gemma"}')
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.proto)
    preprocessor = GriffinCausalLMPreprocessor.from_preset(
        str(tmp_path), sequence_length=5
    )
    assert preprocessor.sequence_length == 5
    assert preprocessor.tokenizer.proto == tokenizer.proto


WITHOUT_TENSORFLOW = """
import sys

for name in ("tensorflow", "tensorflow_text"):
    sys.modules[name] = None  # `import` then raises an ImportError.
import numpy as np
import keras_griffin

with open(sys.argv[1], "rb") as file:
    tokenizer = keras_griffin.GriffinTokenizer(file.read())
preprocessor = keras_griffin.GriffinCausalLMPreprocessor(
    tokenizer, sequence_length=12
)
texts = ["To be", "or not to be"]
for inputs in (texts, np.array(texts)):
    x, y, sample_weight = preprocessor(inputs)
    prompt = preprocessor.generate_preprocess(inputs)
    assert preprocessor.generate_postprocess(prompt) == texts
try:
    preprocessor.generate_preprocess("too long " * 20)
except ValueError as error:
    assert "must fit" in str(error)
else:
    raise SystemExit("no error")
print(np.asarray(x["token_ids"]).tolist())
"""


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="needs TensorFlow"
)
def test_without_tensorflow(preprocessor):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(VOCABULARY)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    x, _, _ = arrays(preprocessor(TEXTS))
    expected = str(x["token_ids"].tolist())
    assert process.stdout.splitlines()[-1] == expected
