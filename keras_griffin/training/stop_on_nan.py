from __future__ import annotations

from typing import Any

import keras
import numpy as np


class StopOnNaN(keras.callbacks.Callback):
    """Stops training at the first step whose loss is not a finite number.

    As `keras.callbacks.TerminateOnNaN(raise_error=True)` does, which names the
    batch within its epoch alone; this one names the step, as a backup of
    `resumable_fit` is named. Looking at the loss waits for the step, as a
    progress bar does. It has no arguments.

    Raises:
        FloatingPointError: in `fit`, after that step.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(optimizer=keras_griffin.GriffinAdamW(1e-4))
    texts = ["To be, or not to be: that is the question."] * 4
    model.fit(
        texts, batch_size=2, callbacks=[keras_griffin.training.StopOnNaN()]
    )
    ```
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Counts batches, as `fit` does: a step of the optimizer may be several.
        optimizer = self.model.optimizer
        per_step = optimizer.gradient_accumulation_steps or 1
        self._steps_before = int(optimizer.iterations) * per_step
        self._steps_of_epoch = 0

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._epoch = epoch
        self._steps_before += self._steps_of_epoch
        self._steps_of_epoch = 0

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._steps_of_epoch = batch + 1
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            raise FloatingPointError(
                "The loss must be a finite number. Received: "
                f"{float(loss)} at step {self._steps_before + batch + 1}, "
                f"which is batch {batch + 1} of epoch {self._epoch + 1}. Look "
                "at that batch; else a lower learning rate or `clipnorm` "
                "helps, from a backup before this step."
            )
