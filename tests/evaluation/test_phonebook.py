"""Phonebooks hold what the docstring says."""

import re

import numpy as np
import pytest

from keras_griffin.evaluation import Phonebook

pytestmark = pytest.mark.backend_independent


def test_the_answer_stands_in_the_book():
    task = Phonebook(6, num_examples=3, name_length=2, number_length=5)
    prompts, answers = task.texts(40, seed=1)
    asked = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        book, questions = prompt.split("\n\n")
        lines = book.split("\n")
        assert len(lines) == 6
        assert all(re.fullmatch("[A-Z]{2}:[0-9]{5}", line) for line in lines)
        numbers = dict(line.split(":") for line in lines)
        assert len(numbers) == 6  # no name twice
        *examples, question = questions.split("\n")
        assert len(examples) == 3 and set(examples) <= set(lines)
        name = question.removesuffix(":")
        assert len({*examples, f"{name}:{answer}"}) == 4
        assert numbers[name] == answer
        asked.add(list(numbers).index(name))
    assert asked == set(range(6))


def test_ids_are_the_same_text():
    task = Phonebook(5)
    prompts, answers = task.questions(3, seed=(1, 2))
    assert prompts.shape == (3, task.prompt_length)
    assert prompts.dtype == answers.dtype == np.int32
    assert task.vocabulary_size == len(set(task.characters)) == 38
    texts = tuple(
        ["".join(task.characters[id] for id in row) for row in ids]
        for ids in (prompts, answers)
    )
    assert texts == task.texts(3, seed=(1, 2))


@pytest.mark.parametrize("num_examples", [0, 2])
def test_a_batch_of_training_predicts_the_numbers_asked_for(num_examples):
    task = Phonebook(4, num_examples=num_examples)
    prompts, answers = task.questions(3, seed=5)
    x, y, weight = task.sample(3, seed=5)
    length = task.prompt_length
    assert x["padding_mask"].shape == y.shape == weight.shape
    assert x["padding_mask"].all()
    np.testing.assert_array_equal(x["token_ids"][:, :length], prompts)
    np.testing.assert_array_equal(x["token_ids"][:, 1:], y[:, :-1])
    np.testing.assert_array_equal(y[:, -4:], answers)
    for prompt, answer, row, weights in zip(
        *task.texts(3, seed=5), y, weight, strict=True
    ):
        questions = prompt.split("\n\n")[1] + answer
        numbers = "".join(re.findall("[0-9]", questions))
        predicted = [task.characters[id] for id in row[weights > 0]]
        assert "".join(predicted) == numbers
        assert len(numbers) == 4 * (num_examples + 1)


def test_seeds():
    task = Phonebook(9)
    first, again, other = (task.texts(4, seed) for seed in (3, 3, 4))
    assert first == again != other


def test_errors():
    for sizes in (
        {"num_entries": 0},
        {"num_entries": 5, "name_length": 0},
        {"num_entries": 5, "number_length": 0},
        {"num_entries": 5, "num_examples": -1},
    ):
        with pytest.raises(ValueError, match="must be at least 1"):
            Phonebook(**sizes)
    with pytest.raises(ValueError, match="different lines.*at least 3"):
        Phonebook(2)
    with pytest.raises(ValueError, match="which gives 26 names"):
        Phonebook(27, name_length=1)
    Phonebook(26, name_length=1).texts(1, 0)
