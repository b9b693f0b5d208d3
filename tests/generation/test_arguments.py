"""What generation is given: taken as it is meant, or refused with the rule."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_griffin.cli.common import seed as seed_of_command
from keras_griffin.generation.arguments import MAX_SEED
from support.checks import assert_close
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import model_with_tokenizer
from support.models import tiny_model
from support.models import tokens

INPUTS = {"token_ids": tokens(2, 5)}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def text_model():
    model = model_with_tokenizer()
    model.compile(sampler="greedy")
    return model


@pytest.fixture(scope="module")
def state(model):
    return model.prefill(INPUTS)[1]


def shape(model, **arguments):
    return model.generate(INPUTS, **arguments)["token_ids"].shape


@pytest.mark.backend_independent
def test_lengths_count_tokens(model):
    assert shape(model, max_length=8) == (2, 8)
    assert shape(model, max_length=np.int64(8)) == (2, 8)
    assert shape(model, max_new_tokens=np.int32(2)) == (2, 7)


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", ["max_length", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", [2], np.ones(2, int)])
def test_other_lengths_are_refused(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at"):
        model.generate(INPUTS, **{name: value})


@pytest.mark.backend_independent
@pytest.mark.parametrize("seed", [0, np.int64(3), MAX_SEED])
def test_seeds(model, seed):
    drawn = [
        model.generate(INPUTS, max_new_tokens=6, sampler="random", seed=s)
        for s in (seed, int(seed))
    ]
    np.testing.assert_array_equal(drawn[0]["token_ids"], drawn[1]["token_ids"])


@pytest.mark.backend_independent
@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**40, 1.0, "1", True])
def test_other_seeds_are_refused(model, seed):
    with pytest.raises(ValueError, match="`seed` must be an integer in"):
        shape(model, sampler="random", seed=seed)


@pytest.mark.backend_independent
def test_the_commands_seed():
    import argparse

    assert seed_of_command(str(MAX_SEED)) == MAX_SEED
    for text in ("-1", str(MAX_SEED + 1)):
        with pytest.raises(argparse.ArgumentTypeError, match="must be in"):
            seed_of_command(text)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "temperature", [-1.0, float("nan"), float("inf"), "1", False, [1.0]]
)
def test_other_temperatures_are_refused(model, temperature):
    with pytest.raises(ValueError, match="`temperature` must be a finite"):
        shape(model, sampler="random", temperature=temperature)


@pytest.mark.backend_independent
def test_temperature_0_takes_the_likeliest_token(model):
    likeliest = model.generate(INPUTS, max_new_tokens=3, sampler="greedy")
    drawn = model.generate(
        INPUTS, max_new_tokens=3, sampler="random", temperature=0
    )
    np.testing.assert_array_equal(drawn["token_ids"], likeliest["token_ids"])
    with pytest.raises(ValueError, match="or 0 with a sampler that draws"):
        shape(model, sampler="beam", temperature=0)


@pytest.mark.backend_independent
def test_without_a_preprocessor_the_length_alone_ends_a_row(model):
    default = model.generate(INPUTS, max_new_tokens=3)["token_ids"]
    none = model.generate(INPUTS, max_new_tokens=3, stop_token_ids=None)
    np.testing.assert_array_equal(default, none["token_ids"])


@pytest.mark.backend_independent
@pytest.mark.parametrize("stops", [5, "no", [1.5], [None]])
def test_other_stops_are_refused(model, stops):
    with pytest.raises(ValueError, match="must be 'auto', a sequence"):
        shape(model, max_new_tokens=2, stop_token_ids=stops)


@pytest.mark.backend_independent
@pytest.mark.parametrize("stops", [[VOCABULARY], (-1,)])
def test_stops_are_of_the_vocabulary(model, stops):
    with pytest.raises(ValueError, match="the vocabulary. Received"):
        shape(model, max_new_tokens=2, stop_token_ids=stops)


# === States ===


def readers(model, state):
    """Each way to read after a state."""
    return {
        "prefill": lambda: model.prefill(INPUTS, state),
        "decode_step": lambda: model.decode_step(np.array([1, 2]), state),
        "generate": lambda: shape(model, max_new_tokens=2, state=state),
        "score": lambda: model.score(INPUTS, state=state),
    }


READERS = readers(None, None)


def test_states_of_numpy_arrays(model, state):
    arrays = keras.tree.map_structure(to_numpy, state)
    expected, _ = model.prefill(INPUTS, state)
    assert_close(model.prefill(INPUTS, arrays)[0], to_numpy(expected))
    expected, _ = model.decode_step(np.array([1, 2]), state)
    actual, _ = model.decode_step(np.array([1, 2]), arrays)
    assert_close(actual, to_numpy(expected))
    assert_close(
        model.score(INPUTS, state=arrays), model.score(INPUTS, state=state)
    )


@pytest.mark.backend_independent
@pytest.mark.parametrize("reader", READERS)
def test_states_of_other_models(model, state, reader, tmp_path):
    others = [
        {},
        (state,),
        np.zeros(3),
        {**state, "blocks": state["blocks"][:2]},
        {**state, "blocks": dict(enumerate(state["blocks"]))},
        tiny_model(hidden_dim=32, recurrent_dim=48).init_state(2),
        {**state, "length": 3},
    ]
    for other in others:
        with pytest.raises(ValueError, match="must be one of this model"):
            readers(model, other)[reader]()
        with pytest.raises(ValueError, match="must be one of this model"):
            model.save_state(other, tmp_path / "state.npz")


@pytest.mark.backend_independent
@pytest.mark.parametrize("reader", READERS)
def test_states_of_other_rows(model, state, reader):
    with pytest.raises(ValueError, match="state of 3 rows for 2"):
        readers(model, model.init_state(3))[reader]()
    mixed = {**state, "blocks": model.init_state(1)["blocks"]}
    with pytest.raises(ValueError, match="the same number of rows"):
        readers(model, mixed)[reader]()


@pytest.mark.backend_independent
def test_one_row_for_each_row_of_tokens(model):
    with pytest.raises(ValueError, match="one row for each row of tokens"):
        model.decode_step(np.array([1, 2]), model.init_state(1))


# === Ids ===


@pytest.mark.parametrize("ids", [[1, VOCABULARY], np.array([-1, 2])])
def test_a_steps_ids_are_of_the_vocabulary(model, state, ids):
    with pytest.raises(ValueError, match="must lie in"):
        model.decode_step(ids, state)


@pytest.mark.backend_independent
def test_a_steps_ids_are_one_for_each_row(model, state):
    with pytest.raises(ValueError, match="one token a row"):
        model.decode_step(5, state)
    with pytest.raises(ValueError, match="must be integers"):
        model.decode_step(np.array([1.0, 2.0]), state)


@pytest.mark.backend_independent
def test_no_prompt(model, text_model):
    for inputs in ([], (), np.array([], dtype=str)):
        with pytest.raises(ValueError, match="at least one prompt"):
            text_model.generate(inputs)
        with pytest.raises(ValueError, match="at least one prompt"):
            text_model.score(inputs)
    none = {"token_ids": np.zeros((0, 4), "int32")}
    for function in (model.generate, model.score):
        with pytest.raises(ValueError, match="at least one prompt"):
            function(none)
    with pytest.raises(ValueError, match="one row and one column"):
        model.prefill(none)


@pytest.mark.backend_independent
def test_inputs_are_two_arrays(model):
    ids = INPUTS["token_ids"]
    for function in (model, model.prefill, model.generate):
        with pytest.raises(ValueError, match="alone. Received: 'nask' too"):
            function({**INPUTS, "nask": ids})
    with pytest.raises(ValueError, match="must be an array or a tensor"):
        model({"token_ids": ids.tolist()})


def test_without_a_mask_all_tokens_are_real(model):
    ids = INPUTS["token_ids"]
    whole = {"token_ids": ids, "padding_mask": np.ones((2, 5), bool)}
    for function in (model, model.backbone):
        expected = to_numpy(function(whole))
        assert_close(function({"token_ids": ids}), expected)
        without = {"token_ids": ids, "padding_mask": None}
        assert_close(function(without), expected)


@pytest.mark.parametrize("value", [0.5, np.nan, "a"])
def test_masks_are_bools_or_whole_numbers(model, value):
    mask = np.full((2, 5), value)
    for function in (model, model.prefill, model.generate, model.score):
        with pytest.raises(ValueError, match="bools or whole numbers"):
            function({**INPUTS, "padding_mask": mask})


# === Text ===


@pytest.mark.backend_independent
def test_kinds_of_text(text_model):
    expected = text_model.generate("a b", max_new_tokens=3)
    for text in (b"a b", np.str_("a b"), np.array("a b"), np.array(b"a b")):
        assert text_model.generate(text, max_new_tokens=3) == expected
    for texts in (("a b",), np.array(["a b"]), np.array(["a b"], dtype=object)):
        assert text_model.generate(texts, max_new_tokens=3) == [expected]


@pytest.mark.backend_independent
@pytest.mark.parametrize("text", ["a\u2581b", "\u2581", " \u2581 "])
def test_text_goes_on_from_the_prompt_as_it_was_given(text_model, text):
    both = text_model.generate([text, "a"], max_new_tokens=4)
    new = text_model.generate([text, "a"], max_new_tokens=4, strip_prompt=True)
    assert both[0].startswith(text) and both[1].startswith("a")
    assert text_model.generate(text, max_new_tokens=4) == both[0]
    assert both[0].endswith(new[0].lstrip())


@pytest.mark.backend_independent
def test_a_stream_is_of_one_text(model, text_model):
    for prompt in (b"a", ["a"], None, 5, (c for c in "ab")):
        with pytest.raises(ValueError, match="takes one prompt"):
            text_model.generate_stream(prompt)
    with pytest.raises(ValueError, match="needs a preprocessor"):
        model.generate_stream("a")


@pytest.mark.backend_independent
def test_samplers_that_draw_need_a_known_range():
    """What MAX_SEED says of Keras still holds."""
    sampler = keras_hub.samplers.RandomSampler(seed=MAX_SEED)
    sampler.seed_generator.next()
    assert keras.random.normal((2,), seed=sampler.seed_generator).shape == (2,)
