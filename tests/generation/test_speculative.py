"""Speculation changes how many passes there are, and no token."""

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin.generation import speculative
from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import run
from support.models import scatter
from support.models import tiny_model
from support.models import tokens

SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 3, "top_p": 0.9},
    {"seed": 4, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def draft():
    return tiny_model(num_layers=1, block_types=("recurrent",))


def ragged(lengths):
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    ids, mask = scatter(rows, max(lengths), where="right")
    return {"token_ids": ids, "padding_mask": mask}


def new_tokens(model, lengths, **options):
    options = {"stop_token_ids": None, "max_new_tokens": 14, **options}
    outputs = model.generate(ragged(lengths), strip_prompt=True, **options)
    return [
        row[mask].tolist()
        for row, mask in zip(
            outputs["token_ids"], outputs["padding_mask"], strict=True
        )
    ]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_tokens_are_those_without_it(model, draft, settings):
    # One that is always right, one that is seldom, one that looks up.
    expected = new_tokens(model, (1, 20, 7), top_k=25, **settings)
    for source, size in ((model, 4), (draft, 3), ("prompt_lookup", 4)):
        received = new_tokens(
            model,
            (1, 20, 7),
            top_k=25,
            draft=source,
            draft_tokens=size,
            **settings,
        )
        assert received == expected


@pytest.mark.backend_independent
def test_global_attention(draft):
    model = tiny_model(block_types=PATTERNS["mixed"])
    expected = new_tokens(model, (3, 9))
    for source in (draft, "prompt_lookup"):
        assert new_tokens(model, (3, 9), draft=source) == expected


@pytest.mark.backend_independent
def test_rows_end_where_they_would(model, draft):
    free = new_tokens(model, (5, 9))
    stops = (free[0][3], free[1][6])
    expected, state = model.generate(
        ragged((5, 9)),
        max_new_tokens=14,
        stop_token_ids=stops,
        return_state=True,
    )
    for source in (model, draft):
        received, last_state = model.generate(
            ragged((5, 9)),
            max_new_tokens=14,
            stop_token_ids=stops,
            return_state=True,
            draft=source,
        )
        for name, array in expected.items():
            np.testing.assert_array_equal(received[name], array)
        for actual, wanted in zip(
            keras.tree.flatten(last_state),
            keras.tree.flatten(state),
            strict=True,
        ):
            assert_close(actual, to_numpy(wanted))


@pytest.mark.backend_independent
def test_a_good_draft_saves_passes(model, monkeypatch):
    passes = []
    next_tokens = speculative.Speculation.next_tokens

    def counted(self):
        new = next_tokens(self)
        passes.append(len(new[0]))
        return new

    monkeypatch.setattr(speculative.Speculation, "next_tokens", counted)
    options = {"max_new_tokens": 20, "draft_tokens": 4}
    new_tokens(model, (6,), draft=model, **options)
    assert passes == [5, 5, 5, 5]
    passes.clear()
    new_tokens(model, (6,), draft=model, seed=2, temperature=1.0, **options)
    assert passes == [5, 5, 5, 5]


@pytest.mark.backend_independent
def test_the_distribution_is_that_of_the_model(model, draft):
    """Of the second token, which most often was verified as a proposal."""
    rows, prompt = 3000, tokens(1, 6)
    outputs = model.generate(
        {"token_ids": np.repeat(prompt, rows, axis=0)},
        max_new_tokens=2,
        stop_token_ids=None,
        strip_prompt=True,
        temperature=1.0,
        seed=1,
        draft=draft,
    )
    counts = np.bincount(outputs["token_ids"][:, 1], minlength=VOCABULARY)
    after = np.arange(VOCABULARY)[:, None]
    texts = np.concatenate([np.repeat(prompt, VOCABULARY, 0), after], axis=1)
    logits = run(model, texts.astype("int32")).astype("float64")
    p = np.exp(logits)
    p /= p.sum(-1, keepdims=True)
    expected = rows * (p[0, -2] @ p[:, -1])
    chi = ((counts - expected) ** 2 / expected).sum()
    freedom = VOCABULARY - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.backend_independent
def test_streams(draft):
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(sampler="greedy")
    text = "ROMEO: Why, "
    whole = model.generate(text, max_new_tokens=20)
    pieces = list(model.generate_stream(text, max_new_tokens=20, draft=model))
    assert text + "".join(pieces) == whole and len(pieces) > 2
    stop = whole[len(text) + 8 :][:3]
    options = {"max_new_tokens": 20, "stop": stop, "temperature": 0}
    pieces = model.generate_stream(text, draft="prompt_lookup", **options)
    assert text + "".join(pieces) == model.generate(text, **options)
    with pytest.raises(ValueError, match="a state at the end alone"):
        model.generate_stream(
            text, draft=model, temperature=0, return_state=True
        )


@pytest.mark.parametrize("pattern", ["griffin", "mixed"])
def test_a_state_before_the_last_tokens(pattern):
    """`num_kept`: outputs of all, the state after some."""
    backbone = tiny_model(block_types=PATTERNS[pattern]).backbone
    ids, mask = tokens(3, 9), np.ones((3, 9), bool)
    mask[1, 7:] = False
    kept = np.array([4, 7, 0], "int32")
    before = backbone.init_state(3, max_length=20)
    _, before = backbone.call_with_state(tokens(3, 8, seed=5), before)
    whole, _ = backbone.call_with_state(ids, before, mask)
    hidden, state = backbone.call_with_state(
        ids, before, mask, num_kept=keras.ops.convert_to_tensor(kept)
    )
    is_kept = np.arange(9)[None] < kept[:, None]
    _, expected = backbone.call_with_state(ids, before, is_kept)
    assert_close(to_numpy(hidden)[mask], to_numpy(whole)[mask])
    for actual, wanted in zip(
        keras.tree.flatten(state), keras.tree.flatten(expected), strict=True
    ):
        assert_close(actual, to_numpy(wanted))


@pytest.mark.backend_independent
def test_what_is_looked_up():
    look_up = speculative.look_up
    assert look_up([1, 2, 3, 4, 9, 2, 3], 3) == [4, 9, 2]
    # The longest one that is there, at its last place.
    assert look_up([5, 3, 6, 2, 3, 7, 3, 8, 2, 3], 1) == [7]
    assert look_up([1, 2, 1], 4) == [2, 1, 0, 0]
    assert look_up([1, 2, 3], 2) == look_up([1], 2) == [0, 0]


@pytest.mark.backend_independent
def test_who_cannot_propose(model):
    other = tiny_model(vocabulary_size=31)
    for options, message in (
        ({"draft": other}, "must have the model's vocabulary"),
        ({"draft": "model"}, "must be a GriffinCausalLM"),
        ({"draft": model, "draft_tokens": 33}, "`draft_tokens` must"),
        (
            {"draft": model, "logits_processor": lambda ids, x: x},
            "one token after the other",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            new_tokens(model, (3,), temperature=0, **options)
    drawing = tiny_model(sampler="top_k")
    with pytest.raises(ValueError, match="not by the model's sampler"):
        new_tokens(drawing, (3,), draft=drawing)
