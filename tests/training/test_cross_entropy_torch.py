"""PyTorch's cross-entropy of hidden states equals the float64 formula."""

import keras
import numpy as np
import pytest

from support.checks import assert_close
from support.checks import to_numpy

if keras.config.backend() != "torch":
    pytest.skip("about PyTorch", allow_module_level=True)

import torch

from keras_griffin.training.cross_entropy_torch import IGNORED
from keras_griffin.training.cross_entropy_torch import cross_entropy

TOKENS, WIDTH, VOCABULARY = 150, 16, 60


def inputs(dtype):
    rng = np.random.default_rng(0)
    hidden = torch.tensor(rng.normal(size=(TOKENS, WIDTH)), dtype=dtype)
    # Small: the logits themselves are rounded to `dtype`, by Keras as well.
    embeddings = 0.3 * rng.normal(size=(VOCABULARY, WIDTH))
    embeddings = torch.tensor(embeddings, dtype=torch.float32)
    targets = torch.tensor(rng.integers(0, VOCABULARY, TOKENS))
    targets[3] = IGNORED
    weights = torch.tensor(rng.normal(size=TOKENS), dtype=torch.float32)
    weights[::7] = 0
    return hidden, targets, embeddings, weights


def in_float64(hidden, targets, embeddings, weights, soft_cap):
    """Losses, hits and gradients by PyTorch's own operations."""
    hidden, matrix = (
        z.detach().double().requires_grad_() for z in (hidden, embeddings)
    )
    logits = hidden @ matrix.t()
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    losses = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none"
    )
    (losses * weights).sum().backward()
    return losses, logits.argmax(-1) == targets, hidden.grad, matrix.grad


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("rows", [TOKENS, 70])
def test_losses_hits_and_gradients(dtype, soft_cap, rows):
    hidden, targets, embeddings, weights = inputs(getattr(torch, dtype))
    # As products take it: what is tested is what comes after.
    embeddings = embeddings.to(hidden.dtype).float()
    expected = in_float64(hidden, targets, embeddings, weights, soft_cap)
    hidden.requires_grad_(), embeddings.requires_grad_()
    losses, hits = cross_entropy(
        hidden, targets, embeddings, soft_cap, rows, with_hits=True
    )
    (losses * weights).sum().backward()
    assert hidden.grad.dtype == hidden.dtype
    assert embeddings.grad.dtype == torch.float32
    assert_close(losses, to_numpy(expected[0]), dtype, "values")
    if dtype == "float32":
        np.testing.assert_array_equal(to_numpy(hits), to_numpy(expected[1]))
    assert_close(hidden.grad, to_numpy(expected[2]), dtype, "gradients")
    assert_close(embeddings.grad, to_numpy(expected[3]), dtype, "gradients")


def test_gradient_of_a_target_that_is_almost_certain():
    """1 less a probability near 1 keeps its digits in bfloat16."""
    hidden = torch.eye(4, 16, dtype=torch.bfloat16).requires_grad_()
    embeddings = 8.0 * torch.eye(20, 16)
    targets = torch.arange(4)
    expected = in_float64(hidden, targets, embeddings, torch.ones(4), None)
    losses, _ = cross_entropy(hidden, targets, embeddings, None, 4, False)
    losses.sum().backward()
    assert_close(hidden.grad, to_numpy(expected[2]), "bfloat16", "gradients")


def test_a_frozen_head_and_no_hits():
    hidden, targets, embeddings, _ = inputs(torch.float32)
    hidden.requires_grad_()
    losses, hits = cross_entropy(hidden, targets, embeddings, None, 64, False)
    losses.sum().backward()
    assert embeddings.grad is None
    assert not hits.any()
