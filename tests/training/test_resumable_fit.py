"""Interrupted within an epoch, training ends as if it had not been."""

import re

import keras
import numpy as np
import pytest

from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.training import ResumableData
from keras_griffin.training import resumable_fit
from support.checks import to_numpy
from support.models import tiny_model
from support.models import tokens

STEPS_PER_EPOCH = 5


class Interruption(Exception):
    pass


class InterruptAfter(keras.callbacks.Callback):
    """Stops everything before the step after `steps` steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps_left = steps

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps_left == 0:
            raise Interruption
        self.steps_left -= 1


def make_model(seed, **changes):
    keras.utils.set_random_seed(seed)
    model = tiny_model(
        **{"num_layers": 1, "block_types": ("recurrent",), "dropout": 0.2}
        | changes
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def make_data(steps=STEPS_PER_EPOCH):
    token_ids = tokens(2 * steps, 7)
    x = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    return ResumableData.from_arrays(x, token_ids, batch_size=2, seed=3)


def state(model):
    variables = model.variables + model.optimizer.variables  # seeds included
    return [to_numpy(v.value) for v in variables]


def refuse(*args):
    raise AssertionError(f"Called with {args}")


def fit(model, folder, interrupt_after=None, data=None):
    callbacks = []
    if interrupt_after is not None:
        callbacks = [InterruptAfter(interrupt_after)]
    return resumable_fit(
        model,
        data or make_data(),
        folder,
        epochs=2,
        save_freq=2,
        callbacks=callbacks,
        verbose=0,
    )


def test_interrupted_training_ends_as_if_uninterrupted(tmp_path):
    model = make_model(1)
    history = fit(model, tmp_path / "uninterrupted")
    assert len(history["loss"]) == 2
    assert not any((tmp_path / "uninterrupted").iterdir())

    # The last backup is of 7 steps in all: 2 of the second epoch.
    with pytest.raises(Interruption):
        fit(make_model(1), tmp_path / "backup", interrupt_after=8)
    # Another start has other weights and seeds: only the backup counts.
    again = make_model(2)
    again.preprocessor = refuse  # batches are past it
    last_epoch = fit(again, tmp_path / "backup")
    assert len(last_epoch["loss"]) == 1
    for found, expected in zip(state(again), state(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    for name, values in last_epoch.items():
        assert values == history[name][1:]


@pytest.mark.backend_independent
def test_epochs_differ_and_repeat():
    data = make_data()
    orders = []
    for epoch in (0, 0, 1):
        data.start(epoch)
        orders.append(data[0][1])
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


@pytest.mark.backend_independent
def test_each_pass_is_another_epoch():
    """Though Keras never says which, and reads ahead on some backends."""
    asked = set()
    data = make_data(steps=3)
    batch = data._batch

    def noted(epoch, index):
        asked.add((epoch, index))
        return batch(epoch, index)

    def whole_epochs():
        return [
            epoch
            for epoch in range(20)
            if {(epoch, index) for index in range(3)} <= asked
        ]

    data._batch = noted
    model = make_model(0)
    model.fit(data, epochs=3, shuffle=False, verbose=0)
    assert len(whole_epochs()) >= 3
    data.start(10)
    model.evaluate(data, verbose=0)
    model.evaluate(data, verbose=0)
    assert {10, 11} <= set(whole_epochs())


@pytest.mark.backend_independent
def test_backups_of_something_else_are_refused(tmp_path):
    with pytest.raises(Interruption):
        fit(make_model(1), tmp_path, interrupt_after=2)
    with pytest.raises(ValueError, match="other weights"):
        fit(make_model(1, hidden_dim=8), tmp_path)
    with pytest.raises(ValueError, match="other steps_per_epoch"):
        fit(make_model(1), tmp_path, data=make_data(steps=3))


@pytest.mark.backend_independent
def test_other_data_and_frequencies_are_refused(tmp_path):
    model = make_model(1)
    with pytest.raises(ValueError, match="must be a ResumableData"):
        resumable_fit(model, tokens(2, 7), tmp_path)
    with pytest.raises(ValueError, match="`save_freq` must be at least 1"):
        resumable_fit(model, make_data(), tmp_path, save_freq=0)


@pytest.mark.backend_independent
def test_shuffled_indices_are_refused():
    data = make_data()
    with pytest.raises(ValueError, match=re.escape("Give `shuffle=False`")):
        data[2]


@pytest.mark.backend_independent
def test_arrays_without_labels_and_in_order():
    data = ResumableData.from_arrays(np.arange(5), batch_size=2, shuffle=False)
    assert len(data) == 3
    assert [data[i][0].tolist() for i in range(3)] == [[0, 1], [2, 3], [4]]
    data.start(7, index=2)
    assert len(data) == 1
    assert data[0][0].tolist() == [4]


def test_fit_and_evaluate_take_it_beside_a_preprocessor():
    model = make_model(0)
    data, other = make_data(), make_data(steps=2)
    alone = model.evaluate(other, verbose=0)
    # The batches are tokens already: no preprocessor is asked.
    model.preprocessor = GriffinCausalLMPreprocessor.from_preset(
        "griffin_shakespeare_en"
    )
    assert model.evaluate(make_data(steps=2), verbose=0) == alone
    predicted = model.predict(other, verbose=0)
    assert predicted.shape == (4, 7, model.backbone.vocabulary_size)
    history = model.fit(
        data, validation_data=other, epochs=2, shuffle=False, verbose=0
    ).history
    assert len(history["val_loss"]) == 2
    assert history["val_loss"][0] != history["val_loss"][1]
