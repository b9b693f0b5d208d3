"""Draws a token for each row of logits, by settings that are data.

What a row draws is a function of its own logits, settings, seed and number of
new tokens: not of the row it is in, nor of the other rows.
"""

import numpy as np
from keras import ops

from keras_griffin.generation.sampling_settings import MAX_TOP_LOGPROBS
from keras_griffin.generation.sampling_settings import SamplingSettings

# Of each row: name, dtype and what changes nothing.
NEUTRAL = {
    "temperature": ("float32", 0.0),
    "top_k": ("int32", 0),
    "top_p": ("float32", 1.0),
    "min_p": ("float32", 0.0),
    "repetition_penalty": ("float32", 1.0),
    "presence_penalty": ("float32", 0.0),
    "frequency_penalty": ("float32", 0.0),
    "has_bias": ("bool", False),
    "top_logprobs": ("int32", 0),
    "seed": ("int32", 0),
}
# Of each row and token: what it is and its dtype.
TABLES = {"bias": "float32", "is_prompt": "bool", "counts": "int32"}

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")

# After so many an interval of logits is as short as float32 can tell.
HALVINGS = 32

# Odd numbers far from any pattern; see `_mix`.
_OF_A_TOKEN = 0x9E3779B9
_OF_A_PLACE = 0x85EBCA77
_SECOND = 0xC2B2AE3D


def neutral_arrays(rows):
    """The settings of rows that take the likeliest token, NumPy arrays."""
    return {
        name: np.full((rows,), value, dtype)
        for name, (dtype, value) in NEUTRAL.items()
    }


def set_row(arrays, row, settings=None, seed=0):
    """Writes a row's settings into the arrays; `None`: the neutral ones."""
    if settings is None:
        for name, (_, value) in NEUTRAL.items():
            arrays[name][row] = value
        return
    for name in NEUTRAL:
        if name not in ("has_bias", "seed"):
            arrays[name][row] = getattr(settings, name) or 0
    arrays["has_bias"][row] = bool(settings.logit_bias)
    arrays["seed"][row] = seed


def to_tensors(arrays):
    """A dict of NumPy arrays as tensors."""
    return {
        name: ops.convert_to_tensor(array) for name, array in arrays.items()
    }


def init_tables(rows, vocabulary_size):
    """The tables of rows without bias and tokens."""
    shape = (rows, vocabulary_size)
    return {name: ops.zeros(shape, dtype) for name, dtype in TABLES.items()}


def row_tables(settings, prompt, vocabulary_size):
    """The tables of one row as NumPy arrays `(1, vocabulary_size)`."""
    tables = {
        name: np.zeros((1, vocabulary_size), dtype)
        for name, dtype in TABLES.items()
    }
    for id, value in (settings.logit_bias or {}).items():
        tables["bias"][0, id] = value
    tables["is_prompt"][0, np.asarray(prompt, "int64")] = True
    return tables


def changes_logits(settings):
    """Whether a row with these settings looks at its tables."""
    neutral = SamplingSettings()
    return bool(settings.logit_bias) or any(
        getattr(settings, name) != getattr(neutral, name) for name in PENALTIES
    )


def draw(logits, place, settings, tables):
    """Chooses a token in each row.

    Args:
        logits: `(rows, vocabulary_size)` float32.
        place: `(rows,)` int32, new tokens that the row has already.
        settings: dict as of `neutral_arrays`, of tensors.
        tables: dict as of `init_tables`.

    Returns:
        `(token, counts)`: `(rows,)` int32, and the tables' counts with it.
    """
    adjusts = _adjusts(settings)
    adjusted = ops.cond(
        ops.any(adjusts),
        lambda: _adjust(logits, settings, tables),
        lambda: logits,
    )
    temperature = settings["temperature"][:, None]
    draws = temperature > 0
    token = _argmax(
        ops.cond(
            ops.any(draws),
            lambda: _perturb(adjusted, place, settings, temperature, draws),
            lambda: adjusted,
        )
    )
    counts = ops.cond(
        ops.any(adjusts),
        lambda: _count(tables["counts"], token),
        lambda: tables["counts"],
    )
    return token, counts


