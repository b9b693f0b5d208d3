"""The sampler of a call, and its settings as data for compiled functions."""

import copy
import functools
import json
import operator

import numpy as np
from keras import ops
from keras_hub import samplers

from keras_griffin.generation.arguments import check_seed
from keras_griffin.generation.arguments import check_temperature
from keras_griffin.near_names import did_you_mean

# Attributes that are data for a compiled function, not part of it. So is `k` of
# `TRUNCATING` samplers; of a contrastive sampler it is a shape.
SETTINGS = ("temperature", "p", "alpha")
TRUNCATING = (samplers.TopKSampler, samplers.TopPSampler)

# One function serves every `k` up to this, another one every `k` up to twice
# as much, and so on: they sort out so many tokens, and mask those beyond `k`.
MIN_LIKELIEST = 64

# KerasHub's own: `get_config` says all about them. Those of single tokens take
# the likeliest one at temperature 0.
OF_A_TOKEN = (
    samplers.GreedySampler,
    samplers.TopKSampler,
    samplers.TopPSampler,
    samplers.RandomSampler,
)
KNOWN = (*OF_A_TOKEN, samplers.BeamSampler, samplers.ContrastiveSampler)

NAMES = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")


def get_sampler(identifier):
    """The sampler of a name or a configuration; all else as it is."""
    is_name = isinstance(identifier, str) and identifier in NAMES
    is_config = isinstance(identifier, dict) and "class_name" in identifier
    if is_name or is_config:
        return samplers.get(identifier)
    return identifier


def call_sampler(model, sampler, temperature, seed):
    """The sampler of one call."""
    sampler = model.sampler if sampler is None else get_sampler(sampler)
    check_sampler(sampler, model.backbone.vocabulary_size)
    if temperature is None and seed is None:
        return sampler
    seed = None if seed is None else check_seed(seed)
    config = sampler.get_config()
    if temperature is not None:
        may_be_0 = type(sampler) in OF_A_TOKEN
        config["temperature"] = check_temperature(temperature, may_be_0)
        if not config["temperature"]:
            return samplers.GreedySampler()
    if "seed" in config:  # of a sampler that draws
        config["seed"] = seed
    return type(sampler).from_config(config)


def find_stop_token_ids(model, stop_token_ids):
    """The ids that end a row of one call, as a tuple."""
    if stop_token_ids is None:
        return ()
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        preprocessor = model.preprocessor
        return () if preprocessor is None else preprocessor.stop_token_ids
    try:
        ids = tuple(operator.index(id) for id in stop_token_ids)
    except TypeError as error:
        raise ValueError(
            "`stop_token_ids` must be 'auto', a sequence of token ids, or "
            f"None. Received: {stop_token_ids!r}. For one id give a tuple of "
            "it: (1,)."
        ) from error
    size = model.backbone.vocabulary_size
    if not all(0 <= id < size for id in ids):
        raise ValueError(
            f"`stop_token_ids` must lie in [0, {size - 1}], the vocabulary. "
            f"Received: {stop_token_ids!r}. Other ids never come: leave them "
            "out."
        )
    return ids


def check_sampler(sampler, vocabulary_size):
    """Raises for what is no sampler, or none for a recurrent state."""
    if not isinstance(sampler, samplers.Sampler):
        raise ValueError(
            "`sampler` must be a name or a keras_hub.samplers.Sampler. "
            f"Received: {sampler!r}. {did_you_mean(sampler, NAMES)}The names "
            f"are {', '.join(NAMES)}."
        )
    if isinstance(sampler, samplers.SpeculativeSampler):
        raise ValueError(
            "A sampler must not take tokens back: a recurrent state "
            f"cannot. Received: {type(sampler).__name__}. For speculation "
            "give `generate(..., draft=model)`, which takes back nothing."
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
    if isinstance(sampler, samplers.ContrastiveSampler) and k > vocabulary_size:
        raise ValueError(
            "A ContrastiveSampler's `k` must be at most the size of the "
            f"vocabulary. Received: k={k}, a vocabulary of {vocabulary_size}. "
            "Take fewer."
        )


def is_search(sampler):
    """Whether the sampler has a loop of its own, over whole texts."""
    return (
        isinstance(sampler, samplers.Sampler)
        and type(sampler).__call__ is not samplers.Sampler.__call__
    )


def check_state_use(inputs, sampler):
    """Raises where no state can go in or come out."""
    if is_search(sampler):
        raise ValueError(
            "A state goes with a sampler that takes one token after the "
            f"other. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p' or 'random'."
        )
    if hasattr(inputs, "as_numpy_iterator"):
        raise ValueError(
            "A state belongs to one batch. Received: a tf.data.Dataset "
            "with `state` or `return_state`. Call `generate` for each "
            "batch."
        )


def kind_of_sampler(sampler):
    """Samplers of one kind run the same compiled function."""
    if type(sampler) not in KNOWN:
        return type(sampler), sampler
    config = {
        name: value
        for name, value in sampler.get_config().items()
        if name not in (*SETTINGS, "seed")
    }
    if _truncates(sampler):
        config["k"] = _room(sampler.k)
    return type(sampler), json.dumps(config, sort_keys=True)


def copy_sampler(sampler):
    """A sampler with random state of its own, where that is possible."""
    if type(sampler) not in KNOWN:
        return sampler
    return type(sampler).from_config(sampler.get_config())


def settings_of(sampler):
    """The sampler's `SETTINGS` as tensors."""
    if type(sampler) not in KNOWN:
        return {}
    settings = {
        name: ops.convert_to_tensor(np.array(getattr(sampler, name), "float32"))
        for name in SETTINGS
        if hasattr(sampler, name)
    }
    if _truncates(sampler):
        settings["k"] = ops.convert_to_tensor(np.array(sampler.k, "int32"))
    return settings


def with_settings(sampler, settings):
    """The sampler with other settings and the same random state."""
    sampler = copy.copy(sampler)
    settings = dict(settings)
    if "k" in settings:
        sampler.get_next_token = functools.partial(
            _draw_among, sampler, sampler.get_next_token, settings.pop("k")
        )
    for name, value in settings.items():
        setattr(sampler, name, value)
    return sampler


def _truncates(sampler):
    return type(sampler) in TRUNCATING and sampler.k is not None


def _room(k):
    return max(MIN_LIKELIEST, 1 << (k - 1).bit_length())


def _draw_among(sampler, draw, k, probabilities):
    """KerasHub's `draw`, with the tokens beyond the `k` likeliest masked."""
    sampler.k = min(_room(sampler.k), probabilities.shape[-1])
    likeliest, token_ids = ops.top_k(probabilities, k=sampler.k)
    likeliest = ops.where(ops.arange(sampler.k) < k, likeliest, 0.0)
    column = draw(likeliest)[:, None]
    return ops.take_along_axis(token_ids, column, axis=-1)[:, 0]
