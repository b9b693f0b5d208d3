"""The engine's calls: submit, pieces, cancel, close, errors."""

import asyncio
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin import serving
from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import tiny_model

PROMPT = "ROMEO: Why, "


@pytest.fixture(scope="module")
def shakespeare():
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(sampler="greedy")
    return model


@pytest.fixture(scope="module")
def engine(shakespeare):
    with serving.Engine(shakespeare, max_rows=3, prefill_chunk=32) as engine:
        yield engine


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def finished(request):
    return request.result(timeout=120)


def test_text_is_that_of_generate(engine, shakespeare):
    requests = [
        engine.submit(prompt, max_new_tokens=20, temperature=0)
        for prompt in (PROMPT, "The king " * 30, "x")
    ]
    for prompt, request in zip(
        (PROMPT, "The king " * 30, "x"), requests, strict=True
    ):
        (completion,) = finished(request)
        text = shakespeare.generate(prompt, max_new_tokens=20)
        assert prompt + completion.text == text
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == len(completion.logprobs) == 20
        (ids,) = shakespeare.preprocessor.prompt_rows([prompt])
        assert request.prompt_tokens == len(ids)


def test_pieces_come_one_by_one(engine):
    request = engine.submit(PROMPT, max_new_tokens=24, temperature=0)
    pieces = list(request)
    assert len(pieces) > 2
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    (completion,) = finished(request)
    assert "".join(p.text for p in pieces) == completion.text
    assert list(request) == pieces  # again, from the first one


@pytest.mark.backend_independent
def test_pieces_for_asyncio(engine):
    async def collect(prompt):
        request = engine.submit(prompt, max_new_tokens=12, seed=3)
        return [piece async for piece in request], request

    async def both():
        return await asyncio.gather(collect(PROMPT), collect("The king "))

    for pieces, request in asyncio.run(both()):
        assert pieces == list(request)
        assert pieces[-1].finish_reason == "length"


@pytest.mark.backend_independent
def test_log_probabilities(engine, shakespeare):
    request = engine.submit(
        PROMPT, max_new_tokens=8, temperature=0, top_logprobs=3
    )
    (completion,) = finished(request)
    ids = np.concatenate([request.token_ids, completion.token_ids])
    inputs = {"token_ids": ids[None], "padding_mask": np.ones_like(ids)[None]}
    logits = to_numpy(shakespeare(inputs))[0][-9:-1].astype("float64")
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = scores[np.arange(8), ids[-8:]]
    assert_close(np.array(completion.logprobs), scores)
    for id, score, top in zip(
        completion.token_ids,
        completion.logprobs,
        completion.top_logprobs,
        strict=True,
    ):
        assert len(top) == 3 and max(top, key=top.get) == id
        assert top[id] == pytest.approx(score, abs=1e-5)


@pytest.mark.backend_independent
def test_several_texts_of_one_prompt(engine):
    request = engine.submit(PROMPT, n=3, seed=7, max_new_tokens=12)
    completions = finished(request)
    assert [c.index for c in completions] == [0, 1, 2]
    assert len({c.text for c in completions}) == 3
    for i, completion in enumerate(completions):
        alone = engine.submit(PROMPT, seed=7 + i, max_new_tokens=12)
        assert finished(alone)[0].token_ids == completion.token_ids


@pytest.mark.backend_independent
def test_stop_strings_and_ids(engine, shakespeare):
    free = finished(engine.submit(PROMPT, max_new_tokens=24, temperature=0))[0]
    stop = free.text[9:12]
    options = {"max_new_tokens": 24, "temperature": 0}
    request = engine.submit(PROMPT, stop=["never", stop], **options)
    (stopped,) = finished(request)
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    size = len(stopped.token_ids)
    assert stopped.token_ids == free.token_ids[:size]
    text = shakespeare.generate(PROMPT, stop=stop, **options)
    assert text == PROMPT + stopped.text
    id = free.token_ids[6]
    (stopped,) = finished(engine.submit(PROMPT, stop_token_ids=[id], **options))
    end = free.token_ids.index(id)
    assert stopped.token_ids == free.token_ids[:end]
    assert stopped.finish_reason == "stop"


