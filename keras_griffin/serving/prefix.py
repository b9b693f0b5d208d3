import dataclasses

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Some tokens, and what a row is after them.

    Args:
        token_ids: int32 array.
        logits: `(1, vocabulary_size)` of the next token.
        state: of one row.
    """

    token_ids: np.ndarray
    logits: object
    state: object

    @property
    def bytes(self):
        arrays = keras.tree.flatten([self.logits, self.state])
        return self.token_ids.nbytes + sum(
            int(np.prod(x.shape)) * _item_size(x.dtype) for x in arrays
        )


def common(a, b):
    """The number of equal ids at the beginning of two arrays."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    return int(differs.argmax()) if differs.any() else size


def _item_size(dtype):
    name = keras.backend.standardize_dtype(dtype)
    return 2 if name == "bfloat16" else np.dtype(name).itemsize
