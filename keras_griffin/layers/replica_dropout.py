import keras

# Between the seeds of two replicas: 2^31 / golden ratio, so that no replica
# has a seed near another layer's.
SEED_STEP = 1327217885


@keras.saving.register_keras_serializable(package="keras_griffin")
class ReplicaDropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with masks of its own on each replica.

    Under `tf.distribute` each replica has a copy of Keras' seed, and would
    drop the same of its rows as the others of theirs. Here the replica's
    number goes into the seed. On the other backends, and with one replica, it
    is Keras' own: JAX draws one mask for all rows, wherever they lie, and
    PyTorch draws from the generator of the process.

    Args:
        rate: see `keras.layers.Dropout`.
        **kwargs: see `keras.layers.Dropout`.
    """

    def call(self, inputs, training=False):
        if (
            keras.config.backend() != "tensorflow"
            or not training
            or self.rate == 0
        ):
            return super().call(inputs, training=training)
        return keras.random.dropout(
            inputs,
            self.rate,
            noise_shape=self.noise_shape,
            seed=_SeedsOfReplica(self.seed_generator),
        )


class _SeedsOfReplica(keras.random.SeedGenerator):
    """Draws from another generator, on each replica something else."""

    def __init__(self, generator):
        self._generator = generator

    def next(self, ordered=True):
        import tensorflow as tf

        seed = self._generator.next(ordered)
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        return seed + tf.stack([replica * SEED_STEP, tf.zeros_like(replica)])
