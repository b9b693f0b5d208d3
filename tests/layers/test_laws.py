"""The laws that all layers along time obey (DESIGN.md, part 4).

Each test takes one layer and compares values, final states and gradients of
inputs, states and weights.
"""

import numpy as np
import pytest

from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BATCH
from support.layers import DOCUMENTS
from support.layers import NUM_REAL
from support.layers import NUMBERS
from support.layers import ONE_DOCUMENT
from support.layers import PADS
from support.layers import TEMPORAL_LAYERS
from support.layers import TIME
from support.layers import WIDTH
from support.layers import assert_same_gradients
from support.layers import assert_same_state
from support.layers import cut
from support.layers import fresh_state
from support.layers import make_probe
from support.layers import make_rows
from support.layers import normal
from support.layers import random_cotangents
from support.layers import random_state
from support.layers import run_pieces

LAYERS = pytest.mark.parametrize("name", TEMPORAL_LAYERS)
# A residual block adds nothing along time: some tests leave it out.
MIXERS = pytest.mark.parametrize(
    "name", [name for name in TEMPORAL_LAYERS if "residual" not in name]
)
# Tokens of its document that a row has seen before the tests' own.
POSITION = 6


def zero_cotangents(state):
    return {name: 0 * leaf for name, leaf in random_cotangents(state).items()}


def real_cotangents(rows):
    """`dy` with zeros at pads, and without pads."""
    dy = normal(rows.real_x.shape, seed=5)
    return rows.spread(dy), dy


def assert_same(rows, padded, alone, names):
    """The padded result equals the one without pads."""
    assert_close(rows.take_real(padded.y), alone.y, name="y")
    assert_close(rows.take_real(padded.dx), alone.dx, kind="gradients")
    assert_same_gradients(padded.dweights, alone.dweights, names)
    pads = to_numpy(padded.dx)[~rows.mask]
    np.testing.assert_array_equal(pads, 0.0, err_msg="gradients at pads")


@LAYERS
@pytest.mark.parametrize("pads", PADS)
def test_pads_change_nothing(name, pads):
    probe = make_probe(name)
    rows = make_rows(pads, ONE_DOCUMENT)
    dy_padded, dy = real_cotangents(rows)
    state = random_state(probe.layer, position=POSITION)
    padded = probe(rows.x, **rows.inputs, initial_state=state, dy=dy_padded)
    alone = probe(rows.real_x, initial_state=state, dy=dy)
    assert_same(rows, padded, alone, probe.names)
    assert_same_state(padded.state, alone.state)
    for leaf, gradient in padded.dstate.items():
        assert_close(gradient, alone.dstate[leaf], kind="gradients", name=leaf)


@MIXERS
def test_pads_change_nothing_without_states(name):
    probe = make_probe(name)
    rows = make_rows("left_interior_right", ONE_DOCUMENT)
    dy_padded, dy = real_cotangents(rows)
    padded = probe(rows.x, **rows.inputs, return_state=False, dy=dy_padded)
    state = fresh_state(probe.layer)
    alone = probe(
        rows.real_x,
        initial_state=state,
        dy=dy,
        dstate=zero_cotangents(state),
    )
    assert_same(rows, padded, alone, probe.names)


@LAYERS
def test_row_of_pads_keeps_its_state(name):
    probe = make_probe(name)
    rows = make_rows("left_interior_right")
    state = random_state(probe.layer, position=POSITION)
    dy, _ = real_cotangents(rows)
    before = probe(rows.x, **rows.inputs, initial_state=state, dy=dy)
    rows.mask[1] = False
    dy[1] = 0.0
    dstate = random_cotangents(state)
    result = probe(
        rows.x, **rows.inputs, initial_state=state, dy=dy, dstate=dstate
    )
    for leaf, value in state.items():
        np.testing.assert_array_equal(
            to_numpy(result.state[leaf])[1], value[1], err_msg=leaf
        )
    for leaf, gradient in result.dstate.items():
        np.testing.assert_array_equal(to_numpy(gradient)[1], dstate[leaf][1])
    np.testing.assert_array_equal(to_numpy(result.dx)[1], 0.0)
    assert np.all(np.isfinite(to_numpy(result.y)))
    # The other rows have not noticed.
    for row in (0, 2):
        np.testing.assert_array_equal(
            to_numpy(result.y)[row], to_numpy(before.y)[row]
        )


