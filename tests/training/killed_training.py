"""Training on 8 devices that is killed. Run by test_killed_training.py.

Arguments: a folder, and `whole` (train without interruption, then again until
killed) or `rest` (go on with the second). The weights go into that folder.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import keras_griffin
from keras_griffin.distribution import GriffinParallel
from keras_griffin.training import ResumableData
from keras_griffin.training import resumable_fit
from support.checks import to_numpy
from support.models import TINY
from support.models import tokens

ARGUMENTS = {
    **TINY,
    "vocabulary_size": 32,
    "num_layers": 1,
    "dropout": 0.2,
    "num_query_heads": 4,
}


class KillAfter(keras.callbacks.Callback):
    def __init__(self, steps):
        super().__init__()
        self.steps_left = steps

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps_left -= 1


def train(folder, seed, callbacks=()):
    keras.utils.set_random_seed(seed)
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**ARGUMENTS)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    token_ids = tokens(20, 9)
    x = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    data = ResumableData.from_arrays(x, token_ids, batch_size=4, seed=3)
    resumable_fit(model, data, folder, 2, 1, callbacks, verbose=0)
    variables = model.weights + model.optimizer.variables
    return {str(i): to_numpy(v.value) for i, v in enumerate(variables)}


def main(folder, part):
    keras.distribution.set_distribution(GriffinParallel(batch=2, model=4))
    folder = Path(folder)
    if part == "whole":
        np.savez(folder / "whole.npz", **train(folder / "whole", seed=1))
        train(folder / "backup", 1, [KillAfter(8)])
    np.savez(folder / "rest.npz", **train(folder / "backup", seed=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
