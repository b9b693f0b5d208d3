"""`keras-griffin presets`."""

import sys

import pytest

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli.main import main

pytestmark = pytest.mark.backend_independent


def test_presets_are_listed_once_each(capsys):
    assert main(["presets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "PARAMETERS", "WEIGHTS", "DESCRIPTION"]
    names = [line.split()[0] for line in lines]
    assert sorted(names) == preset_index.preset_names()
    (line,) = [x for x in lines if x.startswith("recurrent_gemma_9b_en ")]
    assert "8.58B  hf, kaggle  RecurrentGemma 9B" in line


def test_lines_fit_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) == 70
    assert any(line.endswith("...") for line in lines)
