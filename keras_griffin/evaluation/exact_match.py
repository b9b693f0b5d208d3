from __future__ import annotations

from typing import Any

import numpy as np


def exact_match(
    model: Any, prompts: Any, answers: Any, batch_size: int = 32
) -> np.ndarray:
    """Which answers does a model give without an error, by greedy decoding?

    Prompts are read in pieces with the state carried on, so that memory does
    not grow with their length (but for global attention's keys and values).

    Args:
        model: a `GriffinCausalLM`, compiled.
        prompts: int array `(rows, time)`, or list of strings for a model with
            a preprocessor.
        answers: int array `(rows, tokens)`, or list of strings: a text is
            right that begins with the answer.
        batch_size: int. Rows that are read at once. Defaults to `32`.

    Returns:
        bool array `(rows,)`; its mean is the accuracy.

    Raises:
        ValueError: for other numbers of prompts and answers.

    Example:
    ```python
    task = keras_griffin.evaluation.InductionHeads(length=64)
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            vocabulary_size=task.vocabulary_size,
            num_layers=2,
            hidden_dim=16,
            intermediate_dim=32,
            num_query_heads=2,
        )
    )
    model.compile()
    prompts, answers = task.questions(batch_size=8, seed=0)
    keras_griffin.evaluation.exact_match(model, prompts, answers).mean()
    ```
    """
    if len(prompts) != len(answers):
        raise ValueError(
            "Each prompt must have an answer. Received: "
            f"{len(prompts)} prompts and {len(answers)} answers. Give as many."
        )
    right = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        match = _texts_match if isinstance(prompts, list) else _ids_match
        right.append(match(model, prompts[rows], answers[rows]))
    return np.concatenate(right)


def _texts_match(model, prompts, answers):
    texts = model.generate(
        prompts,
        # A token is at least one byte of the text.
        max_new_tokens=max(len(answer.encode()) for answer in answers),
        sampler="greedy",
        strip_prompt=True,
    )
    return np.array(
        [
            text.startswith(answer)
            for text, answer in zip(texts, answers, strict=True)
        ]
    )


def _ids_match(model, prompts, answers):
    tokens = answers.shape[1]
    generated = model.generate(
        {"token_ids": prompts, "padding_mask": np.ones_like(prompts)},
        max_new_tokens=tokens,
        stop_token_ids=None,
        sampler="greedy",
        strip_prompt=True,
    )["token_ids"]
    return (np.asarray(generated)[:, :tokens] == answers).all(axis=-1)
