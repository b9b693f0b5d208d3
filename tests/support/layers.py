"""Layers as pure functions on any backend, and the rows that tests feed them.

Eager JAX compiles every operation for every shape, which takes minutes; here
a layer is one compiled function of its weights and inputs, values and
gradients together, and the tests use few shapes.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from keras_griffin.layers import RGLRU
from keras_griffin.layers import CausalConv1D
from keras_griffin.layers import GatedMLP
from keras_griffin.layers import LocalMQA
from keras_griffin.layers import RecurrentBlock
from keras_griffin.layers import ResidualBlock
from support.checks import assert_close
from support.checks import to_numpy
from support.layer_gradients import BACKEND
from support.layer_gradients import compiled
from support.layer_gradients import outputs_and_gradients
from support.tolerances import TOLERANCES

WIDTH = 8
BATCH = 3
CONV_SIZE = 4
WINDOW = 4
# Slots of global attention: tokens that a row may have in all.
MAX_LENGTH = 100


def _recurrent(**kwargs):
    return RecurrentBlock(12, num_gate_blocks=2, conv_kernel_size=3, **kwargs)


def _local(**kwargs):
    return LocalMQA(2, 4, window_size=WINDOW, **kwargs)


def _global(**kwargs):
    return LocalMQA(2, 4, window_size=None, **kwargs)


def _residual(temporal, **kwargs):
    dtype = kwargs.get("dtype")
    return ResidualBlock(
        temporal(name="temporal", dtype=dtype),
        GatedMLP(12, name="mlp", dtype=dtype),
        **kwargs,
    )


# Every temporal layer, as small as it can be without being special. Called
# with keyword arguments of `keras.layers.Layer`, such as `dtype`.
TEMPORAL_LAYERS = {
    "conv": functools.partial(CausalConv1D, CONV_SIZE),
    "rglru": functools.partial(RGLRU, WIDTH, num_gate_blocks=2),
    "rglru_complex": functools.partial(
        RGLRU, WIDTH, num_gate_blocks=2, recurrence="complex"
    ),
    "recurrent_block": _recurrent,
    "local_mqa": _local,
    "global_mqa": _global,
    "residual_recurrent": functools.partial(_residual, _recurrent),
    "residual_local": functools.partial(_residual, _local),
    "residual_global": functools.partial(_residual, _global),
}


@functools.cache
def make_probe(name):
    """The `Probe` of a float32 layer, compiled once for all tests."""
    return probe_of(TEMPORAL_LAYERS[name]())


def probe_of(layer, width=WIDTH):
    """The `Probe` of a new layer, built with random weights."""
    layer.build((None, None, width))
    randomize(layer)
    return Probe(layer)


def randomize(layer, seed=0):
    """Gives every weight random values; zeros would hide mistakes."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        shape, name = tuple(weight.shape), weight.name
        if not keras.backend.is_float_dtype(weight.dtype):
            continue  # a seed
        if name == "recurrence_param":
            value = rng.uniform(-7.0, -1.0, shape)
        elif name == "phase_param":
            value = rng.uniform(0.0, 2.0, shape)
        elif name in ("bias", "scale"):
            value = 0.3 * rng.normal(size=shape)
        else:
            value = rng.normal(size=shape) / np.sqrt(shape[-2])
        weight.assign(value.astype("float32"))


@dataclasses.dataclass
class Result:
    """What a layer returned, and the gradients, as the backend's tensors."""

    y: object
    state: dict | None
    dx: object = None
    dstate: dict | None = None
    dweights: list | None = None


