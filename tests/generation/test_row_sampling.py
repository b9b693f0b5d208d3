"""Draws of rows: against NumPy, and one row's independence of the others."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_griffin.generation import row_sampling
from keras_griffin.generation.sampling_settings import SamplingSettings
from support.checks import assert_close
from support.checks import to_numpy

SIZE = 50


def tensors(arrays):
    return row_sampling.to_tensors(arrays)


def settings_of(*rows):
    arrays = row_sampling.neutral_arrays(len(rows))
    for i, row in enumerate(rows):
        row_sampling.set_row(arrays, i, SamplingSettings(**row), 5)
    return tensors(arrays)


def random_logits(rows, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(rows, size)).astype("float32")


def ints(*values):
    return ops.convert_to_tensor(np.array(values, "int32"))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def allowed(logits, top_k=None, top_p=1.0, min_p=0.0):
    """Which tokens may be drawn, one after the other."""
    order = np.argsort(-logits)
    kept = order[:top_k]
    p = softmax(logits[kept].astype("float64"))
    reached = np.cumsum(p) - p
    kept = kept[(reached < top_p) | (np.arange(len(kept)) == 0)]
    p = softmax(logits.astype("float64"))
    kept = kept[p[kept] >= min_p * p.max()]
    mask = np.zeros(len(logits), bool)
    mask[kept] = True
    return mask


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": SIZE + 1},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_what_may_be_drawn(settings):
    logits = random_logits(4)
    left = row_sampling.truncate(
        ops.convert_to_tensor(logits), settings_of(*[settings] * 4)
    )
    for row, kept in zip(logits, to_numpy(left), strict=True):
        mask = allowed(row, **settings)
        np.testing.assert_array_equal(np.isfinite(kept), mask)
        np.testing.assert_array_equal(kept[mask], row[mask])


def test_equal_logits_stay_or_go_together():
    logits = ops.convert_to_tensor(np.array([[1.0, 0, 1, 0, 1]], "float32"))
    left = row_sampling.truncate(logits, settings_of({"top_k": 2}))
    assert np.isfinite(to_numpy(left))[0].tolist() == [1, 0, 1, 0, 1]


def test_bias_and_penalties():
    logits = random_logits(1)
    settings = SamplingSettings(
        temperature=0,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.4,
        logit_bias={3: 2.5, 8: -100},
    )
    prompt, new = [3, 8, 8, 11], [11, 20, 20, 20]
    expected = logits[0].astype("float64")
    expected[3] += 2.5
    expected[8] -= 100
    for id in {*prompt, *new}:
        expected[id] *= 1.3 if expected[id] < 0 else 1 / 1.3
    for id in set(new):
        expected[id] -= 0.7 + 0.4 * new.count(id)
    tables = row_sampling.row_tables(settings, prompt, SIZE)
    for id in new:
        tables["counts"][0, id] += 1
    arrays = row_sampling.neutral_arrays(1)
    row_sampling.set_row(arrays, 0, settings, 0)
    adjusted = row_sampling._adjust(
        ops.convert_to_tensor(logits), tensors(arrays), tensors(tables)
    )
    assert_close(adjusted, expected[None])
    token, counts = row_sampling.draw(
        ops.convert_to_tensor(logits), ints(4), tensors(arrays), tensors(tables)
    )
    assert to_numpy(token)[0] == expected.argmax()
    tables["counts"][0, expected.argmax()] += 1
    np.testing.assert_array_equal(to_numpy(counts), tables["counts"])


def test_settings_that_change_nothing_change_no_bit():
    logits = ops.convert_to_tensor(random_logits(2))
    neutral, other = {}, {"presence_penalty": 1.0, "top_k": 3}
    settings = settings_of(neutral, other)
    tables = row_sampling.init_tables(2, SIZE)
    adjusted = row_sampling._adjust(logits, settings, tables)
    left = row_sampling.truncate(logits, settings)
    for changed in (adjusted, left):
        np.testing.assert_array_equal(to_numpy(changed)[0], to_numpy(logits)[0])


def test_a_row_draws_the_same_in_any_row():
    logits = random_logits(3)
    rows = [{"temperature": 0.7, "top_p": 0.9}, {}, {"temperature": 0}]
    for order in ([0, 1, 2], [2, 0, 1]):
        tokens, _ = row_sampling.draw(
            ops.convert_to_tensor(logits[order]),
            ints(*(np.array([4, 9, 2])[order])),
            settings_of(*(rows[i] for i in order)),
            row_sampling.init_tables(3, SIZE),
        )
        found = dict(zip(order, to_numpy(tokens).tolist(), strict=True))
        if order == [0, 1, 2]:
            first = found
    assert found == first
    assert first[2] == logits[2].argmax()


def test_noise_is_gumbel():
    rows, size = 64, 4096
    noise = to_numpy(
        row_sampling.gumbel(ints(*range(rows)), ints(*[3] * rows), size)
    ).astype("float64")
    assert np.isfinite(noise).all()
    # The distribution function makes them uniform.
    uniform = np.exp(-np.exp(-noise))
    counts, _ = np.histogram(uniform, bins=256, range=(0, 1))
    expected = rows * size / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)
    # Neighbours in each of the three directions know nothing of each other.
    places = to_numpy(
        row_sampling.gumbel(ints(*[7] * rows), ints(*range(rows)), size)
    )
    limit = 5 / np.sqrt(rows * size)
    for one, other in (
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
        (places[1:], places[:-1]),
        (noise[1:, 1:], noise[:-1, :-1]),
    ):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < limit


def mix(x):
    """MurmurHash3's last step, on unsigned integers of 32 bits."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B % 2**32
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def test_noise_is_the_same_on_every_backend():
    """Of the same seed comes the same text, as far as logits are equal."""
    for seed, place in ((0, 0), (2**31 - 1, 511), (12345, 2**20)):
        key = mix(seed ^ 0x85EBCA77)
        key = mix((key + place * 0x85EBCA77) % 2**32)
        other = mix(key ^ 0xC2B2AE3D)
        bits = [
            mix(mix((token * 0x9E3779B9 + key) % 2**32) ^ other)
            for token in range(99)
        ]
        uniform = (np.array(bits) // 2**9 + 0.5) / 2**23
        noise = row_sampling.gumbel(ints(seed), ints(place), 99)
        assert_close(noise, -np.log(-np.log(uniform))[None])


def test_draws_follow_the_probabilities():
    size, draws = 8, 20_000
    logits = random_logits(1, size)
    p = softmax(logits[0].astype("float64") / 0.8)
    tokens, _ = row_sampling.draw(
        ops.convert_to_tensor(np.repeat(logits, draws, axis=0)),
        ops.arange(draws, dtype="int32"),
        tensors(
            {
                name: np.repeat(to_numpy(array), draws, axis=0)
                for name, array in settings_of({"temperature": 0.8}).items()
            }
        ),
        row_sampling.init_tables(draws, size),
    )
    counts = np.bincount(to_numpy(tokens), minlength=size)
    chi = ((counts - draws * p) ** 2 / (draws * p)).sum()
    assert chi < 7 + 5 * np.sqrt(2 * 7)


def test_log_probabilities_are_of_the_raw_logits():
    logits = random_logits(2)
    settings = settings_of({"top_logprobs": 3, "temperature": 0.1}, {})
    found = row_sampling.log_probabilities(
        ops.convert_to_tensor(logits), ints(4, 7), settings
    )
    expected = np.log([softmax(row.astype("float64")) for row in logits])
    assert_close(found["chosen"], expected[[0, 1], [4, 7]])
    order = np.argsort(-logits[0])[:3]
    np.testing.assert_array_equal(to_numpy(found["ids"])[0, :3], order)
    assert_close(to_numpy(found["values"])[0, :3], expected[0][order])
    none = row_sampling.log_probabilities(
        ops.convert_to_tensor(logits), ints(4, 7), settings_of({}, {})
    )
    assert not to_numpy(none["values"]).any()


@pytest.mark.parametrize(
    "returned, message",
    [
        (None, "must return the logits"),
        (np.zeros(3), "must return the logits"),
        (np.zeros(SIZE, int), "must return the logits"),
        (np.full(SIZE, -np.inf), "must leave a token"),
        (np.full(SIZE, np.nan), "must leave a token"),
    ],
)
def test_what_a_logits_processor_may_return(returned, message):
    with pytest.raises(ValueError, match=message):
        row_sampling.process(lambda ids, x: returned, [1], np.zeros(SIZE))


def test_a_row_leaves_nothing_behind():
    arrays = row_sampling.neutral_arrays(2)
    changed = SamplingSettings(
        top_k=3, top_p=0.5, logit_bias={1: 2.0}, top_logprobs=2, min_p=0.1
    )
    row_sampling.set_row(arrays, 1, changed, 9)
    assert row_sampling.changes_logits(changed)
    row_sampling.set_row(arrays, 1)
    for name, array in row_sampling.neutral_arrays(2).items():
        np.testing.assert_array_equal(arrays[name], array)
    assert not row_sampling.changes_logits(SamplingSettings(top_k=3))
    assert keras.backend.standardize_dtype(arrays["seed"].dtype) == "int32"
