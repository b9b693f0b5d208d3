"""JAX on two hosts, or on one. Run by test_two_processes.py.

Arguments: the file for the weights, and for two processes the index of this
one and the coordinator's port. Each has two CPU devices.
"""

import sys

import keras

path = sys.argv[1]
if len(sys.argv) > 2:
    index, port = map(int, sys.argv[2:])
    # Before anything else of JAX.
    keras.distribution.initialize(f"127.0.0.1:{port}", 2, index)
else:
    index = None

import jax  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.distribution import GriffinParallel  # noqa: E402
from keras_griffin.training import ResumableData  # noqa: E402
from keras_griffin.training import resumable_fit  # noqa: E402
from support.models import TINY  # noqa: E402
from support.models import steady_adam_w  # noqa: E402
from support.models import tokens  # noqa: E402

STEPS, BATCH = 5, 8


class Interruption(Exception):
    pass


class InterruptAfter(keras.callbacks.Callback):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.steps:
            raise Interruption


def make_model(seed):
    keras.utils.set_random_seed(seed)
    arguments = {**TINY, "vocabulary_size": 32, "num_layers": 1}
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**arguments)
    )
    model.compile(
        optimizer=steady_adam_w(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def rows():
    token_ids = tokens(STEPS * BATCH, 9)
    x = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    return x, np.roll(token_ids, -1, 1)


def rows_of_this_process():
    """Of each batch the half that this process brings."""
    if index is None:
        return rows(), BATCH
    half = BATCH // 2

    def cut(array):
        batches = array.reshape(STEPS, 2, half, -1)
        return batches[:, index].reshape(STEPS * half, -1)

    return keras.tree.map_structure(cut, rows()), half


def weights(model):
    values = [v.value for v in model.weights]
    if index is not None:
        return [
            multihost_utils.process_allgather(v, tiled=True) for v in values
        ]
    return [np.asarray(v) for v in values]


def fit_on_tf_data():
    """Keras divides the batches of a `tf.data.Dataset` itself."""
    model = make_model(1)
    dataset = tf.data.Dataset.from_tensor_slices(rows()).batch(BATCH)
    model.fit(dataset, verbose=0)
    return weights(model)


def fit_with_an_interruption():
    keras.distribution.distribution().auto_shard_dataset = False
    (x, y), batch_size = rows_of_this_process()

    def fit(seed, callbacks):
        data = ResumableData.from_arrays(
            x, y, batch_size=batch_size, shuffle=False
        )
        model = make_model(seed)
        resumable_fit(model, data, path + ".backup", 1, 2, callbacks, verbose=0)
        return model

    try:
        fit(1, [InterruptAfter(3)])
    except Interruption:
        pass
    return weights(fit(2, []))


def main():
    distribution = GriffinParallel(batch=jax.device_count())
    keras.distribution.set_distribution(distribution)
    results = {}
    for name, function in (
        ("tf_data", fit_on_tf_data),
        ("interrupted", fit_with_an_interruption),
    ):
        for i, weight in enumerate(function()):
            results[f"{name} {i}"] = weight
    if not index:
        np.savez(path, **results)


if __name__ == "__main__":
    main()
