"""What `compile` and a step of training are given, looked at before use."""

import keras
from keras import ops

from keras_griffin import keras_compat

# Names of losses and metrics that Keras computes of probabilities.
_OF_PROBABILITIES = (
    "binary_crossentropy",
    "categorical_crossentropy",
    "ce",
    "crossentropy",
    "sparse_categorical_crossentropy",
)


def check_take_logits(
    optimizer=None, loss=None, metrics=None, weighted_metrics=None, **kwargs
):
    """Raises for losses and metrics that take logits for probabilities.

    Args:
        optimizer, loss, metrics, weighted_metrics, **kwargs: those of
            `compile`.
    """
    given = {"loss": loss, "metrics": [metrics, weighted_metrics]}
    for argument, values in given.items():
        for each in keras.tree.flatten(values):
            name = getattr(each, "__name__", each)
            from_logits = getattr(each, "from_logits", None)
            if name not in _OF_PROBABILITIES and from_logits is not False:
                continue
            places = {"loss": "losses", "metrics": "metrics"}
            raise ValueError(
                f"The {argument} must be made for logits, which this model "
                f"gives. Received: {each!r}, which takes them for "
                f"probabilities. Give keras.{places[argument]}."
                "SparseCategoricalCrossentropy(from_logits=True)."
            )


def check_still_compiled(model):
    """Raises if other weights are trained than those of the optimizer."""
    optimizer = model.optimizer
    if optimizer is None or not optimizer.built:
        return
    known = {id(v) for v in keras_compat.variables_of(optimizer)}
    trained = {id(v) for v in model.trainable_variables}
    if trained != known:
        raise ValueError(
            "The weights to train are those that the optimizer was made for. "
            f"Received: {len(known - trained)} of them that are not trained "
            f"now, and {len(trained - known)} others: layers were frozen, "
            "unfrozen, quantized or given adapters. Compile again, with a new "
            "optimizer: model.compile(...)."
        )


def token_weights(loss, y, sample_weight, y_pred):
    """Returns the weights with an axis for time; checks them and the labels.

    Args:
        loss: that of the model; with another than the cross-entropy of token
            ids nothing is looked at.
        y: `(batch, time)` or `(batch, time, 1)`.
        sample_weight: one of these, `(batch,)`, `(batch, 1)` or `None`.
        y_pred: `(batch, time, ...)`.

    Returns:
        `(batch, time)`, `(batch, 1)` or `None`.
    """
    if not isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return sample_weight
    tokens = tuple(y_pred.shape[:2])
    shapes = [tokens, (*tokens, 1)]
    _check_shape("Labels", y, shapes, tokens)
    if not hasattr(sample_weight, "shape"):
        return sample_weight
    if _is_unknown(sample_weight.shape):
        return ops.reshape(sample_weight, (ops.shape(y_pred)[0], -1))
    shapes += [(tokens[0],), (tokens[0], 1)]
    _check_shape("`sample_weight`", sample_weight, shapes, tokens)
    if len(sample_weight.shape) == 1:
        return sample_weight[:, None]
    if len(sample_weight.shape) == 3:
        return ops.squeeze(sample_weight, axis=-1)
    return sample_weight


def as_rows(loss, y, y_pred, sample_weight):
    """Returns all three with one axis for tokens, on PyTorch.

    Of `(batch, time, classes)` Keras makes `(batch, classes, time)` there, and
    a softmax along a middle axis takes a GPU many times longer.

    Args:
        loss: as of `token_weights`.
        y: as of `token_weights`.
        y_pred: logits, `(batch, time, classes)`.
        sample_weight: from `token_weights`.
    """
    if (
        keras.config.backend() != "torch"
        or type(loss) is not keras.losses.SparseCategoricalCrossentropy
        or len(y_pred.shape) != 3
    ):
        return y, y_pred, sample_weight
    *tokens, classes = y_pred.shape
    if sample_weight is not None:
        weights = ops.convert_to_tensor(sample_weight)
        sample_weight = ops.reshape(ops.broadcast_to(weights, tokens), -1)
    return ops.reshape(y, -1), ops.reshape(y_pred, (-1, classes)), sample_weight


def check_no_class_weight(class_weight):
    """Raises for weights of classes, which Keras has for labels of rows.

    Of `(batch, time)` labels it would take the place of the largest as the
    class of the row.
    """
    if class_weight is not None:
        raise ValueError(
            "`class_weight` is for one label a row, and there is one for each "
            f"token. Received: class_weight={class_weight!r}. Give weights of "
            "tokens: sample_weight=weights[y], with an array of one weight for "
            "each id."
        )


def check_arrays(model, x, y, arguments):
    """Checks labels and weights before Keras cuts them into batches.

    TensorFlow does not know the shapes of batches while it traces.

    Args:
        model: a `keras.Model`.
        x: dict of `"token_ids"` and `"padding_mask"`.
        y: as of `fit`.
        arguments: dict of further arguments of `fit`.
    """
    if "token_ids" in x and y is not None:
        weights = dict(arguments).get("sample_weight")
        token_weights(getattr(model, "loss", None), y, weights, x["token_ids"])


def _check_shape(name, value, shapes, tokens):
    if not hasattr(value, "shape") or _is_unknown(value.shape):
        return  # a structure, which Keras refuses
    found = tuple(value.shape)
    for shape in shapes:
        if len(shape) == len(found) and all(
            a is None or b is None or a == b
            for a, b in zip(shape, found, strict=True)
        ):
            return
    raise ValueError(
        f"{name} must have an entry for each token: the shape (batch, time) "
        f"of the logits, {tokens}. Received: shape {found}. Give one of "
        f"{shapes}."
    )


def _is_unknown(shape):
    """Whether TensorFlow traces for any number of axes."""
    return getattr(shape, "rank", 0) is None
