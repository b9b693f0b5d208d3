"""Public signatures have type hints, and a type checker finds no error."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_griffin

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = ("__init__", "__call__")


def public_objects():
    """Yields `(name, object)` of what the pages of the site document."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"^::: (\S+)", text, re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            if module.startswith("kernels"):
                module = f"keras_griffin.{module}"
            yield name, getattr(importlib.import_module(module), attribute)


def public_functions():
    """Yields `(name, function)`: of a class also what it inherits from us."""
    for name, value in public_objects():
        if not inspect.isclass(value):
            yield name, value
            continue
        for cls in value.__mro__:
            if not cls.__module__.startswith("keras_griffin."):
                continue
            for attribute, member in vars(cls).items():
                if attribute.startswith("_") and attribute not in SPECIAL:
                    continue
                if isinstance(member, property):
                    member = member.fget
                member = getattr(member, "__func__", member)
                if inspect.isfunction(member) and member.__name__ != "<lambda>":
                    yield f"{cls.__module__}.{cls.__name__}.{attribute}", member


def without_hint(function):
    """Names of the arguments without a hint, and "return"."""
    signature = inspect.signature(function)
    empty = inspect.Signature.empty
    missing = [
        parameter.name
        for place, parameter in enumerate(signature.parameters.values())
        if parameter.annotation is empty
        and not (place == 0 and parameter.name in ("self", "cls"))
    ]
    if function.__name__ != "__init__" and signature.return_annotation is empty:
        missing.append("return")
    return missing


def test_public_signatures_have_hints():
    found = dict(public_functions())
    assert len(found) > 200
    missing = {name: without_hint(f) for name, f in found.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_missing_hint_is_found():
    def function(self, x, y: int, *args: int, **kwargs) -> int: ...

    assert without_hint(function) == ["x", "kwargs"]
    assert without_hint(lambda x: x) == ["x", "return"]


def test_lazy_names_are_there_for_type_checkers():
    text = Path(keras_griffin.__file__).read_text(encoding="utf-8")
    _, _, seen = text.partition("if TYPE_CHECKING:\n")
    for name in keras_griffin.__all__:
        assert re.search(rf" as {name},?\n", seen), name


def test_types(tmp_path):
    """Of the package, and of a program that uses it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import keras_griffin\n"
        "model = keras_griffin.GriffinCausalLM.from_preset('a')\n"
        "reveal_type(model.chat())\n"
        "keras_griffin.layers.LocalMQA('4', 16)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "keras_griffin", "kernels", program]
        + ["--cache-dir", str(tmp_path / "cache")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert "ChatSession" in lines[0]
    assert 'incompatible type "str"; expected "int"' in lines[1]
    assert lines[2].startswith("Found 1 error in 1 file"), lines[2]
