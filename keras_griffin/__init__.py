"""Griffin, Hawk and RecurrentGemma in Keras 3, on JAX, TensorFlow, PyTorch."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
_PARTS = (
    "distribution",
    "evaluation",
    "kernels",
    "layers",
    "serving",
    "training",
)

# What `_load` does, for type checkers and editors.
if TYPE_CHECKING:
    from keras_griffin import distribution as distribution
    from keras_griffin import evaluation as evaluation
    from keras_griffin import kernels as kernels
    from keras_griffin import layers as layers
    from keras_griffin import serving as serving
    from keras_griffin import training as training
    from keras_griffin.models.griffin_backbone import (
        GriffinBackbone as GriffinBackbone,
    )
    from keras_griffin.models.griffin_causal_lm import (
        GriffinCausalLM as GriffinCausalLM,
    )
    from keras_griffin.models.griffin_causal_lm_preprocessor import (
        GriffinCausalLMPreprocessor as GriffinCausalLMPreprocessor,
    )
    from keras_griffin.models.griffin_text_classifier import (
        GriffinTextClassifier as GriffinTextClassifier,
    )
    from keras_griffin.models.griffin_text_classifier_preprocessor import (
        GriffinTextClassifierPreprocessor as GriffinTextClassifierPreprocessor,
    )
    from keras_griffin.models.griffin_text_embedder import (
        GriffinTextEmbedder as GriffinTextEmbedder,
    )
    from keras_griffin.models.griffin_text_embedder_preprocessor import (
        GriffinTextEmbedderPreprocessor as GriffinTextEmbedderPreprocessor,
    )
    from keras_griffin.models.griffin_tokenizer import (
        GriffinTokenizer as GriffinTokenizer,
    )
    from keras_griffin.training.griffin_adam_w import (
        GriffinAdamW as GriffinAdamW,
    )
    from keras_griffin.training.griffin_dpo import GriffinDPO as GriffinDPO
    from keras_griffin.training.griffin_packer import (
        GriffinPacker as GriffinPacker,
    )
    from keras_griffin.training.stateful_trainer import (
        StatefulTrainer as StatefulTrainer,
    )

__all__ = [*_CLASSES, *_PARTS]  # noqa: PLE0604


def _load():
    """Imports all public names, and with them Keras and its backend."""
    import keras

    from keras_griffin.releases import check_running
    from keras_griffin.releases import import_triton_first

    check_running(keras.config.backend())
    import_triton_first(keras.config.backend())
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
