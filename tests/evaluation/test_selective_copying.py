"""Rows of selective copying hold what the docstring says."""

import numpy as np
import pytest

from keras_griffin.evaluation import SelectiveCopying

pytestmark = pytest.mark.backend_independent

NOISE, MARKER = 0, 1


def test_the_answer_is_the_data_in_its_order():
    task = SelectiveCopying(length=40, num_data_tokens=5, vocabulary_size=7)
    prompts, answers = task.questions(50, seed=1)
    assert prompts.shape == (50, 36) and answers.shape == (50, 5)
    assert prompts.dtype == answers.dtype == np.int32
    for prompt, answer in zip(prompts, answers, strict=True):
        assert prompt[-1] == MARKER
        data = [id for id in prompt[:-1] if id != NOISE]
        np.testing.assert_array_equal(data, answer)
    assert set(answers.ravel()) == {2, 3, 4, 5, 6}
    # Data may stand in every column.
    assert ((prompts[:, :-1] != NOISE).sum(axis=0) > 0).all()


def test_a_batch_of_training_predicts_the_answer_alone():
    task = SelectiveCopying(length=40, num_data_tokens=5)
    prompts, answers = task.questions(6, seed=(1, 2))
    x, y, weight = task.sample(6, seed=(1, 2))
    for array in (x["token_ids"], x["padding_mask"], y, weight):
        assert array.shape == (6, task.length)
    assert x["padding_mask"].all()
    np.testing.assert_array_equal(x["token_ids"][:, 1:], y[:, :-1])
    np.testing.assert_array_equal(x["token_ids"][:, :36], prompts)
    np.testing.assert_array_equal(y[weight > 0].reshape(6, 5), answers)
    assert weight.sum() == 6 * 5


def test_seeds():
    task = SelectiveCopying(length=40)
    first, again, other = (task.sample(4, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_the_sizes_of_the_paper_are_the_defaults():
    task = SelectiveCopying()
    assert task.sample(1, 0)[1].shape == (1, 1024)
    assert task.num_data_tokens == task.vocabulary_size == 16


def test_errors():
    with pytest.raises(ValueError, match="at least one data token.*: 2"):
        SelectiveCopying(vocabulary_size=2)
    for sizes in ({"length": 31}, {"length": 9, "num_data_tokens": 0}):
        with pytest.raises(ValueError, match="room for the data tokens twice"):
            SelectiveCopying(**sizes)
    SelectiveCopying(length=32, vocabulary_size=3).questions(1, 0)
