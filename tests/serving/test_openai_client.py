"""OpenAI's own client against the real engine and the shipped model."""

import asyncio

import openai
import pytest

import keras_griffin
from keras_griffin.serving.openai_api.guards import Limits
from support.fake_engine import FakeEngine
from support.http_servers import MODEL
from support.http_servers import serving
from support.http_servers import wait_until

pytestmark = pytest.mark.backend_independent

KEY = "sk-secret"
HELLO = [{"role": "user", "content": "ROMEO:"}]


@pytest.fixture(scope="module")
def model():
    return keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")


@pytest.fixture(scope="module")
def engine(model):
    with keras_griffin.serving.Engine(
        model, max_rows=4, prefill_chunk=32, max_length=256
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def port(engine):
    with serving(engine, Limits(new_tokens=200), api_key=KEY) as port:
        yield port


def client_of(port, kind=openai.OpenAI, api_key=KEY):
    return kind(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=api_key, max_retries=0
    )


@pytest.fixture(scope="module")
def client(port):
    with client_of(port) as client:
        yield client


@pytest.fixture(scope="module")
def alone(model):
    """The greedy text of the model alone."""
    text = model.generate("ROMEO:", max_new_tokens=12, temperature=0.0, top_k=1)
    return text.removeprefix("ROMEO:")


def test_the_fake_engine_has_the_same_numbers(engine):
    fake = FakeEngine()
    assert set(fake.statistics()) == set(engine.statistics())
    fake.close()
    for name in ("submit", "statistics", "close", "error", "model"):
        assert hasattr(engine, name) and hasattr(fake, name)


def test_completion(client, alone):
    answer = client.completions.create(
        model=MODEL, prompt="ROMEO:", max_tokens=12, temperature=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (alone, "length")
    assert answer.model == MODEL
    usage = answer.usage
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_streams_give_the_same_text(client, alone):
    settings = {"model": MODEL, "temperature": 0, "stream": True}
    settings["stream_options"] = {"include_usage": True}
    *chunks, last = client.completions.create(
        prompt="ROMEO:", max_tokens=12, **settings
    )
    assert "".join(c.choices[0].text for c in chunks) == alone
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 12)
    *chunks, last = client.chat.completions.create(
        messages=HELLO, max_completion_tokens=12, **settings
    )
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(d.content for d in deltas) == alone
    assert [d.role for d in deltas] == ["assistant"] + [None] * (
        len(deltas) - 1
    )
    assert last.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_goes_on(client, alone, model):
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=12, temperature=0
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", alone)
    turns = [*HELLO, message, {"role": "user", "content": "JULIET:"}]
    turns = [{"role": "system", "content": "A play."}, *turns]
    answer = client.chat.completions.create(
        model=MODEL, messages=turns, max_tokens=8, temperature=0
    )
    prompt = f"A play.\nROMEO:{alone}\nJULIET:"
    text = model.generate(prompt, max_new_tokens=8, temperature=0.0, top_k=1)
    assert answer.choices[0].message.content == text.removeprefix(prompt)


def test_prompts_of_all_kinds_and_choices(client, model):
    ids = model.preprocessor.prompt_rows(["JULIET:"])[0]
    texts = [
        model.generate(p, max_new_tokens=6, temperature=0.0, top_k=1)[len(p) :]
        for p in ("ROMEO:", "JULIET:")
    ]
    settings = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(prompt=["ROMEO:", "JULIET:"], **settings)
    assert [c.text for c in answer.choices] == texts
    ids = [int(id) for id in ids]
    answer = client.completions.create(prompt=[ids], **settings)
    assert answer.choices[0].text == texts[1]
    drawn = {"model": MODEL, "max_tokens": 6, "prompt": "ROMEO:"}
    answer = client.completions.create(n=2, seed=5, **drawn)
    assert [c.index for c in answer.choices] == [0, 1]
    second = client.completions.create(seed=6, **drawn)
    assert second.choices[0].text == answer.choices[1].text
    assert answer.usage.completion_tokens == 12


def test_settings_of_ours(client, alone):
    """Those that OpenAI's API does not have."""
    answer = client.completions.create(
        model=MODEL,
        prompt="ROMEO:",
        max_tokens=12,
        extra_body={"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.0},
    )
    assert answer.choices[0].text == alone


def test_stop_and_bias(client, alone, model):
    word = alone.split()[1]
    answer = client.completions.create(
        model=MODEL, prompt="ROMEO:", max_tokens=12, temperature=0, stop=word
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == alone.partition(word)[0]
    id = model.preprocessor.tokenizer.token_to_id("\u2581the")
    answer = client.completions.create(
        model=MODEL, prompt="ROMEO:", max_tokens=3, logit_bias={str(id): 100}
    )
    assert answer.choices[0].text == " the the the"


def test_logprobs(client, alone, model):
    settings = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(prompt="ROMEO:", logprobs=3, **settings)
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == alone
    for token, value, top, offset in zip(
        found.tokens,
        found.token_logprobs,
        found.top_logprobs,
        found.text_offset,
        strict=True,
    ):
        assert len(top) == 3 and max(top.values()) == top[token] == value <= 0
        assert alone[offset:].startswith(token)
    answer = client.chat.completions.create(
        messages=HELLO, logprobs=True, top_logprobs=2, **settings
    )
    content = answer.choices[0].logprobs.content
    assert [c.logprob for c in content] == pytest.approx(found.token_logprobs)
    assert bytes(sum((c.bytes for c in content), [])).decode() == alone
    assert all(c.top_logprobs[0].token == c.token for c in content)


def test_models(client):
    (card,) = client.models.list()
    assert card.id == client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="Did you mean tiny"):
        client.models.retrieve("tinny")


def test_errors_are_the_client_s_own(client, port):
    settings = {"model": MODEL, "prompt": "ROMEO:"}
    with pytest.raises(openai.BadRequestError, match="in \\(0, 1\\]"):
        client.completions.create(top_p=3, **settings)
    with pytest.raises(openai.BadRequestError, match="leave room"):
        client.completions.create(model=MODEL, prompt="ROMEO: " * 200)
    with pytest.raises(openai.BadRequestError, match="`n`") as raised:
        client.completions.create(n=5, **settings)
    assert raised.value.param == "n"
    with client_of(port, api_key="wrong") as other:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            other.completions.create(**settings)


def test_stopping_a_stream_frees_its_row(client, engine):
    before = engine.statistics()["texts_cancelled"]
    stream = client.completions.create(
        model=MODEL, prompt="ROMEO:", max_tokens=200, stream=True
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: engine.statistics()["texts_cancelled"] == before + 1)
    wait_until(lambda: engine.statistics()["rows_busy"] == 0)


def test_many_at_once(port, client):
    """Each gets what it would get alone."""

    def settings(number):
        return {
            "model": MODEL,
            "prompt": f"ROMEO: {number}",
            "max_tokens": 4 + number % 5,
            "seed": number,
        }

    async def all_at_once():
        async with client_of(port, openai.AsyncOpenAI) as many:
            return await asyncio.gather(
                *(many.completions.create(**settings(i)) for i in range(24))
            )

    texts = [a.choices[0].text for a in asyncio.run(all_at_once())]
    for number in range(0, 24, 5):
        alone = client.completions.create(**settings(number))
        assert alone.choices[0].text == texts[number]
