"""How a `GriffinCausalLM` generates: the functions behind its methods.

A prompt goes once through the state (`prefill`); then each row decodes from
its own end (`decode`), some tokens in one call of the device. Samplers that
choose among whole texts have a loop of their own (`_search`).
"""

import keras
import keras_hub
import numpy as np
from keras import ops
from keras_hub.samplers import ContrastiveSampler
from keras_hub.samplers import SpeculativeSampler

from keras_griffin import keras_compat
from keras_griffin.generation import chat_template
from keras_griffin.generation.prompts import Prompts
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import prompt_pieces
from keras_griffin.generation.prompts import stream_text
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.sampling import is_search
from keras_griffin.generation.sampling import pad_stop_token_ids
from keras_griffin.generation.state_files import repeat_rows
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.input_checks import check_token_ids
from keras_griffin.layers.input_checks import fill_inputs
from keras_griffin.training.chunked_cross_entropy import MAX_LOGITS

# Logit of tokens that a row that has ended can no longer take.
IMPOSSIBLE = -1e30

# Tokens. Longer prompts are read in pieces of this size, in bounded memory.
PREFILL_CHUNK = 2048
# Logits of so many tokens of a row are held at once, if `MAX_LOGITS` allows.
SCORE_CHUNK = 256
# New tokens of one call of the device, and the same where somebody reads along.
DECODE_CHUNK = 32
STREAM_CHUNK = 4

# === One prompt, one token ===


def prefill(model, inputs, state):
    """See `GriffinCausalLM.prefill`."""
    inputs = fill_inputs(inputs)
    if isinstance(inputs, dict) and "token_ids" in inputs:
        inputs = {
            name: None if inputs.get(name) is None else to_numpy(value)
            for name, value in {"padding_mask": None, **inputs}.items()
        }
        check_token_ids(inputs["token_ids"], model.backbone.vocabulary_size)
    check_inputs(inputs, model.backbone.vocabulary_size)
    batch, time = inputs["token_ids"].shape
    if time == 0:
        raise ValueError(
            "`prefill` needs at least one column of tokens. Received: "
            f"token_ids of shape {(batch, time)}. The state before any "
            "token is `init_state(batch_size)`."
        )
    if state is None:
        state = model.init_state(batch)
    logits = ops.zeros((batch, model.backbone.vocabulary_size), "float32")
    for piece in prompt_pieces(inputs, PREFILL_CHUNK):
        logits, state = model._functions.run(
            prefill_piece, piece, logits, state
        )
    return logits, state


def prefill_piece(model, inputs, logits, state):
    """Reads columns; `logits` are of rows that ended before them."""
    hidden, state = model.backbone.call_with_state(state=state, **inputs)
    mask = inputs.get("padding_mask")
    new_logits = model._logits(_last_real(hidden, mask))
    if mask is not None:
        # Rows that ended in an earlier piece keep what came next there.
        reads = ops.any(mask, axis=1, keepdims=True)
        new_logits = ops.where(reads, new_logits, logits)
    return new_logits, state


def decode_step(model, token_ids, state):
    """See `GriffinCausalLM.decode_step`."""
    token_ids = ops.convert_to_tensor(token_ids, dtype="int32")
    if len(token_ids.shape) != 1:
        raise ValueError(
            "`token_ids` must have shape (batch,), one token a row. "
            f"Received: shape {tuple(token_ids.shape)}. Longer pieces go "
            "through `prefill`."
        )
    if keras.config.backend() == "torch":
        return model._functions.step(decode_token)(token_ids, state)
    return model._functions.run(decode_token, token_ids, state, xla=True)


def decode_token(model, token_ids, state):
    """Reads a token in each row."""
    hidden, state = model.backbone.call_with_state(token_ids[:, None], state)
    return model._logits(hidden[:, 0]), state


# === Many tokens ===


