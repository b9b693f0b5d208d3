"""Law 8: a request gets, in any company, what it gets alone."""

import time

import keras
import numpy as np
import pytest

from keras_griffin import serving
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import tiny_model
from support.once import once

REQUESTS = 200
LONGEST = 70  # tokens of a prompt
MAX_LENGTH = 128


def random_settings(rng):
    """What a request may ask for; half of them are greedy."""
    settings = {"max_new_tokens": int(rng.integers(1, 13))}
    if rng.random() < 0.5:
        settings["temperature"] = 0
    else:
        settings["temperature"] = float(rng.uniform(0.3, 2))
        settings["seed"] = int(rng.integers(2**31))
    choices = {
        "top_k": lambda: int(rng.integers(1, VOCABULARY + 9)),
        "top_p": lambda: float(rng.uniform(0.1, 1)),
        "min_p": lambda: float(rng.uniform(0, 0.3)),
        "repetition_penalty": lambda: float(rng.uniform(0.8, 1.5)),
        "presence_penalty": lambda: float(rng.uniform(-1, 2)),
        "frequency_penalty": lambda: float(rng.uniform(-1, 2)),
        "logit_bias": lambda: {int(rng.integers(VOCABULARY)): 2.5},
        "stop_token_ids": lambda: rng.integers(0, VOCABULARY, 3).tolist(),
    }
    for name, choose in choices.items():
        if rng.random() < 0.25:
            settings[name] = choose()
    return settings


def random_requests(rng):
    """Prompts, of which half begin as others do, and their settings."""
    beginnings = [rng.integers(1, VOCABULARY, 40) for _ in range(4)]
    prompts = []
    for _ in range(REQUESTS):
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, LONGEST))
        if rng.random() < 0.5:
            beginning = beginnings[rng.integers(len(beginnings))]
            prompt[: len(beginning)] = beginning[: len(prompt)]
        prompts.append(prompt)
    return [(prompt, random_settings(rng)) for prompt in prompts]


def alone(model, prompt, settings):
    """The new ids of `generate`, without the one that ended them."""
    settings = dict(settings)
    stops = settings.setdefault("stop_token_ids", None)
    if settings["temperature"] == 0 and len(settings) == 3:
        del settings["temperature"]  # The model's own sampler is greedy.
    else:
        settings.setdefault("top_p", 1.0)
    outputs = model.generate(
        {"token_ids": prompt[None].astype("int32")},
        strip_prompt=True,
        **settings,
    )
    ids = outputs["token_ids"][0][outputs["padding_mask"][0]].tolist()
    return ids[:-1] if stops and ids and ids[-1] in stops else ids


def submit_all(engine, requests, rng):
    """Submits at random times, and cancels some at random times."""
    submitted, to_cancel = [], []
    for prompt, settings in requests:
        request = engine.submit(prompt, **{"stop_token_ids": None, **settings})
        submitted.append(request)
        if rng.random() < 0.15:
            to_cancel.append(request)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 0.05))
        if to_cancel and rng.random() < 0.2:
            to_cancel.pop(rng.integers(len(to_cancel))).cancel()
    for request in to_cancel:
        request.cancel()
    return submitted


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["mixed", *once("griffin")])
def test_company_changes_nothing(pattern):
    model = tiny_model(block_types=PATTERNS[pattern])
    rng = np.random.default_rng(8)
    requests = random_requests(rng)
    if pattern == "mixed":  # the arguments of global attention
        requests = requests[: REQUESTS // 4]
    with serving.Engine(
        model, max_rows=5, prefill_chunk=16, max_length=MAX_LENGTH
    ) as engine:
        submitted = submit_all(engine, requests, rng)
        results = [request.result(timeout=300)[0] for request in submitted]
        statistics = engine.statistics()
    reasons = {result.finish_reason for result in results}
    assert reasons == {"stop", "length", "cancelled"}
    assert statistics["rows_busy"] == 0
    assert statistics["prefix_cache_hits"] > len(requests) / 10
    for (prompt, settings), result in zip(requests, results, strict=True):
        expected = alone(model, prompt, settings)
        received = list(result.token_ids)
        if result.finish_reason == "cancelled":
            expected = expected[: len(received)]
        assert received == expected, (settings, result)


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="eager: nothing is compiled"
)
def test_nothing_is_compiled_after_the_warm_up(monkeypatch):
    model = tiny_model()
    traces = []
    compile = type(model._functions).compile

    def counted(self, function, *args, **options):
        def traced(*inputs):
            traces.append(function)
            return function(*inputs)

        return compile(self, traced, *args, **options)

    monkeypatch.setattr(type(model._functions), "compile", counted)
    rng = np.random.default_rng(0)
    with serving.Engine(model, max_rows=3, prefill_chunk=32) as engine:
        first = len(traces)
        assert first > 0
        requests = random_requests(rng)[:40]
        for request in submit_all(engine, requests, rng):
            request.result(timeout=300)
        engine.submit([1, 2], n=3, max_new_tokens=2, top_logprobs=4).result()
        engine.submit(
            [1, 2], max_new_tokens=2, logits_processor=lambda ids, x: x
        ).result()
    assert len(traces) == first
