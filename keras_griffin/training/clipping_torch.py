"""Clipping by the norm of all gradients together, in few operations.

Keras (3.15) clips one gradient after the other: four operations for each, 340
launches of a training step on a GPU. Needless when it does as here.
`torch._foreach_mul` has no public name (torch 2.6 to 2.13); Keras' optimizers
call it, too.
"""

import torch


@torch.no_grad()
def clip_by_global_norm(gradients, limit):
    """Gradients, as `keras.optimizers.Optimizer(global_clipnorm=limit)` has.

    Args:
        gradients: list of tensors and `None`.
        limit: float.
    """
    given = [g for g in gradients if g is not None]
    if not given:
        return gradients
    norm = torch.nn.utils.get_total_norm(given)
    # As Keras: not a number where the norm is none, or infinite.
    scale = limit * torch.clamp(1.0 / norm, max=1.0 / limit) + (norm - norm)
    clipped = iter(torch._foreach_mul(given, scale))
    return [None if g is None else next(clipped) for g in gradients]
