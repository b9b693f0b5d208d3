"""Cross-entropy of hidden states in pieces equals Keras' own of all logits."""

import re

import keras
import keras_hub
import numpy as np
import pytest

import keras_griffin
from keras_griffin.training import chunked_cross_entropy
from support.checks import assert_close
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import tiny_backbone
from support.models import tokens

BATCH, TIME = 3, 10
# All in one piece; pieces that fit; pieces that leave a rest; one by one.
LIMITS = {
    "one": BATCH * TIME * VOCABULARY,
    "fit": BATCH * VOCABULARY * 2,
    "rest": BATCH * VOCABULARY * 4,
    "single": 1,
}


class PlainCrossEntropy(keras.losses.SparseCategoricalCrossentropy):
    """Of another class than Keras' own, it is given all logits."""


LOSSES = (PlainCrossEntropy, keras.losses.SparseCategoricalCrossentropy)


def data():
    ids = tokens(BATCH, TIME + 1)
    x = {
        "token_ids": ids[:, :-1],
        "padding_mask": np.ones((BATCH, TIME), "int32"),
    }
    weights = np.random.default_rng(1).random((BATCH, TIME), "float32")
    weights[0, 6:] = 0
    return x, ids[:, 1:], weights


def make(loss=keras.losses.SparseCategoricalCrossentropy, **changes):
    keras.utils.set_random_seed(0)
    options = {
        "num_layers": 1,
        "block_types": ("recurrent",),
        "final_logit_soft_cap": 2.0,
        **changes,
    }
    model = keras_griffin.GriffinCausalLM(tiny_backbone(**options))
    return compile_model(model, loss)


def compile_model(model, loss):
    model.compile(
        keras.optimizers.SGD(1.0),
        loss=loss(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="weighted")
        ],
    )
    in_pieces = loss is keras.losses.SparseCategoricalCrossentropy
    assert model._loss_in_pieces == in_pieces
    return model


def step(model, weighted=True):
    """Logs of one step of gradient descent, and what it subtracted."""
    x, y, weights = data()
    before = [to_numpy(v.value) for v in model.trainable_variables]
    logs = model.train_on_batch(
        x, y, sample_weight=weights if weighted else None, return_dict=True
    )
    return logs, [
        old - to_numpy(v.value)
        for old, v in zip(before, model.trainable_variables, strict=True)
    ]


def assert_same_step(actual, expected):
    assert actual[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert_close(actual[0][name], value, name=name)
    for i, (new, old) in enumerate(zip(actual[1], expected[1], strict=True)):
        assert_close(new, old, kind="gradients", name=f"weight {i}")


@pytest.fixture(scope="module")
def plain_step():
    return step(make(PlainCrossEntropy))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_step_equals_that_with_all_logits(limit, plain_step, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS[limit])
    assert_same_step(step(make()), plain_step)


@pytest.mark.backend_independent
def test_a_step_without_weights_and_evaluation(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS["rest"])
    x, y, weights = data()
    plain, model = make(PlainCrossEntropy), make()
    assert_same_step(step(model, weighted=False), step(plain, weighted=False))
    # Two batches of different sizes.
    logs, expected = (
        m.evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=2,
            verbose=0,
            return_dict=True,
        )
        for m in (model, plain)
    )
    for name in expected:
        assert_close(logs[name], expected[name], name=name)
    # What a user calls gives logits, as ever.
    assert model.predict(x, verbose=0).shape == (BATCH, TIME, VOCABULARY)
    assert tuple(model(x).shape) == (BATCH, TIME, VOCABULARY)


@pytest.mark.backend_independent
def test_lora_and_regularizers(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS["fit"])
    steps = []
    for loss in LOSSES:
        model = make(loss)
        embedding = model.backbone.token_embedding
        embedding.enable_lora(2)
        for v in embedding.trainable_variables:
            v.assign(np.random.default_rng(0).normal(size=v.shape))
            v.regularizer = keras.regularizers.L2(0.1)
        steps.append(step(compile_model(model, loss)))
    assert_same_step(steps[1], steps[0])


@pytest.mark.backend_independent
def test_a_quantized_embedding(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS["rest"])
    x, y, weights = data()
    results = []
    for loss in LOSSES:
        model = make(loss)
        model.backbone.token_embedding.quantize("int8")
        compile_model(model, loss)
        results.append(model.evaluate(x, y, sample_weight=weights, verbose=0))
    assert_close(np.array(results[1]), np.array(results[0]))


def test_gradients_of_pieces_are_summed_in_float32(monkeypatch):
    gradients = {}
    for limit in (500 * VOCABULARY, 1):
        monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", limit)
        model = make(dtype="bfloat16")
        embeddings = model.backbone.token_embedding.embeddings
        # From 0 a step of rate 1 is the gradient, without a further rounding.
        embeddings.assign(np.zeros(embeddings.shape))
        # Terms of one sign, so many that bfloat16 would ignore the last ones.
        ids = tokens(1, 500)
        x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        model.train_on_batch(x, np.full_like(ids, 5))
        gradients[limit] = embeddings.value
    assert_close(
        gradients[1], gradients[500 * VOCABULARY], "bfloat16", "gradients"
    )