def generate(
    model,
    inputs,
    max_length,
    stop_token_ids,
    strip_prompt,
    max_new_tokens,
    sampler,
    temperature,
    seed,
    state,
    return_state,
):
    """See `GriffinCausalLM.generate`."""
    sampler = call_sampler(model, sampler, temperature, seed)
    stop_token_ids = find_stop_token_ids(model, stop_token_ids)
    _check_lengths(max_length, max_new_tokens)
    is_chat = chat_template.is_conversation(
        inputs
    ) or chat_template.are_conversations(inputs)
    if is_chat and model.preprocessor is not None:
        inputs = model.preprocessor.render_prompts(inputs)
    if (state is not None or return_state) and is_search(sampler):
        raise ValueError(
            "A state goes with a sampler that takes one token after the "
            f"other. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p' or 'random'."
        )
    batches, is_scalar = keras_compat.batches_of_inputs(model, inputs)
    if (state is not None or return_state) and not isinstance(batches, list):
        raise ValueError(
            "A state belongs to one batch. Received: a tf.data.Dataset "
            "with `state` or `return_state`. Call `generate` for each "
            "batch."
        )
    outputs = []
    for batch in batches:
        prompts = make_prompts(model, batch, max_length, max_new_tokens, state)
        generated, last_state = generate_tokens(
            model, prompts, stop_token_ids, sampler, state
        )
        output = prompts.outputs(
            generated,
            stop_token_ids,
            strip_prompt=strip_prompt or is_chat,
            keep_stop=not is_chat,
        )
        if model.preprocessor is not None:
            output = model.preprocessor.generate_postprocess(output)
        outputs.append(output)
    outputs = keras_compat.join_outputs(model, outputs, is_scalar)
    return (outputs, last_state) if return_state else outputs


def generate_stream(
    model,
    inputs,
    max_length,
    stop_token_ids,
    max_new_tokens,
    sampler,
    temperature,
    seed,
    state,
    return_state,
):
    """See `GriffinCausalLM.generate_stream`."""
    if model.preprocessor is not None and chat_template.is_conversation(inputs):
        inputs = model.preprocessor.render_prompts(inputs)
    if model.preprocessor is None or not isinstance(inputs, str):
        raise ValueError(
            "`generate_stream` takes one prompt as a string, with a "
            f"preprocessor. Received: {type(inputs).__name__}, "
            f"preprocessor={model.preprocessor}. Use `generate`."
        )
    sampler = call_sampler(model, sampler, temperature, seed)
    if is_search(sampler):
        raise ValueError(
            "Streaming needs a sampler that takes one token after the "
            f"other. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p' or 'random'."
        )
    _check_lengths(max_length, max_new_tokens)
    prompts = make_prompts(model, [inputs], max_length, max_new_tokens, state)
    stop_token_ids = find_stop_token_ids(model, stop_token_ids)
    logits, state = read_prompts(model, prompts, state)
    pieces = decode(
        model,
        logits,
        state,
        prompts.steps,
        stop_token_ids,
        sampler,
        STREAM_CHUNK,
    )
    pieces = (
        (prompts.cut(tokens[0], stop_token_ids, keep_stop=False), state)
        for tokens, state in pieces
    )
    texts = stream_text(model.preprocessor.tokenizer, prompts.rows[0], pieces)
    if return_state:
        return texts
    return (text for text, _ in texts if text)


def call_sampler(model, sampler, temperature, seed):
    """The sampler of one call."""
    sampler = (
        model.sampler if sampler is None else keras_hub.samplers.get(sampler)
    )
    check_sampler(sampler, model.backbone.vocabulary_size)
    if temperature is None and seed is None:
        return sampler
    config = sampler.get_config()
    if temperature is not None:
        if temperature <= 0:
            raise ValueError(
                "`temperature` must be above 0. Received: "
                f"{temperature}. For the likeliest token take "
                "sampler='greedy'."
            )
        config["temperature"] = temperature
    if "seed" in config:  # of a sampler that draws
        config["seed"] = seed
    return type(sampler).from_config(config)


def find_stop_token_ids(model, stop_token_ids):
    """The ids that end a row of one call, as a tuple."""
    if stop_token_ids is None:
        return ()
    if not isinstance(stop_token_ids, str):
        return tuple(int(id) for id in stop_token_ids)
    if model.preprocessor is None:
        raise ValueError(
            "A `preprocessor` must be there for stop_token_ids='auto'. "
            "Received: preprocessor=None. Give a tuple of ids, or None "
            "to stop at the length alone."
        )
    return model.preprocessor.stop_token_ids


