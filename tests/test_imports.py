"""Imports point one way, and no module needs a backend that it need not."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parent.parent

# A folder imports from itself and from those above it in this list.
ROOMS = (
    "version",
    "releases",
    "keras_compat",
    "files",
    "near_names",
    "kernels",
    "layers",
    "distribution",
    "training",
    "generation",
    "checkpoints",
    "models",
    "serving",
    "evaluation",
    "plan",
    "cli",
    "__init__",
    "__main__",
    "benchmarks",
    "examples",
    "guides",
    "tests",
)
RANKS = {room: rank for rank, room in enumerate(ROOMS)}

# Needed by every installation; all else is imported where it is used.
ALWAYS_THERE = {
    "filelock",
    "h5py",
    "keras",
    "keras_griffin",
    "keras_hub",
    "ml_dtypes",
    "numpy",
    "packaging",
}
# What a package is called where it is installed from, if not by its own name.
PROJECTS = {"orbax": "orbax-checkpoint"}
# A file with one of these words in its name is imported under that backend.
FILES_OF_A_BACKEND = {
    "jax": {"jax"},
    "pallas": {"jax"},
    "tensorflow": {"tensorflow"},
    "torch": {"torch"},
    "triton": {"triton"},
}
SERVER = {
    *("anyio", "h11", "prometheus_client", "pydantic", "pydantic_core"),
    *("starlette", "uvicorn"),
}
# Imported when somebody asks for what is in it.
FILES_OF_A_PACKAGE = {
    "keras_griffin/evaluation/griffin_lm.py": {"lm_eval", "tqdm"},
    **{
        f"keras_griffin/serving/openai_api/{name}.py": SERVER
        for name in (
            *("app", "bodies", "chat_page", "connection", "errors"),
            *("guards", "metrics", "run"),
        )
    },
}


def part_of_file(path):
    """`kernels/linear_scan/api.py` -> "kernels"."""
    parts = path.with_suffix("").parts
    return parts[1] if parts[0] == "keras_griffin" else parts[0]


def part_of_module(module):
    """`keras_griffin.layers.rglru` -> "layers"; `None` if it is not ours."""
    parts = module.split(".")
    if parts[0] == "keras_griffin":
        # A name that is no folder or file is one of the public names.
        known = len(parts) > 1 and parts[1] in RANKS
        return parts[1] if known else "__init__"
    if parts[0] in ("benchmarks", "examples", "guides", "tests", "support"):
        return "tests"
    return None


def imports(tree, only_at_import=False):
    """Yields `(line, module)` of the import statements of a file."""
    nodes = list(tree.body) if only_at_import else list(ast.walk(tree))
    for node in nodes:
        if only_at_import and not isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        ):
            nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                # Relative imports are not used: `.x` is reported as "".
                yield node.lineno, f"{node.module or ''}.{name.name}"


def python_files(root):
    for folder in ("keras_griffin", "kernels"):
        yield from sorted((root / folder).rglob("*.py"))


def backward_imports(root):
    found = []
    for file in python_files(root):
        path = file.relative_to(root)
        own = part_of_file(path)
        if own not in RANKS:
            found.append(f"{path}:1 {own} has no rank in {Path(__file__).name}")
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, module in imports(tree):
            part = part_of_module(module)
            if part in (None, own):
                continue
            if RANKS[part] >= RANKS[own]:
                found.append(f"{path}:{line} {own} imports {module}")
    return found


def early_imports(root):
    found = []
    for file in python_files(root):
        path = file.relative_to(root)
        allowed = ALWAYS_THERE | FILES_OF_A_PACKAGE.get(path.as_posix(), set())
        for word, packages in FILES_OF_A_BACKEND.items():
            if word in file.stem.split("_"):
                allowed |= packages
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, module in imports(tree, only_at_import=True):
            package = module.split(".")[0]
            if package not in allowed | sys.stdlib_module_names:
                found.append(f"{path}:{line} {module}")
    return found


def declared():
    """The projects that pyproject.toml lets pip install for users."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    del lists["test"]
    return {re.match(r"[\w.-]+", x)[0] for part in lists.values() for x in part}


def undeclared_imports(root, projects):
    known = {name.replace("-", "_") for name in projects} | {"keras_griffin"}
    found = []
    for file in python_files(root):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, module in imports(tree):
            package = module.split(".")[0]
            project = PROJECTS.get(package, package).replace("-", "_")
            if project not in known | sys.stdlib_module_names:
                found.append(f"{file.relative_to(root)}:{line} {module}")
    return found


def test_what_is_imported_is_declared():
    assert undeclared_imports(ROOT, declared()) == []


def test_an_undeclared_import_is_found(tmp_path):
    path = tmp_path / "keras_griffin" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text("import os, numpy\ndef f():\n  import orbax.x, keras_hub\n")
    projects = {"numpy", "keras-hub"}
    assert undeclared_imports(tmp_path, projects) == [
        "keras_griffin/a.py:3 orbax.x"
    ]
    assert undeclared_imports(tmp_path, projects | {"orbax-checkpoint"}) == []


def test_imports_point_one_way():
    assert backward_imports(ROOT) == []


def test_nothing_optional_is_imported_with_the_package():
    assert early_imports(ROOT) == []


@pytest.mark.parametrize(
    "file, statement, line",
    [
        ("kernels/scan/api.py", "from keras_griffin.layers import RGLRU", 2),
        ("keras_griffin/layers/a.py", "import keras_griffin.models.b", 2),
        ("keras_griffin/layers/a.py", "from keras_griffin import models", 2),
        ("keras_griffin/checkpoints/a.py", "import keras_griffin.models.b", 2),
        ("keras_griffin/models/a.py", "from keras_griffin import layers, X", 2),
        (
            "keras_griffin/training/a.py",
            "import keras_griffin.generation",
            2,
        ),
        ("keras_griffin/models/a.py", "def f():\n  import guides.a", 3),
        ("keras_griffin/models/a.py", "from support.cases import X", 2),
        ("keras_griffin/surprise.py", "", 1),
    ],
)
def test_a_backward_import_is_found(tmp_path, file, statement, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import keras\n{statement}\n")
    (found,) = backward_imports(tmp_path)
    assert found.startswith(f"{file}:{line} ")


@pytest.mark.parametrize(
    "file, statement",
    [
        ("kernels/scan/api.py", "import jax"),
        ("kernels/scan/loop_torch.py", "from tensorflow import nn"),
        ("keras_griffin/a.py", "class A:\n  import torch"),
        ("keras_griffin/a.py", "if True:\n  import safetensors"),
    ],
)
def test_an_early_import_is_found(tmp_path, file, statement):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import json\n{statement}\n")
    (found,) = early_imports(tmp_path)
    assert found.startswith(f"{file}:")


@pytest.mark.parametrize(
    "file, statement",
    [
        ("kernels/scan/pallas_tpu.py", "import jax.experimental.pallas"),
        ("keras_griffin/a.py", "def f():\n  import torch"),
        ("keras_griffin/layers/a.py", "from keras_griffin.kernels import b"),
        ("keras_griffin/models/a.py", "import keras_griffin.checkpoints.b"),
    ],
)
def test_a_good_import_is_not_reported(tmp_path, file, statement):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{statement}\n")
    assert early_imports(tmp_path) == []
    reported = [f for f in backward_imports(tmp_path) if "no rank" not in f]
    assert reported == []