class Probe:
    """A layer as one compiled function: values and gradients.

    ```
    probe = Probe(layer)
    result = probe(x, padding_mask=mask, initial_state=state, dy=dy)
    result.y, result.dx, result.dweights
    ```
    """

    def __init__(self, layer):
        self.layer = layer
        # As in "linear_x/kernel".
        self.names = [
            weight.path.removeprefix(f"{layer.name}/")
            for weight in layer.trainable_weights
        ]
        self._run = outputs_and_gradients(self._forward)
        self._values = compiled(self._forward, static_argnums=3)

    def __call__(
        self,
        x,
        dy=None,
        dstate=None,
        return_state=True,
        gradients=True,
        **inputs,
    ):
        """Runs the layer.

        Args:
            x: array.
            dy, dstate: cotangents of the outputs `y` and `state`, the latter
                of its float leaves only. Defaults to random ones.
            return_state: bool.
            gradients: bool. Whether they are needed.
            **inputs: arguments of the layer's call.

        Returns:
            `Result`.
        """
        if dy is None:
            dy = normal(x.shape, seed=1)
        cotangents = {"y": dy}
        if return_state:
            if dstate is None:
                state = inputs.get("initial_state")
                if state is None:
                    state = self.layer.init_state(x.shape[0])
                dstate = random_cotangents(state)
            cotangents["state"] = dstate
        weights, floats, others = self._tensors(x, inputs)
        cotangents = keras.tree.map_structure(ops.convert_to_tensor, cotangents)
        # Else with gradients all the same: to compile one program, not two.
        if not gradients and BACKEND == "torch":
            outputs = self._forward(weights, floats, others, return_state)
            return Result(outputs["y"], outputs.get("state"))
        outputs, (dweights, dfloats) = self._run(
            weights, floats, others, cotangents, return_state
        )
        return Result(
            y=outputs["y"],
            state=outputs.get("state"),
            dx=dfloats["x"],
            dstate=dfloats.get("initial_state"),
            dweights=dweights,
        )

    def values(self, x, return_state=False, **inputs):
        """The outputs of the layer's call, compiled without gradients."""
        outputs = self._values(*self._tensors(x, inputs), return_state)
        if not return_state:
            return to_numpy(outputs["y"])
        return to_numpy(outputs["y"]), outputs["state"]

    def _tensors(self, x, inputs):
        floats = {"x": ops.convert_to_tensor(x)}
        others = {}
        for name, value in inputs.items():
            if name == "initial_state":
                floats[name], others[name] = partition(value)
            elif value is not None:
                others[name] = ops.convert_to_tensor(value)
        weights = [
            ops.convert_to_tensor(weight.value)
            for weight in self.layer.trainable_weights
        ]
        return weights, floats, others

    def _forward(self, weights, floats, others, return_state):
        inputs = {**floats, **others}
        if "initial_state" in floats:
            inputs["initial_state"] = {
                **floats["initial_state"],
                **others["initial_state"],
            }
        mapping = zip(self.layer.trainable_weights, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            if not return_state:
                return {"y": self.layer(inputs.pop("x"), **inputs)}
            y, state = self.layer(inputs.pop("x"), return_state=True, **inputs)
            return {"y": y, "state": state}


def is_float(array):
    return keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(array.dtype)
    )


def partition(state):
    """The float leaves of a state, and the others."""
    tensors = {k: ops.convert_to_tensor(v) for k, v in state.items()}
    floats = {k: v for k, v in tensors.items() if is_float(v)}
    return floats, {k: v for k, v in tensors.items() if k not in floats}


def normal(shape, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=shape)).astype("float32")


def random_cotangents(state, seed=2):
    return {
        name: normal(leaf.shape, seed)
        for name, leaf in sorted(state.items())
        if is_float(leaf)
    }


def random_state(layer, batch=BATCH, position=0, seed=3):
    """A state as if rows had seen many tokens, `position` of the document.

    Its float leaves are random. `position` 0: the next token starts one.
    """
    state = {
        name: np.array(to_numpy(leaf))
        for name, leaf in layer.init_state(batch, max_length=MAX_LENGTH).items()
    }
    for name, leaf in state.items():
        if is_float(leaf):
            state[name] = normal(leaf.shape, seed)
    state["position"] += position
    state["length"] += position
    state["segment_id"] += 1
    return state


def fresh_state(layer, batch=BATCH):
    return layer.init_state(batch, max_length=MAX_LENGTH)


@dataclasses.dataclass
class Rows:
    """Rows whose pads hold garbage, and the same rows without pads."""

    x: np.ndarray
    mask: np.ndarray
    documents: np.ndarray  # numbers, 0 at pads
    real_x: np.ndarray
    real_documents: np.ndarray

    @property
    def inputs(self):
        return {"padding_mask": np.where(self.mask, self.documents, 0)}

    def take_real(self, values):
        """`(rows, time, ...)` without its pads."""
        values = to_numpy(values)
        return values[self.mask].reshape(
            self.real_x.shape[:2] + values.shape[2:]
        )

    def spread(self, values, pads=0.0):
        """The inverse of `take_real`, with `pads` at pads."""
        shape = self.mask.shape + values.shape[2:]
        spread = np.full(shape, pads, values.dtype)
        spread[self.mask] = values.reshape((-1,) + values.shape[2:])
        return spread


# "#" is a token, "-" a pad; all rows of a set have as many tokens.
PADS = {
    "left_interior_right": (
        "-----###########",
        "##--##-###-####-",
        "###########-----",
    ),
    "scattered": (
        "#-#-#-#-#-######",
        "---######--#####",
        "-##########---#-",
    ),
}
TIME, NUM_REAL = 16, 11
# Documents of each row, shorter and longer than convolution and window. A
# number may come back: it is a change of number that starts a document.
DOCUMENTS = ((3, 5, 2, 1), (1, 1, 4, 5), (4, 3, 3, 1))
NUMBERS = (1, 7, 1, 2)
# Pads hold values large enough to be seen wherever they leak.
GARBAGE = 1000.0


