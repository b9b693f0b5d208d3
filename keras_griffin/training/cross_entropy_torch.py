"""Cross-entropy of hidden states on PyTorch, in few passes over logits.

Logits are there for some tokens at a time, in the gradient once more. PyTorch's
own gradient passes over them in float32 ten times; here it is a softmax in
their own dtype, of which one number in each row is changed, and two products.
"""

import torch

from keras_griffin.layers.reversible_embedding import ReversibleEmbedding

# The target of no loss, as `torch.nn.functional.nll_loss` has it.
IGNORED = -100


def is_usable(loss, head, hidden):
    """Whether `cross_entropy` computes what Keras would.

    Args:
        loss: `keras.losses.SparseCategoricalCrossentropy`.
        head: the layer that makes logits of hidden states.
        hidden: tensor.
    """
    return (
        loss.dtype == "float32"
        and isinstance(head, ReversibleEmbedding)
        and head.tie_weights
        and head.logit_soft_cap is None
        and not (head.quantization_mode or head.lora_enabled)
        and hidden.dtype == getattr(torch, head.compute_dtype)
        and not torch.is_autocast_enabled(hidden.device.type)
        and not torch.compiler.is_compiling()
    )


def cross_entropy(hidden, targets, embeddings, soft_cap, rows, with_hits):
    """Losses of tokens, and whether the likeliest one is the target.

    Args:
        hidden: `(tokens, width)`.
        targets: `(tokens,)` int.
        embeddings: `(vocabulary, width)`; products take them in the dtype of
            `hidden`.
        soft_cap: float or `None`.
        rows: int. Tokens whose logits exist at once.
        with_hits: bool. Whether to look for the likeliest tokens.

    Returns:
        `(losses, hits)`: `(tokens,)` float32; `hits` 1.0 or 0.0, all 0.0
        without `with_hits`.

    Numerics:
        Softmax and losses in float32. What goes into the gradient's products
        has the dtype of `hidden`; the gradient of `embeddings` is summed over
        pieces in float32.
    """
    return _CrossEntropy.apply(
        hidden, targets.long(), embeddings, soft_cap, rows, with_hits
    )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, targets, embeddings, soft_cap, rows, with_hits):
        matrix = embeddings.to(hidden.dtype).t()
        losses = hidden.new_empty(len(targets), dtype=torch.float32)
        hits = torch.zeros_like(losses)
        for piece in _pieces(hidden, rows):
            scores = hidden[piece] @ matrix
            if soft_cap is not None:
                scores = _tanh(scores, soft_cap).mul_(soft_cap)
            if with_hits:
                hits[piece] = scores.argmax(-1) == targets[piece]
            # With its `dtype` a GPU needs no copy in float32.
            scores = torch.log_softmax(scores, -1, dtype=torch.float32)
            losses[piece] = torch.nn.functional.nll_loss(
                scores, targets[piece], reduction="none"
            )
        ctx.save_for_backward(hidden, targets, embeddings, losses)
        ctx.mark_non_differentiable(hits)
        ctx.options = soft_cap, rows
        return losses, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_losses, _):
        hidden, targets, embeddings, losses = ctx.saved_tensors
        soft_cap, rows = ctx.options
        matrix = embeddings.to(hidden.dtype)
        # The losses' gradients are factors of rows. Logits are not passed over
        # for them: here they meet the hidden states, below their gradient.
        d_losses = torch.where(targets == IGNORED, 0.0, d_losses)[:, None]
        weighted = (hidden * d_losses).to(hidden.dtype)
        # The target's probability less 1, where a difference loses digits.
        at_target = torch.expm1(-losses)[:, None]
        targets = targets.clamp(min=0)[:, None]
        d_hidden, d_matrix = torch.empty_like(hidden), None
        for piece in _pieces(hidden, rows):
            scores = hidden[piece] @ matrix.t()
            d_scores = _d_scores(
                scores, targets[piece], at_target[piece], soft_cap
            )
            product = d_scores @ matrix
            torch.mul(product, d_losses[piece], out=d_hidden[piece])
            if ctx.needs_input_grad[2]:
                new = d_scores.t() @ weighted[piece]
                if d_matrix is None:
                    d_matrix = new.float()
                else:
                    d_matrix += new
        return d_hidden, None, d_matrix, None, None, None


def _d_scores(scores, targets, at_target, soft_cap):
    """The losses' gradient by what the product gave, in its dtype."""
    dtype = scores.dtype
    if soft_cap is not None:
        tanh = _tanh(scores, soft_cap)
        scores = tanh * soft_cap
    d_scores = torch.softmax(scores, -1)
    d_scores.scatter_(1, targets, at_target.to(d_scores.dtype))
    if soft_cap is not None:
        d_scores.addcmul_(d_scores, tanh.square_(), value=-1)
    return d_scores.to(dtype)


def _tanh(scores, soft_cap):
    return (scores.float() / soft_cap).tanh_()


def _pieces(hidden, rows):
    return [slice(i, i + rows) for i in range(0, len(hidden), rows)]
