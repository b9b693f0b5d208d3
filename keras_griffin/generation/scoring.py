"""Log-probabilities of given tokens."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_griffin.generation.arguments import as_state
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import make_prompts
from keras_griffin.generation.prompts import prompt_pieces
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.near_names import check_arguments
from keras_griffin.training.chunked_cross_entropy import MAX_LOGITS

# Logits of so many tokens of a row are held at once, if `MAX_LOGITS` allows.
SCORE_CHUNK = 256

# Of KerasHub's `score`, beside `token_ids`.
OPTIONS = ("padding_mask", "scoring_mode", "layer_intercept_fn", "target_ids")


def score(
    model: Any,
    inputs: Any = None,
    state: dict[str, Any] | None = None,
    return_greedy: bool = False,
    *,
    token_ids: Any = None,
    **options: Any,
) -> Any:
    """Log-probability of every token, given those before it in its row.

    Long rows are read in pieces: memory does not grow with them. With
    `token_ids=` it is KerasHub's `score`, whose arguments and outputs are those
    of `score_token_ids`.

    Args:
        model: a `GriffinCausalLM`.
        inputs: str or list of str; without a preprocessor a dict of
            `"token_ids"` and optionally `"padding_mask"`,
            `(batch, time)`.
        state: state to go on from (see `prefill`); rows are read after
            it, without a start token. What it expects of a row's first
            token it does not tell: begin with the last token that it has
            not read. One row serves all. Defaults to `None`.
        return_greedy: bool. Also return where the token is the likeliest,
            as bools of the same shape. Defaults to `False`.
        token_ids: `(batch, time)` int, in place of `inputs`. Defaults to
            `None`.
        **options: `padding_mask`, `scoring_mode`, `layer_intercept_fn` and
            `target_ids`, with `token_ids` only.

    Returns:
        For text a float32 array `(tokens,)`, or a list of them: the
        natural logarithm for each of the tokenizer's tokens (the first
        one's is 0 if there is no start token). For ids an array
        `(batch, time)`, 0 at pads and at each row's first token. With
        `return_greedy=True` `(scores, is_greedy)`, which is true where
        the score is 0 for these reasons.

    Raises:
        ValueError: for rows without a token, a state of other rows, and for
            arguments of both ways to call it.

    Example:
    ```python
    model.score("To be, or not to be").sum()
    ```
    """
    check_arguments("score", options, OPTIONS)
    given = {"inputs": inputs, "token_ids": token_ids, **options}
    names = [name for name, value in given.items() if value is not None]
    if len({"inputs", "token_ids"}.intersection(names)) != 1 or (
        options and token_ids is None
    ):
        raise ValueError(
            "`score` takes either `inputs`, or KerasHub's `token_ids` and what "
            f"goes with them. Received: {', '.join(names) or 'neither'}. Give "
            "one of the two."
        )
    if token_ids is not None:
        return score_token_ids(model, token_ids, **options)
    if model.preprocessor is None or isinstance(inputs, dict):
        prompts = make_prompts(model, inputs, None, None, None)
        scores, is_greedy = _score_rows(model, prompts.arrays(), state)
        scores = prompts.scatter(scores)
        is_greedy = prompts.scatter(is_greedy, fill_value=True)
    else:
        texts = [inputs] if isinstance(inputs, str) else inputs
        prompts = make_prompts(model, texts, None, 0, state)
        first = int(model.preprocessor.add_start_token and state is None)
        scores, is_greedy = (
            [row[first:n] for row, n in zip(rows, prompts.lengths)]
            for rows in _score_rows(model, prompts.arrays(), state)
        )
        if isinstance(inputs, str):
            scores, is_greedy = scores[0], is_greedy[0]
    return (scores, is_greedy) if return_greedy else scores


def score_token_ids(
    model,
    token_ids,
    padding_mask=None,
    scoring_mode="logits",
    layer_intercept_fn=None,
    target_ids=None,
):
    """Logits or losses of tokens, as KerasHub's models score them.

    Differentiable, and not compiled.

    Args:
        model: a `GriffinCausalLM`.
        token_ids: `(batch, time)` int.
        padding_mask: as of a call. Defaults to `None`: all tokens are real.
        scoring_mode: `"logits"` or `"loss"`. Defaults to `"logits"`.
        layer_intercept_fn: a function of an activation `(batch, time, width)`
            and of a number, -1 for the embeddings and 0 and up for what each
            block gives. What it returns goes on through the model. Defaults to
            `None`.
        target_ids: `(batch, time)` int, the token that each position should
            predict; `"loss"` needs it. Defaults to `None`.

    Returns:
        `(batch, time, vocabulary_size)` logits, or `(batch, time)` losses.

    Raises:
        ValueError: for another mode, and for losses without a target each.

    Source:
        `keras_hub.models.GemmaCausalLM.score`.
    """
    if scoring_mode not in ("logits", "loss"):
        raise ValueError(
            "`scoring_mode` must be 'logits' or 'loss'. Received: "
            f"{scoring_mode!r}. For log-probabilities give `inputs`."
        )
    if scoring_mode == "loss" and target_ids is None:
        raise ValueError(
            "A loss needs `target_ids`, the token that each position should "
            "predict. Received: target_ids=None. Give keras.ops.roll("
            "token_ids, -1, axis=1)."
        )
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    check_inputs(inputs, model.backbone.vocabulary_size)
    if layer_intercept_fn is None:
        hidden = model.backbone(inputs)
    else:
        hidden = _intercepted(model.backbone, inputs, layer_intercept_fn)
    logits = model._logits(hidden)
    if scoring_mode == "logits":
        return logits
    return _losses(logits, ops.convert_to_tensor(target_ids))


def _losses(logits, targets):
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            "`target_ids` has one id for each of `token_ids`. Received: shapes "
            f"{tuple(targets.shape)} and {tuple(logits.shape[:-1])}. Give "
            "keras.ops.roll(token_ids, -1, axis=1)."
        )
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none"
    )
    # As one row of tokens: of (batch, time, classes) Keras makes a softmax
    # along axis 1 on PyTorch, for which CUDA has a far slower kernel.
    rows = ops.reshape(logits, (-1, logits.shape[-1]))
    return ops.reshape(loss(ops.reshape(targets, (-1,)), rows), targets.shape)


def _intercepted(backbone, inputs, function):
    """Hidden states; `function` sees them before and after each block."""
    token_ids = ops.convert_to_tensor(inputs["token_ids"])
    layout = TokenLayout(*token_ids.shape, inputs["padding_mask"])
    x = function(backbone.token_embedding(token_ids), -1)
    x = layout.compact(x * backbone.embedding_scale)
    for index, block in enumerate(backbone.blocks):
        x, _ = block.mix(ops.cast(x, block.compute_dtype), layout, None)
        x = layout.compact(function(layout.restore(x), index))
    return layout.restore(backbone.final_norm(x))


def _score_rows(model, arrays, state):
    """Scores, and whether each token is the likeliest, as NumPy arrays."""
    ids = arrays["token_ids"]
    batch, time = ids.shape
    function = _score_first_piece if state is None else _score_piece
    if state is None:
        state = model.init_state(batch, max_length=bucket(time))
    else:
        state = as_state(model, state, batch, repeat=True)
    arrays["targets"] = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    scores = [np.zeros((batch, 1), "float32")]
    is_greedy = [np.ones((batch, 1), bool)]
    size = MAX_LOGITS // (batch * model.backbone.vocabulary_size)
    size = 1 << max(size.bit_length() - 1, 0)  # a power of 2, not above it
    for piece in prompt_pieces(arrays, min(size, SCORE_CHUNK)):
        outputs, state = model._functions.run(function, piece, state)
        function = _score_piece
        scores.append(to_numpy(outputs["scores"]))
        is_greedy.append(to_numpy(outputs["is_greedy"]))
    real = arrays["padding_mask"]
    scores = np.concatenate(scores, axis=1)[:, :time]
    is_greedy = np.concatenate(is_greedy, axis=1)[:, :time]
    return np.where(real, scores, 0.0), is_greedy | ~real


def _score_first_piece(model, inputs, state):
    return _score_piece(model, inputs, state, is_start=True)


def _score_piece(model, inputs, state, is_start=False):
    targets = inputs["targets"]
    inputs = {k: v for k, v in inputs.items() if k != "targets"}
    hidden, state = model.backbone.call_with_state(
        state=state, is_start=is_start, **inputs
    )
    logits = model._logits(hidden)
    chosen = ops.take_along_axis(logits, targets[..., None], axis=-1)
    likeliest = ops.cast(ops.argmax(logits, axis=-1), targets.dtype)
    outputs = {
        "scores": chosen[..., 0] - ops.logsumexp(logits, axis=-1),
        "is_greedy": ops.equal(likeliest, targets),
    }
    return outputs, state
