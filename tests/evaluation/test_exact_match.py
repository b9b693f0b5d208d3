"""`exact_match` marks what a model would generate, and nothing else."""

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin.evaluation import InductionHeads
from keras_griffin.evaluation import exact_match
from keras_griffin.generation import decoding
from keras_griffin.training import ResumableData
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import run
from support.models import tiny_model
from support.models import tokens

pytestmark = pytest.mark.backend_independent

NEW = 3


def greedy(model, prompts):
    """The likeliest next tokens, by calls without a state."""
    ids = np.pad(prompts, ((0, 0), (0, NEW)))
    for column in range(prompts.shape[1], ids.shape[1]):
        mask = np.broadcast_to(np.arange(ids.shape[1]) < column, ids.shape)
        logits = run(model, ids, mask)
        ids[:, column] = logits[:, column - 1].argmax(axis=-1)
    return ids[:, -NEW:]


def test_every_token_of_an_answer_counts(monkeypatch):
    # Pieces shorter than the prompts: the state is carried on.
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 8)
    # Not what the model samples by.
    model = tiny_model("random", block_types=PATTERNS["mixed"])
    prompts = tokens(6, 16)
    answers = greedy(model, prompts)
    for row, column in ((1, 0), (3, NEW - 1)):
        answers[row, column] = (answers[row, column] + 1) % VOCABULARY
    right = exact_match(model, prompts, answers, batch_size=3)
    assert right.tolist() == [True, False, True, False, True, True]


def test_texts():
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(sampler="greedy")
    prompts = ["ROMEO:\n", "To be, or not to"]
    answers = [
        text[len(prompt) :]
        for prompt, text in zip(
            prompts, model.generate(prompts, max_new_tokens=6), strict=True
        )
    ]
    assert exact_match(model, prompts, answers).all()
    # A text that goes on is right; one that differs is not.
    answers = [answers[0][:2], answers[1][:2] + "#"]
    assert exact_match(model, prompts, answers).tolist() == [True, False]


def test_a_model_learns_a_task():
    task = InductionHeads(length=5, vocabulary_size=4)
    keras.utils.set_random_seed(0)
    model = tiny_model(
        vocabulary_size=4, num_layers=1, block_types=PATTERNS["hawk"]
    )
    prompts, answers = task.questions(64, seed=1)
    assert exact_match(model, prompts, answers, 64).mean() < 0.6
    model.compile(
        optimizer=keras.optimizers.Adam(2e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = ResumableData(lambda _, i: task.sample(32, (2, i)), 60)
    model.fit(data, shuffle=False, verbose=0)
    assert exact_match(model, prompts, answers, 64).mean() > 0.95


def test_errors():
    with pytest.raises(ValueError, match="2 prompts and 3 answers"):
        exact_match(None, tokens(2, 4), tokens(3, 1))
