"""Every example in the docstrings of the API's pages runs as it is written."""

import doctest
import inspect
import pkgutil
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin import distribution
from keras_griffin import evaluation
from keras_griffin import layers
from keras_griffin import serving
from keras_griffin import training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs/api").glob("*.md"))

# Examples that are not run here, each with the reason.
NOT_RUN = {
    "GriffinParallel": "tests/distribution/eight_devices.py has the devices",
}


def names_on_pages():
    names = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        names += re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    return names


def resolve(name):
    name = re.sub(r"^kernels\.", "keras_griffin.kernels.", name)
    module, _, attribute = name.rpartition(".")
    return getattr(pkgutil.resolve_name(module), attribute)


def documented():
    """Yields `(name, docstring)` of the pages' names and their methods."""
    for name in names_on_pages():
        value = resolve(name)
        short = name.rpartition(".")[2]
        yield short, value.__doc__
        if not inspect.isclass(value):
            continue
        for member, method in vars(value).items():
            method = getattr(method, "__func__", method)
            public = not member.startswith("_")
            if public and inspect.isfunction(method) and method.__doc__:
                yield f"{short}.{member}", method.__doc__


def examples():
    for name, docstring in documented():
        text = inspect.cleandoc(docstring)
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if blocks or ">>>" in text:
            yield pytest.param(name, text, blocks, id=name)


@pytest.fixture(scope="module")
def model():
    return keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")


@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="The calls are tested on all backends; compiling takes minutes.",
)
# Keras passes `shuffle=True` on to KerasHub's pipeline of text.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
# Keras' exporter (3.15), of weights on the CPU.
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")
@pytest.mark.parametrize("name, text, blocks", list(examples()))
def test_example(name, text, blocks, model, tmp_path, monkeypatch):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    monkeypatch.chdir(tmp_path)
    # What docs/api/index.md says that they may use.
    names = {"keras": keras, "keras_griffin": keras_griffin, "np": np}
    names["model"] = model
    try:
        for block in blocks:
            exec(compile(block, name, "exec"), names)  # noqa: S102
        run = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
        assert doctest.DocTestRunner(verbose=False).run(run).failed == 0
    finally:
        keras.distribution.set_distribution(None)


@pytest.mark.backend_independent
def test_every_public_name_has_a_page():
    found = {resolve(name) for name in names_on_pages()}
    modules = (layers, distribution, training, evaluation, serving)
    for module in (keras_griffin, *modules):
        for name, value in vars(module).items():
            is_ours = getattr(value, "__module__", "").startswith(
                "keras_griffin."
            )
            if is_ours and not name.startswith("_") and callable(value):
                assert value in found, name
    assert evaluation.GriffinLM in found


@pytest.mark.backend_independent
def test_what_is_not_run_exists():
    assert set(NOT_RUN) <= {name for name, _ in documented()}
