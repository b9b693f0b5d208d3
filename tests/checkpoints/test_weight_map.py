import types
import weakref

import keras
import numpy as np
import pytest

from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.weight_map import LAYOUTS
from keras_griffin.checkpoints.weight_map import Weight
from keras_griffin.checkpoints.weight_map import WeightMap

OUR_SHAPES = {
    "same": (2, 3),
    "transposed": (2, 3),
    "depthwise": (4, 3),
    "row": (3,),
}
THEIR_SHAPES = {
    "same": (2, 3),
    "transposed": (3, 2),
    "depthwise": (3, 1, 4),
    "row": (1, 1, 3),
}
TABLE = [
    Weight("kernel", "linear", "transposed"),
    Weight("gate", "both", "row", part=0),
    Weight("up", "both", "row", part=1),
]


def make_model(dtype="float32"):
    def variable(*shape):
        return keras.Variable(np.zeros(shape), dtype=dtype)

    return types.SimpleNamespace(
        kernel=variable(2, 3), gate=variable(5), up=variable(5)
    )


def make_tensors():
    return {
        "linear": np.arange(6.0).reshape(3, 2).astype("float16"),
        "both": np.arange(10.0).reshape(2, 1, 1, 5).astype("float16"),
    }


def load(model, tensors):
    weight_map.load(
        TABLE,
        model,
        shapes={name: x.shape for name, x in tensors.items()},
        read=tensors.__getitem__,
        origin="memory",
    )


@pytest.mark.backend_independent
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_and_its_inverse(layout):
    ours = np.arange(np.prod(OUR_SHAPES[layout])).reshape(OUR_SHAPES[layout])
    theirs = LAYOUTS[layout].to_theirs(ours)
    assert theirs.shape == THEIR_SHAPES[layout]
    np.testing.assert_array_equal(LAYOUTS[layout].to_ours(theirs), ours)


def test_load_and_export_are_inverse():
    model = make_model()
    load(model, make_tensors())
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.kernel.value), [[0, 2, 4], [1, 3, 5]]
    )
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.up.value), [5, 6, 7, 8, 9]
    )
    exported = dict(weight_map.export(TABLE, model))
    assert list(exported) == ["linear", "both"]
    for name, tensor in make_tensors().items():
        assert exported[name].dtype == "float32"
        np.testing.assert_array_equal(exported[name], tensor)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_load_casts_to_the_variable(dtype):
    model = make_model(dtype)
    load(model, {k: x.astype("float32") for k, x in make_tensors().items()})
    assert model.up.dtype == dtype
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.up.value).astype("float32"),
        [5, 6, 7, 8, 9],
    )


def test_load_holds_one_tensor_at_a_time():
    tensors, alive = make_tensors(), []

    def read(name):
        assert not any(reference() is not None for reference in alive)
        tensor = tensors[name].copy()
        alive.append(weakref.ref(tensor))
        return tensor

    shapes = {name: x.shape for name, x in tensors.items()}
    weight_map.load(TABLE, make_model(), shapes, read, "memory")
    assert len(alive) == len(TABLE)


def test_a_part_does_not_keep_the_others():
    tensors, alive = make_tensors(), []

    def read(name):
        tensor = tensors[name].astype("float32")  # as the variables
        alive.append(weakref.ref(tensor))
        return tensor

    model = make_model()
    shapes = {name: x.shape for name, x in tensors.items()}
    weight_map.load(TABLE[1:], model, {"both": shapes["both"]}, read, "memory")
    assert model.gate.shape == (5,)
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.backend_independent
def test_missing_tensor():
    tensors = make_tensors()
    del tensors["linear"]
    with pytest.raises(ValueError, match="every weight.*without linear"):
        load(make_model(), tensors)


@pytest.mark.backend_independent
def test_unknown_tensor():
    tensors = {**make_tensors(), "extra": np.zeros(1)}
    with pytest.raises(ValueError, match="nothing but.*with extra besides"):
        load(make_model(), tensors)


