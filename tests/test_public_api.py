"""The public names, spelled out: a change here is a change for users."""

import inspect
import types
from pathlib import Path

import keras
import pytest

import keras_griffin
from keras_griffin import distribution
from keras_griffin import evaluation
from keras_griffin import layers
from keras_griffin import serving
from keras_griffin import training
from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import rg_lru

pytestmark = pytest.mark.backend_independent

PACKAGE = [
    "GriffinAdamW",
    "GriffinBackbone",
    "GriffinCausalLM",
    "GriffinCausalLMPreprocessor",
    "GriffinDPO",
    "GriffinPacker",
    "GriffinTextClassifier",
    "GriffinTextClassifierPreprocessor",
    "GriffinTextEmbedder",
    "GriffinTextEmbedderPreprocessor",
    "GriffinTokenizer",
    "StatefulTrainer",
]
LAYERS = [
    "BlockDiagonalDense",
    "CausalConv1D",
    "DecayInitializer",
    "GatedMLP",
    "LocalMQA",
    "RGLRU",
    "RGLRUCell",
    "RMSNormalization",
    "RecurrentBlock",
    "ResidualBlock",
    "ReversibleEmbedding",
]
CLASSES = [(keras_griffin, name) for name in PACKAGE]
CLASSES += [(layers, name) for name in LAYERS]
# What goes into no model and no file of one.
NOT_SAVED = ["GriffinPacker"]


def public_names(module):
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        # Helpers that a module imports for itself are not its names.
        and getattr(value, "__module__", "").startswith("keras_griffin.")
    )


def test_names_of_the_package():
    assert public_names(keras_griffin) == sorted(PACKAGE)
    assert keras_griffin.__version__.count(".") == 2
    assert keras_griffin.layers is layers


def test_names_of_the_layers():
    assert public_names(layers) == sorted(LAYERS)


def test_names_of_the_other_parts():
    assert public_names(distribution) == [
        "GriffinParallel",
        "check_layout_map",
        "layout_map",
    ]
    assert public_names(evaluation) == [
        "InductionHeads",
        "Phonebook",
        "SelectiveCopying",
        "exact_match",
        "loss_by_position",
    ]
    assert public_names(serving) == [
        "Completion",
        "Engine",
        "Piece",
        "QueueFull",
        "Request",
    ]
    assert public_names(training) == [
        "ResumableData",
        "StopOnNaN",
        "resumable_fit",
    ]
    for module in (distribution, evaluation, serving, training):
        assert getattr(keras_griffin, module.__name__.split(".")[1]) is module
        for name in public_names(module):
            assert "Example:" in getattr(module, name).__doc__


def test_arguments_of_the_kernels():
    assert list(inspect.signature(linear_scan).parameters) == [
        "x",
        "a",
        "initial_state",
        "reverse",
        "implementation",
    ]
    assert list(inspect.signature(rg_lru).parameters) == [
        "x",
        "recurrence_gate_kernel",
        "recurrence_gate_bias",
        "input_gate_kernel",
        "input_gate_bias",
        "recurrence_param",
        "phase_param",
        "reset",
        "padding_mask",
        "initial_state",
        "implementation",
    ]


def test_arguments_of_the_backbone():
    parameters = inspect.signature(keras_griffin.GriffinBackbone).parameters
    assert list(parameters) == [
        "vocabulary_size",
        "num_layers",
        "hidden_dim",
        "intermediate_dim",
        "num_query_heads",
        "head_dim",
        "recurrent_dim",
        "block_types",
        "attention_window_size",
        "num_gate_blocks",
        "conv_kernel_size",
        "recurrence",
        "scale_embeddings",
        "final_logit_soft_cap",
        "rope_max_wavelength",
        "rope_fraction",
        "layer_norm_epsilon",
        "dropout",
        "implementation",
        "decay_initializer",
        "dtype",
        "kwargs",
    ]


@pytest.mark.parametrize(
    "module, name", [c for c in CLASSES if c[1] not in NOT_SAVED]
)
def test_class_is_registered_under_its_name(module, name):
    cls = getattr(module, name)
    registered = keras.saving.get_registered_object(f"keras_griffin>{name}")
    assert registered is cls


@pytest.mark.parametrize("module, name", CLASSES)
def test_class_is_documented(module, name):
    docstring = vars(getattr(module, name))["__doc__"]
    summary, _, rest = docstring.partition("\n")
    assert summary.endswith("."), summary
    assert "Args:" in rest
    assert "Example:" in rest or "Examples:" in rest


@pytest.mark.parametrize("module, name", CLASSES)
def test_file_is_named_after_its_class(module, name):
    path = Path(inspect.getfile(getattr(module, name)))
    # Keras' own rule for the names of layers.
    assert path.stem == keras.src.utils.naming.to_snake_case(name)
