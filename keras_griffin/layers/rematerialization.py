import keras
from keras import ops


def rematerialized(remat, layer_call, seeds):
    """A layer's call, computed anew in the gradient: with the same dropout.

    Keras' remat (3.15) raises on JAX when a layer draws from its seed inside,
    and gives TensorFlow's `tf.recompute_grad` arguments that it does not take:
    `None`s, integers and masks. Neither has an issue upstream that we know of.

    Args:
        remat: callable. `keras.Layer.rematerialized_call`.
        layer_call: callable. The layer's `call`.
        seeds: list of the variables that it draws from.
    """

    def call(*args, **kwargs):
        before = [ops.copy(seed.value) for seed in seeds]
        flat = keras.tree.flatten((args, kwargs))
        places = [
            i
            for i, value in enumerate(flat)
            if ops.is_tensor(value)
            and keras.backend.is_float_dtype(value.dtype)
        ]

        def call_with_floats(*floats):
            now = [ops.copy(seed.value) for seed in seeds]
            for seed, value in zip(seeds, before, strict=True):
                seed.assign(value)
            everything = list(flat)
            for i, value in zip(places, floats, strict=True):
                everything[i] = value
            same_args, same_kwargs = keras.tree.pack_sequence_as(
                (args, kwargs), everything
            )
            outputs = layer_call(*same_args, **same_kwargs)
            after = [ops.copy(seed.value) for seed in seeds]
            for seed, value in zip(seeds, now, strict=True):
                seed.assign(value)
            return outputs, after

        outputs, after = remat(call_with_floats)(*[flat[i] for i in places])
        for seed, value in zip(seeds, after, strict=True):
            seed.assign(value)
        return outputs

    return call
