"""No file and no function is longer than a reader holds."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "keras_griffin",
    "kernels",
    "presets",
    "guides",
    "examples",
    "benchmarks",
    "tests",
)
LINES_OF_A_FILE = 500
# From `def` to the end, without the docstring: a long explanation is welcome.
LINES_OF_A_FUNCTION = 60


def length_without_docstring(function):
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return length
    docstring = function.body[0]
    return length - (docstring.end_lineno - docstring.lineno + 1)


def too_long(root):
    found = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            path = file.relative_to(root).as_posix()
            lines = text.count("\n")
            if lines > LINES_OF_A_FILE:
                found.append(f"{path}:1 {lines} lines")
            for node in ast.walk(ast.parse(text)):
                if not isinstance(
                    node, (ast.FunctionDef, ast.AsyncFunctionDef)
                ):
                    continue
                length = length_without_docstring(node)
                if length > LINES_OF_A_FUNCTION:
                    found.append(
                        f"{path}:{node.lineno} {node.name}: {length} lines"
                    )
    return found


def test_files_and_functions_are_short():
    found = too_long(ROOT)
    assert not found, "\n".join(found)


def test_what_is_too_long_is_found(tmp_path):
    file = tmp_path / "kernels" / "a.py"
    file.parent.mkdir()
    body = "    x = 1\n" * LINES_OF_A_FUNCTION
    text = f"\ndef f():\n{body}"
    explained = f'def g():\n    """Why.\n\n    How.\n    """\n{body}'
    file.write_text(text + explained.replace("    x = 1\n", "", 1))
    assert too_long(tmp_path) == ["kernels/a.py:2 f: 61 lines"]
    file.write_text("x = 1\n" * LINES_OF_A_FILE)
    assert too_long(tmp_path) == []
    file.write_text("x = 1\n" * (LINES_OF_A_FILE + 1))
    assert too_long(tmp_path) == ["kernels/a.py:1 501 lines"]
