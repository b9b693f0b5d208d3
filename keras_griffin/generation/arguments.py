"""What a user gives to a generating call, looked at before it is used."""

import numbers
import operator

import keras
from keras import ops

# What a seed of Keras may be on every backend (3.15: PyTorch keeps int32).
MAX_SEED = 2**31 - 1


def check_lengths(max_length, max_new_tokens):
    """Raises unless one length at most is given, a whole number of tokens."""
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            "`max_length` counts the prompt too, `max_new_tokens` does not: "
            f"one of them decides. Received: max_length={max_length}, "
            f"max_new_tokens={max_new_tokens}. Leave one out."
        )
    if max_length is not None:
        check_whole(
            "max_length", max_length, 1, None, "It counts the prompt's tokens."
        )
    if max_new_tokens is not None:
        check_whole(
            "max_new_tokens",
            max_new_tokens,
            1,
            None,
            "To read a prompt only, use `prefill`.",
        )


def check_seed(seed):
    """Raises unless Keras can draw from `seed`; returns it as an int."""
    check_whole(
        "seed", seed, 0, MAX_SEED, "`None` draws differently each time."
    )
    return int(seed)


def check_whole(name, value, low, high, advice):
    """Raises unless `value` is an integer in `[low, high]`.

    Args:
        name: str. The argument's.
        value: what was given.
        low: int.
        high: int, or `None` for any.
        advice: str. The last sentence of the error.
    """
    try:
        is_whole = not isinstance(value, bool) and operator.index(value) >= low
    except TypeError:  # a float, a string, a list
        is_whole = False
    if not is_whole or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(
            f"`{name}` must be an integer {bounds}. Received: "
            f"{name}={value!r}. {advice}"
        )


def check_temperature(temperature, may_be_0):
    """Raises unless a sampler can use `temperature`; returns it as a float."""
    is_number = isinstance(temperature, numbers.Real) and not isinstance(
        temperature, bool
    )
    allows = is_number and 0 <= temperature < float("inf")
    if not allows or (temperature == 0 and not may_be_0):
        raise ValueError(
            "`temperature` must be a finite number above 0, or 0 with a "
            "sampler that draws single tokens. Received: "
            f"{temperature!r}. For the likeliest token take sampler='greedy'."
        )
    return float(temperature)


def as_state(model, state, batch_size=None, repeat=False):
    """A state that a user gave, as tensors; raises unless `model` can use it.

    Args:
        model: a `GriffinCausalLM`.
        state: nested dict of tensors or of arrays of any framework.
        batch_size: int. Rows that it has to have; `None`: any number.
        repeat: bool. Whether one row serves them all.
    """
    specs = model._functions.state_specs
    arrays = []
    _collect(specs, state, "state", arrays)
    rows = _rows(arrays, batch_size, repeat)
    if not all(ops.is_tensor(array) for array in arrays):
        state = keras.tree.map_structure(
            lambda spec, array: ops.convert_to_tensor(array, dtype=spec.dtype),
            specs,
            state,
        )
    if batch_size in (None, rows):
        return state
    return keras.tree.map_structure(
        lambda array: ops.repeat(array, batch_size, axis=0), state
    )


# By hand: `keras.tree` takes ten times as long, for each token.
def _collect(spec, value, name, arrays):
    """Adds the arrays of `value` to `arrays`; raises where `spec` differs."""
    if isinstance(spec, dict):
        if not isinstance(value, dict) or value.keys() != spec.keys():
            _refuse(name, f"a dict with {sorted(spec)}", value)
        for key in spec:
            _collect(spec[key], value[key], f"{name}[{key!r}]", arrays)
    elif isinstance(spec, list):
        if not isinstance(value, (list, tuple)) or len(value) != len(spec):
            _refuse(name, f"a list of {len(spec)}", value)
        for i, part in enumerate(spec):
            _collect(part, value[i], f"{name}[{i}]", arrays)
    else:
        if not spec.fits(value):
            _refuse(name, str(spec), value)
        arrays.append(value)


def _refuse(name, expected, value):
    if isinstance(value, dict):
        received = f"a dict with {sorted(map(str, value))}"
    elif hasattr(value, "shape"):
        received = f"an array of shape {tuple(value.shape)}"
    elif isinstance(value, (list, tuple)):
        received = f"a {type(value).__name__} of {len(value)}"
    else:
        received = f"{type(value).__name__} {value!r:.50}"
    raise ValueError(
        "A state must be one of this model: from `prefill`, `decode_step`, "
        f"`generate`, `init_state` or `load_state`, where {name} is "
        f"{expected}. Received: {received}. Is it another model's?"
    )


def _rows(arrays, batch_size, repeat):
    """The number of rows of a state's arrays, checked."""
    rows = {array.shape[0] for array in arrays}
    if len(rows) > 1:
        raise ValueError(
            "All arrays of a state must have the same number of rows. "
            f"Received: {sorted(rows)}. Gather the same rows from each."
        )
    (rows,) = rows
    if batch_size in (None, rows) or (repeat and rows == 1):
        return rows
    if repeat:
        rule = "one row for each prompt, or one for all"
        advice = "Read the prompts' common start as a batch of one."
    else:
        rule = "one row for each row of tokens"
        advice = "Repeat or gather its rows, along axis 0 of each array."
    raise ValueError(
        f"A state must have {rule}. Received: a state of {rows} rows for "
        f"{batch_size} rows. {advice}"
    )
