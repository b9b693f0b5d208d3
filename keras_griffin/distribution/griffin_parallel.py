from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_griffin import keras_compat
from keras_griffin.distribution.layout_map import BATCH
from keras_griffin.distribution.layout_map import MODEL
from keras_griffin.distribution.layout_map import SEQUENCE
from keras_griffin.distribution.layout_map import axis_size
from keras_griffin.distribution.layout_map import check_divides
from keras_griffin.distribution.layout_map import layout_map


class GriffinParallel(keras.distribution.ModelParallel):
    """One call for many devices: the mesh, where weights and data lie on it.

    A `keras.distribution.ModelParallel` (JAX). Make it before the model; then
    `fit`, `evaluate`, `predict` and `generate` run on all of its devices and
    give one device's numbers.

    Args:
        batch: int. Devices among which the rows of a batch are divided.
            `-1`: all that the other two leave. Defaults to `-1`.
        model: int. Devices among which heads, channels, gate blocks, MLP
            width and vocabulary are divided; must divide each of them. They
            communicate in every layer: keep them on one host. Defaults to `1`.
        sequence: int. Devices among which the tokens of a row are divided,
            for long documents. Defaults to `1`.
        fully_sharded: bool. Whether weights, gradients and the optimizer's
            variables are divided among the devices of `batch` as well
            (ZeRO). Defaults to `True`.
        devices: list of device names or `jax.Device`s. Defaults to all.
        auto_shard_dataset: bool. See `keras.distribution.ModelParallel`: with
            several processes `False` if each brings its own rows. Defaults to
            `True`.

    Attributes:
        layout_map: the `keras.distribution.LayoutMap`; add your own layers'.

    Raises:
        ValueError: if the sizes are not those of the devices.

    Example:
    ```python
    # On 8 devices model=2 makes a mesh of 4 x 2.
    parallel = keras_griffin.distribution.GriffinParallel(model=1)
    with parallel.scope():  # or `keras.distribution.set_distribution(parallel)`
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en"
        )
        model.compile(optimizer=keras.optimizers.AdamW(1e-4))
        texts = ["To be, or not to be: that is the question."] * 16
        model.fit(texts, batch_size=16)
    ```

    Source:
        arXiv:2402.19427, section 4.1.
    """

    def __init__(
        self,
        batch: int = -1,
        model: int = 1,
        sequence: int = 1,
        fully_sharded: bool = True,
        devices: Sequence[Any] | None = None,
        auto_shard_dataset: bool = True,
    ) -> None:
        if devices is None:
            devices = keras.distribution.list_devices()
        sizes = {BATCH: batch, SEQUENCE: sequence, MODEL: model}
        if batch == -1 and min(model, sequence) > 0:
            sizes[BATCH] = len(devices) // (model * sequence)
        if min(sizes.values()) < 1 or np.prod([*sizes.values()]) != len(
            devices
        ):
            raise ValueError(
                "`batch` x `model` x `sequence` must be the number of "
                f"devices. Received: batch={batch}, model={model}, "
                f"sequence={sequence} for {len(devices)} devices. Leave out "
                "`batch` to have it computed, or give `devices`."
            )
        # Neighbours talk most: "model" last.
        mesh = keras.distribution.DeviceMesh(
            tuple(sizes.values()), tuple(sizes), devices
        )
        self.layout_map = layout_map(mesh, fully_sharded)
        self.fully_sharded = fully_sharded
        super().__init__(
            layout_map=self.layout_map,
            batch_dim_name=BATCH,
            auto_shard_dataset=auto_shard_dataset,
        )

    def get_data_layout(self, data_shape: Sequence[int | None]) -> Any:
        axes: list[Any] = [BATCH, SEQUENCE][: len(data_shape)]
        axes += [None] * (len(data_shape) - len(axes))
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def get_variable_layout(self, variable: Any) -> Any:
        layout = super().get_variable_layout(variable)
        if keras_compat.own_layout(variable) is not None:
            return layout
        shape = tuple(variable.shape)
        check_divides(variable.path, shape, layout)
        is_gate = variable.path.endswith("_gate/kernel")
        if not (self.fully_sharded and is_gate) or BATCH in layout.axes:
            return layout
        # About 1 % of the weights, and not every mesh divides their blocks: a
        # copy on each device does no harm then.
        size = axis_size(self.device_mesh, BATCH)
        blocks, rows, _ = shape
        axes: tuple[str | None, ...]
        if rows % size == 0:
            axes = (layout.axes[0], BATCH, None)
        elif blocks % size == 0 and axis_size(self.device_mesh, MODEL) == 1:
            axes = (BATCH, None, None)
        else:
            return layout
        return keras.distribution.TensorLayout(axes, self.device_mesh)
