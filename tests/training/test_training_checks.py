"""What raises in training leaves the weights of the last finished step."""

import threading

import keras
import numpy as np
import pytest

from keras_griffin import GriffinCausalLM
from keras_griffin import StatefulTrainer
from support.checks import assert_close
from support.checks import to_numpy
from support.models import tiny_model
from support.models import tokens

IDS = tokens(4, 6)
X = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
PROMPT = {
    "token_ids": np.array([[5, 6, 7, 0, 0]]),
    "padding_mask": np.array([[1, 1, 1, 0, 0]]),
}


def make(**options):
    model = tiny_model(num_layers=1, block_types=("recurrent",))
    model.compile(keras.optimizers.Adam(0.01), sampler="greedy", **options)
    return model


def values(model):
    weights = getattr(model, "causal_lm", model).variables
    variables = [*weights, *model.optimizer.variables]
    return [to_numpy(v.value).copy() for v in variables]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class RaiseIn(keras.callbacks.Callback):
    def __init__(self, name):
        super().__init__()
        setattr(self, name, self.stop)

    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt


class Broken(keras.utils.PyDataset):
    """A batch, and then none."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return self.batches + 1

    def __getitem__(self, index):
        if index == self.batches:
            raise OSError("The disk is gone.")
        return X, IDS


@pytest.fixture(scope="module", params=["model", "trainer"])
def trained(request):
    model = make()
    if request.param == "trainer":
        model = StatefulTrainer(model, batch_size=4)
        model.compile(keras.optimizers.Adam(0.01))
    model.fit(X, IDS, verbose=0)
    return model


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
@pytest.mark.parametrize(
    "y, sample_weight, message",
    [
        (IDS[:, :3], None, r"Labels .*\(4, 6\).*shape \(4, 3\)"),
        (IDS, np.ones((4, 3)), r"`sample_weight` .*\(4, 6\).*\(4, 3\)"),
    ],
)
def test_wrong_shapes(trained, method, y, sample_weight, message):
    options = {} if method == "train_on_batch" else {"verbose": 0}
    if method == "train_on_batch" and keras.config.backend() == "tensorflow":
        pytest.skip("TensorFlow traces batches of any shape")
    expected = trained.get_weights()
    with pytest.raises(ValueError, match=message):
        getattr(trained, method)(X, y, sample_weight=sample_weight, **options)
    if isinstance(trained, GriffinCausalLM):  # the state has gone on
        assert_same(trained.get_weights(), expected)
    trained.fit(X, IDS, verbose=0)


@pytest.mark.parametrize(
    "method, callback",
    [
        ("fit", "on_train_batch_begin"),
        ("evaluate", "on_test_batch_end"),
        ("predict", "on_predict_batch_end"),
    ],
)
def test_interrupted_in_a_callback(trained, method, callback):
    expected = values(trained)
    y = {} if method == "predict" else {"y": IDS}
    with pytest.raises(KeyboardInterrupt):
        getattr(trained, method)(
            X, **y, verbose=0, callbacks=[RaiseIn(callback)]
        )
    assert_same(values(trained), expected)


def test_data_that_ends_early():
    """Before a step, after one, and within an execution of several."""
    model = make()
    model.fit(X, IDS, verbose=0)
    before = values(model)
    with pytest.raises(Exception, match="disk"):
        model.fit(Broken(0), shuffle=False, verbose=0)
    assert_same(values(model), before)
    other = make()
    other.set_weights(model.get_weights())
    found = []
    per_execution = 1 if keras.config.backend() == "torch" else 3
    for steps in (1, per_execution):
        again = make(steps_per_execution=steps)
        again.set_weights(model.get_weights())
        with pytest.raises(Exception, match="disk"):
            again.fit(Broken(2), shuffle=False, verbose=0)
        found.append(values(again))
    other.fit(X, IDS, epochs=2, verbose=0)
    if keras.config.backend() == "tensorflow":
        return  # it reads ahead, and has done a step less
    for each in found:
        for a, b in zip(each, values(other), strict=True):
            assert_close(a, b)


def test_frozen_or_quantized_without_compiling_anew(trained):
    lm = getattr(trained, "causal_lm", trained)
    expected = trained.get_weights()
    norm = lm.backbone.final_norm
    norm.trainable = False
    with pytest.raises(ValueError, match="Compile again"):
        trained.fit(X, IDS, verbose=0)
    norm.trainable = True
    assert_same(trained.get_weights(), expected)
    trained.fit(X, IDS, verbose=0)


def test_fit_quantize_compile_fit():
    model = make()
    model.fit(X, IDS, verbose=0)
    model.quantize("int8")
    with pytest.raises(ValueError, match="quantized .* Compile again"):
        model.fit(X, IDS, verbose=0)
    model.compile(keras.optimizers.Adam(0.01))
    assert np.isfinite(model.fit(X, IDS, verbose=0).history["loss"]).all()


def test_weights_of_tokens_and_of_rows():
    model = make()
    rng = np.random.default_rng(0)
    rows = rng.random(4).astype("float32")
    of_tokens = np.repeat(rows[:, None], 6, axis=1)
    expected = model.evaluate(X, IDS, sample_weight=of_tokens, verbose=0)
    for weights in (of_tokens[..., None], rows, rows[:, None]):
        found = model.evaluate(
            X, IDS[..., None], sample_weight=weights, verbose=0
        )
        assert_close(np.array(found), np.array(expected))


def test_losses_and_metrics_of_probabilities_are_refused():
    model = make()
    cls = keras.losses.SparseCategoricalCrossentropy
    for loss in (
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        cls(),
    ):
        with pytest.raises(ValueError, match=r"losses.Sparse.*from_logits=Tru"):
            model.compile(loss=loss)
        with pytest.raises(ValueError, match="must be made for logits"):
            StatefulTrainer(model, 4).compile("sgd", loss=loss)
    for metric in ("ce", keras.metrics.SparseCategoricalCrossentropy()):
        with pytest.raises(ValueError, match="metrics must be made for logits"):
            model.compile(metrics=[metric])
    model.compile(
        loss=cls(from_logits=True),
        metrics=[
            "accuracy",
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
        ],
    )


def test_generating_in_another_thread_while_fit_runs():
    model = make()
    model.generate(PROMPT, stop_token_ids=None)
    found, is_over = [], threading.Event()

    def generate():
        while not is_over.is_set():
            try:
                outputs = model.generate(PROMPT, stop_token_ids=None)
                found.append(outputs["token_ids"].shape)
            except (RuntimeError, TypeError, ValueError) as error:
                found.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    model.fit(X, IDS, batch_size=1, epochs=8, verbose=0)
    is_over.set()
    thread.join()
    assert set(found) == {(1, 5)}


def test_two_trainings_at_a_time():
    """Raises on JAX, where the first has the weights."""
    if keras.config.backend() != "jax":
        pytest.skip("about JAX")
    model = make()
    model.fit(X, IDS, verbose=0)
    trainer = StatefulTrainer(model, batch_size=4)
    trainer.compile(keras.optimizers.Adam(0.01))
    errors, shapes = [], []

    def call():
        for function in (
            lambda: model.generate(PROMPT, stop_token_ids=None),
            lambda: trainer.predict_on_batch(X),
        ):
            with pytest.raises(RuntimeError) as error:
                function()
            errors.append(str(error.value))

    class Second(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
            if batch == 1:  # `self.model` has the weights put back
                shapes.append(self.model.predict(X, verbose=0).shape)

    rows = [np.concatenate([part] * 3) for part in (*X.values(), IDS)]
    inputs = dict(zip(X, rows, strict=False))
    trainer.fit(inputs, rows[-1], verbose=0, callbacks=[Second()])
    assert len(errors) == 6
    assert "StatefulTrainer" in errors[0]
    assert "one thread at a time" in errors[1]
    assert shapes == [(4, 6, model.backbone.vocabulary_size)]
    assert np.isfinite(trainer.evaluate(X, IDS, verbose=0))
