"""`keras-griffin plan`: what it refuses. Its report: tests/plan."""

import keras
import pytest

from keras_griffin.cli import common
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="A plan is made by JAX's compiler."
)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["griffin_100m", "--slice", "v5e-3"], "Sizes of v5e: [1, 4, 8"),
        (["griffin_100m", "--slice", "v3-8"], "['v5e', 'v5p', 'v6e']"),
        (["no_such_preset"], "no_such_preset"),
        (["./no_such_folder"], "There is no folder ./no_such_folder."),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(common, "is_installed", lambda name: True)
    assert main(["plan", *arguments]) == USAGE_ERROR
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_compiler_has_to_be_installed(capsys, monkeypatch):
    monkeypatch.setattr(common, "is_installed", lambda name: False)
    assert main(["plan", "griffin_100m"]) == USAGE_ERROR
    assert "pip install libtpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mesh, received",
    [
        ("batch", "batch"),
        ("rows=2", "rows=2"),
        ("batch=x", "batch=x"),
        ("batch=0", "0"),
    ],
)
def test_a_mesh_has_named_axes(mesh, received, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "griffin_100m", "--mesh", mesh])
    assert f"Received: {received}\n" in capsys.readouterr().err
