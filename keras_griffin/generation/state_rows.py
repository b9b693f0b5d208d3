"""Rows of states: each array of a state has the rows as axis 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
from keras import ops


def describe(state: dict[str, Any]) -> str:
    """Returns what a state is in one line, where `repr` prints its numbers.

    A state is a plain dict of arrays, so that each framework's own functions
    (`jax.tree.map`, `torch.utils._pytree`, `tf.nest`) take it as it is. Its
    `repr` is therefore that of a dict.

    Args:
        state: as of `GriffinCausalLM.init_state`.

    Example:
    ```python
    from keras_griffin.generation import state_rows

    state = model.init_state(2)
    print(state_rows.describe(state))  # state of 2 rows, 6 blocks, 0.1 MB
    ```
    """
    arrays = keras.tree.flatten(state)
    size = sum(
        math.prod(array.shape)
        * np.dtype(keras.backend.standardize_dtype(array.dtype)).itemsize
        for array in arrays
    )
    rows, blocks = arrays[0].shape[0], len(state["blocks"])
    return (
        f"state of {rows} row{'s' * (rows != 1)}, {blocks} "
        f"block{'s' * (blocks != 1)}, {size / 1e6:.1f} MB"
    )


def take_rows(state: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Returns the state of some rows.

    Args:
        state: as of `GriffinCausalLM.init_state`.
        rows: sequence or tensor of int. Indices; a row may come twice.

    Returns:
        A state of `len(rows)` rows.

    Example:
    ```python
    from keras_griffin.generation import state_rows

    state = model.init_state(4)
    two = state_rows.take_rows(state, [2, 0])
    ```
    """
    rows = ops.convert_to_tensor(rows, dtype="int32")
    return keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), state)


def join_rows(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows of several states as one state.

    Args:
        states: sequence of states of the same model. With global attention,
            of the same `max_length`.

    Example:
    ```python
    from keras_griffin.generation import state_rows

    state = state_rows.join_rows([model.init_state(1), model.init_state(3)])
    ```
    """
    return keras.tree.map_structure(
        lambda *arrays: ops.concatenate(arrays, axis=0), *states
    )


def set_rows(
    state: dict[str, Any], start: Any, rows: dict[str, Any]
) -> dict[str, Any]:
    """Returns `state` with other rows from row `start` on.

    Args:
        state: as of `GriffinCausalLM.init_state`.
        start: int or scalar tensor. The first row to replace.
        rows: a state of as many rows as are replaced.

    Example:
    ```python
    from keras_griffin.generation import state_rows

    state = model.init_state(4)
    state = state_rows.set_rows(state, 3, model.init_state(1))
    ```
    """
    return keras.tree.map_structure(
        lambda x, new: ops.slice_update(
            x, [start] + [0] * (len(x.shape) - 1), ops.cast(new, x.dtype)
        ),
        state,
        rows,
    )


def choose_rows(
    is_first: Any, first: dict[str, Any], second: dict[str, Any]
) -> dict[str, Any]:
    """Returns the rows of two states: those of `first` where it is true.

    Args:
        is_first: `(rows,)` bool.
        first: a state of as many rows.
        second: a state of as many rows.

    Example:
    ```python
    from keras_griffin.generation import state_rows

    state, other = model.init_state(2), model.init_state(2)
    state = state_rows.choose_rows(np.array([True, False]), state, other)
    ```
    """
    is_first = ops.convert_to_tensor(is_first, dtype="bool")

    def choose(x, y):
        shape = [-1] + [1] * (len(x.shape) - 1)
        return ops.where(ops.reshape(is_first, shape), x, y)

    return keras.tree.map_structure(choose, first, second)
