"""Training with a state that is handed on: equal to a plain loop."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_griffin import GriffinPacker
from keras_griffin import StatefulTrainer
from support.checks import assert_close
from support.checks import to_numpy
from support.checks import value_and_grad
from support.models import PATTERNS
from support.models import run
from support.models import tiny_model
from support.models import tokens

BATCH, CHUNK, RATE = 2, 7, 0.1
# Rows are two chunks long, and a document starts in the midst of one.
DOCUMENTS = (2 * CHUNK, CHUNK + 3, CHUNK - 5)


def data():
    """Arguments of `fit`, and the batches that they hold."""
    documents = [tokens(1, n, seed=i)[0] for i, n in enumerate(DOCUMENTS)]
    packer = GriffinPacker(sequence_length=CHUNK)
    x, y, sample_weight = packer.stateful_rows(documents, BATCH)
    batches = list(packer.stateful_batches(documents, BATCH))
    assert len(batches) == 2
    return {"x": x, "y": y, "sample_weight": sample_weight}, batches


def trainer_of(model, **kwargs):
    trainer = StatefulTrainer(model, BATCH, **kwargs)
    trainer.compile(keras.optimizers.SGD(RATE))
    return trainer


def by_hand(model, batches):
    """Weights after SGD on chunk after chunk, in plain steps."""
    variables = model.trainable_variables
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    state = model.init_state(BATCH, max_length=64)
    # NumPy arrays: nothing flows back through them.
    leaves = [to_numpy(leaf) for leaf in keras.tree.flatten(state)]
    for x, y, sample_weight in batches:

        def step(*weights):
            mapping = list(zip(variables, weights, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                hidden, new_state = model.backbone.call_with_state(
                    ops.convert_to_tensor(x["token_ids"]),
                    keras.tree.pack_sequence_as(
                        state, [ops.convert_to_tensor(leaf) for leaf in leaves]
                    ),
                    ops.convert_to_tensor(x["padding_mask"]),
                )
                chunk_loss = loss(y, model._logits(hidden), sample_weight)
            new_leaves = keras.tree.flatten(new_state)
            return [chunk_loss, *(ops.cast(z, "float32") for z in new_leaves)]

        weights = [to_numpy(v.value).copy() for v in variables]
        (_, *new_leaves), gradients = value_and_grad(
            step,
            *weights,
            # Of the loss alone.
            cotangents=[np.ones(())] + [np.zeros(z.shape) for z in leaves],
            compiled=keras.config.backend() == "jax",
        )
        leaves = [
            new.astype(old.dtype)
            for new, old in zip(new_leaves, leaves, strict=True)
        ]
        for variable, weight, gradient in zip(
            variables, weights, gradients, strict=True
        ):
            variable.assign(weight - RATE * gradient)
    return [to_numpy(v.value).copy() for v in variables]


def test_fit_equals_a_plain_loop():
    rows, batches = data()
    model = tiny_model(block_types=PATTERNS["mixed"])
    start = model.get_weights()
    expected = by_hand(model, batches)
    model.set_weights(start)
    trainer = trainer_of(model, max_length=64)
    trainer.fit(**rows, verbose=0)
    for a, b in zip(model.get_weights(), expected, strict=True):
        assert_close(a, b, kind="gradients")
    changes = [np.abs(a - b).max() for a, b in zip(expected, start)]
    assert max(changes) > 0.01

    # A second epoch starts with a fresh state.
    trainer.fit(**rows, verbose=0)
    expected = model.get_weights()
    model.set_weights(start)
    trainer.fit(**rows, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    trainer.reset_state()
    assert not any(np.any(v) for v in state_of(trainer))


def test_predict_reads_rows_as_one_and_leaves_the_state():
    rows, batches = data()
    model = tiny_model()
    trainer = trainer_of(model)
    trainer.predict(rows["x"], verbose=0)
    assert not any(np.any(v) for v in state_of(trainer))
    state = [np.ones_like(v) for v in state_of(trainer)]
    for variable, value in zip(trainer._state_variables, state, strict=True):
        variable.assign(value)
    chunks = trainer.predict(rows["x"], verbose=0)
    for a, b in zip(state_of(trainer), state, strict=True):
        np.testing.assert_array_equal(a, b)
    chunks = np.reshape(chunks, (len(batches), BATCH, CHUNK, -1))
    whole = keras.tree.map_structure(
        lambda *leaves: np.concatenate(leaves, axis=1),
        *[x for x, _, _ in batches],
    )
    expected = run(model, **whole)
    real = whole["padding_mask"].astype(bool)
    actual = np.concatenate(chunks, axis=1)
    assert_close(actual[real], expected[real])
    # What a chunk alone would give is another thing.
    alone = run(model, **batches[1][0])
    assert np.abs(alone - chunks[1])[0].max() > 0.01


def state_of(trainer):
    return [to_numpy(v.value) for v in trainer._state_variables]


@pytest.mark.backend_independent
def test_a_stream_goes_on_from_epoch_to_epoch():
    """And validation on the way does not touch the state."""
    rows, batches = data()
    model = tiny_model()
    start = model.get_weights()
    trainer = trainer_of(model)
    trainer.fit(**rows, verbose=0)
    expected = model.get_weights()
    model.set_weights(start)
    trainer.reset_state()
    history = trainer.fit(
        (batch for batch in batches),
        epochs=len(batches),
        steps_per_epoch=1,
        validation_data=(rows["x"], rows["y"], rows["sample_weight"]),
        validation_batch_size=BATCH,
        verbose=0,
    ).history
    for a, b in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    loss = trainer.evaluate(**rows, verbose=0)
    np.testing.assert_allclose(loss, history["val_loss"][-1], rtol=1e-5)


@pytest.mark.backend_independent
def test_the_state_is_saved_with_the_trainer(tmp_path):
    rows, _ = data()
    trainer = trainer_of(tiny_model(dtype="mixed_bfloat16"))
    trainer.fit(**rows, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert again.batch_size == BATCH
    assert any(np.any(v) for v in state_of(trainer))
    for a, b in zip(again.weights, trainer.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a.value), to_numpy(b.value))
    recurrent = [v for v in again.weights if "recurrent" in v.name]
    assert {v.dtype for v in recurrent} == {"float32"}
    again.fit(**rows, verbose=0)


@pytest.mark.backend_independent
def test_segment_ids_of_earlier_versions():
    trainer = trainer_of(tiny_model(num_layers=1))
    arguments, _ = data()
    arguments["x"]["segment_ids"] = arguments["x"]["padding_mask"]
    with pytest.raises(ValueError, match="Give `padding_mask = np.where"):
        trainer.fit(**arguments)


@pytest.mark.backend_independent
def test_bad_arguments_are_refused():
    rows, _ = data()
    model = tiny_model()
    with pytest.raises(ValueError, match="must be a GriffinCausalLM"):
        StatefulTrainer(model.backbone, BATCH)
    trainer = trainer_of(model)
    with pytest.raises(ValueError, match="must stay in their order"):
        trainer.fit(**rows, shuffle=True)
    with pytest.raises(ValueError, match="a row for each row of the state"):
        trainer(rows["x"])
