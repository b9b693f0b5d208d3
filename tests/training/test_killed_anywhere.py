"""Killed at any moment, training ends bit for bit as if it had not been.

A process that dies leaves the files of that moment. One run is watched: before
each change of a name in the folder of backups, and around each step, the files
are copied. From each copy a new run, with other seeds, must reach the same end.
"""

import os
import shutil
import threading

import keras
import numpy as np
import pytest

from keras_griffin.training import ResumableData
from keras_griffin.training import resumable_fit
from support.checks import to_numpy
from support.once import once

EPOCHS, STEPS, SAVE_FREQ = 2, 3, 2
# Copies to go on from: all of them are a minute each.
MOMENTS = 4
CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink")


def ema():
    return keras.optimizers.AdamW(0.05, use_ema=True, ema_momentum=0.5)


def accumulating():
    return keras.optimizers.AdamW(0.05, gradient_accumulation_steps=2)


def several():
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            ema(), {".*bias": keras.optimizers.SGD(0.1, momentum=0.9)}
        )
    )


def make(seed, optimizer, lora):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(4, activation="tanh")
    x = keras.layers.Dropout(0.4)(dense(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    if lora:
        dense.enable_lora(2)
    # Compiled steps would take most of the test's time.
    model.compile(optimizer(), "mse", run_eagerly=True, jit_compile=False)
    return model


def train(model, folder, callbacks=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * STEPS, 4)).astype("float32")
    data = ResumableData.from_arrays(x, x[:, :2], batch_size=2, seed=3)
    resumable_fit(model, data, folder, EPOCHS, SAVE_FREQ, callbacks, verbose=0)
    assert not any(folder.iterdir())
    variables = model.variables + model.optimizer.variables
    return [to_numpy(v.value).copy() for v in variables]


class Watch(keras.callbacks.Callback):
    """Copies the backups at each moment that differs from those before."""

    def __init__(self, folder, copies):
        super().__init__()
        self.folder, self.copies = folder, copies
        self.seen = {}
        self.tried = 0
        self.lock = threading.Lock()

    def look(self, *args, **kwargs):
        if self.lock.acquire(blocking=False):  # a copy changes names, too
            try:
                self._copy()
            except (FileNotFoundError, shutil.Error):
                pass  # another thread changed them just then
            finally:
                self.lock.release()

    def _copy(self):
        files = tuple(
            (str(path.relative_to(self.folder)), path.stat().st_size)
            for path in sorted(self.folder.rglob("*"))
        )
        if files and files not in self.seen.values():
            self.tried += 1  # some copies fail halfway
            copy = self.copies / str(self.tried)
            shutil.copytree(self.folder, copy)
            self.seen[copy] = files

    on_train_batch_begin = on_train_batch_end = on_epoch_end = look


@pytest.mark.parametrize(
    "optimizer, lora",
    [(ema, True), *once((accumulating, True), (several, False))],
)
def test_from_every_moment(optimizer, lora, tmp_path, monkeypatch):
    expected = train(make(1, optimizer, lora), tmp_path / "whole")
    watch = Watch(tmp_path / "watched", tmp_path / "copies")
    for name in CHANGES:
        change = getattr(os, name)

        def looked(*args, change=change, **kwargs):
            watch.look()
            return change(*args, **kwargs)

        monkeypatch.setattr(os, name, looked)
    train(make(1, optimizer, lora), watch.folder, [watch])
    monkeypatch.undo()
    # Before the first backup there is no step, either, whose work is lost.
    whole = [
        copy
        for copy in watch.seen
        if any(path.name.isdigit() for path in copy.iterdir())
    ]
    assert len(whole) > 20
    for copy in (whole[0], *whole[5 :: len(whole) // MOMENTS], whole[-1]):
        found = train(make(2, optimizer, lora), copy)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