def _adjusts(settings):
    return ops.logical_or(
        ops.logical_or(
            settings["has_bias"], settings["repetition_penalty"] != 1
        ),
        ops.logical_or(
            settings["presence_penalty"] != 0,
            settings["frequency_penalty"] != 0,
        ),
    )


def _adjust(logits, settings, tables):
    """Adds the bias and takes the penalties."""
    repetition, presence, frequency = (
        settings[name][:, None] for name in PENALTIES
    )
    logits = logits + tables["bias"]
    is_new = tables["counts"] > 0
    seen = ops.logical_or(is_new, tables["is_prompt"])
    repeated = ops.where(logits > 0, logits / repetition, logits * repetition)
    logits = ops.where(seen, repeated, logits)
    counts = ops.cast(tables["counts"], "float32")
    logits = logits - frequency * counts
    return logits - ops.where(is_new, presence, 0.0)


def _count(counts, token):
    rows = ops.arange(counts.shape[0], dtype="int32")
    index = ops.stack([rows, token], axis=-1)
    old = ops.take_along_axis(counts, token[:, None], axis=1)[:, 0]
    return ops.scatter_update(counts, index, old + 1)


def _argmax(logits):
    """The first of the largest; XLA on a CPU takes longer for its own."""
    columns = ops.arange(logits.shape[-1], dtype="int32")
    is_largest = logits == ops.max(logits, axis=-1, keepdims=True)
    last = logits.shape[-1] - 1
    return ops.min(ops.where(is_largest, columns, last), axis=-1)


def _perturb(logits, place, settings, temperature, draws):
    """Logits of which the largest is the token, drawn in some of the rows.

    The largest of logits with Gumbel noise is a draw from their softmax.
    """
    scaled = logits / ops.where(draws, temperature, 1.0)
    truncates = ops.logical_or(
        ops.logical_or(settings["top_k"] > 0, settings["top_p"] < 1),
        settings["min_p"] > 0,
    )
    truncates = ops.logical_and(truncates, draws[:, 0])
    scaled = ops.cond(
        ops.any(truncates),
        lambda: truncate(scaled, settings),
        lambda: scaled,
    )
    noise = gumbel(settings["seed"], place, logits.shape[-1])
    return ops.where(draws, scaled + noise, scaled)


def truncate(logits, settings):
    """Logits with `-inf` at tokens that may not be drawn.

    Tokens as likely as the last one that may be drawn may be drawn, too, so
    that their order does not matter. Nothing is sorted: XLA takes a second
    for 8 rows of 256,000 tokens on two cores, and some 30 sums a tenth of it.
    """
    top_k, top_p, min_p = (
        settings[name][:, None] for name in ("top_k", "top_p", "min_p")
    )
    largest = ops.max(logits, axis=-1, keepdims=True)
    # log 0 = -inf leaves all tokens.
    lowest = largest + ops.log(min_p)
    weights = ops.exp(logits - largest)

    def of_top_k():
        wanted = ops.cast(top_k, "float32")
        found = _lowest(logits, largest, ops.ones_like(logits), wanted)
        return ops.where(top_k > 0, found, -np.inf)

    lowest_k = ops.cond(
        ops.any(top_k > 0), of_top_k, lambda: ops.full_like(largest, -np.inf)
    )
    kept = ops.where(logits >= lowest_k, weights, 0.0)

    def of_top_p():
        wanted = top_p * ops.sum(kept, axis=-1, keepdims=True)
        found = _lowest(logits, largest, kept, wanted)
        return ops.where(top_p < 1, found, -np.inf)

    lowest_p = ops.cond(
        ops.any(top_p < 1), of_top_p, lambda: ops.full_like(largest, -np.inf)
    )
    lowest = ops.maximum(lowest, ops.maximum(lowest_k, lowest_p))
    return ops.where(logits >= lowest, logits, -np.inf)


