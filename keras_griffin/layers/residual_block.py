from __future__ import annotations

from typing import Any
from typing import Self

import keras
from keras import ops

from keras_griffin.layers.gated_mlp import GatedMLP
from keras_griffin.layers.local_mqa import LocalMQA
from keras_griffin.layers.recurrent_block import RecurrentBlock
from keras_griffin.layers.replica_dropout import ReplicaDropout
from keras_griffin.layers.rms_normalization import RMSNormalization
from keras_griffin.layers.temporal_layer import TemporalLayer


@keras.saving.register_keras_serializable(package="keras_griffin")
class ResidualBlock(TemporalLayer):
    """One layer of Griffin: a mixer along time, then an MLP.

    ```
    x = x + temporal(RMSNorm(x))
    y = x + MLP(RMSNorm(x))
    ```

    Args:
        temporal: a `RecurrentBlock` or a `LocalMQA`.
        mlp: a `GatedMLP`.
        layer_norm_epsilon: float. See `RMSNormalization`. Defaults to `1e-6`.
        dropout: float in [0, 1). Dropped part of each of the two branches'
            outputs. Defaults to `0.0`.
        **kwargs: see `TemporalLayer` and `keras.layers.Layer`.

    Call arguments: see `TemporalLayer`. The state's own part is `temporal`'s.

    Returns:
        `y` `(batch, time, width)`, or `(y, state)`; with
        `return_intermediates=True` also those of `temporal`'s RG-LRU, see
        `RGLRU`.

    Raises:
        ValueError: if `temporal` or `mlp` is of another type, if `temporal`
            has `return_sequences`, `return_state` or `go_backwards` of its
            own, and if intermediates of attention are asked for.

    Example:
    ```python
    block = keras_griffin.layers.ResidualBlock(
        keras_griffin.layers.RecurrentBlock(units=96, num_gate_blocks=4),
        keras_griffin.layers.GatedMLP(intermediate_dim=192),
    )
    y = block(keras.random.normal((2, 10, 64)))  # (2, 10, 64)
    ```

    Source:
        arXiv:2402.19427, section 2.1; recurrentgemma
        `jax/modules.py::ResidualBlock`.
    """

    def __init__(
        self,
        temporal: Any,
        mlp: Any,
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(temporal, (RecurrentBlock, LocalMQA)):
            raise ValueError(
                "`temporal` must be a RecurrentBlock or a LocalMQA. Received: "
                f"{temporal!r}. Make one of them first."
            )
        if not isinstance(mlp, GatedMLP):
            raise ValueError(
                f"`mlp` must be a GatedMLP. Received: {mlp!r}. Make one first."
            )
        for name, value in (
            ("return_sequences", True),
            ("return_state", False),
            ("go_backwards", False),
        ):
            if getattr(temporal, name) != value:
                raise ValueError(
                    f"`{name}` is an argument of the whole block. Received: "
                    f"{name}={not value} of its `temporal`. Give it to the "
                    "ResidualBlock instead."
                )
        self.temporal = temporal
        self.mlp = mlp
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout

        def norm(name):
            return RMSNormalization(
                epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name=name
            )

        def drop(name):
            return ReplicaDropout(dropout, dtype=self.dtype_policy, name=name)

        self.temporal_norm = norm("temporal_norm")
        self.mlp_norm = norm("mlp_norm")
        self.temporal_dropout = drop("temporal_dropout")
        self.mlp_dropout = drop("mlp_dropout")

    def build(self, input_shape: Any) -> None:
        for layer in (
            self.temporal_norm,
            self.temporal,
            self.mlp_norm,
            self.mlp,
        ):
            # Those that were loaded with the block are built already.
            if not layer.built:
                layer.build(input_shape)

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        return self.temporal.init_mixer_state(batch_size, max_length)

    def intermediates_spec(self, shape: Any) -> dict[str, Any]:
        return self.temporal.intermediates_spec(shape)

    # `training` is handed on: a block that is computed anew in the gradient
    # has no surrounding call to take it from.
    def call(  # type: ignore[override]
        self,
        x: Any,
        padding_mask: Any = None,
        initial_state: Any = None,
        return_state: bool | None = None,
        positions: Any = None,
        return_intermediates: bool = False,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        return super().call(
            x,
            padding_mask,
            initial_state,
            return_state,
            positions,
            return_intermediates,
            mask,
            training=self.mode_of_torch if training is None else training,
        )

    def mix(
        self,
        x: Any,
        layout: Any,
        state: Any,
        training: bool | None = None,
        **temporal_options: Any,
    ) -> tuple[Any, Any]:
        y, state = self.temporal.mix(
            self.temporal_norm(x), layout, state, **temporal_options
        )
        if self.dropout:
            y = self.temporal_dropout(y, training=training)
        # A branch may compute in another dtype, by a DTypePolicyMap.
        x = keep_rows(x + ops.cast(y, x.dtype))
        y = self.mlp(self.mlp_norm(x))
        if self.dropout:
            y = self.mlp_dropout(y, training=training)
        return keep_rows(x + ops.cast(y, x.dtype)), state

    def seeds(self) -> list[Any]:
        drops = (self.temporal_dropout, self.mlp_dropout)
        return [d.seed_generator.state for d in drops if self.dropout]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temporal": _unbuilt(self.temporal),
            "mlp": _unbuilt(self.mlp),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        for name in ("temporal", "mlp"):
            config[name] = keras.layers.deserialize(config[name])
        return cls(**config)


def _unbuilt(layer):
    # Built before its block, a loaded layer's weights would have other paths.
    config = keras.layers.serialize(layer)
    config.pop("build_config", None)
    return config


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
