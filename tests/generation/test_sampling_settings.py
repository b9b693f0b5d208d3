import math

import pytest

from keras_griffin.generation.sampling_settings import NAMES
from keras_griffin.generation.sampling_settings import SamplingSettings
from keras_griffin.generation.sampling_settings import call_settings
from keras_griffin.generation.stop_strings import StopStrings
from support.models import VOCABULARY
from support.models import tiny_model

pytestmark = pytest.mark.backend_independent


@pytest.mark.parametrize(
    "name, values",
    {
        "temperature": (-1, math.nan, math.inf, "1", True, None),
        "top_k": (0, -1, 1.5, True, "3"),
        "top_p": (0, 1.01, None),
        "min_p": (-0.1, 1.1),
        "repetition_penalty": (0, math.inf),
        "presence_penalty": (math.nan, "a"),
        "frequency_penalty": (math.inf,),
        "logit_bias": ([1], {"1": 2.0}, {1: math.inf}, {1: "a"}),
        "seed": (-1, 2**31, 0.5),
        "stop": ("", ["a", ""], [3], 3),
        "top_logprobs": (-1, 21, True),
        "n": (0, 1.5),
        "max_new_tokens": (0, 1.5),
        "logits_processor": (3,),
    }.items(),
)
def test_values_out_of_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` must") as error:
            SamplingSettings(**{name: value})
        assert "Received: " in str(error.value)


def test_names_of_other_libraries():
    with pytest.raises(ValueError, match="'max_tokens'. Did you mean max_new"):
        call_settings(tiny_model(), None, None, None, {"max_tokens": 5})


def test_a_mistyped_name():
    with pytest.raises(ValueError, match="Did you mean .*top_p"):
        call_settings(tiny_model(), None, None, None, {"topp": 0.5})
    assert SamplingSettings(stop="x").stop == ("x",)
    assert "min_p" in NAMES


def test_settings_of_a_call():
    model = tiny_model()
    with pytest.raises(ValueError, match="a sampler or settings"):
        call_settings(model, "greedy", None, None, {"top_k": 3})
    with pytest.raises(ValueError, match="generate takes known"):
        call_settings(model, None, None, None, {"n": 3})
    with pytest.raises(ValueError, match="`logit_bias` must be of token ids"):
        bias = {VOCABULARY: 1.0}
        call_settings(model, None, None, None, {"logit_bias": bias})
    with pytest.raises(ValueError, match="Stop strings are looked for in text"):
        call_settings(model, None, None, None, {"stop": "a"})
    settings = call_settings(model, None, 0, 4, {"top_k": 3})
    assert (settings.temperature, settings.top_k) == (0, 3)
    assert settings.seeds(2) == [4, 5]


def test_seeds_go_round():
    assert SamplingSettings(seed=2**31 - 1).seeds(2) == [2**31 - 1, 0]
    seeds = {SamplingSettings().seeds(1)[0] for _ in range(9)}
    assert len(seeds) == 9


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "stop, text, expected",
    [
        ((), "abc", "abc"),
        (("x",), "abxc", "ab"),
        (("bc", "b"), "abc", "a"),
        (("abcd", "c"), "abcd", "ab"),
        (("aab",), "aaab", "a"),
        (("ab",), "a", "a"),
        (("cd", "bcd"), "abcd", "a"),
    ],
)
def test_stop_strings_in_pieces(size, stop, text, expected):
    stops = StopStrings(stop)
    found = ""
    for i in range(0, len(text), size):
        found += stops.push(text[i : i + size])
        assert expected.startswith(found)
    found += stops.push("", is_last=True)
    assert found == expected
    assert stops.is_stopped == any(s in text for s in stop)


def test_only_what_could_be_a_stop_string_is_held_back():
    stops = StopStrings(("END",))
    assert stops.push("a E") == "a "
    assert stops.push("N") == ""
    assert stops.push("x") == "ENx"
    assert stops.push("yE") == "y"
    assert stops.push("", is_last=True) == "E"
    assert stops.push("ENDz") == "" and stops.surplus == 4
    assert stops.push("more") == ""