def test_other_losses_get_all_logits():
    model = make()
    for loss, options in [
        (
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, ignore_class=0
            ),
            {},
        ),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            {"loss_weights": 2.0},
        ),
        (lambda y_true, y_pred: keras.ops.mean(y_pred), {}),
    ]:
        model = keras_griffin.GriffinCausalLM(model.backbone)
        model.compile("sgd", loss=loss, weighted_metrics=None, **options)
        assert not model._loss_in_pieces
    x, y, _ = data()
    loss = model.evaluate(x, y, verbose=0)
    assert_close(np.array(loss[0]), np.mean(model.predict(x, verbose=0)))


@pytest.mark.backend_independent
def test_without_metrics():
    x, y, _ = data()
    model = make()
    expected = model.evaluate(x, y, verbose=0)
    # Keras keeps the metrics of before then.
    model.compile("sgd", weighted_metrics=None)
    assert_close(np.array(model.evaluate(x, y, verbose=0)), np.array(expected))
    for metrics in ([], None):
        model.compile("sgd", weighted_metrics=metrics)
        assert model._loss_in_pieces
        found = model.evaluate(x, y, verbose=0)
        assert_close(np.array(found), np.array(expected[0]))
    never = keras_griffin.GriffinCausalLM(model.backbone, compile=False)
    never.compile("sgd", weighted_metrics=None)
    found = never.evaluate(x, y, verbose=0)
    assert_close(np.array(found), np.array(expected[0]))


@pytest.mark.backend_independent
def test_other_metrics_get_all_logits(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", 1)
    metrics = {
        "metrics": keras.metrics.SparseTopKCategoricalAccuracy(3, name="top"),
        "weighted_metrics": keras_hub.metrics.Perplexity(
            from_logits=True, name="perplexity"
        ),
    }
    x, y, weights = data()
    model = make()
    logits = model.predict(x, verbose=0)
    for name, metric in metrics.items():
        model.compile("sgd", **{"weighted_metrics": None, name: [metric]})
        assert not model._loss_in_pieces
        logs = model.evaluate(
            x, y, sample_weight=weights, verbose=0, return_dict=True
        )
        metric.reset_state()
        metric.update_state(y, logits, weights if "weigh" in name else None)
        assert_close(logs[metric.name], to_numpy(metric.result()))


class OwnLoss(keras_griffin.GriffinCausalLM):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        assert y_pred.shape[-1] == VOCABULARY
        return keras.ops.mean(y_pred**2)


class OwnMetrics(keras_griffin.GriffinCausalLM):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        assert y_pred.shape[-1] == VOCABULARY
        return super().compute_metrics(x, y, y_pred, sample_weight)


class OwnStep(keras_griffin.GriffinCausalLM):
    def test_step(self, *args):
        *state, (x, _, _) = args
        if state:  # on JAX
            logits, _ = self.stateless_call(*state[0][:2], x)
        else:
            logits = self(x)
        assert logits.shape[-1] == VOCABULARY
        return super().test_step(*args)


class OwnCall(keras_griffin.GriffinCausalLM):
    def call(self, inputs, training=None, mask=None):
        logits = super().call(inputs, training, mask)
        assert logits.shape[-1] == VOCABULARY
        return logits


@pytest.mark.parametrize("cls", [OwnLoss, OwnMetrics, OwnStep, OwnCall])
def test_what_a_subclass_overrides_sees_logits(cls):
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone(num_layers=1, block_types=("recurrent",))
    x, y, weights = data()
    model, plain = cls(backbone), keras_griffin.GriffinCausalLM(backbone)
    found, expected = [], []
    for m, results in ((model, found), (plain, expected)):
        m.compile("sgd")
        results += m.evaluate(x, y, sample_weight=weights, verbose=0)
    if cls is OwnLoss:
        expected[0] = np.mean(plain.predict(x, verbose=0) ** 2)
    assert_close(np.array(found), np.array(expected))
    if cls is not OwnStep:
        assert np.isfinite(model.train_on_batch(x, y)).all()


def test_additional_losses_count(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS["rest"])
    x, y, _ = data()
    found = []
    for loss in LOSSES:
        model = make(loss)
        down = model.backbone.blocks[0].mlp.down
        down.activity_regularizer = keras.regularizers.L2(0.5)
        found.append(model.evaluate(x, y, verbose=0))
        down.activity_regularizer = None
        compile_model(model, loss)
        assert found[-1][0] > model.evaluate(x, y, verbose=0)[0]
    assert_close(np.array(found[1]), np.array(found[0]))


class Logs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def _see(self, step, logs=None):
        self.seen.append([step, *(float(logs[name]) for name in sorted(logs))])

    on_train_batch_end = on_test_batch_end = on_epoch_end = _see


@pytest.mark.backend_independent
def test_callbacks_see_the_logs_of_all_logits():
    x, y, weights = data()
    found = []
    for loss in LOSSES:
        model, logs = make(loss), Logs()
        model.fit(
            x,
            y,
            sample_weight=weights,
            batch_size=1,
            epochs=2,
            shuffle=False,
            validation_data=(x, y, weights),
            callbacks=[logs],
            verbose=0,
        )
        found.append(np.array(sum(logs.seen, [])))
    assert_close(found[1], found[0])


def test_a_train_step_of_ones_own():
    """As Keras' guides write it, on each backend."""
    x, y, _ = data()

    class OwnTrainStep(keras_griffin.GriffinCausalLM):
        def train_step(self, *args):
            *state, (x, y) = args
            if state:  # on JAX
                logits, _ = self.stateless_call(*state[0][:2], x)
            else:
                logits = self(x, training=True)
            assert logits.shape[-1] == VOCABULARY
            loss = keras.losses.sparse_categorical_crossentropy(
                y, logits, from_logits=True
            )
            logs = {"own": keras.ops.mean(loss)}
            if state:
                return logs, state[0]
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(logs["own"])
                else:
                    metric.update_state(y, logits)
            return logs

    backbone = tiny_backbone(num_layers=1, block_types=("recurrent",))
    model = OwnTrainStep(backbone)
    model.compile("sgd")
    history = model.fit(x, y, verbose=0, batch_size=len(y), shuffle=False)
    logits = model.predict(x, verbose=0).astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probs, np.array(y)[..., None], -1)
    assert_close(np.array(history.history["own"]), [expected.mean()])


