"""The pages of the site name every option, and none that is not there."""

import re
from pathlib import Path

import pytest

from keras_griffin.cli.completion import Recorder
from keras_griffin.cli.main import COMMANDS
from keras_griffin.serving.openai_api import bodies
from keras_griffin.serving.openai_api import metrics

pytestmark = pytest.mark.backend_independent

DOCS = Path(__file__).resolve().parents[2] / "docs"
SERVING = (DOCS / "serving.md").read_text(encoding="utf-8")
COMMAND_LINE = (DOCS / "command_line.md").read_text(encoding="utf-8")
# Their options are on other pages.
ELSEWHERE = ("convert", "plan", "evaluate", "serve")


def options(command):
    recorder = Recorder()
    COMMANDS[command].add_arguments(recorder)
    return {
        name
        for names, _ in recorder.arguments
        for name in names
        if name.startswith("--")
    } - {"--help"}


def test_options():
    named = set(re.findall(r"--[a-z][a-z-]+", SERVING))
    assert named == options("serve")
    named = set(re.findall(r"--[a-z][a-z-]+", COMMAND_LINE))
    there = [options(name) for name in COMMANDS if name not in ELSEWHERE]
    assert named >= set().union(*there)
    everywhere = set().union(*map(options, COMMANDS)) | {"--help"}
    assert named <= everywhere


def test_commands():
    for name in COMMANDS:
        assert f"`{name}`" in COMMAND_LINE


def test_fields_and_numbers():
    for body in (bodies.CompletionBody, bodies.ChatBody):
        for name in body.model_fields:
            assert f"`{name}`" in SERVING, name
    for name in metrics.GAUGES:
        assert f"`{name}`" in SERVING, name
    for name in metrics.COUNTERS:
        assert f"`{name}_total`" in SERVING, name