def make_rows(pads, documents=DOCUMENTS, seed=0):
    """`Rows` with the pads of `PADS[pads]`, random tokens and documents."""
    mask = np.array([[c == "#" for c in row] for row in PADS[pads]])
    real_x = normal((BATCH, NUM_REAL, WIDTH), seed)
    real_documents = np.stack(
        [np.repeat(NUMBERS[: len(row)], row) for row in documents]
    ).astype("int32")
    rows = Rows(None, mask, None, real_x, real_documents)
    rows.documents = rows.spread(real_documents, 0)
    rows.x = np.where(
        mask[..., None],
        rows.spread(real_x),
        normal((BATCH, TIME, WIDTH), seed + 2, GARBAGE),
    )
    return rows


ONE_DOCUMENT = ((NUM_REAL,),) * BATCH


def run_pieces(probe, pieces, state, dstate):
    """Runs pieces of rows one after another, the state handed on.

    Args:
        probe: `Probe`.
        pieces: list of dicts, each the arguments of `probe` with `x`, `dy`.
        state: the first piece's `initial_state`.
        dstate: cotangents of the last piece's state.

    Returns:
        `Result` as of one call with all pieces.
    """
    states, results = [state], []
    for piece in pieces:
        result = probe(**piece, initial_state=states[-1], gradients=False)
        states.append(result.state)
    # The chain rule: each piece hands the gradient of its first state to the
    # piece before it.
    for piece, state in zip(pieces[::-1], states[-2::-1], strict=True):
        result = probe(**piece, initial_state=state, dstate=dstate)
        results.insert(0, result)
        dstate = result.dstate
    return Result(
        y=np.concatenate([to_numpy(r.y) for r in results], axis=1),
        state=states[-1],
        dx=np.concatenate([to_numpy(r.dx) for r in results], axis=1),
        dstate=dstate,
        dweights=[
            sum(to_numpy(part) for part in parts)
            for parts in zip(*(r.dweights for r in results), strict=True)
        ],
    )


def cut(lengths, **arrays):
    """Pieces of `(batch, time, ...)` arrays, `lengths` long, as dicts."""
    ends = np.cumsum(lengths)
    return [
        {name: array[:, end - n : end] for name, array in arrays.items()}
        for n, end in zip(lengths, ends, strict=True)
    ]


def assert_same_state(actual, expected, rows=slice(None)):
    """Integers are equal, floats close; `rows` of `expected` are compared."""
    assert sorted(actual) == sorted(expected)
    for name, leaf in actual.items():
        leaf, other = to_numpy(leaf), to_numpy(expected[name])[rows]
        if is_float(leaf):
            assert_close(leaf, other, name=f"state {name}")
        else:
            np.testing.assert_array_equal(leaf, other, err_msg=name)


def assert_same_intermediates(actual, expected):
    keys = ["decay", "input_gate", "recurrence_gate", "state"]
    assert sorted(actual) == sorted(expected) == keys
    for key in keys:
        assert actual[key].shape == expected[key].shape, key
        assert_close(actual[key], expected[key], name=key)


def assert_same_gradients(actual, expected, names):
    for name, one, other in zip(names, actual, expected, strict=True):
        assert_close(one, other, kind="gradients", name=f"d {name}")


def assert_equals_reference(probe, reference, x):
    """Compares a layer, and its gradients, with NumPy in float64.

    Args:
        probe: `Probe` of the layer.
        reference: callable `(weights, x)` to `y`, `weights` a dict by the
            names in `probe.names`.
        x: array.
    """
    dy = normal(np.shape(reference(weights64(probe), x)), seed=1)
    result = probe(x, return_state=False, dy=dy)
    point = {**weights64(probe), "x": x.astype("float64")}

    def loss(point):
        return np.sum(reference(point, point["x"]) * dy)

    assert_close(result.y, reference(point, point["x"]), name="y")
    gradients = dict(zip(probe.names, result.dweights, strict=True))
    gradients["x"] = result.dx
    rng = np.random.default_rng(9)
    for name, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        gradient = to_numpy(gradient).astype("float64")
        step = 1e-5 * direction
        slope = loss({**point, name: point[name] + step})
        slope = (slope - loss({**point, name: point[name] - step})) / 2e-5
        # The error of a sum is relative to its terms.
        scale = np.sum(np.abs(gradient * direction))
        error = np.abs(np.sum(gradient * direction) - slope)
        allowed = TOLERANCES["float32"].gradients
        assert error <= allowed * scale, (name, error, scale)


def weights64(probe):
    """The weights in float64, by the names in `probe.names`."""
    return {
        name: to_numpy(weight.value).astype("float64")
        for name, weight in zip(
            probe.names, probe.layer.trainable_weights, strict=True
        )
    }
