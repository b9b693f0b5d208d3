"""Whole models as files, run by the runtime of each format."""

import keras
import numpy as np
import pytest

from keras_griffin.kernels import dispatch
from support.checks import assert_close
from support.checks import to_numpy
from support.models import tiny_backbone
from support.models import tiny_model
from support.models import tokens
from support.tolerances import TOLERANCES

BACKEND = keras.config.backend()
FORMATS = {
    "jax": ["tf_saved_model"],
    "tensorflow": ["tf_saved_model", "onnx", "litert"],
    "torch": ["onnx", "torch"],
}
ENDINGS = {
    "tf_saved_model": "",
    "onnx": ".onnx",
    "litert": ".tflite",
    "torch": ".pt2",
}

# What the exporters of the backends say to themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    # Of open rows: 24 rounds take a converter four times as long.
    monkeypatch.setattr(dispatch, "MAX_TIME", 64)


def small_model(**changes):
    types = ("recurrent", "local_attention")
    return tiny_model(num_layers=2, block_types=types, **changes)


def load(path, format):
    """A function of token ids and padding mask, by the format's runtime."""
    return {
        "tf_saved_model": load_saved_model,
        "onnx": load_onnx,
        "litert": load_litert,
        "torch": load_torch,
    }[format](str(path))


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda **inputs: loaded.serve(inputs).numpy()


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda **inputs: session.run(None, inputs)[0]


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)

    def run(**inputs):
        places = {
            name: detail["index"]
            for name, detail in interpreter.get_signature_runner()
            .get_input_details()
            .items()
        }
        for name, value in inputs.items():
            interpreter.resize_tensor_input(places[name], value.shape)
        interpreter.allocate_tensors()
        for name, value in inputs.items():
            interpreter.set_tensor(places[name], value)
        interpreter.invoke()
        (output,) = interpreter.get_output_details()
        return interpreter.get_tensor(output["index"])

    return run


def load_torch(path):
    import torch

    module = torch.export.load(path).module()

    def run(**inputs):
        tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
        return module(tensors).detach().numpy()

    return run


def padded_documents(batch, time):
    """Inputs with pads in the middle of rows, and several documents."""
    rng = np.random.default_rng(time)
    documents = np.sort(rng.integers(1, 4, (batch, time)), axis=1)
    mask = np.where(rng.random((batch, time)) < 0.3, 0, documents)
    return {
        "token_ids": tokens(batch, time).astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


def check_same(run, model, batch, time):
    inputs = padded_documents(batch, time)
    real = inputs["padding_mask"] > 0
    expected = to_numpy(model(inputs))
    assert_close(run(**inputs)[real], expected[real])


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS[BACKEND])
def test_any_size(tmp_path, format):
    model = small_model()
    path = tmp_path / f"model{ENDINGS[format]}"
    model.export(path, format=format, verbose=False)
    run = load(path, format)
    for batch, time in ((2, 21), (1, 1), (3, 60)):
        check_same(run, model, batch, time)
    others = [other.name for other in tmp_path.iterdir() if other != path]
    assert others == []


def fixed(batch, time):
    spec = keras.InputSpec(shape=(batch, time), dtype="int32")
    return [{"token_ids": spec, "padding_mask": spec}]


@pytest.mark.slow
def test_backbone_of_fixed_size(tmp_path, capsys):
    format = FORMATS[BACKEND][-1]
    backbone = tiny_backbone(num_layers=1, block_types=("recurrent",))
    path = tmp_path / f"model{ENDINGS[format]}"
    backbone.export(path, format=format, input_signature=fixed(2, 9))
    assert str(path) in capsys.readouterr().out
    check_same(load(path, format), backbone, 2, 9)


@pytest.mark.slow
def test_int8(tmp_path):
    format = {"tensorflow": "litert", "torch": "onnx"}.get(
        BACKEND, "tf_saved_model"
    )
    model = small_model()
    model.quantize("int8")
    path = tmp_path / f"model{ENDINGS[format]}"
    inputs = padded_documents(2, 9)
    expected = to_numpy(model(inputs))
    signature = fixed(2, 9)
    model.export(path, format=format, input_signature=signature, verbose=False)
    np.testing.assert_array_equal(to_numpy(model(inputs)), expected)
    error = np.abs(load(path, format)(**inputs) - expected)
    largest = np.max(np.abs(expected))
    # A value halfway between two integers may be rounded to either of them;
    # then a token's logits differ by a part of 1/127.
    assert np.median(error) <= TOLERANCES["float32"].values * largest
    assert np.max(error) <= largest / 32


def test_formats_of_other_backends(tmp_path):
    unknown = {*ENDINGS, "openvino"} - {*FORMATS[BACKEND]}
    for format in sorted(unknown):
        with pytest.raises(ValueError, match="Set KERAS_BACKEND"):
            small_model().export(tmp_path / "model", format=format)
    converters = {
        "jax": ("onnx", "jax2onnx 0.17.1"),
        "torch": ("litert", "litert-torch 0.10.0"),
    }
    if BACKEND in converters:
        format, named = converters[BACKEND]
        with pytest.raises(ValueError, match=named):
            small_model().export(tmp_path / "model", format=format)


@pytest.mark.skipif(BACKEND == "jax", reason="writes neither ONNX nor LiteRT")
def test_converters_take_float32(tmp_path):
    with pytest.raises(ValueError, match="in float32 alone"):
        small_model(dtype="bfloat16").export(tmp_path / "model", format="onnx")


def test_input_signature_names_the_inputs(tmp_path):
    for signature in ([], {"ids": keras.InputSpec(shape=(1, 2))}):
        with pytest.raises(ValueError, match="a list with one dict"):
            small_model().export(
                tmp_path / "model",
                format=FORMATS[BACKEND][0],
                input_signature=signature,
            )
