"""OpenAI's API: what it refuses, in OpenAI's shape and with advice."""

import json

import pytest

from keras_griffin.serving.openai_api.guards import Limits
from support.fake_engine import FakeEngine
from support.http_servers import ask
from support.http_servers import connect
from support.http_servers import error_of
from support.http_servers import read_all
from support.http_servers import serving
from support.http_servers import split
from support.http_servers import wait_until
from support.http_servers import whole

pytestmark = pytest.mark.backend_independent

PROMPT = {"prompt": "To be", "max_tokens": 2}
HELLO = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def port():
    with serving(FakeEngine(), Limits(new_tokens=100)) as port:
        yield port


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"prompt": "a", "max_token": 3}, "max_token", "mean max_tokens"),
        ({"prompt": "a", "temprature": 3}, "temprature", "mean temperature"),
        ({"max_tokens": 3}, "prompt", "needs `prompt`"),
        ({"prompt": 5}, "prompt", "must be a string"),
        ({"prompt": []}, "prompt", "none of them empty"),
        ({"prompt": ["a", 5]}, "prompt", "must be a string"),
        ({"prompt": [1, True]}, "prompt", "must be a string"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
        ({"prompt": "a", "temperature": -1}, "temperature", "in [0, inf)"),
        ({"prompt": "a", "temperature": True}, "temperature", "valid number"),
        ({"prompt": "a", "top_p": 2}, "top_p", "in (0, 1]"),
        ({"prompt": "a", "n": 2.5}, "n", "valid integer"),
        ({"prompt": "a", "n": 10**400}, "n", "Received"),
        ({"prompt": "a", "seed": 2**70}, "seed", "seed"),
        ({"prompt": "a", "max_tokens": 101}, "max_tokens", "at most 100"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "in [0, 5]"),
        ({"prompt": "a", "stop": [""]}, "stop", "none of them empty"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "16 strings"),
        ({"prompt": "a", "stop": 5}, "stop", "must be a string"),
        ({"prompt": "a", "top_p": 1e300}, "top_p", "in (0, 1]"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "in quotes"),
        ({"prompt": "a", "stream": "yes"}, "stream", "valid boolean"),
        ({"prompt": "a", "echo": True}, "echo", "does not have"),
        ({"prompt": "a", "best_of": 2}, "best_of", "does not have"),
        ({"prompt": "a", "best_of": True}, "best_of", "does not have"),
        ({"prompt": "a" * 2000}, None, "must fit"),
        (
            {"prompt": "a", "stream_options": {"include_usag": True}},
            "stream_options.include_usag",
            "mean include_usage",
        ),
    ],
)
def test_completions(port, fields, param, message):
    status, error = error_of(ask(port, whole(fields)))
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


@pytest.mark.parametrize(
    "fields, param, message",
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"prompt": "Hello"}, "messages", "needs `messages`"),
        (
            {"messages": [{**HELLO, "role": "boss"}]},
            "messages.0.role",
            "'assistant'",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "needs"),
        (
            {"messages": [{**HELLO, "contend": 1}]},
            "messages.0.contend",
            "mean content",
        ),
        (
            {
                "messages": [
                    {**HELLO, "content": [{"type": "image", "text": ""}]}
                ]
            },
            "messages",
            "reads nothing else",
        ),
        (
            {"messages": [HELLO], "tools": [{"type": "function"}]},
            "tools",
            "does not have",
        ),
        (
            {"messages": [HELLO], "response_format": {"type": "json_object"}},
            "response_format",
            "does not have",
        ),
        (
            {"messages": [HELLO], "top_logprobs": 2},
            "top_logprobs",
            "Add logprobs=true",
        ),
        (
            {"messages": [HELLO], "logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "top_logprobs",
        ),
        (
            {"messages": [HELLO], "max_completion_tokens": 1000},
            "max_completion_tokens",
            "at most 100",
        ),
    ],
)
def test_chat(port, fields, param, message):
    request = whole(fields, "/v1/chat/completions")
    status, error = error_of(ask(port, request))
    assert (status, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"prompt": NaN}', "JSON"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", ""),
        (b'{"prompt": "a", "n": ' + b"9" * 4000 + b"}", ""),
        (b'{"prompt": "a", "temperature": 1e999}', ""),
        (b'{"prompt": "\\ud800"}', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'["prompt"]', "JSON object"),
        (b"null", "JSON object"),
    ],
)
def test_bad_json(port, body, message):
    status, error = error_of(ask(port, whole(body)))
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]


def test_harmless_fields_are_taken(port):
    """Clients send defaults and nulls of what is not supported."""
    fields = {"best_of": 1, "echo": False, "suffix": None, "tools": None}
    fields |= {"user": "me", "logit_bias": None, "response_format": None}
    fields |= {"service_tier": "auto"}
    assert ask(port, whole({**PROMPT, **fields}))[0] == 200


def test_the_model_must_be_the_one_that_is_there(port):
    assert ask(port, whole({**PROMPT, "model": "tiny"}))[0] == 200
    answer = ask(port, whole({**PROMPT, "model": "tinny"}))
    status, error = error_of(answer)
    assert (status, error["code"]) == (404, "model_not_found")
    assert "Did you mean tiny?" in error["message"]


def test_paths_and_methods(port):
    request = whole(PROMPT, "/v1/complections")
    status, error = error_of(ask(port, request))
    assert status == 404 and "/v1/completions" in error["message"]
    request = b"GET /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    request += b"connection: close\r\n\r\n"
    status, error = error_of(ask(port, request))
    assert status == 405 and "It takes POST" in error["message"]
    status, error = error_of(ask(port, whole(PROMPT, "/health")))
    assert status == 405 and "It takes" in error["message"]
    status, error = error_of(ask(port, whole(PROMPT, "/v1/models/huge")))
    assert status == 405


def test_only_json_is_taken(port):
    """So that a form of a web page elsewhere can't ask."""
    request = whole(PROMPT, content_type="text/plain")
    status, error = error_of(ask(port, request))
    assert status == 415 and "application/json" in error["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failure_of_the_engine(is_stream):
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as port:
        with connect(port) as connection:
            connection.sendall(whole({"prompt": "a", "stream": is_stream}))
            wait_until(lambda: engine.statistics()["tokens_generated"])
            engine.fail(OSError("secret detail"))
            status, body = split(read_all(connection))
        if is_stream:
            assert status == 200
            event = body.split(b"data: ")[-1].split(b"\n\n")[0]
            body = json.loads(event)
        else:
            assert status == 500
        assert body["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(body)
        request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
        request += b"connection: close\r\n\r\n"
        assert error_of(ask(port, request))[0] == 503
        assert error_of(ask(port, whole(PROMPT)))[0] == 503


def test_a_defect_shows_no_traceback(capfd):
    engine = FakeEngine()
    engine.submit = None  # a TypeError of ours
    with serving(engine) as port:
        status, error = error_of(ask(port, whole(PROMPT)))
    assert (status, error["type"]) == (500, "server_error")
    assert "TypeError" in capfd.readouterr().err
