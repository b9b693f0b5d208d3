"""Every weight has its place on a mesh, and what has none is an error."""

import keras
import pytest

import keras_griffin
from keras_griffin.distribution import GriffinParallel
from keras_griffin.distribution import check_layout_map
from keras_griffin.distribution import layout_map
from support.models import PATTERNS
from support.models import tiny_backbone
from support.models import tiny_model

pytestmark = pytest.mark.backend_independent

DEVICES = [f"cpu:{i}" for i in range(8)]  # names: nothing is placed on them

DIVISIBLE = {
    "vocabulary_size": 32,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "recurrent_dim": 32,
    "num_query_heads": 4,
}


def mesh(batch=2, model=4):
    return keras.distribution.DeviceMesh(
        (batch, model), ("batch", "model"), DEVICES[: batch * model]
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_weight_of_every_family_is_mapped(pattern):
    backbone = tiny_backbone(
        block_types=PATTERNS[pattern],
        recurrence="complex" if pattern == "hawk" else "real",
        **DIVISIBLE,
    )
    layouts = backbone.get_layout_map(mesh())
    check_layout_map(layouts, backbone)
    for layer in backbone._flatten_layers():
        if hasattr(layer, "enable_lora") and layer.built:
            if layer is not backbone:
                layer.enable_lora(2)
    check_layout_map(layouts, backbone)
    for weight in backbone.weights:
        assert layouts[weight.path] is not None, weight.path


def test_a_classifiers_head_is_on_every_device():
    model = keras_griffin.GriffinTextClassifier(
        tiny_backbone(**DIVISIBLE), num_classes=3
    )
    layouts = layout_map(mesh())
    check_layout_map(layouts, model)
    assert layouts["logits/kernel"].axes == (None, None)


def test_the_layouts_are_megatrons():
    layouts = layout_map(mesh())
    expected = {
        "token_embedding/embeddings": ("model", "batch"),
        "block_0/recurrent_block/linear_x/kernel": ("batch", "model"),
        "block_0/recurrent_block/conv/kernel": (None, "model"),
        "block_0/recurrent_block/rglru/input_gate/kernel": (
            "model",
            None,
            None,
        ),
        "block_0/recurrent_block/rglru/recurrence_param": ("model",),
        "block_0/recurrent_block/linear_out/kernel": ("model", "batch"),
        "block_2/attention/query/kernel": ("batch", "model"),
        "block_2/attention/key/kernel": ("batch", None),
        "my_model/block_2/mlp/down/kernel": ("model", "batch"),
        "block_2/mlp/down/lora_kernel_a": ("model", None),
        "block_2/mlp/up/lora_kernel_b": (None, "model"),
    }
    assert {path: layouts[path].axes for path in expected} == expected


def test_the_mesh_alone_decides():
    path = "block_0/mlp/up/kernel"
    replicated = layout_map(mesh(), fully_sharded=False)
    assert replicated[path].axes == (None, "model")
    for names, axes in (
        (("batch",), ("batch", None)),
        (("batch", "sequence"), ("batch", None)),
    ):
        shape = (8,) if len(names) == 1 else (2, 4)
        flat = keras.distribution.DeviceMesh(shape, names, DEVICES)
        assert layout_map(flat)[path].axes == axes


@pytest.mark.parametrize("axes", [("data", "model"), ("model", "sequence")])
def test_other_axes_are_refused(axes):
    other = keras.distribution.DeviceMesh((2, 4), axes, DEVICES)
    with pytest.raises(ValueError, match="axes of the mesh must be named"):
        layout_map(other)
    with pytest.raises(ValueError, match="must be a keras.distribution.Device"):
        layout_map(axes)


def test_a_weight_without_a_layout_is_refused():
    backbone = tiny_backbone(num_layers=1, **DIVISIBLE)
    layouts = layout_map(mesh())
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    head.layers[0].name = "head"
    with pytest.raises(ValueError, match="needs a layout. Received: '.*kernel"):
        check_layout_map(layouts, head)
    del layouts[r"(.*/)?(key|value)/kernel"]
    check_layout_map(layouts, backbone)  # all recurrent: it has no such weight
    with pytest.raises(ValueError, match="needs a layout. Received: '.*key"):
        check_layout_map(
            layouts,
            tiny_backbone(
                num_layers=1, block_types=("local_attention",), **DIVISIBLE
            ),
        )


def test_a_pattern_that_matches_nothing_is_refused():
    backbone = tiny_backbone(num_layers=1, **DIVISIBLE)
    layouts = layout_map(mesh())
    layouts["block_0/mlp/upp/kernel"] = ("batch", None)
    with pytest.raises(ValueError, match="must match a weight. .*upp/kernel"):
        check_layout_map(layouts, backbone)
    # As if a layer had been given another name.
    layouts = layout_map(mesh())
    backbone.blocks[0].mlp.down.bias._path = "block_0/mlp/bottom/bias"
    check_layout_map(layouts, backbone)
    backbone.blocks[0].temporal.linear_out.bias._path = "bottom/bias"
    with pytest.raises(ValueError, match="must match a weight. .*down"):
        check_layout_map(layouts, backbone)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocabulary_size": 30}, "token_embedding/.* 'model' of size 4"),
        ({"intermediate_dim": 66}, "mlp/gate/.* 'model' of size 4"),
        ({"hidden_dim": 33}, "token_embedding/.* 'batch' of size 2"),
        ({"num_gate_blocks": 2}, "recurrence_gate/.* 'model' of size 4"),
        (
            {
                "num_query_heads": 2,
                "head_dim": 16,
                "block_types": ("local_attention",),
            },
            "must divide the query heads. Received: num_query_heads=2",
        ),
    ],
)
def test_a_dimension_that_does_not_divide_is_refused(changes, message):
    backbone = tiny_backbone(
        **{**DIVISIBLE, "num_layers": 1, "head_dim": 8, **changes}
    )
    with pytest.raises(ValueError, match=message):
        check_layout_map(layout_map(mesh()), backbone)


