from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_griffin import keras_compat
from keras_griffin.training.resumable_data import ResumableData

# The last one, and one before: a NaN may show only in the next step's loss.
BACKUPS_KEPT = 2

# The last backup under this name is done with, and perhaps half deleted.
DELETED = "deleted"


def resumable_fit(
    model: Any,
    data: ResumableData,
    backup_dir: str | os.PathLike[str],
    epochs: int = 1,
    save_freq: int = 100,
    callbacks: Sequence[Any] = (),
    **kwargs: Any,
) -> dict[str, list[float]]:
    """`model.fit` with backups from which it ends as if never interrupted.

    Start the same program again: training goes on behind the last backup, in
    the middle of an epoch, with the same batches, dropout and metrics.

    `keras.callbacks.BackupAndRestore` does less: it begins the epoch anew
    with weights that have seen its first batches, and does not keep the seeds
    of dropout. Here all that a step depends on is kept: weights, optimizer,
    seeds, metrics, and the place in the data. What callbacks remember of
    their own is not (`EarlyStopping` counts anew). The first backup is written
    before the first step: from there on it does not matter which seeds and
    initial weights the program starts with.

    Orbax writes them (`pip install "keras-griffin[convert]"`): in the
    background, completely or not at all, each host its own part. When
    training ends they are deleted; an error leaves them.

    Args:
        model: a compiled and built `keras.Model`.
        data: a `ResumableData`.
        backup_dir: str or path. A folder for the backups alone.
        epochs: int. Defaults to `1`.
        save_freq: int. Batches between two backups. Defaults to `100`.
        callbacks: sequence of `keras.callbacks.Callback`. Defaults to `()`.
        **kwargs: further arguments of `model.fit`, `validation_data` say.

    Returns:
        dict of lists: the `history` of the epochs that ended in this call.

    Raises:
        ValueError: for other data, and for backups of another model,
            optimizer or number of batches.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(optimizer=keras_griffin.GriffinAdamW(1e-4))
    texts = ["To be, or not to be: that is the question."] * 8
    packer = keras_griffin.GriffinPacker(sequence_length=64)
    x, y, sample_weight = packer(model.preprocessor.tokenizer(texts))
    data = keras_griffin.training.ResumableData.from_arrays(
        x, y, sample_weight, batch_size=2, seed=1
    )
    history = keras_griffin.training.resumable_fit(
        model, data, "backup", epochs=2, save_freq=50
    )
    ```
    """
    if not isinstance(data, ResumableData):
        raise ValueError(
            "`data` must be a ResumableData, whose batches can be asked for "
            f"again. Received: {type(data).__name__}. For arrays: "
            "ResumableData.from_arrays(x, y, sample_weight)."
        )
    if save_freq < 1:
        raise ValueError(
            "`save_freq` must be at least 1 batch. Received: "
            f"save_freq={save_freq}. Leave it out for 100."
        )
    backup = _Backup(model, data, backup_dir, save_freq)
    try:
        history = _fit(model, data, backup, epochs, callbacks, kwargs)
        backup.delete()
        return history
    finally:
        backup.close()


def _fit(model, data, backup, epochs, callbacks, kwargs):
    epoch, index = backup.restore()
    # Keras takes all epochs for as long as the first one.
    last_epochs = [epoch + 1] if index else []
    if epoch + len(last_epochs) < epochs:
        last_epochs.append(epochs)
    history = {}
    is_final = False
    for last_epoch in last_epochs:
        data.start(epoch, index)
        is_final = last_epoch == epochs
        with contextlib.nullcontext() if is_final else _unfinished(model):
            part = model.fit(
                data,
                initial_epoch=epoch,
                epochs=last_epoch,
                shuffle=False,
                callbacks=[*callbacks, backup],
                **kwargs,
            )
        for name, values in part.history.items():
            history.setdefault(name, []).extend(values)
        epoch, index = last_epoch, 0
        if model.stop_training:
            break
    if epoch and not is_final:  # stopped early, or killed behind the last step
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return history


@contextlib.contextmanager
def _unfinished(model):
    """Leaves the weights at the end of a `fit` that others will follow.

    Keras would put the moving averages of an optimizer with `use_ema` in their
    place.
    """
    optimizer = model.optimizer
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


