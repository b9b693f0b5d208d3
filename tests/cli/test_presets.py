"""`keras-griffin presets`."""

import json

import pytest

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli.main import main

pytestmark = pytest.mark.backend_independent


def test_presets_are_listed_once_each(capsys):
    assert main(["presets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "PARAMETERS", "WEIGHTS"]
    names = [line.split()[0] for line in lines]
    assert sorted(names) == preset_index.preset_names()
    (line,) = [x for x in lines if x.startswith("recurrent_gemma_9b_en ")]
    assert line.endswith("  8.58B  hf, kaggle")


def test_lines_fit_a_terminal(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80


def test_json(capsys):
    assert main(["presets", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert sorted(e["name"] for e in entries) == preset_index.preset_names()
    assert all(e["description"] and e["backbone"] for e in entries)
