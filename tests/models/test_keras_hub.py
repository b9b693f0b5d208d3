"""KerasHub's own checks, and what its users do with a functional model."""

import keras
import numpy as np
import pytest

import keras_griffin
from support.checks import to_numpy
from support.conversations import vocabulary
from support.keras_hub_checks import keras_hub_checks
from support.models import TINY
from support.models import run
from support.models import tiny_backbone
from support.models import tokens

WIDTH = TINY["hidden_dim"]
TIME = 7
TEXTS = ["Who is there?", "It is the king."]


def inputs(time=TIME):
    """Packed rows, one with pads."""
    padding_mask = np.array([[1, 1, 1, 2, 2, 3, 3], [0, 1, 1, 0, 1, 1, 0]])
    return {
        "token_ids": tokens(2, time),
        "padding_mask": padding_mask[:, :time],
    }


def symbolic_inputs():
    return {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }


def preprocessor_arguments():
    tokenizer = keras_griffin.GriffinTokenizer(vocabulary())
    return {"tokenizer": tokenizer, "sequence_length": 8}


def test_backbone():
    # Eager JAX compiles each shape; KerasHub's own are 2, 3 and 4 tokens.
    keras_hub_checks().run_backbone_test(
        keras_griffin.GriffinBackbone,
        init_kwargs={
            **TINY,
            "num_layers": 2,
            "block_types": ("recurrent", "local_attention"),
        },
        input_data=inputs(time=4),
        expected_output_shape=(2, 4, WIDTH),
    )


# KerasHub's use of an argument that Keras no longer reads.
@pytest.mark.filterwarnings("ignore:The `check_types` argument")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_task():
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor(
        **preprocessor_arguments()
    )
    size = preprocessor.tokenizer.vocabulary_size()
    backbone = keras_griffin.GriffinBackbone(
        **{**TINY, "vocabulary_size": size}
    )
    keras_hub_checks().run_task_test(
        keras_griffin.GriffinCausalLM,
        init_kwargs={"preprocessor": preprocessor, "backbone": backbone},
        train_data=(TEXTS,),
        expected_output_shape=(2, 8, size),
    )


def test_preprocessor():
    arguments = preprocessor_arguments()
    keras_hub_checks(**arguments).run_preprocessor_test(
        keras_griffin.GriffinCausalLMPreprocessor,
        init_kwargs=arguments,
        input_data=TEXTS,
    )


def test_tokenizer():
    keras_hub_checks().run_preprocessing_layer_test(
        keras_griffin.GriffinTokenizer,
        init_kwargs={"proto": vocabulary()},
        input_data=TEXTS,
    )


def test_shapes_of_the_two_inputs():
    spec = symbolic_inputs()
    backbone = tiny_backbone()
    assert sorted(backbone.input) == sorted(spec)
    assert backbone.compute_output_spec(spec).shape == (None, None, WIDTH)


@pytest.mark.parametrize("how", ["part", "blocks", "clone"])
def test_in_functional_models(how, tmp_path):
    backbone = tiny_backbone()
    if how == "part":
        symbolic = symbolic_inputs()
        model = keras.Model(symbolic, backbone(symbolic))
    elif how == "blocks":
        outputs = [block.output for block in backbone.blocks]
        model = keras.Model(backbone.inputs, outputs)
    else:
        model = keras.models.clone_model(backbone)
        model.set_weights(backbone.get_weights())
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    found, again = (
        keras.tree.map_structure(to_numpy, m.predict_on_batch(inputs()))
        for m in (model, loaded)
    )
    keras.tree.map_structure(np.testing.assert_array_equal, found, again)
    if how == "blocks":
        assert [y.shape for y in found] == [(2, TIME, WIDTH)] * len(found)
        found = to_numpy(backbone.final_norm(found[-1]))
        # Blocks see real tokens first.
        real = inputs()["padding_mask"][0] != 0
        expected = run(backbone, **inputs())[0]
        np.testing.assert_allclose(found[0][real], expected[real], rtol=1e-5)
    else:
        np.testing.assert_array_equal(found, run(backbone, **inputs()))
