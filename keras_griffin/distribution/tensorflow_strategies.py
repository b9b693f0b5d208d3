"""What `tf.distribute` needs of a model beside Keras 3.15."""

import keras
import tensorflow as tf

from keras_griffin import keras_compat


def function_of_replica(model):
    """A model's `_call` for one replica; `None` without a strategy.

    It is a `tf.function`. XLA compiles this one if it is to compile. Keras
    would give it one program for all replicas, which it refuses where they
    have devices of their own (https://github.com/keras-team/keras/issues/19005)
    and which can't hold the programs that a `TPUStrategy` compiles itself. In
    those XLA finds this function like any other of the replica's.

    Args:
        model: a compiled model. Keras is told not to ask XLA again, and to
            build it from one replica's inputs.
    """
    if keras_compat.own_strategy(model) is None:
        return None
    if model.distribute_strategy.num_replicas_in_sync > 1:
        keras_compat.build_from(model, _first_replica)
    if model.run_eagerly:
        return None
    model.jit_compile = False
    return tf.function(
        model._call,
        jit_compile=model._requested_jit_compile is True,
        reduce_retracing=True,
        autograph=False,
    )


def _first_replica(model, iterator):
    """The first batch of the first replica of this process.

    Keras adds up those of all replicas, which masks cannot be, nor several
    inputs of workers.
    """
    batches = next(next(iter(iterator))[-1])
    local = model.distribute_strategy.experimental_local_results
    return keras.tree.map_structure(lambda batch: local(batch)[0], batches)


def logs_of_replica(model, logs):
    """Logs in the shape in which Keras averages them over workers: axis 0."""
    workers = tf.distribute.MultiWorkerMirroredStrategy
    if not isinstance(model.distribute_strategy, workers):
        return logs
    return {name: tf.reshape(value, (1,)) for name, value in logs.items()}