@LAYERS
def test_packed_row_equals_its_documents_alone(name):
    probe = make_probe(name)
    rows = make_rows("left_interior_right")
    dy_padded, dy = real_cotangents(rows)
    # Every row is in the middle of a document of another number: nothing of it
    # may be seen, even where the state holds it still.
    state = random_state(probe.layer, position=POSITION)
    state["segment_id"][:] = 5
    packed = probe(
        rows.x,
        **rows.inputs,
        initial_state=state,
        dy=dy_padded,
        dstate=zero_cotangents(state),
    )
    for leaf, gradient in packed.dstate.items():
        np.testing.assert_array_equal(to_numpy(gradient), 0.0, err_msg=leaf)

    # Document after document, alone in rows of 5 tokens.
    fresh = fresh_state(probe.layer)
    y, dx = rows.take_real(packed.y), rows.take_real(packed.dx)
    columns = np.arange(5)[None, :]
    dweights = []
    starts = np.zeros((BATCH, 1), int)
    for lengths in np.transpose(DOCUMENTS):
        mask = columns < lengths[:, None]
        places = np.minimum(starts + columns, NUM_REAL - 1)[..., None]
        alone = probe(
            np.take_along_axis(rows.real_x, places, axis=1),
            padding_mask=mask.astype("int32"),
            initial_state=fresh,
            dy=np.take_along_axis(dy, places, axis=1) * mask[..., None],
            dstate=zero_cotangents(state),
        )
        for whole, part in ((y, alone.y), (dx, alone.dx)):
            whole = np.take_along_axis(whole, places, axis=1)
            assert_close(whole[mask], to_numpy(part)[mask], kind="gradients")
        dweights.append([to_numpy(part) for part in alone.dweights])
        starts += lengths[:, None]
    dweights = [sum(parts) for parts in zip(*dweights, strict=True)]
    assert_same_gradients(packed.dweights, dweights, probe.names)

    # The last documents go on.
    more = {"x": normal((BATCH, 5, WIDTH), seed=8), "gradients": False}
    after_packed = probe(
        **more,
        padding_mask=np.full((BATCH, 5), NUMBERS[-1], "int32"),
        initial_state=packed.state,
    )
    after_alone = probe(
        **more,
        padding_mask=np.ones((BATCH, 5), "int32"),
        initial_state=alone.state,
    )
    assert_close(after_packed.y, after_alone.y, name="tokens after the row")


@MIXERS
def test_packed_row_without_states(name):
    probe = make_probe(name)
    rows = make_rows("scattered")
    dy, _ = real_cotangents(rows)
    state = fresh_state(probe.layer)
    expected = probe(
        rows.x,
        **rows.inputs,
        initial_state=state,
        dy=dy,
        dstate=zero_cotangents(state),
    )
    result = probe(rows.x, **rows.inputs, return_state=False, dy=dy)
    assert_close(rows.take_real(result.y), rows.take_real(expected.y))
    assert_close(result.dx, expected.dx, kind="gradients", name="dx")
    assert_same_gradients(result.dweights, expected.dweights, probe.names)


SPLITS = [
    (1,) * 16,
    (5, 5, 5, 1),
    (1, 5, 5, 5),
    (5, 1, 5, 5),
    (1, 1, 5, 5, 1, 1, 1, 1),
]


@LAYERS
@pytest.mark.parametrize("pads", PADS)
def test_split_rows_with_pads_and_documents(name, pads):
    probe = make_probe(name)
    rows = make_rows(pads)
    dy, _ = real_cotangents(rows)
    # Row by row: one goes on with its document, others start one.
    state = random_state(probe.layer, position=POSITION)
    state["segment_id"][:] = NUMBERS[0], 5, NUMBERS[0]
    dstate = random_cotangents(state)
    whole = probe(
        rows.x, **rows.inputs, initial_state=state, dy=dy, dstate=dstate
    )
    for lengths in SPLITS:
        pieces = cut(lengths, x=rows.x, **rows.inputs, dy=dy)
        result = run_pieces(probe, pieces, state, dstate)
        assert_close(
            rows.take_real(result.y), rows.take_real(whole.y), name=str(lengths)
        )
        assert_same_state(result.state, whole.state)
        assert_close(result.dx, whole.dx, kind="gradients", name="dx")
        for leaf, gradient in result.dstate.items():
            assert_close(gradient, whole.dstate[leaf], kind="gradients")
        assert_same_gradients(result.dweights, whole.dweights, probe.names)


