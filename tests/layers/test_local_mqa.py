import functools

import keras
import numpy as np
import pytest

from keras_griffin.layers import LocalMQA
from keras_griffin.layers.windowed_attention import MIN_QUERY_BLOCK
from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BACKEND
from support.layers import BATCH
from support.layers import GARBAGE
from support.layers import MAX_LENGTH
from support.layers import NUM_REAL
from support.layers import WIDTH
from support.layers import WINDOW
from support.layers import assert_equals_reference
from support.layers import assert_same_gradients
from support.layers import assert_same_state
from support.layers import cut
from support.layers import fresh_state
from support.layers import is_float
from support.layers import make_probe
from support.layers import normal
from support.layers import probe_of
from support.layers import random_cotangents
from support.layers import random_state
from support.layers import run_pieces

# More tokens than one block of queries takes.
LONG = WINDOW + MIN_QUERY_BLOCK + 8


@pytest.mark.parametrize(
    "window, time",
    [
        (WINDOW, WINDOW - 1),
        (WINDOW, 2 * WINDOW + 3),
        (WINDOW, LONG),
        (None, 2 * WINDOW + 3),
        (0, MIN_QUERY_BLOCK + 6),
        (6, MIN_QUERY_BLOCK + 7),
        # Blocks of a quarter of the window, and a rest.
        (300, 400),
    ],
)
def test_equals_dense_attention_in_numpy(window, time):
    probe = probe_of(LocalMQA(2, 4, window_size=window))
    reference = functools.partial(numpy_layers.mqa, heads=2, window=window)
    batch = 1 if time > 100 else BATCH
    assert_equals_reference(probe, reference, normal((batch, time, WIDTH)))


@pytest.mark.parametrize(
    "heads, fraction, wavelength",
    [(1, 0.0, 10_000.0), (3, 1.0, 10_000.0), (2, 0.5, 10.0)],
)
def test_heads_and_rope(heads, fraction, wavelength):
    probe = probe_of(
        LocalMQA(
            heads,
            8,
            window_size=WINDOW,
            rope_fraction=fraction,
            rope_max_wavelength=wavelength,
        )
    )
    reference = functools.partial(
        numpy_layers.mqa,
        heads=heads,
        window=WINDOW,
        fraction=fraction,
        wavelength=wavelength,
    )
    assert_equals_reference(probe, reference, normal((BATCH, 7, WIDTH)))


@pytest.mark.parametrize("time", [NUM_REAL, LONG])
def test_window_reaches_as_far_as_it_says(time):
    probe = make_probe("local_mqa")
    state = fresh_state(probe.layer)
    dy = np.zeros((BATCH, time, WIDTH), "float32")
    query = time - 2
    dy[:, query] = normal((BATCH, WIDTH))
    result = probe(
        normal(dy.shape),
        initial_state=state,
        dy=dy,
        dstate={k: 0 * v for k, v in random_cotangents(state).items()},
    )
    seen = np.any(to_numpy(result.dx) != 0.0, axis=-1)
    expected = np.zeros((BATCH, time), bool)
    expected[:, query - WINDOW : query + 1] = True
    np.testing.assert_array_equal(seen, expected)


# Pieces shorter than, as long as and longer than the window and the ring, with
# one block of queries and with many.
PIECES = [
    (WINDOW - 1, WINDOW, WINDOW + 1, LONG - 3 * WINDOW),
    (LONG - 3 * WINDOW, WINDOW + 1, WINDOW, WINDOW - 1),
    (1, LONG - 1),
    (LONG - 1, 1),
]


def test_split_long_rows():
    probe = make_probe("local_mqa")
    shape = (BATCH, LONG)
    rng = np.random.default_rng(4)
    mask = rng.random(shape) < 0.8
    mask[0, 10:20] = False
    starts = rng.random(shape) < 0.05
    documents = np.cumsum(starts, axis=1).astype("int32") + 1
    inputs = {"padding_mask": np.where(mask, documents, 0)}
    x = normal((*shape, WIDTH))
    x[~mask] = GARBAGE
    dy = normal(x.shape, seed=1) * mask[..., None]
    state = random_state(probe.layer, position=6)
    dstate = random_cotangents(state)
    whole = probe(x, **inputs, initial_state=state, dy=dy, dstate=dstate)
    for lengths in PIECES:
        result = run_pieces(
            probe, cut(lengths, x=x, dy=dy, **inputs), state, dstate
        )
        assert_close(to_numpy(result.y)[mask], to_numpy(whole.y)[mask])
        assert_same_state(result.state, whole.state)
        assert_close(result.dx, whole.dx, kind="gradients", name="dx")
        for leaf, gradient in result.dstate.items():
            assert_close(gradient, whole.dstate[leaf], kind="gradients")
        assert_same_gradients(result.dweights, whole.dweights, probe.names)


def test_split_without_a_window():
    """A token that sees itself alone has a ring of one slot."""
    probe = probe_of(LocalMQA(2, 4, window_size=0))
    x = normal((BATCH, 3, WIDTH))
    state = random_state(probe.layer, position=6)
    assert state["keys"].shape[1] == 1
    whole, after = probe.values(x, initial_state=state, return_state=True)
    assert_close(whole, probe.values(x))
    for t in range(3):
        y, state = probe.values(
            x[:, t : t + 1], initial_state=state, return_state=True
        )
        assert_close(y, whole[:, t : t + 1])
    assert_same_state(state, after)


