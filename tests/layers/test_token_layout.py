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


def expected_layout(mask, segment_ids, state):
    """Token after token, in plain Python."""
    positions = np.full(mask.shape, -1)
    order = np.zeros(mask.shape, int)
    after = {key: state[key].copy() for key in ROW_KEYS}
    for row in range(len(mask)):
        real = np.flatnonzero(mask[row])
        order[row] = [*real, *np.flatnonzero(~mask[row])]
        for column, token in enumerate(real):
            in_document = segment_ids[row, token] == after["segment_id"][row]
            if not in_document:
                after["position"][row] = 0
            positions[row, column] = after["position"][row]
            after["position"][row] += 1
            after["segment_id"][row] = segment_ids[row, token]
            after["length"][row] += 1
    return positions, order, after


def random_rows(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((BATCH, TIME)) < 0.6
    mask[0], mask[1] = True, False
    ids = np.cumsum(rng.random(mask.shape) < 0.4, axis=1).astype("int32")
    # Some ids go back to the id before.
    ids %= 2
    state = {
        "position": rng.integers(1, 20, BATCH).astype("int32"),
        "segment_id": rng.integers(0, 2, BATCH).astype("int32"),
        "length": rng.integers(20, 40, BATCH).astype("int32"),
    }
    return mask, ids, state


@compiled
def describe(mask, ids, state):
    layout = TokenLayout(BATCH, TIME, mask, ids, state)
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
    mask, ids, state = random_rows(seed)
    positions, order, after = expected_layout(mask, ids, state)
    found, compact_mask, compact, restored, rows = describe(
        *keras.tree.map_structure(ops.convert_to_tensor, (mask, ids, state))
    )
    compact_mask = to_numpy(compact_mask)
    np.testing.assert_array_equal(
        compact_mask, np.arange(TIME) < np.sum(mask, axis=1)[:, None]
    )
    np.testing.assert_array_equal(
        to_numpy(found)[compact_mask], positions[compact_mask]
    )
    np.testing.assert_array_equal(to_numpy(compact), order)
    np.testing.assert_array_equal(
        to_numpy(restored), np.arange(TIME)[None].repeat(BATCH, axis=0)
    )
    for key in ROW_KEYS:
        np.testing.assert_array_equal(to_numpy(rows[key]), after[key])


def test_first_token_starts_a_document_whatever_its_id():
    ids = ops.array([[0, 0, 3], [7, 7, 7], [7, 0, 7]], "int32")
    expected = [[0, 1, 0], [0, 1, 2], [0, 0, 0]]
    for state in (None, init_rows(3)):
        layout = TokenLayout(3, 3, None, ids, state)
        np.testing.assert_array_equal(to_numpy(layout.positions), expected)


def test_without_ids_the_document_goes_on():
    state = {
        "position": ops.array([4, 0], "int32"),
        "segment_id": ops.array([9, 8], "int32"),
        "length": ops.array([6, 0], "int32"),
    }
    layout = TokenLayout(2, 3, None, None, state)
    np.testing.assert_array_equal(
        to_numpy(layout.positions), [[4, 5, 6], [0, 1, 2]]
    )
    rows = layout.next_rows(2)
    np.testing.assert_array_equal(to_numpy(rows["position"]), [7, 3])
    np.testing.assert_array_equal(to_numpy(rows["segment_id"]), [9, 8])
    np.testing.assert_array_equal(to_numpy(rows["length"]), [9, 3])
