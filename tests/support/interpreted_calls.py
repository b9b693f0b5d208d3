"""An interpreter in the place of XLA's call of a Triton kernel.

It reads what XLA is told, puts the buffers in their places as XLA does, the
results full of NaN, and interprets the kernel. Triton has to be imported with
TRITON_INTERPRET=1.
"""

import re
import threading
import types

import keras
import ml_dtypes
import numpy as np
import torch

from keras_griffin.kernels import triton_ptx

kernels = []  # what was "compiled": (kernel, pointers, constants)
calls = []  # names of the kernels that ran
one_at_a_time = threading.Lock()  # the interpreter is no friend of threads


def compile_kernel(kernel, plan, arguments, capability):
    """As `triton_ptx.compile_kernel`; the PTX is a number."""
    assert set(arguments) == set(kernel.arg_names)
    pointers, constants = {}, {}
    for name in kernel.arg_names:
        value = arguments[name]
        if hasattr(value, "dtype"):
            dtype = keras.backend.standardize_dtype(value.dtype)
            pointers[name] = tuple(value.shape), np.dtype(dtype)
        else:
            constants[name] = value
    kernels.append((kernel, pointers, constants))
    return types.SimpleNamespace(
        asm={"ptx": f'"number {len(kernels) - 1}"\n'},
        metadata=types.SimpleNamespace(name=kernel.__name__, shared=0),
    )


triton_ptx.compile_kernel = compile_kernel


def interpret(text, *inputs):
    """What XLA does with a call's text and its buffers."""
    number = int(
        re.search(r'kernel_data = "\\22number (\d+)\\22\\0A"', text)[1]
    )
    programs = int(re.search(r"grid_x = (\d+) : i32", text)[1])
    places = re.search(r"output_indices = \[(.*?)\]", text)[1]
    places = [int(place) for place in re.findall(r"(\d+) : i32", places)]
    kernel, pointers, constants = kernels[number]
    *inputs, scratch, other_scratch = map(np.asarray, inputs)
    assert scratch.shape == other_scratch.shape == (16,)
    buffers, given, results = {}, iter(inputs), []
    for place, (name, (shape, dtype)) in enumerate(pointers.items()):
        if place in places:
            array = np.full(shape, np.nan, dtype)
            results.append(name)
        else:
            array = np.array(next(given))
        assert (array.shape, array.dtype) == (shape, dtype), (text, name)
        buffers[name] = as_torch(array)
    assert not list(given) and len(results) == len(places)
    with one_at_a_time:
        calls.append(kernel.__name__)
        kernel[(programs,)](**buffers, **constants)
    return [as_numpy(buffers[name]) for name in results]


def as_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
