"""TensorFlow's caller of the Triton kernels, without a GPU."""

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.layers import RGLRU
from support import processes

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="about TensorFlow"
)
X = np.ones((2, 7, 32), "float32")
KERNEL, BIAS = np.ones((2, 16, 16), "float32"), np.ones((2, 16), "float32")


def unit(x, kernel, bias):
    gates = (kernel, bias) * 2
    param = keras.ops.reshape(bias, (-1,))
    return rg_lru(x, *gates, param, implementation="triton_gpu")


def scan(x, kernel, bias):
    return linear_scan(x, 0.5 * x, implementation="triton_gpu")


@pytest.fixture
def absent_gpu(monkeypatch):
    """Programs are traced as for an H100."""
    from keras_griffin.kernels import triton_tensorflow

    monkeypatch.setattr(triton_tensorflow, "capability", lambda: (9, 0))


@pytest.mark.slow
def test_values_and_gradients():
    """By an interpreter, in a process of its own; see the script."""
    processes.run("support/run_triton_on_tensorflow.py", backend="tensorflow")


@pytest.mark.parametrize("operation", [unit, scan])
def test_the_program_holds_the_calls(operation, absent_gpu):
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def gradient(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y, last = operation(*arguments)
            loss = tf.reduce_sum(y) + tf.reduce_sum(last)
        return tape.gradient(loss, arguments)

    arrays = map(tf.constant, (X, KERNEL, BIAS))
    program = gradient.experimental_get_compiler_ir(*arrays)
    text = program(stage="hlo", platform_name="GPU")
    name = 'custom_call_target="__gpu$xla.gpu.ptx"'
    calls = [line for line in text.splitlines() if name in line]
    assert len(calls) == 2
    forward = min(calls, key=len)
    assert "(f32[2,7,32]{2,1,0}, f32[2,32]{1,0}) custom-call(" in forward
    assert forward.split(", custom_call_target")[0].count("u8[16]") == 2
    if operation is unit:
        assert "output_indices = [7 : i32, 8 : i32]" in forward
        assert "grid_x = 4 : i32" in forward


def test_a_training_step_holds_the_calls(absent_gpu):
    """Of batches of one size: those of another have no program."""
    import tensorflow as tf

    layer = RGLRU(32, num_gate_blocks=2, implementation="triton_gpu")
    model = keras.Sequential([layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=True)
    model.build((None, 7, 32))
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    x, y = (tf.TensorSpec((2, 7, width), "float32") for width in (32, 1))
    graph = step.get_concrete_function((x, y)).graph.as_graph_def()
    nodes = [n for f in graph.library.function for n in f.node_def]
    assert [n.op for n in nodes].count("XlaCustomCallV2") == 2
    x, y = (tf.TensorSpec((None, 7, width), "float32") for width in (32, 1))
    with pytest.raises(NotImplementedError, match="known.*drop_remainder"):
        step.get_concrete_function((x, y))


@pytest.mark.parametrize("operation", [unit, scan])
def test_it_needs_a_gpu(operation):
    with pytest.raises(NotImplementedError, match="an NVIDIA GPU.*None"):
        operation(X, KERNEL, BIAS)


@pytest.mark.parametrize("operation", [unit, scan])
def test_one_step_is_plain_operations(operation):
    y, _ = operation(X[:, :1], KERNEL, BIAS)
    assert y.shape == (2, 1, 32)


def test_capability_is_that_of_the_first_gpu(monkeypatch):
    import tensorflow as tf

    from keras_griffin.kernels import triton_tensorflow

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda device: {"compute_capability": (7, 5)},
    )
    assert triton_tensorflow.capability() == (7, 5)
    with pytest.raises(NotImplementedError, match=r"Ampere.*\(7, 5\)"):
        scan(X, KERNEL, BIAS)
