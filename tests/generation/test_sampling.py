"""Top-k with `k` as data draws from what KerasHub's draws from."""

import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_griffin.generation import sampling
from support.checks import to_numpy

VOCABULARY = 100
ROOM = sampling.MIN_LIKELIEST


def probabilities(rows=3):
    logits = np.random.default_rng(0).normal(size=(rows, VOCABULARY))
    logits[:, 7] = logits[:, 50]  # a tie
    values = np.exp(logits)
    return (values / values.sum(-1, keepdims=True)).astype("float32")


def with_k_as_data(sampler):
    return sampling.with_settings(sampler, sampling.settings_of(sampler))


@pytest.mark.parametrize("k", [1, 5, ROOM, ROOM + 1, VOCABULARY, 1000])
def test_the_k_likeliest_are_drawn_from(k, monkeypatch):
    seen = []
    monkeypatch.setattr(
        keras_hub.samplers.TopKSampler,
        "get_next_token",
        lambda self, likeliest: (
            seen.append(to_numpy(likeliest)) or ops.zeros(3, "int32")
        ),
    )
    x = probabilities()
    token = with_k_as_data(keras_hub.samplers.TopKSampler(k=k)).get_next_token(
        ops.convert_to_tensor(x)
    )
    np.testing.assert_array_equal(to_numpy(token), x.argmax(-1))
    ordered = np.sort(x, axis=-1)[:, ::-1]
    np.testing.assert_array_equal(seen[0][:, :k], ordered[:, :k])
    assert not seen[0][:, k:].any()
    assert seen[0].shape[1] == (ROOM if k <= ROOM else VOCABULARY)


def test_seeds_draw_what_kerashub_draws():
    # With all of the room taken there is nothing to mask.
    x = ops.convert_to_tensor(probabilities())
    ours, theirs = (
        keras_hub.samplers.TopPSampler(p=0.9, k=ROOM, seed=4) for _ in range(2)
    )
    ours = with_k_as_data(ours)
    draws = [
        (to_numpy(ours.get_next_token(x)), to_numpy(theirs.get_next_token(x)))
        for _ in range(8)
    ]
    for mine, wanted in draws:
        np.testing.assert_array_equal(mine, wanted)
    assert len({tuple(mine) for mine, _ in draws}) > 1


def test_draws_follow_the_probabilities():
    x = np.tile(probabilities(1), (4000, 1))
    token = with_k_as_data(
        keras_hub.samplers.TopKSampler(k=3, seed=0)
    ).get_next_token(ops.convert_to_tensor(x))
    counts = np.bincount(to_numpy(token), minlength=VOCABULARY) / len(x)
    likeliest = np.argsort(x[0])[-3:]
    expected = x[0, likeliest] / x[0, likeliest].sum()
    assert counts[likeliest].sum() == 1.0
    # Three standard deviations of 4000 draws.
    assert np.abs(counts[likeliest] - expected).max() < 3 * 0.5 / 4000**0.5


def test_kinds():
    def kind(k, name="TopKSampler"):
        sampler = getattr(keras_hub.samplers, name)(k=k)
        return sampling.kind_of_sampler(sampler)

    assert kind(1) == kind(5) == kind(ROOM)
    assert kind(ROOM) != kind(ROOM + 1) == kind(2 * ROOM)
    assert kind(5, "TopPSampler") == kind(6, "TopPSampler")
    assert kind(5, "TopPSampler") != kind(None, "TopPSampler")
    # The number of candidates is a shape.
    assert kind(5, "ContrastiveSampler") != kind(6, "ContrastiveSampler")
