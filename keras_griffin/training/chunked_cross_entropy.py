"""Losses of tokens from hidden states, without the logits of all of them."""

import math

import keras
from keras import ops

# Logits that exist at once, 512 MiB in float32: 512 tokens of RecurrentGemma's
# vocabulary, enough rows for a matrix product that a TPU v5e or v5p computes
# rather than waits for [FLOPs of bfloat16 per byte of HBM: 240 and 166].
MAX_LOGITS = 2**27


def token_losses(score, update, hidden, targets, weights, head, metrics):
    """Losses of tokens, in pieces of at most `MAX_LOGITS` logits.

    The gradient computes the logits of one piece after the other anew; what
    the embedding gets from each is summed in float32.

    Args:
        score: callable `(hidden, targets)` to `(losses, logits)`, of shapes
            `(rows, tokens)` and `(rows, tokens, vocabulary)`.
        update: callable `(targets, logits, weights)` that updates metrics.
        hidden: `(batch, time, width)`.
        targets: `(batch, time)`.
        weights: `(batch, time)`, or `None`.
        head: the layer that turns hidden states into logits.
        metrics: list of the variables that `update` may change.

    Returns:
        `(batch, time)`.
    """
    backend = keras.config.backend()
    batch, time = ops.shape(hidden)[:2]
    vocabulary = head.input_dim
    shards = 1
    if backend == "jax":
        # Pieces of columns: each device keeps its own rows and, where a mesh
        # divides time, takes part in every piece.
        row_shards, time_shards = _data_shards(batch, time)
        own_rows = math.ceil(batch / row_shards)
        columns = max(1, MAX_LOGITS // (vocabulary * own_rows))
        if time % time_shards == 0:
            shards = time_shards
    else:
        columns = max(1, MAX_LOGITS // vocabulary)
        hidden, targets, weights = (
            None if x is None else ops.reshape(x, (1, -1, *x.shape[2:]))
            for x in (hidden, targets, weights)
        )
    rows, tokens = ops.shape(hidden)[:2]
    num_pieces = tokens // shards // columns
    cuts = [
        _cut(x, shards, num_pieces, columns) for x in (hidden, targets, weights)
    ]
    stacks, rest = zip(*cuts, strict=True)

    def update_in_place(*arrays):
        # The metrics flatten tokens, which has to leave them where they are:
        # the parts of the rows come before the rows.
        update(*(_parts_first(x, shards) for x in arrays))

    def score_rest():
        losses, logits = score(*rest[:2])
        update_in_place(rest[1], ops.stop_gradient(logits), rest[2])
        return losses

    if isinstance(num_pieces, int) and num_pieces == 0:
        return ops.reshape(score_rest(), (batch, time))
    loop = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[backend]
    losses = loop(score, update_in_place, head, metrics, *stacks)
    losses = ops.reshape(losses, (num_pieces, rows, shards, columns))
    losses = ops.transpose(losses, (1, 2, 0, 3))
    losses = ops.reshape(losses, (rows, shards, num_pieces * columns))
    if not isinstance(num_pieces, int) or rest[0].shape[1]:
        last = ops.reshape(score_rest(), (rows, shards, -1))
        losses = ops.concatenate([losses, last], axis=2)
    return ops.reshape(losses, (batch, time))


def _data_shards(batch, time):
    """Devices over which `keras.distribution` spreads rows, and time."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1, 1
    layout = distribution.get_data_layout((batch, time))
    mesh = layout.device_mesh
    sizes = {None: 1, **dict(zip(mesh.axis_names, mesh.shape, strict=True))}
    return [sizes[axis] for axis in layout.axes]


def _cut(x, shards, num_pieces, columns):
    """`(pieces, rows, tokens, ...)`, and the tokens that are left."""
    if x is None:
        return None, None
    width = x.shape[2:]
    rows = ops.shape(x)[0]
    x = ops.reshape(x, (rows, shards, -1, *width))
    end = num_pieces * columns
    stack = ops.reshape(
        x[:, :, :end], (rows, shards, num_pieces, columns, *width)
    )
    axes = (2, 0, 1, 3, *range(4, 4 + len(width)))
    stack = ops.reshape(
        ops.transpose(stack, axes), (num_pieces, rows, shards * columns, *width)
    )
    return stack, ops.reshape(x[:, :, end:], (rows, -1, *width))


def _parts_first(x, shards):
    """`(rows, shards * tokens, ...)` as `(shards * rows, tokens, ...)`."""
    if x is None or shards == 1:
        return x
    rows, width = x.shape[0], x.shape[2:]
    x = ops.reshape(x, (rows, shards, -1, *width))
    return ops.reshape(ops.swapaxes(x, 0, 1), (shards * rows, -1, *width))


def _wide(variable):
    """A weight as gradients are to be summed: in float32 at least."""
    narrow = keras.backend.standardize_dtype(variable.dtype) in (
        "bfloat16",
        "float16",
    )
    return ops.cast(variable.value, "float32") if narrow else variable.value


def _jax(score, update, head, metrics, hidden, targets, weights):
    import jax

    # A scope hides those around it: all that is read goes in by name.
    variables = [*head.trainable_variables, *head.non_trainable_variables]
    values = [_wide(v) for v in head.trainable_variables]
    values += [v.value for v in head.non_trainable_variables]

    @jax.checkpoint
    def piece(values, metric_values, hidden, targets, weights):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            losses, logits = score(hidden, targets)
        logits = jax.lax.stop_gradient(logits)
        mapping = zip(metrics, metric_values, strict=True)
        with keras.StatelessScope(mapping) as scope:
            update(targets, logits, weights)
        return [scope.get_current_value(v) for v in metrics], losses

    def body(metric_values, piece_data):
        return piece(values, metric_values, *piece_data)

    metric_values, losses = jax.lax.scan(
        body, [v.value for v in metrics], (hidden, targets, weights)
    )
    for variable, value in zip(metrics, metric_values, strict=True):
        variable.assign(value)
    return losses


def _torch(score, update, head, metrics, hidden, targets, weights):
    import torch
    from torch.utils.checkpoint import checkpoint

    variables = head.trainable_variables
    values = [_wide(v) for v in variables]

    def piece(hidden, targets, weights, *values):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            losses, logits = score(hidden, targets)
        if first_time:
            update(targets, logits.detach(), weights)
        return losses

    losses = []
    for i in range(hidden.shape[0]):
        first_time = True
        weight = None if weights is None else weights[i]
        losses.append(
            checkpoint(
                piece,
                hidden[i],
                targets[i],
                weight,
                *values,
                use_reentrant=False,
            )
        )
        first_time = False
    return torch.stack(losses)


def _tensorflow(score, update, head, metrics, hidden, targets, weights):
    import tensorflow as tf

    num_pieces = tf.shape(hidden)[0]
    # To TensorFlow a frozen variable is a variable with a gradient: it must
    # not be read inside.
    frozen = [
        (v, tf.convert_to_tensor(v.value)) for v in head.non_trainable_variables
    ]

    def score_piece(hidden, targets, values):
        trained = zip(head.trainable_variables, values, strict=True)
        with keras.StatelessScope([*trained, *frozen]):
            return score(hidden, targets)

    def array(dtype, shape):
        return tf.TensorArray(dtype, num_pieces, element_shape=shape)

    def loop(body, *loop_vars):
        return tf.while_loop(
            lambda i, *_: i < num_pieces,
            lambda i, *loop_vars: (i + 1, *body(i, *loop_vars)),
            (tf.constant(0), *loop_vars),
            maximum_iterations=num_pieces,
        )[1:]

    @tf.custom_gradient
    def run(hidden, *values):
        def forward(i, losses):
            loss, logits = score_piece(
                tf.stop_gradient(hidden[i]),
                targets[i],
                [tf.stop_gradient(value) for value in values],
            )
            weight = None if weights is None else weights[i]
            update(targets[i], logits, weight)
            return (losses.write(i, loss),)

        def backward(i, d_hidden, *d_values):
            # The values stand for themselves here: no chain goes further.
            inputs = [hidden[i], *values]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inputs)
                loss, _ = score_piece(inputs[0], targets[i], inputs[1:])
            gradients = tape.gradient(loss, inputs, d_losses_of[0][i])
            d_hidden = d_hidden.write(i, gradients[0])
            return d_hidden, *[
                total + tf.cast(new, total.dtype)
                for total, new in zip(d_values, gradients[1:], strict=True)
            ]

        d_losses_of = []

        def gradient(d_losses):
            d_losses_of[:] = [d_losses]
            d_hidden, *d_values = loop(
                backward,
                array(hidden.dtype, hidden.shape[1:]),
                *[tf.zeros(v.shape, v.dtype) for v in values],
            )
            return d_hidden.stack(), *d_values

        (losses,) = loop(forward, array("float32", hidden.shape[1:3]))
        return losses.stack(), gradient

    return run(
        hidden,
        *[tf.convert_to_tensor(_wide(v)) for v in head.trainable_variables],
    )
