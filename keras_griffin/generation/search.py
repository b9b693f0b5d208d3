"""Beam and contrastive search: samplers that choose among whole texts."""

from __future__ import annotations

import functools
from typing import Any

from keras import ops
from keras_hub.samplers import ContrastiveSampler

from keras_griffin.generation.prompts import to_numpy

# Logit of tokens that a row that has ended can no longer take.
IMPOSSIBLE = -1e30


def search(model, prompts, stop_token_ids, sampler):
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


def generate_step(
    model: Any,
    inputs: dict[str, Any],
    stop_token_ids: tuple[int, ...] | None,
    sampler: Any,
) -> Any:
    """Prefill and search on the arrays of `Prompts.loop_inputs`.

    Args:
        model: a `GriffinCausalLM`.
        inputs: dict from `Prompts.loop_inputs`.
        stop_token_ids: tuple of ids, or `None`.
        sampler: a beam or contrastive sampler.

    Returns:
        `(batch, width)` ids; the last `max(num_steps)` are new.
    """
    batch, width = ops.shape(inputs["buffer"])
    limit = inputs["num_steps"]
    start = width - ops.max(limit)
    columns = ops.arange(width, dtype="int32")[None, :]
    last = inputs["last_token_ids"][:, None]
    state, history = _read(model, inputs, last, start, columns, sampler)
    return sampler(
        next=functools.partial(_next, model, stop_token_ids, start),
        prompt=ops.where(columns == start - 1, last, inputs["buffer"]),
        # Rows that have ended go on with pads of probability 1: that changes
        # neither their beams' scores nor anything in other rows.
        cache={
            "state": state,
            "end": start + limit,
            "done": ops.zeros_like(limit, dtype="bool"),
        },
        index=start,
        mask=ops.broadcast_to(columns < start, (batch, width)),
        stop_token_ids=stop_token_ids,
        hidden_states=history,
        model=model,
    )


def _read(model, inputs, last, start, columns, sampler):
    """State before each row's last token, and what contrastive search reads."""
    backbone = model.backbone
    prefill_ids = inputs["prefill_token_ids"]
    mask = inputs["prefill_padding_mask"]
    batch, prefill = prefill_ids.shape
    state = backbone.init_state(batch, max_length=prefill + columns.shape[1])
    hidden = []
    if prefill:
        new, state = backbone.call_with_state(
            prefill_ids, state, mask, is_start=True
        )
        hidden.append(new)
    if not isinstance(sampler, ContrastiveSampler):
        return state, None
    hidden.append(backbone.call_with_state(last, state)[0])
    hidden = ops.concatenate(hidden, axis=1)
    return state, _align_history(hidden, mask, start, columns)


def _next(model, stop_token_ids, start, prompt, cache, index):
    """Logits after the token before `index`, as KerasHub's samplers ask."""
    index = ops.cast(index, "int32")
    token = ops.take(prompt, index - 1, axis=1)
    hidden, state = model.backbone.call_with_state(
        token[:, None], cache["state"]
    )
    done = ops.logical_or(cache["done"], index >= cache["end"])
    if stop_token_ids is not None:
        stops = ops.convert_to_tensor(stop_token_ids, dtype=token.dtype)
        stopped = ops.any(token[:, None] == stops, axis=1)
        # The prompt's own last token ends nothing.
        stopped = ops.logical_and(stopped, index > start)
        done = ops.logical_or(done, stopped)
    logits = model._logits(hidden[:, 0])
    is_pad = ops.arange(logits.shape[-1], dtype="int32") == 0
    pad_only = ops.where(is_pad, 0.0, IMPOSSIBLE)
    logits = ops.where(done[:, None], pad_only[None], logits)
    return logits, hidden[:, 0], {**cache, "state": state, "done": done}


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
