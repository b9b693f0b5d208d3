"""Where the operations are used: compiled, in layers, under transformations.

`linear_scan` and `rg_lru` share their loop and their custom gradient, so each
use is checked on one of them, most on `rg_lru`, which contains the other.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.linear_scan.reference import linear_scan_gradients
from keras_griffin.kernels.linear_scan.reference import linear_scan_reference
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.kernels.rg_lru.reference import rg_lru_gradients
from support.cases import RG_LRU_CASES
from support.cases import SCAN_CASES
from support.checks import assert_close
from support.checks import to_numpy
from support.checks import value_and_grad

BACKEND = keras.config.backend()
# On JAX an eager run compiles many small programs; a compiled one a single one.
COMPILES_FAST = BACKEND == "jax"


def only(backend):
    return pytest.mark.skipif(
        BACKEND != backend, reason=f"a transformation of {backend}"
    )


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def decays(*shape):
    return np.random.default_rng(9).uniform(0.5, 1.0, shape).astype("float32")


def case_named(cases, why):
    return next(case for case in cases if case.why == why)


class RGLRULayer(keras.layers.Layer):
    """The smallest layer that runs `rg_lru`."""

    def build(self, shape):
        width = shape[-1]
        self.kernels = [
            self.add_weight(shape=(1, width, width), name=f"kernel_{i}")
            for i in range(2)
        ]
        self.biases = [
            self.add_weight(
                shape=(1, width), initializer="zeros", name=f"bias_{i}"
            )
            for i in range(2)
        ]
        self.param = self.add_weight(
            shape=(width,), initializer=keras.initializers.Constant(-4.0)
        )

    def call(self, x):
        y, _ = rg_lru(
            x,
            self.kernels[0],
            self.biases[0],
            self.kernels[1],
            self.biases[1],
            self.param,
        )
        return y

    def compute_output_shape(self, shape):
        return shape


def fit_losses(time, **compile_arguments):
    """Losses of three epochs, the last batch smaller than the others."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((time, 6)), RGLRULayer(), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse", **compile_arguments)
    history = model.fit(
        draw(10, 9, 6),
        draw(10, 9, 1, seed=1),
        batch_size=4,
        epochs=3,
        verbose=0,
        shuffle=False,
    )
    return history.history["loss"]


@pytest.mark.parametrize("time", [9, None])
def test_fit(time):
    losses = fit_losses(time)
    assert np.all(np.diff(losses) < 0)


@only("tensorflow")
def test_fit_compiled_and_not_compiled_agree():
    np.testing.assert_allclose(
        fit_losses(None, jit_compile=True),
        fit_losses(None, jit_compile=False),
        rtol=1e-4,
    )


def test_remat_scope():
    x, dy = draw(2, 9, 6), draw(2, 9, 6, seed=1)
    results = []
    for mode in (None, "full"):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode=mode):
            layer = RGLRULayer()
        layer.build(x.shape)
        results.append(
            value_and_grad(layer, x, cotangents=[dy], compiled=COMPILES_FAST)
        )
    (value, gradient), (remat_value, remat_gradient) = results
    np.testing.assert_allclose(remat_value[0], value[0], rtol=1e-6)
    assert_close(remat_gradient[0], gradient[0], kind="gradients")


def gradients_of_rg_lru(case, run):
    """Gradients of `y` alone from `run(function, arrays, dy)`, and the exact.

    `final_state` is not used, so that its gradient is missing too.
    """
    inputs, dy, _ = case.make()
    masks = {
        name: inputs.pop(name)
        for name in ("reset", "padding_mask")
        if name in inputs
    }
    # torch.compile takes tensors only.
    mask_tensors = {
        name: ops.convert_to_tensor(mask) for name, mask in masks.items()
    }

    def function(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return rg_lru(**named, **mask_tensors)[0]

    exact = {name: value.astype("float64") for name, value in inputs.items()}
    d_final = np.zeros(inputs["initial_state"].shape)
    expected = rg_lru_gradients({**exact, **masks}, dy, d_final)
    gradients = run(function, list(inputs.values()), dy)
    return zip(
        inputs, gradients, (expected[name] for name in inputs), strict=True
    )


# torch.compile itself does what this warning of PyTorch 2.13 is about.
ignore_dynamo_warning = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)


