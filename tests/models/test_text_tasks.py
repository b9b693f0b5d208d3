"""The classifier and the embedder: pads, packed rows, files, learning."""

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin import GriffinTextClassifier
from keras_griffin import GriffinTextClassifierPreprocessor
from keras_griffin import GriffinTextEmbedder
from keras_griffin import GriffinTextEmbedderPreprocessor
from support.checks import assert_close
from support.checks import to_numpy
from support.conversations import vocabulary
from support.keras_hub_checks import keras_hub_checks
from support.models import PATTERNS
from support.models import TINY
from support.models import assert_same_weights
from support.models import randomize
from support.models import run
from support.models import scatter
from support.models import tiny_backbone
from support.models import tokens
from support.once import once

TEXTS = ["Who is there?", "It is the king."]
LABELS = np.array([0, 2])
SMALL = {"num_layers": 2, "block_types": ("recurrent", "local_attention")}
CLASSES = 3
# Of the class, its arguments, and its preprocessor.
TASKS = {
    "classifier": (
        GriffinTextClassifier,
        {"num_classes": CLASSES},
        GriffinTextClassifierPreprocessor,
    ),
    "embedder": (GriffinTextEmbedder, {}, GriffinTextEmbedderPreprocessor),
}
each_task = pytest.mark.parametrize("name", TASKS)
# KerasHub's pipeline of strings.
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")


def make(name, backbone=None, **arguments):
    cls, own, _ = TASKS[name]
    task = cls(backbone or tiny_backbone(**SMALL), **own, **arguments)
    if name == "classifier":
        randomize(task.output_dense)
    return task


def make_of_text(name, sequence_length=8, **arguments):
    tokenizer = keras_griffin.GriffinTokenizer(vocabulary())
    preprocessor = TASKS[name][2](tokenizer, sequence_length)
    size = tokenizer.vocabulary_size()
    backbone = tiny_backbone(**{**SMALL, "vocabulary_size": size})
    return make(name, backbone, preprocessor=preprocessor, **arguments)


@each_task
def test_keras_hub_checks_of_a_preprocessor(name):
    arguments = {
        "tokenizer": keras_griffin.GriffinTokenizer(vocabulary()),
        "sequence_length": 8,
    }
    keras_hub_checks(**arguments).run_preprocessor_test(
        TASKS[name][2],
        init_kwargs=arguments,
        input_data=(TEXTS, LABELS, np.ones(2)),
    )


# KerasHub's use of an argument that Keras no longer reads.
@pytest.mark.filterwarnings("ignore:The `check_types` argument")
@each_task
def test_keras_hub_checks_of_a_task(name):
    task = make_of_text(name)
    if name == "embedder":  # KerasHub's embedders have no default loss
        checks = keras_hub_checks()
        checks.run_serialization_test(task)
        assert task.predict(TEXTS, verbose=0).shape == (2, TINY["hidden_dim"])
        return
    keras_hub_checks().run_task_test(
        TASKS[name][0],
        init_kwargs={
            "preprocessor": task.preprocessor,
            "backbone": task.backbone,
            **TASKS[name][1],
        },
        train_data=(TEXTS, LABELS),
        expected_output_shape=(2, CLASSES),
    )


@each_task
def test_rows_of_text(name):
    preprocessor = make_of_text(name, 64).preprocessor
    tokenizer = preprocessor.tokenizer
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    ids = [list(tokenizer(text)) for text in TEXTS]
    rows = preprocessor(TEXTS)
    # A tuple alone would be texts and labels to KerasHub.
    pairs, labels = preprocessor((TEXTS, TEXTS[::-1]), LABELS)
    np.testing.assert_array_equal(labels, LABELS)
    assert sorted(rows) == ["padding_mask", "token_ids"]
    for i in range(2):
        one = [start, *ids[i], end]
        for found, expected in (
            (rows, one),
            (pairs, [*one, *ids[1 - i], end]),
        ):
            row = to_numpy(found["token_ids"][i])[: len(expected)]
            np.testing.assert_array_equal(row, expected)
            assert to_numpy(found["padding_mask"][i]).sum() == len(expected)
    with pytest.raises(ValueError, match="Text must be a string"):
        preprocessor({"token_ids": [1]})


