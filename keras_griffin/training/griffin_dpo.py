from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
import numpy as np
from keras import ops

from keras_griffin import keras_compat
from keras_griffin.layers.input_checks import check_token_ids
from keras_griffin.near_names import check_arguments
from keras_griffin.training import chunked_cross_entropy
from keras_griffin.training import lora
from keras_griffin.training import training_checks

TEXTS = ("prompts", "chosen", "rejected")
ROWS = ("token_ids", "padding_mask", "labels", "label_mask")
_OF_MODEL = ("activity_regularizer", "dtype", "name", "trainable")
# What `compile` takes, and a file of the trainer keeps.
_COMPILE = (
    "optimizer",
    "run_eagerly",
    "steps_per_execution",
    "jit_compile",
    "auto_scale_loss",
)


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinDPO(keras_compat.KeepsState, keras.Model):
    """Trains a model on preferences: of two replies, which one is better.

    Direct preference optimization. With `log p(y)` the log-probability of a
    reply `y` to its prompt, summed over the reply's tokens,

    `reward(y) = beta * (log p(y) - log p_reference(y))`

    `loss = -log sigmoid(reward(chosen) - reward(rejected))`

    The weights are the model's own: after `fit`, the model has learned. The
    reference is the model as it was, and stays: the model with its adapters
    switched off, which takes no second copy of the weights, or another model.
    It reads without dropout. Logits are made for some tokens at a time, as in
    the default loss of `GriffinCausalLM`.

    `fit` and `evaluate` also tell `reward_accuracy`, how often the chosen
    reply has the larger reward, and `reward_margin`, by how much on average.
    `predict` returns the rewards.

    Args:
        causal_lm: a `GriffinCausalLM`, with a preprocessor if texts are given.
        beta: float. How dear it is to leave the reference. Defaults to `0.1`.
        reference: a `GriffinCausalLM` of the same vocabulary, which is frozen.
            `None`: `causal_lm` without its adapters, which are then all that
            is trained; merge those of earlier training before. Defaults to
            `None`.
        **kwargs: see `keras.Model`.

    Call arguments:
        inputs: dict of `"token_ids"` and `"padding_mask"`, as of
            `GriffinBackbone`, of `"labels"`, each position's next token, and
            of `"label_mask"`, true where that is a token of the reply. Shape
            `(pairs, 2, time)` each: the chosen reply first, then the rejected
            one.

    Returns:
        `(pairs, 2)` rewards, float32.

    Raises:
        ValueError: for a model that is none, without reference and adapters,
            for a `beta` that is not positive, for data that are no pairs, and
            when weights other than adapters are trained and the reference is
            the model without them.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.enable_lora(rank=4)
    trainer = keras_griffin.GriffinDPO(model, beta=0.1)
    trainer.compile(keras.optimizers.Adam(1e-3))
    pairs = {
        "prompts": ["ROMEO:", "JULIET:"],
        "chosen": [" O happy day!", " Good night."],
        "rejected": [" O heavy day!", " Who is it?"],
    }
    trainer.fit(pairs, batch_size=2, verbose=0)
    model.generate("ROMEO:", max_length=16)
    model.save_lora_weights("preferences.lora.h5")
    ```

    Source:
        arXiv:2305.18290, equation 7.
    """

    def __init__(
        self,
        causal_lm: Any,
        beta: float = 0.1,
        reference: Any = None,
        **kwargs: Any,
    ) -> None:
        known = ("causal_lm", "beta", "reference", *_OF_MODEL)
        check_arguments("GriffinDPO", kwargs, known)
        super().__init__(**kwargs)
        _check_models(causal_lm, reference)
        if not isinstance(beta, (int, float)) or not beta > 0:
            raise ValueError(
                f"`beta` must be a number above 0. Received: {beta!r}. 0.1 to "
                "0.5 are usual."
            )
        self.causal_lm = causal_lm
        self.beta = beta
        self.reference = reference
        if reference is not None:
            reference.trainable = False
        self._preference_loss = _PreferenceLoss(name="preference_loss")
        self.reward_accuracy = keras.metrics.Mean("reward_accuracy")
        self.reward_margin = keras.metrics.Mean("reward_margin")
        self.built = True

    @property
    def state_lock(self) -> Any:
        return self.causal_lm.state_lock

    if keras.config.backend() == "torch":

        def named_parameters(
            self, prefix: str = "", *args: Any, **kwargs: Any
        ) -> Iterator[tuple[str, Any]]:
            # Keras registers by path, which both models' weights share:
            # the gradients of one of them would never be set to zero.
            for name in ("causal_lm", "reference"):
                model = getattr(self, name)
                if model is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    yield from model.named_parameters(path, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        _check_rows(inputs, self.causal_lm.backbone.vocabulary_size)
        time = ops.shape(inputs["token_ids"])[-1]
        rows = {name: ops.reshape(inputs[name], (-1, time)) for name in ROWS}
        policy = _log_probabilities(self.causal_lm, rows, training)
        with keras.StatelessScope(self._reference_values()):
            reference = _log_probabilities(
                self.reference or self.causal_lm, rows, training=False
            )
        rewards = self.beta * (policy - ops.stop_gradient(reference))
        return ops.reshape(rewards, (-1, 2))

    def _reference_values(self):
        """The reference's variables with values that have no gradient."""
        if self.reference is not None:
            return [
                (v, ops.stop_gradient(v.value))
                for v in self.reference.variables
            ]
        # Half of each adapter at 0, and it adds nothing.
        return [
            (
                v,
                ops.zeros_like(v.value)
                if v.name.startswith("lora_") and v.name.endswith("_b")
                else ops.stop_gradient(v.value),
            )
            for v in self.causal_lm.variables
        ]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch of rewards; `sample_weight` is one of pairs."""
        loss = self._preference_loss(y_pred, y_pred, sample_weight)
        for additional in self.losses:
            loss = loss + keras_compat.additional_loss(self, additional)
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        margin = y_pred[:, 0] - y_pred[:, 1]
        is_right = ops.cast(margin > 0, "float32")
        self.reward_accuracy.update_state(is_right, sample_weight)
        self.reward_margin.update_state(margin, sample_weight)
        return self.get_metrics_result()

    def compile(
        self,
        optimizer: Any,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """Configures training; loss and metrics are the trainer's own.

        Args:
            optimizer: see `keras.Model.compile`, as for all of these.
            run_eagerly: bool. Defaults to `False`.
            steps_per_execution: int. Defaults to `1`.
            jit_compile: bool or `"auto"`. Defaults to `"auto"`.
            auto_scale_loss: bool. Defaults to `True`.
        """
        super().compile(
            optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**{n: config[n] for n in _COMPILE if n in config})
        self.optimizer.build(self.trainable_variables)

    def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
        training_checks.check_still_compiled(self)
        self._check_reference()
        return super().make_train_function(*args, **kwargs)

    def _check_reference(self):
        others = [
            v.path
            for v in self.trainable_variables
            if not v.name.startswith("lora_")
        ]
        if self.reference is None and others:
            raise ValueError(
                "Where the reference is the model without its adapters, these "
                f"alone can be trained. Received: {others[0]!r} and "
                f"{len(others) - 1} others to train. Freeze them, or give "
                "`reference=` another model."
            )

    def rows(
        self,
        pairs: dict[str, Sequence[str]],
        sequence_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Makes what the trainer takes of texts: once, for many epochs.

        `fit`, `evaluate` and `predict` call it when they are given texts.

        Args:
            pairs: dict of `"prompts"`, `"chosen"` and `"rejected"`, lists or
                arrays of strings of the same length. With a `turn_format` of
                the preprocessor they are written in turns.
            sequence_length: int. Where rows are cut off. Defaults to `None`:
                that of the model's preprocessor [tokens].

        Returns:
            dict of NumPy arrays, as of a call; as long as the longest row.

        Raises:
            ValueError: without a preprocessor, for something else than pairs
                of texts, and where no token of a reply fits.
        """
        preprocessor = self.causal_lm.preprocessor
        if preprocessor is None:
            raise ValueError(
                "Texts need a preprocessor. Received: texts, and a model that "
                "has none. Give it one, or give arrays: see `GriffinDPO`."
            )
        if set(pairs) != set(TEXTS):
            raise ValueError(
                f"Preferences must be a dict of {', '.join(TEXTS)}. Received: "
                f"a dict with {sorted(pairs)}. Leave other columns out."
            )
        length = sequence_length or preprocessor.sequence_length
        sides = []
        for reply in TEXTS[1:]:
            x, labels, label_mask = preprocessor(
                {"prompts": pairs["prompts"], "responses": pairs[reply]},
                sequence_length=length,
            )
            values = (x["token_ids"], x["padding_mask"], labels, label_mask)
            sides.append([ops.convert_to_numpy(v) for v in values])
        stacked = [np.stack(both, axis=1) for both in zip(*sides, strict=True)]
        longest = min(length, int(stacked[1].sum(axis=-1).max(initial=1)))
        rows = dict(
            zip(ROWS, [row[..., :longest] for row in stacked], strict=True)
        )
        has_none = ~rows["label_mask"].any(axis=-1)
        if has_none.any():
            raise ValueError(
                "A token of each reply must fit into its row. Received: "
                f"{has_none.sum()} replies of which none does, the first of "
                f"pair {int(np.argwhere(has_none)[0][0])}. Shorten the prompt, "
                "or give the preprocessor a larger `sequence_length`."
            )
        return {
            name: row.astype("bool" if "mask" in name else "int32")
            for name, row in rows.items()
        }

    def _data(self, x, y=None):
        """`x` and `y` as Keras takes them."""
        if y is not None:
            raise ValueError(
                "`y` must be None: the chosen reply is the first of its pair. "
                f"Received: {type(y).__name__}. Leave it out."
            )
        if not isinstance(x, dict):
            return x, None
        if set(x) & set(TEXTS):
            x = self.rows(x)
        _check_rows(x, self.causal_lm.backbone.vocabulary_size)
        # Without labels Keras would drop the weights of pairs.
        return x, np.zeros(len(x["token_ids"]))

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Trains on pairs. See `keras.Model.fit`.

        Args:
            x: dict of texts, as of `rows`; dict of arrays, as of a call; or a
                dataset of such arrays.
            y: must be `None`: which reply is better says its place.
            validation_data: as `x`, or a tuple of it, `None` and weights of
                pairs. Defaults to `None`.
            **kwargs: see `keras.Model.fit`. `sample_weight` is one of pairs.
        """
        training_checks.check_no_class_weight(kwargs.get("class_weight"))
        if isinstance(validation_data, tuple):
            inputs, *labels = validation_data[:2]
            inputs = self._data(inputs, *labels)
            validation_data = (*inputs, *validation_data[2:])
        elif isinstance(validation_data, dict):
            validation_data = self._data(validation_data)
        x, y = self._data(x, y)
        return super().fit(x, y, validation_data=validation_data, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        if not kwargs.get("_use_cached_eval_dataset"):  # `fit` has done so
            x, y = self._data(x, y)
        with keras_compat.state_put_back(self):
            return super().evaluate(x, y, **kwargs)

    def predict(self, x: Any = None, **kwargs: Any) -> Any:
        x, _ = self._data(x)
        with keras_compat.state_put_back(self):
            return super().predict(x, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        if self.reference is None:
            raise ValueError(
                "Keras' files have adapters added to the weights, and the "
                "reference is the model without them: it would come back as "
                "another one. Received: a trainer without `reference`. Save "
                "the adapters: model.save_lora_weights(...). To go on, load "
                "the base model, `load_lora_weights`, and make a GriffinDPO "
                "of it."
            )
        super().save_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        reference = self.reference and serialize(self.reference)
        return {
            **super().get_config(),
            "causal_lm": serialize(self.causal_lm),
            "beta": self.beta,
            "reference": reference,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        for name in ("causal_lm", "reference"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


class _PreferenceLoss(keras.losses.Loss):
    """-log sigmoid(reward(chosen) - reward(rejected)), of rewards."""

    def call(self, y_true, rewards):
        return ops.softplus(rewards[:, 1] - rewards[:, 0])


def _log_probabilities(model, rows, training):
    """The log-probability of each row's reply, `(rows,)` float32."""
    inputs = {name: rows[name] for name in ("token_ids", "padding_mask")}
    hidden = model.backbone(inputs, training=training)

    def of_tokens(hidden, labels):
        losses = ops.sparse_categorical_crossentropy(
            labels, model._logits(hidden), from_logits=True
        )
        return (-losses,)

    labels = ops.cast(rows["labels"], "int32")
    head = model.backbone.token_embedding
    (of_labels,) = chunked_cross_entropy.map_tokens(
        of_tokens, head, hidden, labels
    )
    learned = ops.cast(rows["label_mask"], "bool")
    return ops.sum(ops.where(learned, of_labels, 0.0), axis=-1)


def _check_models(causal_lm, reference):
    for name, model in (("causal_lm", causal_lm), ("reference", reference)):
        if not hasattr(model, "decode_step") and (
            model is causal_lm or model is not None
        ):
            raise ValueError(
                f"`{name}` must be a GriffinCausalLM. Received: {model!r}. "
                "Give the language model."
            )
    if reference is None:
        if not lora.lora_layers(causal_lm.backbone):
            raise ValueError(
                "There must be a reference: `reference=None` stands for the "
                "model without its adapters. Received: a model that has none. "
                "Call `causal_lm.enable_lora(rank)` before, or give "
                "`reference=` a second model of the same preset."
            )
        return
    sizes = [m.backbone.vocabulary_size for m in (causal_lm, reference)]
    if reference.backbone is causal_lm.backbone or len(set(sizes)) > 1:
        raise ValueError(
            "`reference` must be another model with the same vocabulary. "
            f"Received: vocabularies of {sizes[0]} and {sizes[1]} tokens, and "
            + (
                "the same backbone twice"
                if reference.backbone is causal_lm.backbone
                else "two backbones"
            )
            + ". Load the preset once more."
        )


def _check_rows(x, vocabulary_size):
    if not isinstance(x, dict) or set(x) != set(ROWS):
        names = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise ValueError(
            f"Pairs must be a dict of {', '.join(ROWS)}, or of the texts "
            f"{', '.join(TEXTS)}. Received: {names}. `rows` makes the first of "
            "the second."
        )
    shapes = {name: tuple(value.shape) for name, value in x.items()}
    shape = shapes["token_ids"]
    if len(shape) != 3 or shape[1] != 2 or len(set(shapes.values())) > 1:
        raise ValueError(
            "Pairs must have shape (pairs, 2, time): a chosen reply, then a "
            f"rejected one. Received: {shapes}. Stack them: "
            "np.stack([chosen, rejected], axis=1)."
        )
    for name in ("token_ids", "labels"):
        if isinstance(x[name], np.ndarray):
            check_token_ids(x[name], vocabulary_size)
