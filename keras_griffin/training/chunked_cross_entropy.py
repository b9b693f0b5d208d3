"""Cross-entropy of hidden states, without the logits of all tokens."""

import math

import keras
from keras import ops

from keras_griffin import keras_compat

# Logits that exist at once, 512 MiB in float32: 512 tokens of RecurrentGemma's
# vocabulary, enough rows for a matrix product that a TPU v5e or v5p computes
# rather than waits for [FLOPs of bfloat16 per byte of HBM: 240 and 166].
MAX_LOGITS = 2**27
# Where the head learns, its gradient in float32 is read and written once a
# piece. That takes as long as the product of 1,000 tokens on a v5e, of 2,200 on
# a v6e. So on one device of JAX's pieces are LARGER times as large, as long as
# FEW are left. On several, XLA multiplies more often with large pieces
# (`benchmarks/results/block_on_a_tpu_tried.md`).
LARGER = 4
FEW = 4

# "auto" is KerasHub's.
_ACCURACY = ("accuracy", "acc", "auto", "sparse_categorical_accuracy", None)


def needs_no_logits(loss, loss_weights):
    """Whether `chunked_loss` computes what a model was compiled with."""
    return (
        type(loss) is keras.losses.SparseCategoricalCrossentropy
        and loss.from_logits
        and loss.ignore_class is None
        and loss_weights is None
    )


def hits_suffice(metrics):
    """Whether metrics look only at which tokens are likeliest.

    Args:
        metrics: list of metrics, and names of some.
    """
    return all(
        type(metric) is keras.metrics.SparseCategoricalAccuracy
        or metric in _ACCURACY
        for metric in metrics
    )


def chunked_loss(model, logits, head, hidden, y, sample_weight, with_hits):
    """The loss of a batch, as `keras.Model.compute_loss`.

    Args:
        model: a compiled `keras.Model`, for its loss and regularizers.
        logits: callable, from hidden states to logits.
        head: the layer whose weights `logits` reads.
        hidden: `(batch, time, width)`.
        y: `(batch, time)` ids.
        sample_weight: as of `compute_loss`.
        with_hits: bool. Whether to look at the likeliest tokens.

    Returns:
        `(loss, hits)`: `hits` `(batch, time)` is 1.0 where the likeliest token
        is that of `y`, or `None`.
    """

    def values_of(hidden, y):
        scores = logits(hidden)
        losses = model.loss.call(y, ops.cast(scores, model.loss.dtype))
        if not with_hits:
            return (losses,)
        likeliest = ops.argmax(ops.stop_gradient(scores), axis=-1)
        return losses, ops.cast(
            likeliest == ops.cast(y, likeliest.dtype), "float32"
        )

    found = None
    if keras.config.backend() == "torch":
        found = _by_torch(model, head, hidden, y, with_hits)
    losses, *hits = found or map_tokens(values_of, head, hidden, y)
    reduction = _Reduction(
        model.loss.name, model.loss.reduction, model.loss.dtype
    )
    loss = reduction(y, losses, sample_weight)
    for additional in model.losses:
        loss = loss + keras_compat.additional_loss(model, additional)
    return loss, hits[0] if hits else None


