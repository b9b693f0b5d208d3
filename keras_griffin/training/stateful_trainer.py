from __future__ import annotations

from typing import Any
from typing import Self

import keras
from keras import ops

from keras_griffin import keras_compat
from keras_griffin.distribution.layout_map import MODEL
from keras_griffin.distribution.layout_map import axis_size
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.training import training_checks


@keras.saving.register_keras_serializable(package="keras_griffin")
class StatefulTrainer(keras_compat.KeepsState, keras.Model):
    """Trains a model on texts of any length, a chunk of them at a time.

    Row `i` of a batch goes on where row `i` of the batch before ended: the
    state, of fixed size, is handed on from batch to batch, while memory is
    that of one batch. Gradients end at the chunk's border (truncated
    backpropagation through time). Where the number in `padding_mask` differs
    from the real token's before, a document starts, also at the border.

    The weights are the model's own: after `fit`, the model has learned.
    Each epoch starts with a fresh state, unless `steps_per_epoch` says that
    the data are one long stream. `evaluate` and `predict` start
    with a fresh one, carry it from batch to batch, and leave training's as it
    was. The state is among the weights that `save_weights`, `.keras` files and
    `keras.callbacks.BackupAndRestore` keep, so that a run can go on.

    Under `keras.distribution` each device keeps the state of its own rows and,
    where the mesh has an axis `"model"`, of its own channels.

    Args:
        causal_lm: a `GriffinCausalLM`.
        batch_size: int. Rows of every batch, on all devices together.
        max_length: int. See `GriffinBackbone.init_state`; only global
            attention needs it. Defaults to `None`.
        **kwargs: see `keras.Model`.

    Call arguments:
        inputs: as of `GriffinBackbone`.

    Returns:
        Logits, as of `GriffinCausalLM`.

    Raises:
        ValueError: for a batch of another size, for `shuffle=True`, and for
            rows that the mesh of `keras.distribution` does not divide.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    long_texts = ["To be, or not to be. " * 20, "Words, words, words. " * 20]
    documents = model.preprocessor.tokenizer(long_texts)
    packer = keras_griffin.GriffinPacker(sequence_length=32)
    x, y, sample_weight = packer.stateful_rows(documents, batch_size=2)

    trainer = keras_griffin.StatefulTrainer(model, batch_size=2)
    trainer.compile(keras_griffin.GriffinAdamW(1e-4))
    trainer.fit(x, y, sample_weight=sample_weight, epochs=2)
    ```
    """

    def __init__(
        self,
        causal_lm: Any,
        batch_size: int,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not hasattr(causal_lm, "decode_step"):
            raise ValueError(
                "`causal_lm` must be a GriffinCausalLM. Received: "
                f"{causal_lm!r}. Give the language model."
            )
        self.causal_lm = causal_lm
        self.batch_size = batch_size
        self.max_length = max_length
        state = causal_lm.init_state(batch_size, max_length)
        # Of a state without its arrays: what to pack the variables into.
        self._state_structure = keras.tree.map_structure(lambda _: 0, state)
        self._state_variables = [
            self.add_weight(
                name="_".join(map(str, path)),
                shape=leaf.shape,
                dtype=keras.backend.standardize_dtype(leaf.dtype),
                initializer="zeros",
                trainable=False,
                # A float32 state stays one in a 16-bit policy.
                autocast=False,
            )
            for path, leaf in keras.tree.flatten_with_path(state)
        ]
        self._place_state()
        self.built = True

    def _place_state(self):
        """Gives the state the layout of its rows, and of its channels."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return
        mesh, batch = distribution.device_mesh, distribution.batch_dim_name
        if self.batch_size % axis_size(mesh, batch):
            raise ValueError(
                f"The mesh's axis {batch!r} must divide `batch_size`. "
                f"Received: batch_size={self.batch_size}, {batch!r} of size "
                f"{axis_size(mesh, batch)}. Take a multiple of it."
            )
        for variable in self._state_variables:
            axes = [batch] + [None] * (len(variable.shape) - 1)
            if variable.name.endswith(("_inputs", "_recurrent")):
                has_axis = MODEL in mesh.axis_names
                if has_axis and not variable.shape[-1] % axis_size(mesh, MODEL):
                    axes[-1] = MODEL
            layout = keras.distribution.TensorLayout(axes, mesh)
            keras_compat.set_layout(variable, layout)
            variable.assign(variable.value)

    @property
    def state_lock(self) -> Any:
        return self.causal_lm.state_lock

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        check_inputs(inputs, self.causal_lm.backbone.vocabulary_size)
        rows = inputs["token_ids"].shape[0]
        if rows not in (None, self.batch_size):
            raise ValueError(
                "Every batch must have a row for each row of the state. "
                f"Received: {rows} rows, batch_size={self.batch_size}. Pass "
                "`batch_size`, and drop what remains."
            )
        state = keras.tree.pack_sequence_as(
            self._state_structure,
            # Copies: PyTorch's backward pass needs the old values.
            [ops.copy(v.value) for v in self._state_variables],
        )
        hidden, state = self.causal_lm.backbone.call_with_state(
            inputs["token_ids"],
            state,
            inputs["padding_mask"],
        )
        for variable, leaf in zip(
            self._state_variables, keras.tree.flatten(state), strict=True
        ):
            variable.assign(ops.stop_gradient(leaf))
        return self.causal_lm._logits(hidden)

    def reset_state(self) -> None:
        """Makes the next batch start its documents."""
        for variable in self._state_variables:
            variable.assign(ops.zeros_like(variable.value))

    def compile(
        self, optimizer: Any, loss: Any = "auto", **kwargs: Any
    ) -> None:
        """Configures training. See `keras.Model.compile`.

        Args:
            optimizer: see `keras.Model.compile`.
            loss: `"auto"` is the cross-entropy of the next token. Defaults to
                `"auto"`.
            **kwargs: see `keras.Model.compile`.
        """
        if loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        training_checks.check_take_logits(loss=loss, **kwargs)
        super().compile(optimizer, loss=loss, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        sample_weight = training_checks.token_weights(
            self.loss, y, sample_weight, y_pred
        )
        y, y_pred, sample_weight = training_checks.as_rows(
            self.loss, y, y_pred, sample_weight
        )
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        sample_weight = training_checks.token_weights(
            self.loss, y, sample_weight, y_pred
        )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
        training_checks.check_still_compiled(self)
        return super().make_train_function(*args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        callbacks: Any = None,
        steps_per_epoch: int | None = None,
        shuffle: bool = False,
        **kwargs: Any,
    ) -> Any:
        if shuffle:
            raise ValueError(
                "Batches must stay in their order, since rows go on from one "
                f"to the next. Received: shuffle={shuffle!r}. Shuffle the "
                "documents before `GriffinPacker` makes rows of them."
            )
        training_checks.check_no_class_weight(kwargs.get("class_weight"))
        callbacks = list(callbacks or [])
        if steps_per_epoch is None:
            callbacks.append(
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: self.reset_state()
                )
            )
        return super().fit(
            x,
            y,
            callbacks=callbacks,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            **self._with_batch_size(x, kwargs, y),
        )

    # `fit` comes here with its validation data.
    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        kwargs = self._with_batch_size(x, kwargs, y)
        return self._with_fresh_state(super().evaluate, x, y, **kwargs)

    def predict(self, x: Any = None, **kwargs: Any) -> Any:
        kwargs = self._with_batch_size(x, kwargs)
        return self._with_fresh_state(super().predict, x, **kwargs)

    def _with_batch_size(self, x, kwargs, y=None):
        # Keras wants none for data that come in batches.
        if isinstance(x, dict):
            training_checks.check_arrays(self, x, y, kwargs)
            return {"batch_size": self.batch_size, **kwargs}
        return kwargs

    def _with_fresh_state(self, function, *args, **kwargs):
        kept = [ops.copy(v.value) for v in self._state_variables]
        self.reset_state()
        try:
            with keras_compat.state_put_back(self):
                return function(*args, **kwargs)
        finally:
            for variable, value in zip(
                self._state_variables, kept, strict=True
            ):
                variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "causal_lm": keras.saving.serialize_keras_object(self.causal_lm),
            "batch_size": self.batch_size,
            "max_length": self.max_length,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        config["causal_lm"] = keras.saving.deserialize_keras_object(
            config["causal_lm"]
        )
        return cls(**config)
