"""How a `GriffinCausalLM` generates: the functions behind its methods.

A prompt goes once through the state (`prefill`); then each row decodes from
its own end (`decode`), some tokens in one call of the device. Samplers that
choose among whole texts have a loop of their own (`search.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_griffin.generation import chat_template
from keras_griffin.generation.arguments import as_state
from keras_griffin.generation.arguments import check_lengths
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import make_prompts
from keras_griffin.generation.prompts import prompt_pieces
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.sampling import call_sampler
from keras_griffin.generation.sampling import check_state_use
from keras_griffin.generation.sampling import find_stop_token_ids
from keras_griffin.generation.sampling import is_search
from keras_griffin.generation.sampling_settings import SamplingSettings
from keras_griffin.generation.sampling_settings import call_settings
from keras_griffin.generation.search import search
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.input_checks import check_token_ids

# Tokens. Longer prompts are read in pieces of this size, in bounded memory.
PREFILL_CHUNK = 2048
# New tokens of one call of the device.
DECODE_CHUNK = 32
# Stop ids are padded to a multiple of this with an id that no token has.
STOP_IDS = 8

# === One prompt, one token ===


def prefill(
    model: Any, inputs: dict[str, Any], state: dict[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads tokens and returns what comes next, with the state after them.

    Two calls over the parts of a text equal one over the whole, so that a
    prompt of any length can be read in pieces.

    Args:
        model: a `GriffinCausalLM`.
        inputs: dict of `"token_ids"` and optionally `"padding_mask"`,
            both `(batch, time)`; numbers in the mask are documents, as of
            a call of `GriffinBackbone`, and bools are not.
        state: from an earlier call. `None`: a fresh state (which global
            attention can't have: use `init_state`). Defaults to `None`.

    Returns:
        `(logits, state)`: `(batch, vocabulary_size)` float32 logits of
        the token after each row's last real one, and the state. A row of
        pads alone keeps its state, and its logits have no meaning.

    Raises:
        ValueError: for inputs of a wrong shape or ids out of the
            vocabulary.

    Example:
    ```python
    ids = np.array([[5, 6, 7, 8]])
    logits, state = model.prefill({"token_ids": ids})
    logits, state = model.decode_step(np.array([9]), state)
    ```
    """
    if isinstance(inputs, dict):
        inputs = {
            name: None if value is None else to_numpy(value)
            for name, value in inputs.items()
        }
    check_inputs(inputs, model.backbone.vocabulary_size)
    batch, time = inputs["token_ids"].shape
    if not batch or not time:
        raise ValueError(
            "`prefill` needs at least one row and one column of tokens. "
            f"Received: token_ids of shape {(batch, time)}. The state before "
            "any token is `init_state(batch_size)`."
        )
    if state is None:
        return read(model, inputs, model.init_state(batch), is_start=True)
    return read(model, inputs, as_state(model, state, batch))


def read(model, arrays, state, is_start=False):
    """Logits after each row of NumPy arrays, and the state there."""
    batch = len(arrays["token_ids"])
    logits = ops.zeros((batch, model.backbone.vocabulary_size), "float32")
    function = first_piece if is_start else prefill_piece
    for piece in prompt_pieces(arrays, PREFILL_CHUNK):
        logits, state = model._functions.run(function, piece, logits, state)
        function = prefill_piece
    return logits, state


def first_piece(model, inputs, logits, state):
    """As `prefill_piece`, of rows that have seen no token."""
    return prefill_piece(model, inputs, logits, state, is_start=True)


def prefill_piece(model, inputs, logits, state, is_start=False):
    """Reads columns; `logits` are of rows that ended before them."""
    hidden, state = model.backbone.call_with_state(
        state=state, is_start=is_start, **inputs
    )
    mask = inputs.get("padding_mask")
    new_logits = model._logits(_last_real(hidden, mask))
    if mask is not None:
        # Rows that ended in an earlier piece keep what came next there.
        reads = ops.any(mask, axis=1, keepdims=True)
        new_logits = ops.where(reads, new_logits, logits)
    return new_logits, state


