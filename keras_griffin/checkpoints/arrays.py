"""NumPy arrays of checkpoints, and the backend's tensors of the same numbers.

At the speed of memory: a 2B has 5 GiB of them.
"""

import concurrent.futures
import math
import os

import keras
import ml_dtypes
import numpy as np

# Numbers looked at together: they fit into a core's cache.
CHECKED_AT_ONCE = 2**19
# Columns of a matrix that are copied together: rows of the transposed one.
COLUMNS = 512
# Bytes. XLA on a CPU takes over memory that begins at a multiple of this.
ALIGNMENT = 64


def np_dtype(name):
    """Returns the NumPy dtype of a Keras dtype name, bfloat16 included."""
    # NumPy knows no "bfloat16"; ml_dtypes (which Keras requires) does.
    return np.dtype(getattr(ml_dtypes, name, name))


def empty(shape, dtype):
    """`np.empty` in memory that XLA takes over."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, "uint8")
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def row_by_row(view):
    """Copies a NumPy view, a transposed one say, to lie row by row in memory.

    In blocks, on all cores: NumPy takes four times as long for a large
    transposed matrix.
    """
    # Of bits: NumPy moves numbers of a dtype that is not its own one by one.
    source = view.view(f"u{view.itemsize}")
    copy = empty(view.shape, source.dtype)
    if view.ndim != 2:
        copy[...] = source
        return copy.view(view.dtype)

    def copy_columns(start):
        part = slice(start, start + COLUMNS)
        copy[:, part] = source[:, part]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy_columns, range(0, view.shape[1], COLUMNS)))
    return copy.view(view.dtype)


def check_finite(value, dtype, tensor, origin):
    """Refuses NaN and infinity, also where only `dtype` has no such number.

    Args:
        value: NumPy array.
        dtype: np.dtype that it will have.
        tensor: str. Its name, for the error.
        origin: str. Where it was read, for the error.

    Raises:
        ValueError: if there are any.
    """
    flat = value.reshape(-1)
    is_kept = value.dtype.kind not in "biu" and np.can_cast(value.dtype, dtype)
    seen = value.dtype if is_kept else dtype
    # On bits: of 16-bit numbers NumPy asks one by one. The sign is the first.
    bits = np.dtype(f"u{seen.itemsize}")
    no_sign = bits.type(np.iinfo(bits).max // 2)
    infinity = np.array(np.inf, seen).view(bits)
    wrong = 0
    for start in range(0, flat.size, CHECKED_AT_ONCE):
        with np.errstate(over="ignore"):  # reported below, with its name
            part = flat[start : start + CHECKED_AT_ONCE].astype(
                seen, copy=False
            )
        part = part.view(bits) & no_sign
        if part.max() >= infinity:
            wrong += int((part >= infinity).sum())
    if not wrong:
        return
    raise ValueError(
        f"Weights must be finite numbers in {dtype.name}. Received: "
        f"{origin}, {tensor} with {wrong} of {flat.size} that are NaN or "
        "infinite. Fetch the checkpoint anew, or load it with a dtype of "
        "wider range; do not use the model as it is now."
    )


def adopt(array):
    """The backend's tensor in the memory of `empty` or `row_by_row`.

    `convert_to_tensor` would make up to two copies.
    """
    if keras.config.backend() == "jax":
        import jax

        return jax.device_put(array)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # NumPy tells nobody of its bfloat16.
        bits = array.view(f"int{8 * array.itemsize}")
        bits = tf.experimental.dlpack.from_dlpack(bits.__dlpack__())
        return tf.bitcast(bits, array.dtype.name)
    return to_tensor(array)


def to_tensor(array):
    """The backend's tensor of a NumPy array, which it may take over."""
    if keras.config.backend() == "torch" and array.dtype.name == "bfloat16":
        import torch

        # The same bits. Keras would make a float32 copy on the way.
        bits = np.ascontiguousarray(array).view("int16")
        array = torch.from_numpy(bits).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(array)


def to_numpy(tensor):
    if (
        keras.config.backend() == "torch"
        and keras.backend.standardize_dtype(tensor.dtype) == "bfloat16"
    ):
        import torch

        # The same bits; Keras would make a float32 copy on the way.
        bits = tensor.detach().view(torch.int16).cpu().numpy()
        return bits.view(ml_dtypes.bfloat16)
    return keras.ops.convert_to_numpy(tensor)