@MIXERS
def test_split_rows_without_pads(name):
    probe = make_probe(name)
    x = normal((BATCH, NUM_REAL, WIDTH))
    dy = normal(x.shape, seed=1)
    state = random_state(probe.layer, position=POSITION)
    dstate = random_cotangents(state)
    whole = probe(x, initial_state=state, dy=dy, dstate=dstate)

    one_by_one = cut((1,) * NUM_REAL, x=x, dy=dy)
    # A prompt, padded to a length that was compiled, and what is generated.
    prompt = {
        "x": np.concatenate([x[:, :4], normal((BATCH, 1, WIDTH))], axis=1),
        "dy": np.concatenate([dy[:, :4], np.zeros((BATCH, 1, WIDTH))], axis=1),
        "padding_mask": np.array([[NUMBERS[0]] * 4 + [0]] * BATCH),
    }
    prompt["dy"] = prompt["dy"].astype("float32")
    for pieces in (one_by_one, [prompt, *one_by_one[4:]]):
        result = run_pieces(probe, pieces, state, dstate)
        if pieces[0] is prompt:
            result.y = np.delete(result.y, 4, axis=1)
            result.dx = np.delete(result.dx, 4, axis=1)
        assert_close(result.y, whole.y, name="y")
        assert_same_state(result.state, whole.state)
        assert_close(result.dx, whole.dx, kind="gradients", name="dx")
        for leaf, gradient in result.dstate.items():
            assert_close(gradient, whole.dstate[leaf], kind="gradients")
        assert_same_gradients(result.dweights, whole.dweights, probe.names)


@MIXERS
def test_no_token_at_all(name):
    probe = make_probe(name)
    state = random_state(probe.layer, position=POSITION)
    dstate = random_cotangents(state)
    result = probe(
        np.zeros((BATCH, 0, WIDTH), "float32"),
        initial_state=state,
        dstate=dstate,
    )
    assert to_numpy(result.y).shape == (BATCH, 0, WIDTH)
    assert_same_state(result.state, state)
    for leaf, gradient in result.dstate.items():
        assert_close(gradient, dstate[leaf], kind="gradients", name=leaf)


@LAYERS
def test_later_tokens_and_other_rows_are_not_seen(name):
    probe = make_probe(name)
    rows = make_rows("scattered")
    state = random_state(probe.layer, position=POSITION)
    zeros = zero_cotangents(state)
    dy = normal(rows.x.shape, seed=5) * rows.mask[..., None]

    def run(x=rows.x, state=state, dy=dy):
        return probe(x, **rows.inputs, initial_state=state, dy=dy, dstate=zeros)

    expected = run()
    time = 9  # the last token of the past, in every row
    past = rows.mask.copy()
    past[:, time + 1 :] = False

    earlier = run(dy=dy * past[..., None])
    np.testing.assert_array_equal(to_numpy(earlier.dx)[:, time + 1 :], 0.0)
    assert np.any(to_numpy(earlier.dx)[:, time] != 0.0)
    x = rows.x.copy()
    x[:, time + 1 :] += 1.0
    y = to_numpy(run(x=x).y)
    np.testing.assert_array_equal(y[past], to_numpy(expected.y)[past])
    assert np.any(
        y[rows.mask & ~past] != to_numpy(expected.y)[rows.mask & ~past]
    )

    dy_one = np.zeros_like(dy)
    dy_one[1] = dy[1]
    one = run(dy=dy_one)
    np.testing.assert_array_equal(to_numpy(one.dx)[[0, 2]], 0.0)
    for gradient in one.dstate.values():
        np.testing.assert_array_equal(to_numpy(gradient)[[0, 2]], 0.0)
    x, other_state = rows.x.copy(), dict(state)
    x[[0, 2]] += 1.0
    for leaf, value in state.items():
        other_state[leaf] = value.copy()
        other_state[leaf][[0, 2]] += 1
    y = to_numpy(run(x=x, state=other_state).y)
    np.testing.assert_array_equal(y[1], to_numpy(expected.y)[1])
    assert np.any(y[[0, 2]] != to_numpy(expected.y)[[0, 2]])


def test_pads_are_where_the_tests_want_them():
    for pads in PADS:
        rows = make_rows(pads)
        assert rows.mask.shape == (BATCH, TIME)
        assert np.all(np.sum(rows.mask, axis=1) == NUM_REAL)