def decode_step(
    model: Any, token_ids: Any, state: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Reads one token a row: logits of the next one, and the new state.

    Args:
        model: a `GriffinCausalLM`.
        token_ids: `(batch,)` int.
        state: from `prefill`, `init_state` or an earlier step.

    Returns:
        `(logits, state)`: `(batch, vocabulary_size)` float32, and the
        state. The given state stays valid.

    Raises:
        ValueError: if `token_ids` is not of rank 1, for NumPy ids out of
            the vocabulary (ids on a device are not looked at), and for a
            state of another model or of other rows.
    """
    if not ops.is_tensor(token_ids):
        token_ids = np.asarray(token_ids)
        check_token_ids(token_ids, model.backbone.vocabulary_size)
    if len(token_ids.shape) != 1:
        raise ValueError(
            "`token_ids` must have shape (batch,), one token a row. "
            f"Received: shape {tuple(token_ids.shape)}. Longer pieces go "
            "through `prefill`."
        )
    token_ids = ops.convert_to_tensor(token_ids, dtype="int32")
    state = as_state(model, state, token_ids.shape[0])
    if keras.config.backend() == "torch":
        model._functions.forget_stale()
        return model._functions.step(decode_token)(token_ids, state)
    return model._functions.run(decode_token, token_ids, state, xla=True)


def decode_token(model, token_ids, state):
    """Reads a token in each row."""
    hidden, state = model.backbone.call_with_state(token_ids[:, None], state)
    return model._logits(hidden[:, 0]), state


# === Many tokens ===


def generate(
    model: Any,
    inputs: Any,
    max_length: int | None = None,
    stop_token_ids: str | Sequence[int] | None = "auto",
    strip_prompt: bool = False,
    max_new_tokens: int | None = None,
    sampler: Any = None,
    temperature: float | None = None,
    seed: int | None = None,
    state: dict[str, Any] | None = None,
    return_state: bool = False,
    **settings: Any,
) -> Any:
    """Generates text, or token ids without a preprocessor.

    Other lengths, stop ids and settings run what is compiled already; another
    kind of sampler compiles once.

    Args:
        model: a `GriffinCausalLM`.
        inputs: str, list of str or a `tf.data.Dataset` of them; or, where
            the preprocessor has a `turn_format`, a list of messages that
            ends with the user's, or a list of such lists. Without a
            preprocessor a dict of `"token_ids"` and `"padding_mask"`
            `(batch, max_length)`, the room included.
        max_length: int. Tokens of prompt and text together. Defaults to
            the preprocessor's `sequence_length`.
        stop_token_ids: `"auto"` (the tokenizer's end token, and
            `<end_of_turn>` where there is a `turn_format`), a sequence of
            ids any of which ends a row, or `None`. Without a preprocessor
            `"auto"` is `None`. Defaults to `"auto"`.
        strip_prompt: bool. Return the new tokens alone. Defaults to
            `False`.
        max_new_tokens: int. New tokens of every row, in place of
            `max_length`. Defaults to `None`.
        sampler: a name or a `keras_hub.samplers.Sampler` for this call.
            Defaults to `None`: the one of `compile`.
        temperature: float. Of the sampler in this call; 0 takes the
            likeliest token. Defaults to `None`: the sampler's own.
        seed: int in [0, 2**31 - 1]. Makes this call's draws repeatable.
            Defaults to `None`.
        state: state to go on from (see `prefill` and `load_state`); the
            prompts are read after it, without a start token. One row
            serves all prompts. Defaults to `None`.
        return_state: bool. Also return the state after the last token of
            each row, a stop token not included. Defaults to `False`.
        **settings: `top_k`, `top_p`, `min_p`, `repetition_penalty`,
            `presence_penalty`, `frequency_penalty`, `logit_bias`, `stop`,
            `logits_processor`, `draft` and `draft_tokens`, in place of a
            sampler: see `SamplingSettings`. With any of them row `i` draws
            as a prompt alone with `seed + i`.

    Returns:
        What went in, continued: a string, a list, or a dict of
        `"token_ids"` and `"padding_mask"`. For messages the reply alone,
        without the token that stopped it. With `return_state=True`
        `(outputs, state)`.

    Raises:
        ValueError: for no prompt or an empty one, both lengths, lengths and
            seeds that are no integers in range, a negative temperature, a
            temperature of 0 with a sampler that chooses among whole texts,
            unknown settings and those out of range, a sampler together with
            settings, states of another model or of other rows, and states
            together with samplers that choose among whole texts, or with a
            `tf.data.Dataset`.

    Example:
    ```python
    model.generate("ROMEO:", max_new_tokens=20, temperature=0.8, seed=1)
    model.generate("ROMEO:", max_new_tokens=20, top_p=0.9, stop="\\n\\n")
    ```
    """
    if settings:
        sampler = call_settings(model, sampler, temperature, seed, settings)
    else:
        sampler = call_sampler(model, sampler, temperature, seed)
    stop_token_ids = find_stop_token_ids(model, stop_token_ids)
    check_lengths(max_length, max_new_tokens)
    if state is not None or return_state:
        check_state_use(inputs, sampler)
    is_chat = chat_template.is_conversation(
        inputs
    ) or chat_template.are_conversations(inputs)
    batches, is_scalar = _split_batches(model, inputs)
    outputs = []
    for batch in batches:
        prompts = make_prompts(model, batch, max_length, max_new_tokens, state)
        generated, last_state = generate_tokens(
            model, prompts, stop_token_ids, sampler, state, return_state
        )
        output = prompts.outputs(
            generated,
            stop_token_ids,
            strip_prompt=strip_prompt or is_chat,
            keep_stop=not is_chat,
        )
        if model.preprocessor is not None:
            output = model.preprocessor.generate_postprocess(output)
            if not strip_prompt and not is_chat:
                output = prompts.with_prompts_as_given(output, batch, model)
            if settings:
                output = prompts.without_stop_strings(output)
        outputs.append(output)
    outputs = _join_batches(outputs, is_scalar)
    return (outputs, last_state) if return_state else outputs


def _split_batches(model, inputs):
    """The batches of `inputs`, and whether they are a single prompt."""
    if hasattr(inputs, "as_numpy_iterator"):  # a tf.data.Dataset
        return inputs.as_numpy_iterator(), False
    if model.preprocessor is None:
        return [inputs], False
    if chat_template.is_conversation(inputs):
        return [[inputs]], True
    if getattr(inputs, "ndim", None) == 0:  # an array of one string
        inputs = np.asarray(inputs).item()
    is_scalar = isinstance(inputs, (str, bytes))
    return [[inputs] if is_scalar else inputs], is_scalar


def _join_batches(outputs, is_scalar):
    if isinstance(outputs[0], dict):
        return {
            name: np.concatenate([output[name] for output in outputs])
            for name in outputs[0]
        }
    texts = list(itertools.chain(*outputs))
    return texts[0] if is_scalar else texts


def generate_tokens(
    model, prompts, stop_token_ids, sampler, state, return_state=False
):
    """New tokens `(batch, steps)`, and `None` or the state after them."""
    if is_search(sampler):
        return search(model, prompts, stop_token_ids, sampler), None
    pieces = []
    for tokens, state in decode(
        model,
        prompts,
        stop_token_ids,
        sampler,
        state,
        DECODE_CHUNK,
        return_state,
    ):
        pieces.append(tokens)
    return np.concatenate(pieces, axis=1), state


def make_generate_function(model: Any) -> Callable[..., Any]:
    """Returns the function of token ids that KerasHub knows.

    It stays in `generate_function` until the next `compile`.
    """
    if model.generate_function is not None:
        return model.generate_function

    def generate_function(inputs, stop_token_ids=None):
        rows = make_prompts(model, inputs, None, None, None)
        stops = find_stop_token_ids(model, stop_token_ids)
        generated, _ = generate_tokens(model, rows, stops, model.sampler, None)
        outputs = rows.outputs(generated, stops)
        return {n: ops.convert_to_tensor(v) for n, v in outputs.items()}

    model.generate_function = generate_function
    return generate_function


def decode(
    model, prompts, stop_token_ids, sampler, state, chunk, return_state=False
):
    """Reads the prompts; yields `(new tokens (batch, <= chunk), state)`.

    The first ones are no tokens, and the state after the prompts. Without
    `return_state` the last token is not read: nobody asks what follows it.
    """
    if isinstance(sampler, SamplingSettings) and sampler.draft is not None:
        from keras_griffin.generation import speculative  # It imports this.

        yield from speculative.decode(
            model, prompts, stop_token_ids, sampler, state
        )
        return
    batch = len(prompts.rows)
    is_start = state is None
    if is_start:
        room = bucket(int(prompts.lengths.max()) + prompts.num_steps)
        state = model.init_state(batch, max_length=room)
    else:
        state = as_state(model, state, batch, repeat=True)
    logits, state = read(model, prompts.arrays(), state, is_start)
    yield np.zeros((batch, 0), "int32"), state
    if isinstance(sampler, SamplingSettings):
        from keras_griffin.generation import row_decoding  # It imports this.

        yield from row_decoding.decode_read(
            model, prompts, stop_token_ids, sampler, logits, state, chunk
        )
        return
    loop = model._functions.with_sampler(sampler, _decode_chunk, xla=True)
    stops = ops.convert_to_tensor(pad_stop_token_ids(stop_token_ids))
    steps = prompts.steps
    unread = 0 if return_state else 1
    while steps.max(initial=0) > unread:
        count = min(chunk, int(steps.max()) - unread)
        tokens, logits, state, steps = loop(
            {
                "count": ops.convert_to_tensor(np.array(count, "int32")),
                "stops": stops,
                "steps": ops.convert_to_tensor(steps),
            },
            logits,
            state,
        )
        steps = to_numpy(steps)
        yield to_numpy(tokens)[:, :count], state
    if steps.max(initial=0) > 0:
        # By XLA as the loop: TensorFlow draws other numbers without it.
        draw = model._functions.with_sampler(sampler, _last_token, xla=True)
        tokens = draw(ops.convert_to_tensor(steps), logits)
        yield to_numpy(tokens)[:, None], None


def _last_token(model, sampler, steps, logits):
    """A token of each row, 0 in rows that have ended; `model` reads none."""
    token = sampler.get_next_token(sampler.compute_probabilities(logits))
    return ops.where(steps > 0, ops.cast(token, "int32"), 0)


def _decode_chunk(model, sampler, inputs, logits, state):
    """Takes up to `count` tokens; rows stand still once they have ended.

    Args:
        sampler: chooses tokens.
        inputs: dict of `"count"`, `"stops"`, and `"steps"` `(batch,)`,
            the tokens that each row still takes.
        logits, state: of the next token, and before it.
    """
    steps = inputs["steps"]
    tokens = ops.zeros((steps.shape[0], DECODE_CHUNK), dtype="int32")
    advance = model._functions.step(advance_rows)

    def going_on(index, tokens, steps, logits, state):
        return ops.logical_and(index < inputs["count"], ops.any(steps > 0))

    def body(index, tokens, steps, logits, state):
        token = sampler.get_next_token(sampler.compute_probabilities(logits))
        token, steps, logits, state = advance(
            ops.cast(token, "int32"), inputs["stops"], steps, state
        )
        tokens = ops.slice_update(tokens, [0, index], token[:, None])
        return index + 1, tokens, steps, logits, state

    index = ops.convert_to_tensor(0, dtype="int32")
    _, tokens, steps, logits, state = sampler.run_loop(
        going_on,
        body,
        loop_vars=(index, tokens, steps, logits, state),
        maximum_iterations=DECODE_CHUNK,
        model=model,
    )
    return tokens, logits, state, steps


def advance_rows(model, token, stops, steps, state):
    """Reads a token in the rows that go on.

    Args:
        token: `(rows,)` int32.
        stops: ids that end a row: `(ids,)` for all, or `(rows, ids)`.
        steps: `(rows,)`, the tokens that each row still takes.
        state: of the rows.

    Returns:
        `(token, steps, logits, state)`: 0 as the token of rows that have
        ended, and what each row still takes.
    """
    active = steps > 0
    token = ops.where(active, token, 0)
    # A stop token ends a row before it is read.
    stopped = ops.any(token[:, None] == stops, axis=1)
    active = ops.logical_and(active, ops.logical_not(stopped))
    hidden, state = model.backbone.call_with_state(
        token[:, None], state, active[:, None]
    )
    steps = ops.where(active, steps - 1, 0)
    return token, steps, model._logits(hidden[:, 0]), state


def pad_stop_token_ids(stop_token_ids):
    """The ids as an array; a few more of them do not change its shape."""
    size = STOP_IDS * max(1, -(-len(stop_token_ids) // STOP_IDS))
    padded = np.full((size,), -1, "int32")
    padded[: len(stop_token_ids)] = stop_token_ids
    return padded


def _last_real(x, padding_mask):
    """The last real column of `x` `(batch, time, width)`."""
    if padding_mask is None:
        return x[:, -1]
    columns = ops.arange(ops.shape(x)[1], dtype="int32")[None, :]
    index = ops.max(
        ops.where(ops.cast(padding_mask, "bool"), columns, 0),
        axis=1,
        keepdims=True,
    )
    return ops.take_along_axis(x, index[:, :, None], axis=1)[:, 0]
