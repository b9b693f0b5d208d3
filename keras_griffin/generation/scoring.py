"""Log-probabilities of given tokens."""

import numpy as np
from keras import ops

from keras_griffin.generation.arguments import as_state
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import make_prompts
from keras_griffin.generation.prompts import prompt_pieces
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.training.chunked_cross_entropy import MAX_LOGITS

# Logits of so many tokens of a row are held at once, if `MAX_LOGITS` allows.
SCORE_CHUNK = 256


def score(model, inputs, state=None, return_greedy=False):
    """Log-probability of every token, given those before it in its row.

    Long rows are read in pieces: memory does not grow with them.

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

    Returns:
        For text a float32 array `(tokens,)`, or a list of them: the
        natural logarithm for each of the tokenizer's tokens (the first
        one's is 0 if there is no start token). For ids an array
        `(batch, time)`, 0 at pads and at each row's first token. With
        `return_greedy=True` `(scores, is_greedy)`, which is true where
        the score is 0 for these reasons.

    Raises:
        ValueError: for rows without a token, and a state of other rows.

    Example:
    ```python
    model.score("To be, or not to be").sum()
    ```
    """
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


def _score_rows(model, arrays, state):
    """Scores, and whether each token is the likeliest, as NumPy arrays."""
    ids = arrays["token_ids"]
    batch, time = ids.shape
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
        outputs, state = model._functions.run(_score_piece, piece, state)
        scores.append(to_numpy(outputs["scores"]))
        is_greedy.append(to_numpy(outputs["is_greedy"]))
    real = arrays["padding_mask"]
    scores = np.concatenate(scores, axis=1)[:, :time]
    is_greedy = np.concatenate(is_greedy, axis=1)[:, :time]
    return np.where(real, scores, 0.0), is_greedy | ~real


def _score_piece(model, inputs, state):
    targets = inputs["targets"]
    inputs = {k: v for k, v in inputs.items() if k != "targets"}
    hidden, state = model.backbone.call_with_state(state=state, **inputs)
    logits = model._logits(hidden)
    chosen = ops.take_along_axis(logits, targets[..., None], axis=-1)
    likeliest = ops.cast(ops.argmax(logits, axis=-1), targets.dtype)
    outputs = {
        "scores": chosen[..., 0] - ops.logsumexp(logits, axis=-1),
        "is_greedy": ops.equal(likeliest, targets),
    }
    return outputs, state