def make_prompts(model, inputs, max_length, max_new_tokens, state):
    """The `Prompts` of one batch of text or ids."""
    preprocessor = model.preprocessor
    skip = 0
    if preprocessor is not None and not isinstance(inputs, dict):
        if max_new_tokens is not None:
            max_length = preprocessor.longest_prompt(inputs)
        inputs = preprocessor.generate_preprocess(
            inputs, sequence_length=max_length
        )
        skip = int(state is not None and preprocessor.add_start_token)
    return Prompts(inputs, model.backbone.vocabulary_size, max_new_tokens, skip)


def generate_tokens(model, prompts, stop_token_ids, sampler, state):
    """New tokens `(batch, steps)` or `None`, and the state after them."""
    if is_search(sampler):
        return _search(model, prompts, stop_token_ids, sampler), None
    logits, state = read_prompts(model, prompts, state)
    pieces = []
    for tokens, state in decode(
        model,
        logits,
        state,
        prompts.steps,
        stop_token_ids,
        sampler,
        DECODE_CHUNK,
    ):
        pieces.append(tokens)
    return (np.concatenate(pieces, axis=1) if pieces else None), state


def read_prompts(model, prompts, state):
    """Logits of each row's first new token, and the state before it."""
    arrays = prompts.arrays()
    batch, time = arrays["token_ids"].shape
    if state is None:
        length = bucket(time + prompts.num_steps)
        state = model.init_state(batch, max_length=length)
    else:
        state = repeat_rows(state, batch)
    return model.prefill(arrays, state)


def decode(model, logits, state, steps, stop_token_ids, sampler, chunk):
    """Yields new tokens `(batch, <= chunk)` and the state after them."""
    loop = model._functions.with_sampler(sampler, _decode_chunk, xla=True)
    stops = ops.convert_to_tensor(
        pad_stop_token_ids(stop_token_ids).astype("int32")
    )
    steps = np.asarray(steps, "int32")
    while steps.max(initial=0) > 0:
        count = min(chunk, int(steps.max()))
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
    advance = model._functions.step(_advance)

    def going_on(index, tokens, steps, logits, state):
        return ops.logical_and(index < inputs["count"], ops.any(steps > 0))

    def body(index, tokens, steps, logits, state):
        token = sampler.get_next_token(sampler.compute_probabilities(logits))
        token, steps, logits, state = advance(
            ops.cast(token, "int32"), inputs["stops"], steps, state
        )
        tokens = ops.slice_update(tokens, [0, index], token[:, None])
        return index + 1, tokens, steps, logits, state

    _, tokens, steps, logits, state = sampler.run_loop(
        going_on,
        body,
        loop_vars=(
            ops.convert_to_tensor(0, dtype="int32"),
            tokens,
            steps,
            logits,
            state,
        ),
        maximum_iterations=DECODE_CHUNK,
        model=model,
    )
    return tokens, logits, state, steps