@ignore_dynamo_warning
def test_compiled():
    def run(function, arrays, dy):
        return value_and_grad(
            function, *arrays, cotangents=[dy], compiled=True
        )[1]

    case = case_named(RG_LRU_CASES, "complex resets and padding")
    for name, actual, expected in gradients_of_rg_lru(case, run):
        assert_close(actual, expected, kind="gradients", name=name)


@pytest.mark.parametrize("time", [0, 1, 2, 65])
@pytest.mark.parametrize("jit_compile", [False, True])
@only("tensorflow")
def test_unknown_batch_and_time(time, jit_compile):
    import tensorflow as tf

    unknown = tf.TensorSpec((None, None, 4))

    @tf.function(input_signature=[unknown, unknown], jit_compile=jit_compile)
    def run(x, a):
        with tf.GradientTape() as tape:
            tape.watch((x, a))
            y, final_state = linear_scan(x, a, reverse=True)
            loss = tf.reduce_sum(y * y) + tf.reduce_sum(final_state)
        assert y.shape.as_list() == [None, None, 4]
        return y, tape.gradient(loss, (x, a))

    x, a = draw(3, time, 4), decays(3, time, 4)
    y, (dx, da) = run(x, a)
    exact_y, _ = linear_scan_reference(x, a, None, True)
    exact_dx, exact_da, _ = linear_scan_gradients(
        x, a, None, 2.0 * exact_y, np.ones((3, 4)), True
    )
    assert_close(y, exact_y)
    assert_close(dx, exact_dx, kind="gradients")
    assert_close(da, exact_da, kind="gradients")


@only("tensorflow")
def test_second_derivative_is_refused():
    import tensorflow as tf

    x, a = tf.constant(draw(1, 3, 2)), tf.constant(decays(1, 3, 2))
    with tf.GradientTape() as outer:
        outer.watch(a)
        with tf.GradientTape() as inner:
            inner.watch(a)
            loss = tf.reduce_sum(linear_scan(x, a)[0])
        first = inner.gradient(loss, a)
    with pytest.raises(NotImplementedError, match="first derivative only"):
        outer.gradient(first, a)


def second_derivative_by_differences(x, a, direction):
    """Derivative of `sum(direction * d(sum y^2)/da)` with respect to `a`."""

    def first(a):
        y, _ = linear_scan_reference(x, a)
        _, da, _ = linear_scan_gradients(
            x, a, None, 2.0 * y, np.zeros((x.shape[0], x.shape[2]))
        )
        return np.sum(direction * da)

    result = np.zeros(a.shape)
    for index in np.ndindex(*a.shape):
        step = np.zeros(a.shape)
        step[index] = 1e-5
        result[index] = (first(a + step) - first(a - step)) / 2e-5
    return result


@pytest.mark.skipif(BACKEND == "tensorflow", reason="refused there, see above")
def test_second_derivative():
    x, a, direction = draw(1, 5, 2), decays(1, 5, 2), draw(1, 5, 2, seed=1)
    expected = second_derivative_by_differences(
        *(z.astype("float64") for z in (x, a, direction))
    )
    if BACKEND == "jax":
        import jax

        def loss(a):
            return ops.sum(linear_scan(x, a)[0] ** 2)

        actual = jax.grad(lambda a: ops.sum(direction * jax.grad(loss)(a)))(a)
    else:
        import torch

        a = torch.tensor(a, requires_grad=True)
        loss = (linear_scan(torch.tensor(x), a)[0] ** 2).sum()
        (first,) = torch.autograd.grad(loss, a, create_graph=True)
        (actual,) = torch.autograd.grad(
            (torch.tensor(direction) * first).sum(), a
        )
    assert_close(actual, expected, kind="gradients")


@only("jax")
def test_vmap_and_scan():
    import jax

    x, a = draw(3, 2, 7, 4), decays(3, 2, 7, 4)

    def loss(x, a):
        return ops.sum(linear_scan(x, a)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))
    expected = [gradient(x[i], a[i]) for i in range(3)]
    mapped = jax.jit(jax.vmap(gradient))(x, a)
    _, scanned = jax.lax.scan(
        lambda carry, xa: (carry, gradient(*xa)), 0, (x, a)
    )
    for i in range(3):
        assert_close(mapped[i], expected[i], kind="gradients")
        assert_close(scanned[i], expected[i], kind="gradients")


