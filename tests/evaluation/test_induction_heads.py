"""Rows of induction heads hold what the docstring says."""

import numpy as np
import pytest

from keras_griffin.evaluation import InductionHeads

pytestmark = pytest.mark.backend_independent

SPECIAL = 0


def test_the_answer_came_after_the_special_token():
    task = InductionHeads(length=12, vocabulary_size=5)
    prompts, answers = task.questions(300, seed=1)
    assert prompts.shape == (300, 12) and answers.shape == (300, 1)
    assert prompts.dtype == answers.dtype == np.int32
    places = set()
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        first, second = np.flatnonzero(prompt == SPECIAL)
        assert second == 11 and prompt[first + 1] == answer != SPECIAL
        places.add(first)
    assert places == set(range(10))
    assert set(prompts.ravel()) == set(range(5))


def test_a_batch_of_training_predicts_the_answer_alone():
    task = InductionHeads(length=12)
    prompts, answers = task.questions(6, seed=(1, 2))
    x, y, weight = task.sample(6, seed=(1, 2))
    assert x["padding_mask"].shape == y.shape == weight.shape == (6, 12)
    assert x["padding_mask"].all()
    np.testing.assert_array_equal(x["token_ids"], prompts)
    np.testing.assert_array_equal(y[:, :-1], prompts[:, 1:])
    np.testing.assert_array_equal(y[:, -1:], answers)
    np.testing.assert_array_equal(weight, np.eye(12)[[11] * 6])


def test_seeds():
    task = InductionHeads(length=40)
    first, again, other = (task.sample(4, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_the_sizes_of_the_paper_are_the_defaults():
    task = InductionHeads()
    assert (task.length, task.vocabulary_size) == (256, 16)


def test_errors():
    with pytest.raises(ValueError, match="at least two others.*: 2"):
        InductionHeads(vocabulary_size=2)
    with pytest.raises(ValueError, match="must have room.*: 2"):
        InductionHeads(length=2)
    prompts, answers = InductionHeads(length=3).questions(1, 0)
    assert prompts[0, 1] == answers[0, 0]
