from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from typing import Self

import keras
import numpy as np


class ResumableData(keras.utils.PyDataset):
    """Batches that are the same each time, so that training can go on.

    What `fit` does with arrays and `tf.data` pipelines can't be repeated from
    the middle of an epoch: their order depends on draws that are over. Here
    each batch is a function of the epoch and of its index, as in Grain.

    Each time that Keras begins to read it is another epoch, in `evaluate` too
    and where `fit` looks at a first batch to build a model. `resumable_fit`
    alone counts epochs as `fit` does.

    Args:
        batch: callable `(epoch, index)`, both from 0, to `(x, y)` or
            `(x, y, sample_weight)`; the same for the same arguments. See
            `from_arrays` for arrays.
        steps_per_epoch: int. Batches of an epoch.

    Raises:
        ValueError: if `fit` asks for batches in another order: give it
            `shuffle=False`.

    Example:
    ```python
    rows = np.random.default_rng(0).integers(1, 256, (64, 17))
    x = {"token_ids": rows[:, :-1], "padding_mask": np.ones((64, 16), "int32")}
    data = keras_griffin.training.ResumableData.from_arrays(
        x, rows[:, 1:], batch_size=8, seed=1
    )
    x, y = data[0]  # the first batch of 8
    ```
    With Grain, whose datasets are indexed:
    ```python
    import grain

    rows = np.random.default_rng(0).integers(1, 256, (64, 17))
    dataset = grain.MapDataset.source(rows).seed(1).shuffle().repeat()
    dataset = dataset.map(lambda row: (row[:-1], row[1:])).batch(8)
    data = keras_griffin.training.ResumableData(
        lambda epoch, index: dataset[8 * epoch + index], steps_per_epoch=8
    )
    ```
    """

    def __init__(
        self, batch: Callable[[int, int], Any], steps_per_epoch: int
    ) -> None:
        super().__init__()
        self._batch = batch
        self.steps_per_epoch = steps_per_epoch
        self.start(0, 0)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
    ) -> Self:
        """Makes it from arrays, as `fit` takes them.

        Args:
            x: array, or dict of arrays `(rows, ...)`.
            y: array `(rows, ...)`, or `None`.
            sample_weight: array `(rows, ...)`, or `None`.
            batch_size: int. Rows of a batch; the last one of an epoch may
                have fewer. Defaults to `32`.
            shuffle: bool. Another order of the rows in each epoch. Defaults
                to `True`.
            seed: int. Of these orders. Defaults to `0`.

        Returns:
            A `ResumableData`.
        """

        def each(function, structure):
            return keras.tree.map_structure(
                lambda a: None if a is None else function(a), structure
            )

        # Of a memory-mapped file this is a view.
        arrays: Any = (x, y, sample_weight)
        while arrays[-1] is None:
            arrays = arrays[:-1]
        arrays = each(np.asarray, arrays)
        rows = len(next(a for a in keras.tree.flatten(x) if a is not None))

        @functools.lru_cache(maxsize=1)
        def order(epoch):
            if not shuffle:
                return np.arange(rows)
            return np.random.default_rng((seed, epoch)).permutation(rows)

        def batch(epoch, index):
            chosen = order(epoch)[index * batch_size : (index + 1) * batch_size]
            return each(lambda a: a[chosen], arrays)

        return cls(batch, -(-rows // batch_size))

    def start(self, epoch: int, index: int = 0) -> None:
        """Chooses the epoch whose batches come, and the first one of them.

        Args:
            epoch: int. From 0.
            index: int. Batches of that epoch to leave out. Defaults to `0`.
        """
        self._epoch, self._skipped, self._last = epoch, index, -1
        self._has_begun = False

    def on_epoch_begin(self) -> None:
        if self._has_begun:
            self.start(self._epoch + 1)
        self._has_begun = True

    def __len__(self) -> int:
        return self.steps_per_epoch - self._skipped

    def __getitem__(self, index: int) -> Any:
        # Keras looks at the first batches before it starts.
        if index > self._last + 1:
            raise ValueError(
                "Batches must be asked for in their order. Received: batch "
                f"{index} after batch {self._last}. Give `shuffle=False` to "
                "`fit`: `ResumableData` has shuffled already."
            )
        self._last = index
        return self._batch(self._epoch, self._skipped + index)