def log_softmax_axes(function):
    """How far from the last the axes of PyTorch's log-softmaxes are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    axes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            # `(x, axis, ...)`, and `(dy, y, axis, ...)` of the gradient.
            place = {
                "aten::_log_softmax": 1,
                "aten::_log_softmax_backward_data": 2,
            }.get(operation.name())
            if place is not None and args[0].device.type != "meta":
                axes.append(args[0].ndim - 1 - args[place] % args[0].ndim)
            return operation(*args, **(kwargs or {}))

    with Record():
        function()
    return axes


def test_pytorch_s_softmax_of_all_logits_is_along_the_last_axis():
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    x, y, weights = data()
    model = make()
    metric = keras.metrics.SparseTopKCategoricalAccuracy(3)  # sees logits
    trainer = keras_griffin.StatefulTrainer(model, batch_size=len(y))
    for each in (model, trainer):
        each.compile(optimizer="sgd", loss="auto", weighted_metrics=[metric])
        axes = log_softmax_axes(lambda f=each.train_on_batch: f(x, y, weights))
        assert set(axes) == {0}


@pytest.mark.parametrize("limit", ["one", "fit"])
def test_pytorch_s_softmax_is_along_the_last_axis(limit, monkeypatch):
    """Along another it takes many times longer on a GPU."""
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS[limit])
    model = make()
    assert set(log_softmax_axes(lambda: step(model))) == {0}


def _jax_sizes(model):
    import jax

    state = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    step = jax.jit(model.train_step).lower(state, data())
    return _sizes_in(step.compile().as_text())


def _tf_sizes(model):
    import tensorflow as tf

    data_tensors = keras.tree.map_structure(tf.convert_to_tensor, data())
    train_step = tf.function(model.train_step, jit_compile=True)
    text = train_step.experimental_get_compiler_ir(data_tensors)("hlo")
    return _sizes_in(text)


def _sizes_in(text):
    shapes = re.findall(r"\w\d+\[([\d,]+)\]", text)
    return [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]


def _torch_sizes(model):
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            sizes.extend(
                output.numel()
                for output in keras.tree.flatten(outputs)
                if hasattr(output, "numel")
            )
            return outputs

    with Record():
        step(model)
    return sizes


def largest_array(model):
    """Elements of the largest array in a step of training."""
    model._symbolic_build(data_batch=data())
    sizes = {"jax": _jax_sizes, "tensorflow": _tf_sizes, "torch": _torch_sizes}
    return max(sizes[keras.config.backend()](model))


def test_no_array_has_the_size_of_all_logits(monkeypatch):
    # A vocabulary that no other size reaches.
    changes = {"vocabulary_size": 2000, "hidden_dim": 8}
    all_logits = BATCH * TIME * 2000
    assert largest_array(make(PlainCrossEntropy, **changes)) >= all_logits
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", BATCH * 2000 * 3)
    largest = largest_array(make(**changes))
    assert largest <= 2000 * max(BATCH * 3, 8)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow alone"
)
@pytest.mark.parametrize("metrics", [None, ["accuracy"]])
def test_tensorflow_traces_the_first_step_once(monkeypatch, metrics):
    model = keras_griffin.GriffinCausalLM(tiny_backbone())
    model.compile(optimizer="adam", loss="auto", weighted_metrics=metrics)
    calls, call = [], type(model.backbone).call

    def counted(self, *args, **kwargs):
        calls.append(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(model.backbone), "call", counted)
    ids = np.ones((2, 5), "int32")
    model.train_on_batch(
        {"token_ids": ids, "padding_mask": np.ones_like(ids)}, ids
    )
    assert len(calls) == 1