class Weight:
    _layout = None  # of a `keras.Variable` without a layout of its own

    def __init__(self, path, *shape):
        self.path, self.shape = path, shape


def test_gates_are_fully_sharded_where_they_divide():
    gate = "block_0/recurrent_block/rglru/input_gate/kernel"

    def axes(distribution, *shape):
        return distribution.get_variable_layout(Weight(gate, *shape)).axes

    both = GriffinParallel(model=4, devices=DEVICES)
    assert axes(both, 4, 6, 6) == ("model", "batch", None)
    assert axes(both, 4, 5, 5) == ("model", None, None)
    flat = GriffinParallel(devices=DEVICES)
    assert axes(flat, 16, 16, 16) == ("model", "batch", None)
    assert axes(flat, 16, 6, 6) == ("batch", None, None)
    assert axes(flat, 4, 6, 6) == ("model", None, None)
    replicated = GriffinParallel(fully_sharded=False, devices=DEVICES)
    assert axes(replicated, 16, 16, 16) == ("model", None, None)


def test_griffin_parallel_names_what_does_not_divide():
    distribution = GriffinParallel(model=8, devices=DEVICES)
    with pytest.raises(ValueError, match="block_0/mlp/up/kernel.* divide 12"):
        distribution.get_variable_layout(
            Weight("block_0/mlp/up/kernel", 16, 12)
        )
    # The optimizer's own variables have no layout, and need none.
    layout = distribution.get_variable_layout(Weight("adamw/iteration"))
    assert layout.axes == ()


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (8, 1, 1)),
        ({"model": 4}, (2, 1, 4)),
        ({"batch": 2, "sequence": 4}, (2, 4, 1)),
    ],
)
def test_the_mesh_of_griffin_parallel(sizes, shape):
    distribution = GriffinParallel(devices=DEVICES, **sizes)
    assert distribution.device_mesh.shape == shape
    layout = distribution.get_data_layout((16, 32))
    assert layout.axes == ("batch", "sequence")
    assert distribution.get_data_layout((16,)).axes == ("batch",)


@pytest.mark.parametrize(
    "sizes", [{"model": 3}, {"batch": 4}, {"model": 0}, {"batch": 16}]
)
def test_sizes_that_are_not_the_devices_are_refused(sizes):
    with pytest.raises(ValueError, match="must be the number of devices"):
        GriffinParallel(devices=DEVICES, **sizes)


def test_compile_checks_the_layout_map(monkeypatch):
    model = tiny_model(num_layers=1, **DIVISIBLE)
    distribution = GriffinParallel(model=4, devices=DEVICES)
    monkeypatch.setattr(
        keras.distribution, "distribution", lambda: distribution
    )
    model.compile()
    distribution.layout_map["no_such_weight"] = (None,)
    with pytest.raises(ValueError, match="must match a weight. .*no_such"):
        model.compile()