@pytest.mark.parametrize("pooling_mode", ["last", *once("mean")])
@each_task
def test_padded_and_packed_rows(name, pooling_mode):
    """Each row is what its last document alone would be."""
    backbone = tiny_backbone(block_types=PATTERNS["mixed"])
    task = make(name, backbone, pooling_mode=pooling_mode)
    rows = [tokens(1, length, seed=length)[0] for length in (9, 5, 1, 7)]
    alone = np.concatenate([run(task, row[None]) for row in rows])
    token_ids, mask = scatter(rows, 12)
    assert_close(run(task, token_ids, mask), alone)
    packed = np.concatenate(rows)[None]
    numbers = np.repeat([1, 2, 3, 2], [len(row) for row in rows])[None]
    assert_close(run(task, packed, numbers), alone[-1:])
    # What the whole row as one document gives is another thing.
    assert np.abs(run(task, packed) - alone[-1:]).max() > 1e-3
    if name == "embedder":
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-5)


def test_values():
    """The head and the norm, against NumPy."""
    backbone = tiny_backbone(**SMALL)
    ids = tokens(3, 6)
    last = run(backbone, ids)[:, -1]
    model = make("classifier", backbone, activation="softmax")
    kernel, bias = map(to_numpy, model.output_dense.weights)
    expected = np.exp(last @ kernel + bias)
    expected /= expected.sum(axis=1, keepdims=True)
    assert_close(run(model, ids), expected)
    # KerasHub's default loss knows of the activation.
    assert not model.loss.from_logits
    assert make("classifier", backbone).loss.from_logits
    plain = make("embedder", backbone, normalize=False)
    assert_close(run(plain, ids), last)
    model = make("embedder", backbone)
    vectors = run(model, ids)
    assert_close(vectors, last / np.linalg.norm(last, axis=1, keepdims=True))
    assert_close(
        model.similarity(vectors, vectors[:2]), vectors @ vectors[:2].T
    )


@pytest.mark.backend_independent
@each_task
def test_16_bit_backbones_give_float32(name):
    backbone = tiny_backbone(**SMALL, dtype="bfloat16")
    task = make(name, backbone)
    assert task.compute_output_spec(backbone.input).dtype == "float32"
    head = {w.dtype for w in task.weights} - {w.dtype for w in backbone.weights}
    assert head == ({"float32"} if name == "classifier" else set())


@pytest.mark.backend_independent
def test_dropout_in_training_alone():
    model = make("classifier", dropout=0.9)
    ids = tokens(2, 5)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    plain = make("classifier", model.backbone)
    plain.set_weights(model.get_weights()[: len(plain.weights)])
    assert_close(run(model, ids), run(plain, ids))
    trained = to_numpy(model(inputs, training=True))
    assert np.abs(trained - run(model, ids)).max() > 1e-3


