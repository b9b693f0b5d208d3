from __future__ import annotations

import re
from typing import Any

import keras

from keras_griffin.near_names import arguments_of
from keras_griffin.near_names import check_arguments

# Layers whose weights are never decayed, by their names in a variable's path.
NOT_DECAYED = re.compile(r"(^|/)(rglru|conv|causal_conv1d)(_\d+)?/")

# What Keras makes of AdamW on this backend: PyTorch's updates all weights in
# one call, which a class derived from Keras' own would not do.
_AdamW: Any = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinAdamW(_AdamW):
    """AdamW as the Griffin family is trained: what decays, when and how far.

    Weight decay pulls on matrices alone: on those of the projections, of the
    MLPs and of the embedding. It leaves the RG-LRU (recurrence parameter,
    phases, gates and their biases), the convolution, all biases and the scales
    of the norms as they are. A model loaded from a file keeps this: it is
    found anew from the weights' names, where `keras.optimizers.AdamW` forgets
    what was excluded.

    With `num_steps` the learning rate rises linearly from 0 over the warm-up
    and falls on half a cosine to `final_fraction` of its peak.

    Args:
        learning_rate: float, the peak if there is a `num_steps`; or a
            `keras.optimizers.schedules.LearningRateSchedule` of your own.
            `3e-3` trained the shipped preset of 3.3 M parameters, larger
            models take less; DeepMind fine-tunes RecurrentGemma 2B with
            `1e-4`. Defaults to `1e-3`.
        num_steps: int. Updates in all of training: epochs times batches,
            divided by `gradient_accumulation_steps` where several batches make
            one update. Defaults to `None`: a constant learning rate.
        warmup_fraction: float in [0, 1). Part of `num_steps`. Defaults to
            `0.03`.
        final_fraction: float in [0, 1]. Last learning rate, as a part of the
            peak. Defaults to `0.02`.
        weight_decay: float. Each update takes `weight_decay * learning_rate`
            of a decayed weight away. Defaults to `0.1`.
        beta_1: float. Defaults to `0.9`.
        beta_2: float. Large batches take less, `0.95` say. Defaults to
            `0.99`.
        global_clipnorm: float. Gradients together longer than this are
            shortened to it; `None`: they are not. Defaults to `1.0`.
        **kwargs: see `keras.optimizers.AdamW`;
            `gradient_accumulation_steps` among them.

    Raises:
        ValueError: for fractions out of their range, and for a `num_steps`
            below 1 or beside a schedule.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(
        optimizer=keras_griffin.GriffinAdamW(
            3e-4, num_steps=2, gradient_accumulation_steps=2
        )
    )
    model.fit(["To be, or not to be: that is the question."] * 4, batch_size=1)
    ```

    Source:
        No decay on the RG-LRU: arXiv:2404.07839, section 3. The papers give no
        other setting; these are those of
        `benchmarks/quality/train_shakespeare_preset.py`, apart from the peak.
    """

    global_clipnorm: Any  # Keras' own

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        num_steps: int | None = None,
        warmup_fraction: float = 0.03,
        final_fraction: float = 0.02,
        weight_decay: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        global_clipnorm: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        known = arguments_of(type(self), keras.optimizers.Optimizer)
        check_arguments(type(self).__name__, kwargs, known)
        if num_steps is not None:
            learning_rate = _cosine(
                learning_rate, num_steps, warmup_fraction, final_fraction
            )
            batches = kwargs.get("gradient_accumulation_steps")
            if batches:
                learning_rate = UpdateSchedule(learning_rate, batches)
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            global_clipnorm=global_clipnorm,
            **kwargs,
        )

    def build(self, variables: Any) -> None:
        if not self.built:
            self.exclude_from_weight_decay(
                var_list=[v for v in variables if not is_decayed(v)]
            )
        super().build(variables)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        if not _clips_at_once(self):
            super().apply(grads, trainable_variables)
            return
        from keras_griffin.training.clipping_torch import clip_by_global_norm

        limit, self.global_clipnorm = self.global_clipnorm, None
        try:
            clipped = clip_by_global_norm(grads, limit)
            super().apply(clipped, trainable_variables)
        finally:
            self.global_clipnorm = limit


def _clips_at_once(optimizer):
    """Whether PyTorch may clip gradients before Keras sees them."""
    return (
        keras.config.backend() == "torch"
        and bool(optimizer.global_clipnorm)
        # Clipped is what the batches of an update add up to.
        and not optimizer.gradient_accumulation_steps
        and optimizer.loss_scale_factor is None
    )


@keras.saving.register_keras_serializable(package="keras_griffin")
class UpdateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that counts updates, where Keras' own count batches.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`.
        batches: int. Batches of an update: `gradient_accumulation_steps`.
    """

    def __init__(self, schedule, batches):
        self.schedule = schedule
        self.batches = batches

    def __call__(self, step):
        return self.schedule(step // self.batches)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "batches": self.batches}

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["batches"])


def is_decayed(variable):
    """Whether weight decay pulls on a variable."""
    return len(variable.shape) > 1 and not NOT_DECAYED.search(variable.path)


def _cosine(peak, num_steps, warmup_fraction, final_fraction):
    if isinstance(peak, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(
            "`num_steps` makes a schedule of a number, the peak learning rate. "
            f"Received: num_steps={num_steps} and learning_rate={peak!r}. "
            "Leave `num_steps` out."
        )
    if num_steps < 1:
        raise ValueError(
            "`num_steps` must be at least 1: the updates in all of training. "
            f"Received: num_steps={num_steps}. Give epochs times batches, "
            "divided by `gradient_accumulation_steps`."
        )
    if not 0 <= warmup_fraction < 1 or not 0 <= final_fraction <= 1:
        raise ValueError(
            "`warmup_fraction` must lie in [0, 1), and `final_fraction` in "
            f"[0, 1]. Received: warmup_fraction={warmup_fraction}, "
            f"final_fraction={final_fraction}. They are parts of `num_steps` "
            "and of the peak learning rate."
        )
    warmup_steps = int(warmup_fraction * num_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=num_steps - warmup_steps,
        alpha=final_fraction,
        warmup_target=peak,
        warmup_steps=warmup_steps,
    )
