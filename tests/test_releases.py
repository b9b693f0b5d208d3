"""Old modules in a process, and old releases, are named at the import."""

import importlib.metadata
import sys
import types

import pytest

from keras_griffin import releases

pytestmark = pytest.mark.backend_independent

REQUIREMENTS = [
    "keras>=3.15",
    "keras-hub>=0.32",
    "tqdm",
    'jax>=0.9; extra == "jax"',
    'torch>=2.6; extra == "torch"',
]


@pytest.fixture
def releases_are(monkeypatch):
    """Sets what runs and what is installed, by the modules' names."""

    def set_them(running, installed):
        def version(name):
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed[name]

        for name in ("numpy", "keras", "keras_hub", "jax", "torch"):
            module = types.SimpleNamespace(__version__=running.get(name))
            monkeypatch.setitem(sys.modules, name, module)
        metadata = types.SimpleNamespace(
            requires=lambda name: REQUIREMENTS,
            version=version,
            PackageNotFoundError=importlib.metadata.PackageNotFoundError,
        )
        monkeypatch.setattr(releases.importlib, "metadata", metadata)

    return set_them


@pytest.mark.parametrize(
    "running, installed",
    [
        ({}, {}),
        ({"keras": "3.15.0"}, {"keras": "3.15.0"}),
        ({"keras": "3.16.0.dev1"}, {"keras": "3.16.0"}),
        # Under another name, tensorflow-cpu for instance.
        ({"jax": "0.9"}, {}),
        ({"jax": "0.9.2+cuda"}, {"jax": "0.9.2"}),
        # Not the backend, and not ours.
        ({"torch": "1.0", "numpy": "1.0"}, {"torch": "1.0", "numpy": "2.0"}),
    ],
    ids=str,
)
def test_what_may_run(running, installed, releases_are):
    releases_are(running, installed)
    releases.check_running("jax")


@pytest.mark.parametrize(
    "name, project, running, installed, message",
    [
        ("keras", "keras", "3.13", "3.15.1", "3.13, imported before 3.15.1"),
        ("keras_hub", "keras-hub", "0.32", "0.33", "before 0.33.*Restart"),
        ("keras", "keras", "3.13", "3.13", "--upgrade 'keras>=3.15'"),
        ("jax", "jax", "0.7.2", "0.7.2", r"needs jax>=0\.9.*'jax>=0\.9'"),
        ("jax", "jax", "0.10", "0.9", "jax 0.10, imported before 0.9"),
    ],
)
def test_what_may_not_run(
    name, project, running, installed, message, releases_are
):
    releases_are({name: running}, {project: installed})
    with pytest.raises(ImportError, match=message):
        releases.check_running("jax")


def test_a_checkout_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(releases, "DISTRIBUTION", "keras-griffin-elsewhere")
    monkeypatch.setattr("keras.__version__", "1.0")
    releases.check_running("jax")