def _advance(model, token, stops, steps, state):
    """Reads a token in the rows that go on.

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


# === Beam and contrastive search ===


def _search(model, prompts, stop_token_ids, sampler):
    """Samplers that choose among whole texts, in one loop on the device."""
    if not prompts.num_steps:
        return None
    keep_history = isinstance(sampler, ContrastiveSampler)
    tensors = {
        name: ops.convert_to_tensor(array)
        for name, array in prompts.loop_inputs(keep_history).items()
    }
    loop = model._functions.with_sampler(
        sampler, _search_loop, stop_token_ids or None
    )
    tokens = to_numpy(loop(tensors))
    return tokens[:, tokens.shape[1] - prompts.num_steps :]


def _search_loop(model, sampler, stop_token_ids, inputs):
    return model.generate_step(inputs, stop_token_ids, sampler)


def generate_step(model, inputs, stop_token_ids, sampler):
    """See `GriffinCausalLM.generate_step`."""
    buffer = inputs["buffer"]
    batch, width = ops.shape(buffer)
    limit = inputs["num_steps"]
    start = width - ops.max(limit)
    columns = ops.arange(width, dtype="int32")[None, :]
    last = inputs["last_token_ids"][:, None]
    tokens = ops.where(columns == start - 1, last, buffer)

    prefill_ids = inputs["prefill_token_ids"]
    prefill = prefill_ids.shape[1]
    state = model.backbone.init_state(batch, max_length=prefill + width)
    history = None
    if prefill:
        mask = inputs["prefill_padding_mask"]
        hidden, state = model.backbone.call_with_state(prefill_ids, state, mask)
    if isinstance(sampler, ContrastiveSampler):
        last_hidden, _ = model.backbone.call_with_state(last, state)
        if prefill:
            last_hidden = ops.concatenate([hidden, last_hidden], axis=1)
        history = _align_history(
            last_hidden, inputs["prefill_padding_mask"], start, columns
        )

    # Rows that have ended go on with pads of probability 1: that changes
    # neither their beams' scores nor anything in other rows.
    cache = {
        "state": state,
        "end": start + limit,
        "done": ops.zeros_like(limit, dtype="bool"),
    }

    def next(prompt, cache, index):
        index = ops.cast(index, "int32")
        token = ops.take(prompt, index - 1, axis=1)
        hidden, state = model.backbone.call_with_state(
            token[:, None], cache["state"]
        )
        done = ops.logical_or(cache["done"], index >= cache["end"])
        if stop_token_ids is not None:
            stopped = ops.zeros_like(done)
            for id in stop_token_ids:
                stopped = ops.logical_or(stopped, token == id)
            # The prompt's own last token ends nothing.
            stopped = ops.logical_and(stopped, index > start)
            done = ops.logical_or(done, stopped)
        logits = model._logits(hidden[:, 0])
        pad_only = ops.where(
            ops.arange(logits.shape[-1], dtype="int32") == 0,
            0.0,
            IMPOSSIBLE,
        )
        logits = ops.where(done[:, None], pad_only[None], logits)
        cache = {"state": state, "end": cache["end"], "done": done}
        return logits, hidden[:, 0], cache

    return sampler(
        next=next,
        prompt=tokens,
        cache=cache,
        index=start,
        mask=ops.broadcast_to(columns < start, (batch, width)),
        stop_token_ids=stop_token_ids,
        hidden_states=history,
        model=model,
    )


# === Scores ===


def score(model, inputs, state, return_greedy):
    """See `GriffinCausalLM.score`."""
    if model.preprocessor is None or isinstance(inputs, dict):
        prompts = Prompts(inputs, model.backbone.vocabulary_size)
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
    state = repeat_rows(state, batch)
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


def _check_lengths(max_length, max_new_tokens):
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            "`max_length` counts the prompt too, `max_new_tokens` does not: "
            f"one of them decides. Received: max_length={max_length}, "
            f"max_new_tokens={max_new_tokens}. Leave one out."
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(
            "`max_new_tokens` must be at least 1. Received: "
            f"{max_new_tokens}. To read a prompt only, use `prefill`."
        )


def check_sampler(sampler, vocabulary_size):
    """Raises for samplers that a recurrent state cannot serve."""
    if isinstance(sampler, SpeculativeSampler):
        raise ValueError(
            "A sampler must not take tokens back: a recurrent state "
            f"cannot. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p', 'random', 'beam' or 'contrastive'."
        )
    if getattr(sampler, "return_all_beams", False):
        raise ValueError(
            "`generate` returns one text for each prompt. Received: a "
            "BeamSampler with return_all_beams=True. Set it to False."
        )
    k = getattr(sampler, "k", None)
    if k is not None and k < 1:
        raise ValueError(
            "A sampler's `k` must be at least 1. Received: "
            f"{type(sampler).__name__} with k={k}. For all tokens take "
            "'random'."
        )
    # Above it the others take all tokens.
    if isinstance(sampler, ContrastiveSampler) and k > vocabulary_size:
        raise ValueError(
            "A ContrastiveSampler's `k` must be at most the size of the "
            f"vocabulary. Received: k={k}, a vocabulary of {vocabulary_size}. "
            "Take fewer."
        )


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


def _align_history(hidden, prefill_mask, start, columns):
    """Hidden states of the prompt, ending at column `start - 1`.

    The contrastive sampler compares new tokens with every column before them.
    Columns without a token repeat the prompt's first one, which changes no
    maximum.
    """
    batch, width = ops.shape(columns)
    prompt = hidden.shape[1]
    num_real = ops.sum(ops.cast(prefill_mask, "int32"), axis=1) + 1
    first = (prompt - num_real)[:, None]
    index = ops.maximum(columns - start + prompt, first)
    index = ops.minimum(index, prompt - 1)[:, :, None]
    history = ops.take_along_axis(hidden, index, axis=1)
    return ops.where((columns < start)[..., None], history, 0.0)