@pytest.mark.backend_independent
def test_wrong_shape_of_a_part():
    tensors = {**make_tensors(), "both": np.zeros((3, 1, 1, 5))}
    match = r"both \(3, 1, 1, 5\) instead of \(2, 1, 1, 5\)"
    with pytest.raises(ValueError, match=match):
        load(make_model(), tensors)


def test_nothing_is_assigned_when_a_shape_is_wrong():
    model = make_model()
    tensors = {**make_tensors(), "both": np.zeros((2, 1, 1, 6))}
    with pytest.raises(ValueError, match="shapes of the backbone"):
        load(model, tensors)
    assert not keras.ops.convert_to_numpy(model.kernel.value).any()


@pytest.mark.backend_independent
def test_long_lists_of_names_are_cut():
    tensors = {**make_tensors(), **{f"x{i}": np.zeros(1) for i in range(9)}}
    with pytest.raises(ValueError, match="x0, x1, x2, x3, x4 and 4 more"):
        load(make_model(), tensors)


@pytest.mark.backend_independent
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(value):
    tensors = make_tensors()
    tensors["both"][1, 0, 0, 2] = value
    with pytest.raises(ValueError, match="both with 1 of 5 that are NaN"):
        load(make_model(), tensors)


def test_numbers_that_overflow_the_variable():
    tensors = {k: x.astype("float32") for k, x in make_tensors().items()}
    tensors["linear"][0, 0] = 1e5  # the largest float16 is 65504
    with pytest.raises(ValueError, match="finite numbers in float16"):
        load(make_model("float16"), tensors)


@pytest.mark.backend_independent
def test_complex_recurrence_needs_rows_for_it():
    real_only = WeightMap("This format", (), (), (), ())
    backbone = types.SimpleNamespace(recurrence="complex")
    with pytest.raises(ValueError, match="This format can only hold"):
        weight_map.rows(real_only, backbone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_without_values_is_filled(dtype):
    def build():
        inputs = keras.Input((3,))
        x = keras.layers.Dense(4, name="dense", dtype=dtype)(inputs)
        return keras.Model(inputs, keras.layers.Dropout(0.5)(x))

    model = weight_map.build_empty(build)
    assert all(variable._value is None for variable in model.variables)
    # Other models are not touched, and do not touch this one.
    other = keras.layers.Dense(2)
    other.build((None, 2))
    assert all(variable._value is None for variable in model.variables)
    table = [
        Weight("kernel", "w", "transposed"),
        Weight("bias", "b"),
    ]
    tensors = {"w": np.arange(12.0).reshape(4, 3), "b": np.ones(4)}
    dense = model.get_layer("dense")
    shapes = {name: x.shape for name, x in tensors.items()}
    weight_map.load(table, dense, shapes, tensors.__getitem__, "memory")
    weight_map.fill_rest(model)
    kernel = keras.ops.convert_to_numpy(dense.kernel.value)
    np.testing.assert_array_equal(kernel.astype("float32"), tensors["w"].T)
    model.compile(optimizer="sgd", loss="mse")
    model.fit(np.ones((4, 3)), np.zeros((4, 4)), verbose=0)
    after = keras.ops.convert_to_numpy(dense.kernel.value)
    assert (after.astype("float32") != tensors["w"].T).any()


@pytest.mark.backend_independent
def test_progress_is_shown_of_what_takes_long(monkeypatch, capsys):
    load(make_model(), make_tensors())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(weight_map, "PROGRESS_DELAY", 0)
    load(make_model(), make_tensors())
    shown = capsys.readouterr().err
    assert "Loading weights: 100%" in shown
    assert "64.0/64.0" in shown  # 16 float32 in bytes
    dict(weight_map.export(TABLE, make_model()))
    assert "Writing weights: 100%" in capsys.readouterr().err


def test_quantized_weights_are_not_exported():
    model = make_model()
    model.up = keras.Variable(np.zeros(5), dtype="int8", trainable=False)
    with pytest.raises(ValueError, match="floating-point.*up in int8"):
        dict(weight_map.export(TABLE, model))
