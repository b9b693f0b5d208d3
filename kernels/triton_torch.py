"""Runs a Triton kernel on PyTorch; see `triton_plan.run_over_time`."""

import torch

from keras_griffin.kernels.triton_plan import OLDEST
from keras_griffin.kernels.triton_plan import STAGES
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import is_interpreted
from keras_griffin.kernels.triton_plan import refuse


def capability(x):
    """The compute capability of the GPU where a tensor lies."""
    if not x.is_cuda:
        return OLDEST  # in Triton's interpreter
    return torch.cuda.get_device_capability(x.device)


def check_device(x):
    if is_interpreted() and not x.is_cuda:
        return
    if not x.is_cuda or capability(x) < OLDEST:
        refuse("need an NVIDIA GPU, Ampere or later", f"device {x.device}")


def run(kernel, plan, arguments):
    x = arguments["x"]
    results = []

    def given(value):
        if isinstance(value, Output):
            dtype = getattr(torch, value.dtype)
            value = torch.empty(value.shape, dtype=dtype, device=x.device)
            results.append(value)
        elif isinstance(value, torch.Tensor):
            value = value.contiguous()
        return value

    arguments = {name: given(value) for name, value in arguments.items()}
    with torch.cuda.device_of(x):
        kernel[(plan.programs,)](
            **arguments, num_warps=plan.warps, num_stages=STAGES
        )
    return results
