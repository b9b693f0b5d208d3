import keras
import numpy as np
import pytest

from keras_griffin.layers import DecayInitializer
from support.checks import to_numpy

SHAPE = (4000,)
# Kolmogorov and Smirnov's largest distance of 4000 draws, at 1 in 10^6.
LARGEST_DISTANCE = 2.7 / np.sqrt(SHAPE[0])


def draw(convention, seed=0, **kwargs):
    """The decays `a` at an open gate, without the exponent c."""
    value = DecayInitializer(convention, seed=seed)(SHAPE, **kwargs)
    return np.exp(-np.log1p(np.exp(to_numpy(value).astype("float64"))))


def assert_uniform(values, low, high):
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    quantiles = (np.sort(values) - low) / (high - low)
    distance = np.abs(quantiles - (np.arange(len(values)) + 0.5) / len(values))
    assert distance.max() < LARGEST_DISTANCE


def test_paper():
    assert_uniform(draw("paper") ** 8, 0.9, 0.999)


def test_reference():
    decay = draw("reference")
    assert_uniform(decay**2, 0.9**2, 0.999**2)
    # As the docstring says, in the paper's terms.
    assert 0.43 < (decay**8).min() < 0.44
    assert 0.99 < (decay**8).max() < 0.999**8 + 1e-6


@pytest.mark.parametrize("convention", ["paper", "reference"])
def test_seeds(convention):
    same = draw(convention, 1), draw(convention, 1)
    np.testing.assert_array_equal(*same)
    assert np.any(draw(convention, 2) != same[0])
    # As Keras' own initializers: without a seed each draws one for itself.
    free = DecayInitializer(convention)
    np.testing.assert_array_equal(to_numpy(free(SHAPE)), to_numpy(free(SHAPE)))
    assert np.any(to_numpy(free(SHAPE)) != draw(convention, None))
    generator = DecayInitializer(convention, keras.random.SeedGenerator(1))
    generator(SHAPE)


def test_dtype():
    value = DecayInitializer(seed=0)(SHAPE, dtype="bfloat16")
    assert keras.backend.standardize_dtype(value.dtype) == "bfloat16"


@pytest.mark.backend_independent
def test_config():
    initializer = DecayInitializer("paper", seed=3)
    assert DecayInitializer().get_config()["convention"] == "reference"
    restored = keras.initializers.deserialize(
        keras.initializers.serialize(initializer)
    )
    assert restored.get_config() == initializer.get_config()
    assert restored.get_config() == {"convention": "paper", "seed": 3}


@pytest.mark.backend_independent
def test_seed_generator_survives_serialization():
    initializer = DecayInitializer(seed=keras.random.SeedGenerator(5))
    restored = keras.initializers.deserialize(
        keras.initializers.serialize(initializer)
    )
    np.testing.assert_array_equal(
        to_numpy(restored((8,))), to_numpy(initializer((8,)))
    )


def test_unknown_convention():
    with pytest.raises(ValueError, match="must be one of.*Received: 'exact'"):
        DecayInitializer("exact")
