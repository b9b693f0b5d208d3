from __future__ import annotations

import random
from typing import Any

import keras
from keras import ops

from keras_griffin.kernels.rg_lru.ops_rg_lru import DECAY_SCALE

# The ring of initial decays. Source: arXiv:2402.19427, section 2.4.
MIN_DECAY, MAX_DECAY = 0.9, 0.999

MAX_SEED = 10**9  # as Keras' own initializers

CONVENTIONS = ("paper", "reference")


@keras.saving.register_keras_serializable(package="keras_griffin")
class DecayInitializer(keras.initializers.Initializer):
    """Initial `Lambda` of the RG-LRU, by the paper or by the reference code.

    The largest decay that a channel can have is `a^c`, with
    `a = exp(-softplus(Lambda))` and `c = 8`. The two sources differ in what
    they draw from [0.9, 0.999]:

    - `"paper"`: `a^c`, uniformly. Memories of 10 to 1000 tokens.
    - `"reference"`: `a`, uniformly in `a^2`, so that `a^c` lies in
      [0.43, 0.992]. Memories of 1 to 125 tokens. It trained to lower
      losses (benchmarks/results/recurrence_ablation.md).

    Args:
        convention: `"paper"` or `"reference"`. Defaults to `"reference"`.
        seed: int or `keras.random.SeedGenerator`. Defaults to `None`: one
            that is drawn now, so that each call gives the same numbers, as of
            Keras' own initializers.

    Raises:
        ValueError: if `convention` is neither.

    Example:
    ```python
    initializer = keras_griffin.layers.DecayInitializer("reference", seed=0)
    recurrence_param = initializer((256,))
    ```

    Source:
        arXiv:2402.19427, section 2.4; recurrentgemma
        `jax/layers.py::rnn_real_param_init`.
    """

    def __init__(self, convention: str = "reference", seed: Any = None) -> None:
        if convention not in CONVENTIONS:
            raise ValueError(
                f"`convention` must be one of {CONVENTIONS}. Received: "
                f"{convention!r}. Give 'reference' for the short memories of "
                "the reference code, or 'paper'."
            )
        if isinstance(seed, dict):
            seed = keras.saving.deserialize_keras_object(seed)
        self.convention = convention
        self._given_seed = seed
        # Keras' global seed, which `None` means below, can't be used where a
        # function is traced.
        self.seed = random.randint(1, MAX_SEED) if seed is None else seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        if self.convention == "paper":
            decay = keras.random.uniform(
                shape, MIN_DECAY, MAX_DECAY, dtype="float32", seed=self.seed
            )
            log_a = ops.log(decay) / DECAY_SCALE
        else:
            square = keras.random.uniform(
                shape,
                MIN_DECAY**2,
                MAX_DECAY**2,
                dtype="float32",
                seed=self.seed,
            )
            log_a = ops.log(square) / 2
        # The inverse of log a = -softplus(Lambda).
        return ops.cast(ops.log(ops.expm1(-log_a)), dtype or "float32")

    def get_config(self) -> dict[str, Any]:
        return {
            "convention": self.convention,
            "seed": keras.saving.serialize_keras_object(self._given_seed),
        }
