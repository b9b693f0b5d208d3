"""Griffin, Hawk and RecurrentGemma in Keras 3, on JAX, TensorFlow, PyTorch."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
if not (_HERE / "kernels").is_dir():
    # A checkout: kernels/ and presets/ stand beside this folder.
    __path__.append(str(_HERE.parent))

from keras_griffin import layers as layers  # noqa: E402
from keras_griffin.models.griffin_backbone import (  # noqa: E402
    GriffinBackbone as GriffinBackbone,
)
from keras_griffin.models.griffin_causal_lm import (  # noqa: E402
    GriffinCausalLM as GriffinCausalLM,
)
from keras_griffin.models.griffin_causal_lm_preprocessor import (  # noqa: E402
    GriffinCausalLMPreprocessor as GriffinCausalLMPreprocessor,
)
from keras_griffin.models.griffin_tokenizer import (  # noqa: E402
    GriffinTokenizer as GriffinTokenizer,
)
from keras_griffin.version import __version__ as __version__  # noqa: E402
