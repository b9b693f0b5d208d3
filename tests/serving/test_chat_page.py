"""The chat page: what it may do, and itself in headless Chromium."""

import re
from pathlib import Path

import pytest

import keras_griffin
from support import chromium
from support.fake_engine import FakeEngine
from support.http_servers import connect
from support.http_servers import read_all
from support.http_servers import serving
from support.http_servers import wait_until

pytestmark = pytest.mark.backend_independent

FOLDER = Path(keras_griffin.__file__).parent / "serving" / "openai_api"
PAGE = (FOLDER / "chat_page.html").read_text(encoding="utf-8")
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b><script>1</script>'


def test_text_of_a_model_never_becomes_markup():
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval("):
        assert name not in PAGE
    for name in ("document.write", "DOMParser", "Function("):
        assert name not in PAGE
    assert not re.search(r"\son[a-z]+=", PAGE), "no handlers in attributes"
    assert not re.search(r"(src|href)=\"(?!data:,)", PAGE), "all in one file"


def test_headers():
    request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with serving(FakeEngine()) as port:
        with connect(port) as connection:
            connection.sendall(request)
            answer = read_all(connection).decode()
    policy = re.search("content-security-policy: (.*)\r\n", answer)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy
    assert "x-content-type-options: nosniff" in answer
    assert answer.endswith(PAGE)


needs_chromium = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="apt-get install chromium"
)
TALK = "document.querySelector('#talk').textContent"


@pytest.fixture
def page(tmp_path):
    with chromium.Page(tmp_path) as page:
        yield page


def say(page, text):
    page.run("document.querySelector('#text').focus()")
    page.type(text)
    page.press_enter()


@needs_chromium
def test_a_chat(page):
    """Two turns, the second knows the first; then a new chat."""
    engine = FakeEngine(seconds=0.001)
    with serving(engine) as port:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait_for("document.querySelector('#model').textContent == 'tiny'")
        page.run("document.querySelector('#max_tokens').value = 3")
        say(page, "Hello")
        page.wait_for(f"{TALK}.includes('3 tokens')")
        assert " word0 word1 word2" in page.run(TALK)
        say(page, "Again")
        page.wait_for(f"{TALK}.split('3 tokens').length == 3")
        first, second = engine.prompts
        assert second == f"{first} word0 word1 word2\nAgain"
        page.run("document.querySelector('#new').click()")
        assert page.run(TALK) == ""
        say(page, "Anew")
        page.wait_for(f"{TALK}.includes('3 tokens')")
        assert engine.prompts[-1] == "Anew"
    assert page.problems == []


@needs_chromium
def test_stop(page):
    engine = FakeEngine(seconds=0.01)
    with serving(engine) as port:
        page.open(f"http://127.0.0.1:{port}/")
        page.run("document.querySelector('#max_tokens').value = 2000")
        say(page, "Hello")
        page.wait_for(f"{TALK}.includes('word5')")  # it streams
        assert page.run("document.querySelector('#send').hidden")
        page.run("document.querySelector('#stop').click()")
        page.wait_for("!document.querySelector('#send').hidden")
        wait_until(lambda: engine.statistics()["texts_cancelled"] == 1)
        page.run("document.querySelector('#max_tokens').value = 2")
        say(page, "Go on")
        page.wait_for(f"{TALK}.includes('2 tokens')")
        # What was made until the stop stays in the conversation.
        assert "word5" in engine.prompts[-1]


@needs_chromium
def test_markup_of_a_model_is_text(page):
    engine = FakeEngine(text=MARKUP)
    with serving(engine) as port:
        page.open(f"http://127.0.0.1:{port}/")
        page.run("document.querySelector('#max_tokens').value = 2")
        say(page, MARKUP)
        page.wait_for(f"{TALK}.includes('2 tokens')")
        assert page.run(TALK).count(MARKUP) == 3
        count = "document.querySelectorAll('#talk *:not(div)').length"
        assert page.run(count) == 0
        assert page.run("document.title") == "keras-griffin"
        # Even markup that got in would run nothing: the policy forbids it.
        page.run(
            "document.querySelector('#talk')[['inner', 'HTML'].join('')] = "
            f"{MARKUP!r}"
        )
        page.run("new Promise(done => setTimeout(done, 300))")
        assert page.run("document.title") == "keras-griffin"


@needs_chromium
def test_a_key_that_is_missing_and_errors(page):
    engine = FakeEngine()
    with serving(engine, api_key="sk-secret") as port:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait_for(f"{TALK}.includes('needs its API key')")
        page.type("sk-secret")  # the field has the focus
        page.press_enter()
        page.wait_for("document.querySelector('#model').textContent == 'tiny'")
        page.run("document.querySelector('#top_p').value = 3")
        say(page, "Hello")
        page.wait_for(f"{TALK}.includes('in (0, 1]')")
        # The question is there to be asked again.
        page.wait_for("document.querySelector('#text').value == 'Hello'")
        page.run("document.querySelector('#top_p').value = 1")
        page.run("document.querySelector('#send').click()")
        page.wait_for(f"{TALK}.includes('300 tokens')")