def test_a_logits_processor(engine, shakespeare):
    seen = []

    def only_even(token_ids, logits):
        seen.append(len(token_ids))
        logits[1::2] = -np.inf
        return logits

    options = {"max_new_tokens": 6, "logits_processor": only_even, "seed": 2}
    other = engine.submit("The king ", max_new_tokens=30, temperature=0)
    request = engine.submit(PROMPT, **options)
    (completion,) = finished(request)
    assert not any(id % 2 for id in completion.token_ids)
    first = request.prompt_tokens
    assert seen == list(range(first, first + 6))
    text = shakespeare.generate(PROMPT, **options)
    assert text == PROMPT + completion.text
    whole = shakespeare.generate("The king ", max_new_tokens=30)
    assert whole == "The king " + finished(other)[0].text


@pytest.mark.backend_independent
def test_messages(engine):
    with pytest.raises(ValueError, match="turn_format"):
        engine.submit([{"role": "user", "content": "to be"}])


@pytest.mark.backend_independent
def test_cancelling_frees_the_row(model):
    with serving.Engine(model, max_rows=1, prefill_chunk=16) as engine:
        long = engine.submit([1, 2], max_new_tokens=100_000)
        waiting = engine.submit([1, 2], max_new_tokens=5)
        next(iter(long))
        dropped = engine.submit([3] * 900, max_new_tokens=5)
        dropped.cancel()
        assert not waiting.is_finished
        long.cancel()
        assert finished(long)[0].finish_reason == "cancelled"
        assert finished(waiting)[0].finish_reason == "length"
        assert finished(dropped)[0].finish_reason == "cancelled"
        assert finished(dropped)[0].token_ids == ()
        statistics = engine.statistics()
    assert statistics["rows_busy"] == 0
    assert statistics["texts_cancelled"] == 2
    assert statistics["texts_finished"] == 1


@pytest.mark.backend_independent
def test_a_full_queue(model):
    with serving.Engine(
        model, max_rows=1, prefill_chunk=16, max_queue=2
    ) as engine:
        running = engine.submit([1], max_new_tokens=100_000)
        next(iter(running))
        waiting = [engine.submit([1], max_new_tokens=1) for _ in range(2)]
        with pytest.raises(serving.QueueFull, match="may wait for a row"):
            engine.submit([1], max_new_tokens=1)
        running.cancel()
        for request in waiting:
            assert finished(request)[0].finish_reason == "length"


@pytest.mark.backend_independent
def test_closing(model):
    engine = serving.Engine(model, max_rows=1, prefill_chunk=16)
    drained = [engine.submit([1], max_new_tokens=9) for _ in range(3)]
    engine.close()
    for request in drained:
        assert finished(request)[0].finish_reason == "length"
    with pytest.raises(RuntimeError, match="A closed engine"):
        engine.submit([1])
    engine.close()  # Once more changes nothing.

    engine = serving.Engine(model, max_rows=1, prefill_chunk=16)
    requests = [engine.submit([1], max_new_tokens=10**6) for _ in range(3)]
    engine.close(drain=False)
    for request in requests:
        assert finished(request)[0].finish_reason == "cancelled"
    with pytest.raises(ZeroDivisionError):
        with serving.Engine(model, max_rows=1, prefill_chunk=16) as engine:
            request = engine.submit([1], max_new_tokens=10**6)
            raise ZeroDivisionError
    assert finished(request)[0].finish_reason == "cancelled"


def raises(token_ids, logits):
    if len(token_ids) > 2:
        raise ZeroDivisionError("mine")
    return logits


def bad_shape(token_ids, logits):
    return logits[:-1]


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "processor, error, size",
    [(raises, ZeroDivisionError, 1), (bad_shape, ValueError, 0)],
)
def test_a_processor_that_raises_ends_its_request_alone(
    model, processor, error, size
):
    asked = {"max_new_tokens": 12, "temperature": 0}
    with serving.Engine(model, max_rows=4, prefill_chunk=16) as engine:
        other = engine.submit([5, 6], **asked)
        failing = engine.submit([1, 2], n=2, logits_processor=processor)
        pieces = []
        for _ in range(2):  # Each iteration raises it again.
            pieces.clear()
            with pytest.raises(error):
                for piece in failing:
                    pieces.append(piece)
        assert sum(len(p.token_ids) for p in pieces) == 2 * size
        assert failing.is_finished and isinstance(failing.error, error)
        with pytest.raises(error):
            finished(failing)
        with pytest.raises(error):
            asyncio.run(read_all(failing))
        # Its two rows are free: a third text and a fourth fit in.
        (ids,) = {
            c.token_ids for c in finished(engine.submit([5, 6], n=4, **asked))
        }
        assert ids == finished(other)[0].token_ids and len(ids) == 12
        assert engine.error is None
        assert engine.statistics()["rows_busy"] == 0


async def read_all(request):
    return [piece async for piece in request]


