"""The backend of a command, and the models that cannot be loaded."""

import os
import sys

import keras
import pytest

from keras_griffin.cli import common
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support.commands import error_line

BACKEND = keras.config.backend()


def test_backend_of_this_process_may_be_named(fake):
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    assert main([*arguments, "--backend", BACKEND]) == 0


def test_other_backend_needs_a_new_process(fake, capsys, monkeypatch):
    other = "torch" if BACKEND != "torch" else "jax"
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)  # restored afterwards
    monkeypatch.setattr(common, "is_installed", lambda name: True)
    arguments = ["generate", "a", "--preset", "hf://a/b", "--backend", other]
    assert main(arguments) == USAGE_ERROR
    assert f"Keras already runs on {BACKEND}" in error_line(capsys)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "installed, variable, expected",
    [
        (("jax", "torch", "tensorflow"), "", "jax"),
        (("torch", "tensorflow"), "", "torch"),
        (("tensorflow",), "", "tensorflow"),
        (("jax", "tensorflow"), "tensorflow", "tensorflow"),
    ],
)
def test_choice_of_the_backend(monkeypatch, installed, variable, expected):
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(common, "is_installed", lambda name: name in installed)
    common.choose_backend(None)
    assert os.environ["KERAS_BACKEND"] == expected


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "installed, variable, requested, message",
    [
        ((), "", None, "No backend is installed"),
        (("jax",), "mxnet", None, "KERAS_BACKEND must be one of"),
        (("jax",), "", "torch", "or --backend jax"),
        ((), "torch", None, "pip install 'keras-griffin[torch]'"),
    ],
)
def test_missing_backend(
    monkeypatch, capsys, installed, variable, requested, message
):
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.setattr(common, "is_installed", lambda name: name in installed)
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    if requested is not None:
        arguments += ["--backend", requested]
    assert main(arguments) == USAGE_ERROR
    assert message in error_line(capsys)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["info", "grifin_7b"], "Did you mean griffin_7b"),
        (["info", "./nowhere"], "There is no folder ./nowhere"),
        (["generate", "a", "--preset", "hawk_1"], "Did you mean hawk_1b"),
        (["generate", "a", "--preset", "no/where"], "There is no folder"),
        (["generate", "a", "--preset", "hawk_1b"], "load_weights=False"),
    ],
)
def test_wrong_preset(capsys, arguments, message):
    assert main(arguments) == USAGE_ERROR
    assert message in error_line(capsys)


@pytest.mark.backend_independent
def test_is_installed(monkeypatch):
    assert common.is_installed("keras")
    assert not common.is_installed("no_such_package")

    class Hook:
        def find_spec(name, path, target=None):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hook])
    assert not common.is_installed("no_such_package")