def test_global_attention_is_a_window_over_everything():
    """It equals local attention with a window as long as the row."""
    everything = make_probe("global_mqa")
    window = probe_of(LocalMQA(2, 4, window_size=NUM_REAL))
    x = normal((BATCH, NUM_REAL, WIDTH))
    assert_close(everything.values(x), window.values(x))


def test_size_of_the_state():
    state = make_probe("local_mqa").layer.init_state(2, max_length=1000)
    for name in ("keys", "values"):
        assert to_numpy(state[name]).shape == (2, WINDOW + 1, 4)
    state = make_probe("global_mqa").layer.init_state(2, max_length=1000)
    for name in ("keys", "values"):
        assert to_numpy(state[name]).shape == (2, 1000, 4)


def test_state_does_not_grow():
    probe = make_probe("local_mqa")
    state = fresh_state(probe.layer)
    for time in (5, NUM_REAL):
        after = probe(
            normal((BATCH, time, WIDTH)), initial_state=state, gradients=False
        ).state
        for name, leaf in after.items():
            assert to_numpy(leaf).shape == to_numpy(state[name]).shape


def test_ring_is_filled_in_turn():
    """Token n is in slot n modulo slots."""
    probe = make_probe("local_mqa")
    slots = WINDOW + 1
    x = normal((BATCH, NUM_REAL, WIDTH))
    after = probe(
        x, initial_state=fresh_state(probe.layer), gradients=False
    ).state
    values = x @ to_numpy(probe.layer.value.kernel.value)
    for n in range(NUM_REAL - slots, NUM_REAL):
        assert_close(to_numpy(after["values"])[:, n % slots], values[:, n])
    np.testing.assert_array_equal(to_numpy(after["length"]), NUM_REAL)


def array_sizes(function, *arguments):
    """Elements of every array that a compiled function makes inside."""
    import jax

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            yield from (int(np.prod(v.aval.shape)) for v in equation.outvars)
            for parameter in jax.tree.leaves(
                equation.params, is_leaf=lambda p: hasattr(p, "eqns")
            ):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from visit(inner)

    return list(visit(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.skipif(BACKEND != "jax", reason="reads JAX's program")
@pytest.mark.parametrize("with_state", [False, True])
def test_memory_is_linear_in_time(with_state):
    import jax

    window, time = 64, 4096
    probe = probe_of(LocalMQA(2, 4, window_size=window))
    layer = probe.layer

    def sizes(time):
        x = np.zeros((1, time, WIDTH), "float32")
        inputs = {"padding_mask": np.ones((1, time), bool)}
        if with_state:
            inputs["initial_state"] = layer.init_state(1)

        def total(x):
            return keras.ops.sum(layer(x, **inputs, return_state=False))

        return array_sizes(jax.value_and_grad(total), x)

    short, long = sizes(time), sizes(2 * time)
    assert max(short) < time * time / 10
    # Queries times keys: a block sees the window and itself.
    assert max(short) <= 2 * time * (2 * window) * 2
    assert sum(long) <= 2.01 * sum(short)
    assert max(long) <= 2.01 * max(short)


def test_dtypes_of_the_state():
    layer = LocalMQA(2, 4, window_size=2, dtype="mixed_bfloat16")
    layer.build((None, None, WIDTH))
    floats = [leaf for leaf in layer.init_state(1).values() if is_float(leaf)]
    assert len(floats) == 2
    for leaf in floats:
        assert keras.backend.standardize_dtype(leaf.dtype) == "bfloat16"


def test_window_below_zero():
    with pytest.raises(ValueError, match="`window_size` must be 0 or more"):
        LocalMQA(2, 4, window_size=-1)


@pytest.mark.parametrize("fraction", [-0.5, 1.5])
def test_fraction_outside(fraction):
    with pytest.raises(ValueError, match="`rope_fraction` must lie in"):
        LocalMQA(2, 4, rope_fraction=fraction)


def test_rotated_part_of_odd_width():
    with pytest.raises(ValueError, match="must be even.*head_dim=6"):
        LocalMQA(2, 6, rope_fraction=0.5)


def test_state_of_global_attention_needs_a_length():
    layer = make_probe("global_mqa").layer
    with pytest.raises(ValueError, match="needs to know how many"):
        layer.init_state(2)
    with pytest.raises(ValueError, match="needs to know how many"):
        layer(np.zeros((1, 2, WIDTH), "float32"), return_state=True)
    assert MAX_LENGTH > LONG


def test_pytorch_fills_no_array_for_the_gradient_of_a_slice():
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    from torch.utils._python_dispatch import TorchDispatchMode

    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.append(operation.name())
            return operation(*args, **(kwargs or {}))

    layer = LocalMQA(2, 8)
    y = layer(keras.ops.ones((1, 5, 16)))
    with Record():
        y.sum().backward()
    assert "aten::mm" in names
    assert "aten::slice_backward" not in names
