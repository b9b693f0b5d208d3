"""Where activations lie under `keras.distribution`."""

import keras


def keep_rows(x):
    """Keeps each row of `x` (batch, time, ...) on the devices of its data.

    The weights' shardings alone leave XLA a choice: where weights are divided
    over the axis of the data as well (ZeRO), it would rather divide the width
    of the activations and send those around. Without a distribution, and
    where the mesh does not divide the rows (`generate` with one prompt),
    nothing is done.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or isinstance(x, keras.KerasTensor):
        return x
    layout = distribution.get_data_layout(x.shape)
    mesh = layout.device_mesh
    sizes = {None: 1, **dict(zip(mesh.axis_names, mesh.shape, strict=True))}
    for dimension, axis in zip(x.shape, layout.axes, strict=True):
        if dimension % sizes[axis]:
            return x
    return keras.distribution.distribute_tensor(x, layout)
