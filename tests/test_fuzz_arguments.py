"""Random calls: right, or refused by a sentence of the package.

Seeded and bounded. For a longer search:

    FUZZ_CASES=5000 FUZZ_SEED=7 pytest tests/test_fuzz_arguments.py
"""

import os

import keras
import numpy as np
import pytest

from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import model_with_tokenizer
from support.models import run
from support.models import tiny_model
from support.models import tokens

CASES = int(os.environ.get("FUZZ_CASES", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

IDS = tokens(2, 5)
# What somebody may give in place of anything.
ODD = (
    *(None, True, 0, -1, 2, 2**31, 2**40, 1.5, float("nan"), float("inf")),
    *("", "a", b"a", "top-p", [], [1], [1.5], [None], (), {}, {"a": 1}),
    *(set(), object(), np.int64(3), np.float32(2.0), np.zeros(())),
    *(np.zeros(2), np.zeros((2, 5)), np.zeros((0, 5), "int32")),
    *(np.zeros((2, 0), "int32"), np.array("a"), np.array([["a"]])),
    *(np.array([None]), IDS, IDS[0], -IDS, IDS + VOCABULARY, IDS[None]),
    np.full((2, 5), np.nan),
)


def odd_inputs(rng):
    """A dict of inputs with something odd in it, or another thing."""
    inputs = {"token_ids": IDS, "padding_mask": np.ones((2, 5), bool)}
    if rng.random() < 0.2:
        return pick(rng)
    for name in ("token_ids", "padding_mask", "more"):
        if rng.random() < 0.3:
            inputs[name] = pick(rng)
    if rng.random() < 0.2:
        inputs.pop("padding_mask")
    return inputs


def pick(rng):
    return ODD[rng.integers(len(ODD))]


def odd_state(rng, state):
    """A state with a part replaced."""
    if rng.random() < 0.3:
        return pick(rng)
    state = dict(state)
    if rng.random() < 0.5:
        state[list(state)[rng.integers(len(state))]] = pick(rng)
    else:
        blocks = [dict(block) for block in state["blocks"]]
        block = blocks[rng.integers(len(blocks))]
        block[list(block)[rng.integers(len(block))]] = pick(rng)
        state["blocks"] = blocks
    return state


def odd_settings(rng):
    names = (
        *("max_length", "max_new_tokens", "stop_token_ids"),
        *("sampler", "temperature", "seed"),
    )
    settings = {"max_new_tokens": 2, "stop_token_ids": None}
    for name in names:
        if rng.random() < 0.2:
            settings[name] = pick(rng)
    if settings["max_new_tokens"] is None or rng.random() < 0.2:
        settings.pop("max_new_tokens")
        settings.setdefault("max_length", 7)
    return settings


@pytest.fixture(scope="module")
def models():
    text_model = model_with_tokenizer()
    text_model.compile(sampler="greedy")
    return tiny_model(), text_model


def calls(rng, model, text_model, state):
    """What a case calls, by name."""
    inputs = odd_inputs(rng) if rng.random() < 0.7 else {"token_ids": IDS}
    settings = odd_settings(rng) if rng.random() < 0.7 else {}
    after = odd_state(rng, state) if rng.random() < 0.5 else state
    text = pick(rng) if rng.random() < 0.5 else ["a b", "c"]
    return {
        "generate": lambda: model.generate(inputs, **settings),
        "state": lambda: model.generate(inputs, state=after, max_new_tokens=2),
        "text": lambda: text_model.generate(
            text, **{"max_new_tokens": 2, **settings}
        ),
        "stream": lambda: list(
            text_model.generate_stream(text, max_new_tokens=2)
        ),
        "score": lambda: model.score(inputs, state=after),
        "score text": lambda: text_model.score(text),
        "prefill": lambda: model.prefill(inputs, after),
        "step": lambda: model.decode_step(pick(rng), after),
        "call": lambda: model(inputs),
    }


@pytest.mark.backend_independent
def test_odd_arguments(models):
    model, text_model = models
    _, state = model.prefill({"token_ids": IDS})
    worked, raw = 0, []
    for case in range(CASES):
        rng = np.random.default_rng([SEED, case])
        options = calls(rng, model, text_model, state)
        name = list(options)[rng.integers(len(options))]
        try:
            options[name]()
            worked += 1
        except Exception as error:
            if type(error) is not ValueError or "Received" not in str(error):
                raw.append(f"case {case}, {name}: {error!r:.300}")
    assert not raw, "\n".join(raw)
    assert 0 < worked < CASES


def documents(rng, batch, time):
    """Random numbers of documents: pads anywhere, each document in one run."""
    mask = np.zeros((batch, time), "int32")
    for row in mask:
        ends = np.sort(rng.choice(time, size=3, replace=False))
        for number, (start, end) in enumerate(
            zip([0, *ends], [*ends, time], strict=True), 1
        ):
            row[start:end] = number if rng.random() < 0.8 else 0
        row[rng.random(time) < 0.2] = 0
    return mask


@pytest.mark.parametrize("pattern", ["griffin", "mixed"])
def test_random_documents_are_read_as_if_alone(pattern):
    model = tiny_model(block_types=PATTERNS[pattern])
    for case in range(max(1, CASES // 30)):
        rng = np.random.default_rng([SEED, case])
        ids, mask = tokens(2, 24, seed=case), documents(rng, 2, 24)
        packed = to_numpy(model({"token_ids": ids, "padding_mask": mask}))
        for row in range(2):
            for number in np.unique(mask[row][mask[row] > 0]):
                at = mask[row] == number
                alone = run(model, ids[row][at][None])[0]
                assert_close(packed[row][at], to_numpy(alone))


def test_random_pieces_are_read_as_one(models):
    model, _ = models
    for case in range(max(1, CASES // 30)):
        rng = np.random.default_rng([SEED, case])
        ids, mask = tokens(2, 24, seed=case), rng.random((2, 24)) < 0.8
        mask[:, 0] = mask[:, -1] = True
        whole, end = model.prefill({"token_ids": ids, "padding_mask": mask})
        state, cut = None, int(rng.integers(1, 23))
        for part in (slice(0, cut), slice(cut, None)):
            logits, state = model.prefill(
                {"token_ids": ids[:, part], "padding_mask": mask[:, part]},
                state,
            )
        assert_close(logits, to_numpy(whole))
        for one, other in zip(
            keras.tree.flatten(state), keras.tree.flatten(end), strict=True
        ):
            assert_close(one, to_numpy(other))