@pytest.mark.backend_independent
# Its traceback is printed, as of any thread.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_an_error_reaches_every_request(model, monkeypatch):
    def fail(count):
        raise ZeroDivisionError("mine")

    engine = serving.Engine(model, max_rows=1, prefill_chunk=16)
    running = engine.submit([1], max_new_tokens=10**6)
    waiting = engine.submit([1])
    next(iter(running))
    monkeypatch.setattr(engine._scheduler._rows, "decode", fail)
    for request in (running, waiting):
        with pytest.raises(RuntimeError, match="could not finish"):
            list(request)
        with pytest.raises(RuntimeError, match="could not finish") as error:
            finished(request)
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    engine._thread.join()
    with pytest.raises(RuntimeError, match="engine that failed"):
        engine.submit([1])
    engine.close()
    assert len(finished_with_new_engine(model)) == 1


def finished_with_new_engine(model):
    with serving.Engine(model, max_rows=2, prefill_chunk=16) as engine:
        return finished(engine.submit([1], max_new_tokens=3))


@pytest.mark.backend_independent
def test_a_result_that_takes_too_long(model):
    with serving.Engine(model, max_rows=1, prefill_chunk=16) as engine:
        request = engine.submit([1], max_new_tokens=10**6)
        with pytest.raises(TimeoutError, match="within the timeout"):
            request.result(timeout=0.01)
        request.cancel()


@pytest.mark.backend_independent
def test_many_threads_submit(model):
    results = {}

    def ask(i):
        request = engine.submit([i + 1], max_new_tokens=4, temperature=0)
        results[i] = finished(request)[0].token_ids

    with serving.Engine(model, max_rows=2, prefill_chunk=16) as engine:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 12 and all(len(ids) == 4 for ids in results.values())


@pytest.mark.backend_independent
def test_what_cannot_be_is_refused(model, engine):
    for sizes in (
        {"max_rows": 0},
        {"prefill_chunk": 1.5},
        {"prefix_cache_bytes": -1},
        {"max_queue": 0},
        {"max_length": 0},
    ):
        (name,) = sizes
        with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
            serving.Engine(model, **sizes)
    attention = tiny_model(block_types=PATTERNS["mqa"])
    with pytest.raises(ValueError, match="Global attention has a slot"):
        serving.Engine(attention)
    with serving.Engine(
        model, max_rows=2, prefill_chunk=16, max_length=8
    ) as small:
        with pytest.raises(ValueError, match="must leave room"):
            small.submit([1] * 8)
        request = small.submit([1] * 5, temperature=0)
        assert len(finished(request)[0].token_ids) == 3
        for prompt in ([], [[1]], [1.5], [VOCABULARY], None):
            with pytest.raises(ValueError, match="Received: "):
                small.submit(prompt)
        with pytest.raises(ValueError, match="needs a model with a prepro"):
            small.submit("text")
        with pytest.raises(ValueError, match="`n` must be an integer"):
            small.submit([1], n=3)
        with pytest.raises(ValueError, match="may have 32 stop ids"):
            small.submit([1], stop_token_ids=[1] * 33)
        with pytest.raises(ValueError, match="Stop strings are looked for"):
            small.submit([1], stop="a")
    with pytest.raises(ValueError, match="Did you mean temperature"):
        engine.submit(PROMPT, temprature=1)


INTERRUPTED = """
import _thread, threading, keras_griffin
from keras_griffin import serving
backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=29, num_layers=1, hidden_dim=16, intermediate_dim=24,
    num_query_heads=2, num_gate_blocks=4,
)
engine = serving.Engine(keras_griffin.GriffinCausalLM(backbone), max_rows=1)
threading.Timer(0.5, _thread.interrupt_main).start()
for piece in engine.submit([1], max_new_tokens=10**9):
    pass
"""


@pytest.mark.backend_independent
@pytest.mark.slow
def test_ctrl_c_ends_the_program():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert "Fatal" not in done.stderr
    assert done.returncode not in (0, -6, -11)
    assert time.monotonic() - start < 110


@pytest.mark.backend_independent
def test_states_of_sixteen_bits():
    model = tiny_model(dtype="bfloat16")
    with serving.Engine(model, max_rows=2, prefill_chunk=16) as engine:
        first = engine.submit(range(1, 29), max_new_tokens=5, temperature=0)
        ids = finished(first)[0].token_ids
        again = engine.submit(range(1, 29), max_new_tokens=5, temperature=0)
        assert finished(again)[0].token_ids == ids
        assert again.cached_tokens == 28
    assert keras.config.floatx() == "float32"
