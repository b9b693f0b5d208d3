"""Griffin, Hawk and RecurrentGemma in Keras 3, on JAX, TensorFlow, PyTorch."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
if not (_HERE / "kernels").is_dir():
    # A checkout: kernels/ and presets/ stand beside this folder.
    __path__.append(str(_HERE.parent))

from keras_griffin.start_up import quiet_tensorflow  # noqa: E402
from keras_griffin.start_up import started_as_command  # noqa: E402
from keras_griffin.version import __version__ as __version__  # noqa: E402

# The command chooses a backend first, and then imports what it needs.
if not started_as_command():
    with quiet_tensorflow():
        from keras_griffin import distribution as distribution
        from keras_griffin import evaluation as evaluation
        from keras_griffin import layers as layers
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
        from keras_griffin.models.griffin_tokenizer import (
            GriffinTokenizer as GriffinTokenizer,
        )
        from keras_griffin.training.griffin_adam_w import (
            GriffinAdamW as GriffinAdamW,
        )
        from keras_griffin.training.griffin_packer import (
            GriffinPacker as GriffinPacker,
        )
        from keras_griffin.training.stateful_trainer import (
            StatefulTrainer as StatefulTrainer,
        )
