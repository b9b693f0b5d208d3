import keras
import numpy as np
import pytest
from keras import ops

from keras_griffin.layers.token_layout import ROW_KEYS
from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.layers.token_layout import init_rows
from support.checks import to_numpy
from support.layers import compiled

BATCH, TIME = 8, 9


def expected_layout(documents, state):
    """Token after token, in plain Python."""
    positions = np.full(documents.shape, -1)
    order = np.zeros(documents.shape, int)
    after = {key: state[key].copy() for key in ROW_KEYS}
    for row, numbers in enumerate(documents):
        real = np.flatnonzero(numbers)
        order[row] = [*real, *np.flatnonzero(numbers == 0)]
        for column, token in enumerate(real):
            in_document = numbers[token] == (after["segment_id"][row] or 1)
            if not in_document:
                after["position"][row] = 0
            positions[row, column] = after["position"][row]
            after["position"][row] += 1
            after["segment_id"][row] = numbers[token]
            after["length"][row] += 1
    return positions, order, after


def random_rows(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((BATCH, TIME)) < 0.6
    mask[0], mask[1] = True, False
    numbers = np.cumsum(rng.random(mask.shape) < 0.4, axis=1).astype("int32")
    # Some numbers come back, and some are below 0.
    numbers = np.array([1, 2, -3], "int32")[numbers % 3]
    state = {
        "position": rng.integers(1, 20, BATCH).astype("int32"),
        "segment_id": rng.integers(0, 3, BATCH).astype("int32"),
        "length": rng.integers(20, 40, BATCH).astype("int32"),
    }
    return np.where(mask, numbers, 0), state


@compiled
def describe(documents, state):
    layout = TokenLayout(BATCH, TIME, documents, state)
    columns = np.broadcast_to(np.arange(TIME, dtype="int32"), (BATCH, TIME))
    compact = layout.compact(columns)
    return (
        layout.positions,
        layout.mask,
        compact,
        layout.restore(compact),
        layout.next_rows(BATCH),
    )


@pytest.mark.parametrize("seed", range(5))
def test_positions_against_python(seed):
    documents, state = random_rows(seed)
    positions, order, after = expected_layout(documents, state)
    found, compact_mask, compact, restored, rows = describe(
        *keras.tree.map_structure(ops.convert_to_tensor, (documents, state))
    )
    compact_mask = to_numpy(compact_mask)
    num_real = np.count_nonzero(documents, axis=1)[:, None]
    np.testing.assert_array_equal(compact_mask, np.arange(TIME) < num_real)
    np.testing.assert_array_equal(
        to_numpy(found)[compact_mask], positions[compact_mask]
    )
    np.testing.assert_array_equal(to_numpy(compact), order)
    np.testing.assert_array_equal(
        to_numpy(restored), np.arange(TIME)[None].repeat(BATCH, axis=0)
    )
    for key in ROW_KEYS:
        np.testing.assert_array_equal(to_numpy(rows[key]), after[key])


@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8"])
def test_first_token_starts_a_document_whatever_its_number(dtype):
    documents = ops.array([[1, 1, 3], [7, 7, 7], [7, 1, 7]], dtype)
    expected = [[0, 1, 0], [0, 1, 2], [0, 0, 0]]
    for state in (None, init_rows(3)):
        layout = TokenLayout(3, 3, documents, state)
        np.testing.assert_array_equal(to_numpy(layout.positions), expected)


@pytest.mark.parametrize("mask", [None, np.ones((2, 3), bool)])
def test_without_numbers_the_document_goes_on(mask):
    state = {
        "position": ops.array([4, 0], "int32"),
        "segment_id": ops.array([9, 8], "int32"),
        "length": ops.array([6, 0], "int32"),
    }
    layout = TokenLayout(2, 3, mask, state)
    np.testing.assert_array_equal(
        to_numpy(layout.positions), [[4, 5, 6], [0, 1, 2]]
    )
    rows = layout.next_rows(2)
    np.testing.assert_array_equal(to_numpy(rows["position"]), [7, 3])
    np.testing.assert_array_equal(to_numpy(rows["segment_id"]), [9, 8])
    np.testing.assert_array_equal(to_numpy(rows["length"]), [9, 3])


def test_unnumbered_tokens_and_a_mask_of_ones_are_one_document():
    unnumbered = [None, np.ones((1, 3), bool)]
    ones = np.ones((1, 3), "int32")
    for masks in ([*unnumbered, ones, None], [ones, *unnumbered, ones]):
        state = init_rows(1)
        for mask in masks:
            layout = TokenLayout(1, 3, mask, state)
            first = int(to_numpy(state["length"])[0])
            np.testing.assert_array_equal(
                to_numpy(layout.positions), [np.arange(first, first + 3)]
            )
            state = layout.next_rows(1)