def _lowest(logits, largest, weights, wanted):
    """The largest logit from which on the weights add up to `wanted`.

    All are `(rows, 1)` but `logits` and `weights` `(rows, size)`. It is found
    by halving an interval, as far as float32 goes.
    """

    def suffices(bound):
        total = ops.where(logits >= bound, weights, 0.0)
        return ops.sum(total, axis=-1, keepdims=True) >= wanted

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        is_low = suffices(middle)
        return ops.where(is_low, middle, low), ops.where(is_low, high, middle)

    # A processor may have forbidden tokens by -inf.
    finite = ops.where(ops.isfinite(logits), logits, largest)
    low = ops.min(finite, axis=-1, keepdims=True)
    low, _ = ops.fori_loop(0, HALVINGS, halve, (low, largest))
    return ops.where(suffices(largest), largest, low)


def gumbel(seed, place, size):
    """Gumbel noise `(rows, size)` of rows' seeds and of places in their texts.

    A hash of seed, place and token, the same on every backend: what is drawn
    next needs no state. Of 2**23 values, the largest is 16.6.

    Args:
        seed, place: `(rows,)` int32.
        size: int. Tokens.
    """
    key = _mix(seed ^ _signed(_OF_A_PLACE))
    key = _mix(key + place * _signed(_OF_A_PLACE))[:, None]
    other = _mix(key ^ _signed(_SECOND))
    token = ops.arange(size, dtype="int32")[None, :]
    bits = _mix(token * _signed(_OF_A_TOKEN) + key)
    bits = _mix(bits ^ other)
    uniform = ops.cast(_shift(bits, 9), "float32")
    uniform = (uniform + 0.5) * np.float32(2.0**-23)
    return -ops.log(-ops.log(uniform))


def _mix(x):
    """A bijection of int32 after which each bit depends on all before it.

    The final step of MurmurHash3 (Appleby), in arithmetic that wraps.
    """
    x = (x ^ _shift(x, 16)) * _signed(0x85EBCA6B)
    x = (x ^ _shift(x, 13)) * _signed(0xC2B2AE35)
    return x ^ _shift(x, 16)


def _shift(x, by):
    """Shifts int32 to the right, zeros first."""
    return ops.bitwise_and(ops.right_shift(x, by), (1 << (32 - by)) - 1)


def _signed(x):
    """The int32 with the bits of a uint32."""
    return x - 2**32 if x >= 2**31 else x


def process(processor, token_ids, logits):
    """What a user's function makes of a row's logits, checked.

    Args:
        processor: see `SamplingSettings`.
        token_ids: sequence of int.
        logits: `(vocabulary_size,)` float32 array.
    """
    processed = np.asarray(processor(np.array(token_ids, "int32"), logits))
    is_number = np.issubdtype(processed.dtype, np.floating)
    if not is_number or processed.shape != logits.shape:
        raise ValueError(
            "A logits processor must return the logits, floats of shape "
            f"{logits.shape}. Received: {processed.dtype} of shape "
            f"{processed.shape}. Return the array that it was given, changed "
            "in place or not."
        )
    if np.isnan(processed).any() or not np.isfinite(processed.max()):
        raise ValueError(
            "A logits processor must leave a token to draw: one that is not "
            "-inf, and none that is nan or inf. Received: a maximum of "
            f"{processed.max()}. Allow the end token if nothing else fits."
        )
    return processed.astype("float32")


def top_room(vocabulary_size):
    """How many of the likeliest tokens `log_probabilities` tells."""
    return min(MAX_TOP_LOGPROBS, vocabulary_size)


def log_probabilities(logits, token, settings):
    """What the tokens' logits say, before any setting changes them.

    Returns:
        dict of `"chosen"` `(rows,)`, and of `"ids"` and `"values"`
        `(rows, top_room)` of the likeliest, zeros where no row asks.
    """
    normal = ops.logsumexp(logits, axis=-1, keepdims=True)
    chosen = ops.take_along_axis(logits, token[:, None], axis=1) - normal
    rows, size = logits.shape
    room = top_room(size)

    def likeliest():
        values, ids = ops.top_k(logits, room)
        return values - normal, ops.cast(ids, "int32")

    values, ids = ops.cond(
        ops.any(settings["top_logprobs"] > 0),
        likeliest,
        lambda: (
            ops.zeros((rows, room), "float32"),
            ops.zeros((rows, room), "int32"),
        ),
    )
    return {"chosen": chosen[:, 0], "ids": ids, "values": values}