def _by_torch(model, head, hidden, y, with_hits):
    """What `map_tokens` returns, or `None` where it has to be called."""
    from keras_griffin.training import cross_entropy_torch

    if not cross_entropy_torch.is_usable(model.loss, head, hidden):
        return None
    losses, hits = cross_entropy_torch.cross_entropy(
        ops.reshape(hidden, (-1, hidden.shape[-1])),
        ops.reshape(y, (-1,)),
        ops.convert_to_tensor(head.embeddings),
        model.backbone.final_logit_soft_cap,
        max(1, MAX_LOGITS // head.input_dim),
        with_hits,
    )
    losses = ops.reshape(losses, hidden.shape[:2])
    return (losses, ops.reshape(hits, hidden.shape[:2]))[: 1 + with_hits]


class _Reduction(keras.losses.Loss):
    """What a Keras loss does with the losses of single tokens."""

    def call(self, y_true, y_pred):
        return y_pred


def map_tokens(function, head, hidden, targets):
    """Applies a function to tokens, some at a time.

    At most `MAX_LOGITS` logits exist at once; on one device of JAX's `LARGER`
    times as many where the head learns and there are many tokens.

    The gradient computes one piece after the other anew; what the head's
    weights get from each is summed in float32.

    Args:
        function: callable `(hidden, targets)`, of `(..., width)` and `(...)`,
            to a tuple of arrays `(...)`.
        head: the layer whose weights the function reads.
        hidden: `(batch, time, width)`.
        targets: `(batch, time)`.

    Returns:
        A tuple of arrays `(batch, time)`.
    """
    batch, time, width = ops.shape(hidden)
    if keras.config.backend() == "jax":
        # Each device keeps its own rows and, where a mesh divides time, takes
        # part in every piece.
        rows, parts, devices = _data_shards(batch, time)
        lead, tokens = (batch, parts), time // parts
        columns = MAX_LOGITS // (head.input_dim * math.ceil(batch / rows))
    else:
        devices = None
        lead, tokens = (), batch * time
        columns = MAX_LOGITS // head.input_dim
    pieces = -(-tokens // max(1, columns))
    if devices == 1 and head.trainable_variables:
        pieces = max(min(pieces, FEW), -(-pieces // LARGER))
    columns = -(-tokens // pieces)
    axis = len(lead)

    def cut(x, *width):
        x = ops.reshape(x, (*lead, tokens, *width))
        rest = [(0, 0)] * len(x.shape)
        rest[axis] = (0, pieces * columns - tokens)
        x = ops.reshape(ops.pad(x, rest), (*lead, pieces, columns, *width))
        return ops.moveaxis(x, axis, 0)

    def join(x):
        x = ops.reshape(ops.moveaxis(x, 0, axis), (*lead, pieces * columns))
        return ops.reshape(x[..., :tokens], (batch, time))

    stacks = cut(hidden, width), cut(targets)

    def one():
        return [x[None] for x in function(*[x[0] for x in stacks])]

    def many():
        return _map_pieces(function, head, *stacks)

    if isinstance(pieces, int):
        outputs = one() if pieces == 1 else many()
    else:  # on TensorFlow, of a batch whose size is known when it runs
        outputs = ops.cond(pieces == 1, one, many)
    return tuple(join(x) for x in outputs)


def _map_pieces(function, head, hidden, targets):
    # Keras' scope hides those around it: all that is read goes in by name. To
    # TensorFlow a frozen variable is one with a gradient: it gets a copy.
    trained = head.trainable_variables
    frozen = [(v, ops.copy(v)) for v in head.non_trainable_variables]

    def piece(hidden, targets, *values):
        mapping = [*zip(trained, values, strict=True), *frozen]
        with keras.StatelessScope(mapping):
            return list(function(hidden, targets))

    values = [_wide(v) for v in trained]
    if keras.config.backend() == "tensorflow":
        return _map_tensorflow(piece, hidden, targets, values)
    piece = keras.remat(piece)
    return ops.map(lambda inputs: piece(*inputs, *values), (hidden, targets))


def _map_tensorflow(piece, hidden, targets, values):
    """`ops.map` of `keras.remat`, which would keep `values` once a piece."""
    import tensorflow as tf

    @tf.custom_gradient
    def run(hidden, *values):
        def gradient(d_losses, *_):
            def add(i, d_hidden, *sums):
                inputs = [hidden[i], *values]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(inputs)
                    losses = piece(inputs[0], targets[i], *inputs[1:])[0]
                new = tape.gradient(losses, inputs, d_losses[i])
                return (
                    i + 1,
                    d_hidden.write(i, new[0]),
                    *map(tf.add, sums, new[1:]),
                )

            pieces = tf.shape(hidden)[0]
            d_hidden = tf.TensorArray(
                hidden.dtype, pieces, element_shape=hidden.shape[1:]
            )
            _, d_hidden, *sums = tf.while_loop(
                lambda i, *_: i < pieces,
                add,
                (0, d_hidden, *map(tf.zeros_like, values)),
                maximum_iterations=pieces,
            )
            return d_hidden.stack(), *sums

        fixed = [tf.stop_gradient(value) for value in values]
        outputs = ops.map(
            lambda inputs: piece(*inputs, *fixed),
            (tf.stop_gradient(hidden), targets),
        )
        return outputs, gradient

    return run(hidden, *map(tf.convert_to_tensor, values))


def _data_shards(batch, time):
    """Devices to which `keras.distribution` gives rows, time, and a step."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1, 1, 1
    layout = distribution.get_data_layout((batch, time))
    mesh = layout.device_mesh
    sizes = {None: 1, **dict(zip(mesh.axis_names, mesh.shape, strict=True))}
    rows, parts = [sizes[axis] for axis in layout.axes]
    devices = math.prod(mesh.shape)
    return rows, parts if time % parts == 0 else 1, devices


def _wide(variable):
    """A weight as gradients are to be summed: in float32 at least."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    narrow = dtype in ("bfloat16", "float16")
    return ops.cast(variable, "float32") if narrow else variable.value


def make_variables(model, counts_hits):
    """Makes the variables of the optimizer, and of metrics that count hits.

    Keras on TensorFlow makes them within the first step, which it therefore
    traces twice.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    is_built = all(metric.variables for metric in model.metrics)
    if counts_hits and not is_built:
        nothing = ops.zeros((1, 1))
        keras.Model.compute_metrics(
            model, None, nothing, ops.zeros((1, 1, 2)), nothing
        )
        model.reset_metrics()