@each_task
def test_files(name, tmp_path):
    task = make_of_text(name, pooling_mode="mean")
    task.compile(**{"optimizer": "adam", "loss": task.loss or "mse"})
    y = LABELS if name == "classifier" else np.zeros((2, TINY["hidden_dim"]))
    task.fit(TEXTS, y, verbose=0)  # there is an optimizer's state
    expected = task.predict(TEXTS, verbose=0)
    cls = type(task)
    task.save_to_preset(tmp_path / "preset")
    loaded = cls.from_preset(tmp_path / "preset")
    assert_same_weights(loaded, task)
    assert loaded.preprocessor.sequence_length == 8
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), expected)
    card = (tmp_path / "preset" / "README.md").read_text()
    assert f"keras_griffin.{cls.__name__}.from_preset" in card
    task.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert type(loaded) is cls
    np.testing.assert_array_equal(loaded.predict(TEXTS, verbose=0), expected)
    assert int(to_numpy(loaded.optimizer.iterations)) == 1
    task.save_weights(tmp_path / "task.weights.h5")
    randomize(loaded)
    loaded.load_weights(tmp_path / "task.weights.h5")
    assert_same_weights(loaded, task)
    # And a task of another kind takes the backbone.
    model = keras_griffin.GriffinCausalLM.from_preset(tmp_path / "preset")
    assert_same_weights(model.backbone, task.backbone)
    again = GriffinTextClassifier.from_preset(
        tmp_path / "preset", num_classes=5
    )
    assert_same_weights(again.backbone, task.backbone)
    assert again.num_classes == 5
    preprocessor = again.preprocessor
    preprocessor.save_to_preset(tmp_path / "preprocessor")
    assert preprocessor.from_preset(tmp_path / "preset").sequence_length in (
        8,
        512,
    )


@pytest.mark.backend_independent
@each_task
def test_of_a_causal_models_preset(name):
    cls, own, preprocessor_cls = TASKS[name]
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    task = cls.from_preset("griffin_shakespeare_en", **own)
    assert_same_weights(task.backbone, model.backbone)
    assert type(task.preprocessor) is preprocessor_cls
    found = task.preprocessor(["To be"])["token_ids"]
    expected = model.preprocessor(["To be"])[0]["token_ids"]
    np.testing.assert_array_equal(found[0, :5], expected[0, :5])
    without_text = {"load_weights": False, "backbone": task.backbone, **own}
    empty = cls.from_preset("hawk_100m", **without_text)
    assert empty.preprocessor is None
    with pytest.raises(ValueError, match="Did you mean pooling_mode"):
        cls.from_preset("griffin_shakespeare_en", pooling="mean", **own)
    with pytest.raises(ValueError, match="Did you mean pooling_mode"):
        cls(task.backbone, pooling="mean", **own)


@pytest.mark.backend_independent
def test_bad_arguments_are_refused():
    backbone = tiny_backbone(**SMALL)
    with pytest.raises(ValueError, match="`num_classes` must be an integer"):
        GriffinTextClassifier.from_preset("griffin_shakespeare_en")
    with pytest.raises(ValueError, match="`num_classes` must be an integer"):
        GriffinTextClassifier(backbone, 0)
    with pytest.raises(ValueError, match="`pooling_mode` must be one of"):
        GriffinTextEmbedder(backbone, pooling_mode="first")
    model = make("classifier", backbone)
    x = {"token_ids": tokens(2, 3) + 100, "padding_mask": np.ones((2, 3))}
    for call in (model, model.predict, model.evaluate, model.fit):
        with pytest.raises(ValueError, match=r"must lie in \[0, 28\]"):
            call(x)


@pytest.mark.backend_independent
def test_learns_from_ids_and_by_adapters():
    """Which of two tokens came last: a task that needs the last real token."""
    model = make("classifier")
    rng = np.random.default_rng(0)
    rows = [tokens(1, n, seed=n)[0] for n in rng.integers(2, 9, 64)]
    y = np.array([row[-1] % 2 for row in rows])
    token_ids, mask = scatter(rows, 9)
    x = {"token_ids": token_ids, "padding_mask": mask.astype("int32")}
    model.enable_lora(2)
    frozen = [to_numpy(v.value) for v in model.backbone.non_trainable_variables]
    model.compile(keras.optimizers.Adam(0.03))
    model.fit(x, y, epochs=30, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.95
    for a, b in zip(
        frozen, model.backbone.non_trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(a, to_numpy(b.value))
    expected = run(model, token_ids, mask)
    model.merge_lora()
    assert_close(run(model, token_ids, mask), expected)
    with pytest.raises(ValueError, match="Compile again"):
        model.fit(x, y, verbose=0)
