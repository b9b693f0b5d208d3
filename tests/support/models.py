"""Tiny models, and how to run them compiled on every backend."""

import keras
import numpy as np
from keras import ops

import keras_griffin
from support import peers
from support.checks import to_numpy

VOCABULARY = 29

# Short enough that tests pass the window several times.
WINDOW = 6

TINY = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 3,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_query_heads": 2,
    "recurrent_dim": 24,
    "num_gate_blocks": 4,
    "attention_window_size": WINDOW,
}

PATTERNS = {
    "griffin": ("recurrent", "recurrent", "local_attention"),
    "hawk": ("recurrent",),
    "mqa": ("global_attention",),
    "mixed": ("global_attention", "recurrent", "local_attention"),
}


def tiny_backbone(**changes):
    """A backbone whose every weight is random and matters."""
    backbone = keras_griffin.GriffinBackbone(**{**TINY, **changes})
    randomize(backbone)
    return backbone


def randomize(model, seed=0):
    """Adds noise to all weights: biases and norm scales start at 0."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        noise = 0.2 * rng.normal(size=weight.shape)
        weight.assign(to_numpy(weight.value) + noise.astype("float32"))


def tiny_model(sampler="greedy", **changes):
    model = keras_griffin.GriffinCausalLM(tiny_backbone(**changes))
    model.compile(optimizer="sgd", sampler=sampler)
    return model


def model_with_tokenizer():
    """A model of text, which every format can express."""
    tokenizer = keras_griffin.GriffinTokenizer(
        peers.train_tokenizer("bpe", exact=True)
    )
    backbone = keras_griffin.GriffinBackbone(
        **{**peers.GRIFFIN, "vocabulary_size": tokenizer.vocabulary_size()}
    )
    randomize(backbone)
    return keras_griffin.GriffinCausalLM(
        backbone, keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    )


def assert_same_weights(received, expected):
    for ours, theirs in zip(received.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            to_numpy(ours.value), to_numpy(theirs.value)
        )


def round_matrices(model, quantized):
    """Gives a float model what a quantized one's matrices stand for."""
    for layer, new in zip(
        quantized.backbone._flatten_layers(),
        model.backbone._flatten_layers(),
        strict=True,
    ):
        if layer.quantization_mode is None:
            continue
        if layer.name == "token_embedding":
            matrix = to_numpy(layer(np.arange(layer.input_dim)))
            new.embeddings.assign(matrix)
            continue
        kernel = to_numpy(layer(np.eye(new.kernel.shape[0], dtype="float32")))
        if new.bias is not None:
            kernel = kernel - to_numpy(new.bias.value)
        new.kernel.assign(kernel)


def steady_adam_w():
    """AdamW whose weights are as exact as the gradients.

    Adam divides a gradient by its size. With Keras' epsilon of 1e-7 one that is
    near zero moves its weight as far as any other, and so do its rounding
    errors: one weight in thousands then differs by 1e-4. This epsilon is a
    thirtieth of these models' larger gradients (Keras divides it by the square
    root of 1 - 0.999 in the first step).
    """
    return keras.optimizers.AdamW(1e-3, epsilon=1e-4)


def tokens(batch, time, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, VOCABULARY, (batch, time)).astype("int32")


def run(model, token_ids, padding_mask=None):
    """Outputs of a whole model as NumPy, compiled once a shape."""
    inputs = {
        "token_ids": token_ids,
        "padding_mask": np.ones_like(token_ids)
        if padding_mask is None
        else padding_mask.astype("int32"),
    }
    return to_numpy(model.predict_on_batch(inputs))


def scatter(rows, width, seed=0, where="anywhere"):
    """Lays ragged rows out among garbage.

    Args:
        rows: list of 1-D id arrays.
        width: int. Columns of the result.
        where: `"left"`, `"right"` (the side of the pads) or `"anywhere"`.

    Returns:
        `(token_ids, mask)`, both `(len(rows), width)`.
    """
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, VOCABULARY, (len(rows), width)).astype("int32")
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        columns = {
            "right": np.arange(len(row)),
            "left": np.arange(width - len(row), width),
            "anywhere": np.sort(rng.permutation(width)[: len(row)]),
        }[where]
        token_ids[i, columns] = row
        mask[i, columns] = True
    return token_ids, mask


def loss_and_gradients(model, token_ids, weights, mask=None):
    """Sum of logits * weights, and its gradients by trainable weight."""
    inputs = {
        "token_ids": token_ids,
        "padding_mask": np.ones_like(token_ids)
        if mask is None
        else mask.astype("int32"),
    }
    inputs = {
        name: ops.convert_to_tensor(value) for name, value in inputs.items()
    }
    weights = ops.convert_to_tensor(weights.astype("float32"))
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def loss(trainable, inputs, weights):
            outputs, _ = model.stateless_call(
                trainable,
                [v.value for v in model.non_trainable_variables],
                inputs,
            )
            return ops.sum(outputs * weights)

        trainable = [v.value for v in model.trainable_variables]
        value, gradients = jax.jit(jax.value_and_grad(loss))(
            trainable, inputs, weights
        )
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def run_loss(inputs, weights):
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(model(inputs) * weights)
            variables = [v.value for v in model.trainable_variables]
            gradients = tape.gradient(value, variables)
            return value, [tf.convert_to_tensor(g) for g in gradients]

        value, gradients = run_loss(inputs, weights)
    else:
        model.zero_grad()
        value = ops.sum(model(inputs) * weights)
        value.backward()
        gradients = [v.value.grad for v in model.trainable_variables]
    return to_numpy(value), [to_numpy(gradient) for gradient in gradients]