class _Backup(keras.callbacks.Callback):
    """Writes backups, and reads the last one.

    `keras.callbacks.OrbaxCheckpoint` (3.15) keeps neither the place in the
    data nor PyTorch's random states, and reads nothing back: training that
    goes on from its checkpoints is not bit for bit the one that was broken off.
    """

    def __init__(self, model, data, folder, save_freq):
        super().__init__()
        import orbax.checkpoint as ocp

        self._args = ocp.args
        self._is_primary = ocp.multihost.is_primary_host(0)
        self._folder = Path(folder).absolute()
        self._remove_deleted()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=BACKUPS_KEPT,
                create=True,
                cleanup_tmp_directories=True,  # of a write that was killed
            ),
        )
        self._trained = model
        self._data = data
        self._save_freq = save_freq
        self._epoch = 0
        self._index = 0  # batches of this epoch that are done
        self._is_restoring = False

    def restore(self):
        """Restores the last backup; returns its epoch and batch index."""
        # As `fit` does on JAX; it makes all variables, those of metrics too,
        # which the first backup has to have.
        keras_compat.build_for_training(self._trained, self._data[0])
        step = self._manager.latest_step()
        if step is None:
            return 0, 0
        place = self._read("place", self._args.JsonRestore())
        for name, value in self._description().items():
            if place[name] != value:
                raise ValueError(
                    "Training goes on with the model, the optimizer and the "
                    f"data that it began with. Received: other {name} than in "
                    f"the backup in {self._manager.directory}. Give another "
                    "training another `backup_dir`."
                )
        self._read_variables("of_model", self._variables())
        self._epoch, self._index = place["epoch"], place["index"]
        self._is_restoring = True
        return self._epoch, self._index

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if not self._is_restoring:
            self._index = 0
            if self._manager.latest_step() is None:
                self._write()  # before the first step
                self._manager.wait_until_finished()
        elif self._index:  # metrics were reset just before
            self._read_variables("of_metrics", self._trained.metrics_variables)
        else:
            self._end_restoring()
        self._data.start(epoch, self._index)
        self._skipped = self._index
        self._is_due = False

    def on_train_batch_begin(self, batch, logs=None):
        if self._is_restoring:
            self._end_restoring()

    def _end_restoring(self):
        # Late, because the iterator of an epoch draws a number on PyTorch.
        if keras.config.backend() == "torch":
            like = self._args.StandardRestore(_torch_generators())
            _set_torch_generators(self._read("of_torch", like))
        self._is_restoring = False

    def on_train_batch_end(self, batch, logs=None):
        # With several steps in one execution, `batch` is the last of them.
        before, self._index = self._step(), self._skipped + batch + 1
        if before // self._save_freq < self._step() // self._save_freq:
            self._is_due = True
        # After an epoch's last batch comes its end, with the validation.
        if self._is_due and self._index < self._data.steps_per_epoch:
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        self._epoch, self._index = epoch + 1, 0
        if self._is_due:
            self._write()

    def delete(self):
        """Deletes all backups; killed in between, the last is whole or gone."""
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        for step in steps[:-1]:
            self._manager.delete(step)
        if steps and self._is_primary:
            (self._folder / str(steps[-1])).rename(self._folder / DELETED)
        self._remove_deleted()

    def _remove_deleted(self):
        if self._is_primary and self._folder.joinpath(DELETED).exists():
            shutil.rmtree(self._folder / DELETED)

    def close(self):
        """Waits for what is being written."""
        self._manager.close()

    def _write(self):
        model = self._trained
        if keras.config.backend() == "jax":
            model.jax_state_sync()  # within an epoch `fit` holds the weights
        self._is_due = False
        items = {
            "of_model": _values(self._variables()),
            "of_metrics": _values(model.metrics_variables),
        }
        if keras.config.backend() == "torch":
            items["of_torch"] = _torch_generators()
        place = {"epoch": self._epoch, "index": self._index}
        self._manager.save(
            self._step(),
            args=self._args.Composite(
                **{k: self._args.StandardSave(v) for k, v in items.items()},
                place=self._args.JsonSave({**place, **self._description()}),
            ),
        )

    def _step(self):
        return self._epoch * self._data.steps_per_epoch + self._index

    def _variables(self):
        model = self._trained
        variables = [*model.variables, *model.optimizer.variables]
        return list({id(v): v for v in variables}.values())

    def _description(self):
        # No paths: Keras numbers some of them through, model after model.
        return {
            "weights": [
                [v.dtype, *map(int, v.shape)] for v in self._variables()
            ],
            "steps_per_epoch": self._data.steps_per_epoch,
        }

    def _read(self, name, how):
        step = self._manager.latest_step()
        return self._manager.restore(
            step, args=self._args.Composite(**{name: how})
        )[name]

    def _read_variables(self, name, variables):
        like = _values(variables)
        values = self._read(name, self._args.StandardRestore(like))
        for key, variable in zip(like, variables, strict=True):
            variable.assign(values[key])


def _values(variables):
    """The variables' values as Orbax takes them, JAX's with their sharding."""
    if keras.config.backend() == "jax":
        values = [v.value for v in variables]
    else:
        values = [keras.ops.convert_to_numpy(v.value) for v in variables]
    return {f"{i:06d}": value for i, value in enumerate(values)}


def _torch_generators():
    """PyTorch's own random states, which dropout without a seed draws from."""
    import torch

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return {f"{i:06d}": state.numpy() for i, state in enumerate(states)}


def _set_torch_generators(states):
    import torch

    cpu, *gpus = [torch.from_numpy(state) for state in states.values()]
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)
