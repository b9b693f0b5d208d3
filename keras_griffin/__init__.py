"""Griffin, Hawk and RecurrentGemma in Keras 3, on JAX, TensorFlow, PyTorch."""

import importlib
import sys
from pathlib import Path

from keras_griffin.version import __version__ as __version__

_HERE = Path(__file__).resolve().parent
if not (_HERE / "kernels").is_dir():
    # A checkout: kernels/ and presets/ stand beside this folder.
    __path__.append(str(_HERE.parent))

_CLASSES = {
    "GriffinAdamW": "training.griffin_adam_w",
    "GriffinBackbone": "models.griffin_backbone",
    "GriffinCausalLM": "models.griffin_causal_lm",
    "GriffinCausalLMPreprocessor": "models.griffin_causal_lm_preprocessor",
    "GriffinDPO": "training.griffin_dpo",
    "GriffinPacker": "training.griffin_packer",
    "GriffinTextClassifier": "models.griffin_text_classifier",
    "GriffinTextClassifierPreprocessor": (
        "models.griffin_text_classifier_preprocessor"
    ),
    "GriffinTextEmbedder": "models.griffin_text_embedder",
    "GriffinTextEmbedderPreprocessor": (
        "models.griffin_text_embedder_preprocessor"
    ),
    "GriffinTokenizer": "models.griffin_tokenizer",
    "StatefulTrainer": "training.stateful_trainer",
}
_PARTS = ("distribution", "evaluation", "kernels", "layers", "training")

__all__ = [*_CLASSES, *_PARTS]  # noqa: PLE0604


def _load():
    """Imports all public names, and with them Keras and its backend."""
    import keras

    from keras_griffin.releases import check_running

    check_running(keras.config.backend())
    for part in _PARTS:
        importlib.import_module(f"{__name__}.{part}")
    for name, module in _CLASSES.items():
        module = importlib.import_module(f"{__name__}.{module}")
        globals()[name] = getattr(module, name)


def __getattr__(name):
    if name in __all__:
        _load()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, "__version__"])


# Keras finds the classes of a file among those that were imported: where there
# is Keras already, `keras.saving.load_model` is to find these, too.
if "keras" in sys.modules:
    _load()