@only("jax")
def test_shard_map():
    import jax
    from jax.sharding import PartitionSpec

    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1), ("batch", "model")
    )
    spec = PartitionSpec("batch", None, "model")
    x, a = draw(2, 5, 4), decays(2, 5, 4)

    def loss(run):
        return jax.grad(lambda x, a: ops.sum(run(x, a) ** 2), argnums=(0, 1))

    def run(x, a):
        return linear_scan(x, a)[0]

    # It checks that the loop's state varies over the mesh as its inputs do.
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    for actual, expected in zip(
        jax.jit(loss(sharded))(x, a), jax.jit(loss(run))(x, a), strict=True
    ):
        assert_close(actual, expected, kind="gradients")


@only("jax")
@pytest.mark.parametrize(
    # The kernels are in it for "auto": of 512 steps at most in a grid step.
    "implementation, short, long",
    [("ops", 4, 4000), ("auto", 512, 4096)],
)
def test_program_does_not_grow_with_time(implementation, short, long):
    import jax

    def size(time):
        x, a = draw(1, time, 2), decays(1, time, 2)
        loss = jax.grad(
            lambda x, a: ops.sum(
                linear_scan(x, a, implementation=implementation)[0]
            )
        )
        return len(str(jax.make_jaxpr(loss)(x, a)).splitlines())

    assert size(long) == size(short)


@only("torch")
@ignore_dynamo_warning
def test_compiled_graph_does_not_grow_with_time():
    import torch

    sizes = []

    def count(graph, inputs):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    for time in (4, 400):
        torch.compiler.reset()
        run = torch.compile(linear_scan, backend=count, fullgraph=True)
        x, a = (torch.tensor(z(1, time, 2)) for z in (draw, decays))
        y, _ = run(x, a)
        exact, _ = linear_scan_reference(x.numpy(), a.numpy())
        assert_close(y, exact)
    assert sizes[0] == sizes[1]


def test_padded_positions_may_hold_anything():
    case = case_named(RG_LRU_CASES, "resets and padding")
    inputs, dy, d_final = case.make()
    mask, reset = inputs.pop("padding_mask"), inputs.pop("reset")
    names = list(inputs)

    def run(x):
        inputs["x"] = x
        return value_and_grad(
            lambda *tensors: rg_lru(
                **dict(zip(names, tensors, strict=True)),
                reset=reset,
                padding_mask=mask,
            ),
            *inputs.values(),
            cotangents=[dy, d_final],
            compiled=COMPILES_FAST,
        )

    values, gradients = run(inputs["x"])
    others = run(np.where(mask[..., None], inputs["x"], np.nan))
    for ours, theirs in zip(
        values + gradients, others[0] + others[1], strict=True
    ):
        np.testing.assert_array_equal(theirs, ours)
    assert not np.any(gradients[0][~mask])


@pytest.mark.parametrize("split", [1, 4, 6])
def test_state_hands_over(split):
    x, a, h = draw(2, 7, 3), decays(2, 7, 3), draw(2, 3, seed=1)

    def in_two(x, a, h):
        y1, h = linear_scan(x[:, :split], a[:, :split], h)
        y2, h = linear_scan(x[:, split:], a[:, split:], h)
        return ops.concatenate([y1, y2], axis=1), h

    weights = [draw(2, 7, 3, seed=2), draw(2, 3, seed=3)]
    exact = [z.astype("float64") for z in (x, a, h)]
    values, gradients = value_and_grad(
        in_two, x, a, h, cotangents=weights, compiled=COMPILES_FAST
    )
    expected = linear_scan_reference(*exact)
    for value, exact_value in zip(values, expected, strict=True):
        assert_close(value, exact_value)
    expected = linear_scan_gradients(*exact, *weights)
    for gradient, exact_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient, exact_gradient, kind="gradients")


def test_dtypes():
    case = case_named(SCAN_CASES, "bfloat16")
    x, a, h, _, _ = case.make()
    y, final_state = linear_scan(x[0], a[0].astype("float32"), h[0])
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(final_state.dtype) == "float32"
    # The state is what was computed, not `y` after rounding.
    assert np.any(to_numpy(final_state) != to_numpy(y)[:, -1])
