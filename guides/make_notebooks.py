"""Makes the notebooks of this folder from their scripts, and executes them.

    python guides/make_notebooks.py                   all of them
    python guides/make_notebooks.py quickstart        one of them
    python guides/make_notebooks.py --keep-outputs    executes nothing: outputs
                                                      stay with unchanged cells

Before that, links (guides/README.md's too) and install lines are brought up to date:
the repository's address and the version are those of pyproject.toml.

A cell with the tag "parameters" holds what may be changed: sizes, names, addresses.
`execute` can change them, as the tests do, which run every guide at a small size.
"""

import argparse
import ast
import copy
import os
import re
import resource
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import jupytext
import nbclient
import nbformat
import traitlets.config
from jupytext.combine import combine_inputs_with_outputs

GUIDES = Path(__file__).resolve().parent
ROOT = GUIDES.parent
FORMAT = "py:percent"
# What a guide would download, where the checkout has it.
LOCAL_DATA = {
    "SHAKESPEARE": (ROOT / "benchmarks/data/tinyshakespeare.txt").as_uri(),
}
# Seconds. The longest cell takes some minutes.
CELL_TIMEOUT = 1800

REPOSITORY = re.compile(r"https://github\.com/[\w.-]+/keras_griffin\b")
COLAB = re.compile(
    r"https://colab\.research\.google\.com/github/[\w.-]+/keras_griffin\b"
)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--keep-outputs", action="store_true")
    arguments = parser.parse_args()
    readme = GUIDES / "README.md"
    readme.write_text(with_address(readme.read_text("utf-8")), "utf-8")
    known = {script.stem: script for script in scripts()}
    for name in arguments.names or known:
        script = known[name]
        text = script.read_text(encoding="utf-8")
        script.write_text(up_to_date(text), encoding="utf-8")
        notebook = read(script)
        path = script.with_suffix(".ipynb")
        if arguments.keep_outputs:
            old = nbformat.read(path, as_version=4)
            notebook = number(combine_inputs_with_outputs(notebook, old))
        else:
            started = time.monotonic(), _cpu_seconds()
            with tempfile.TemporaryDirectory() as folder:
                done = execute(
                    with_parameters(notebook, local_data(notebook)), folder
                )
            for cell, own in zip(done.cells, notebook.cells, strict=True):
                cell.source = own.source
            notebook = done
            seconds, cpu = time.monotonic() - started[0], _cpu_seconds()
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            print(
                f"{name}: {seconds:.0f} s, {cpu - started[1]:.0f} s of CPU; "
                f"largest process so far {peak / 2**20:.1f} GiB"
            )
        nbformat.write(notebook, path)


def scripts():
    """The scripts that notebooks are made from."""
    return [
        path
        for path in sorted(GUIDES.glob("*.py"))
        if path != Path(__file__).resolve()
    ]


def read(script):
    """The notebook of a script, without outputs."""
    return number(jupytext.read(script, fmt=FORMAT))


def number(notebook):
    """Gives cells ids that stay the same, in place of random ones."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
    notebook.metadata.pop("jupytext", None)
    return notebook


def with_parameters(notebook, values):
    """A copy of a notebook with other values in its cell of parameters.

    Args:
        notebook: from `read`.
        values: dict of names and values. A `NAME = ...` of the cell becomes
            `NAME = value`.

    Raises:
        ValueError: for a name that the cell does not set.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "parameters" not in cell.metadata.get("tags", ()):
            continue
        lines = cell.source.split("\n")
        for node in ast.parse(cell.source).body[::-1]:
            name = node.targets[0].id
            if name in values:
                new = f"{name} = {values[name]!r}"
                lines[node.lineno - 1 : node.end_lineno] = [new]
                values = {k: v for k, v in values.items() if k != name}
        cell.source = "\n".join(lines)
    if values:
        raise ValueError(
            "Only what a cell of parameters sets can be changed. Received: "
            f"{sorted(values)}. Set it there, in a line of its own."
        )
    return notebook


def local_data(notebook):
    """The entries of `LOCAL_DATA` that a notebook has as parameters."""
    text = "\n".join(cell.source for cell in notebook.cells)
    return {k: v for k, v in LOCAL_DATA.items() if f"\n{k} = " in f"\n{text}"}


def execute(notebook, folder, environment=None, startup=None):
    """Runs a notebook from top to bottom, and returns it with its outputs.

    Args:
        notebook: from `read`.
        folder: path where it runs.
        environment: dict of further environment variables.
        startup: path of a Python file that the kernel runs first.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    own = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    # What C++ libraries log is not a part of a notebook.
    arguments = ["--IPKernelApp.capture_fd_output=False"]
    if startup is not None:
        arguments.append(f"--IPKernelApp.exec_files={startup}")
    environment = {
        **own,  # without a backend, which a guide chooses
        # `!pip` and `!keras-griffin` are those of this Python.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # tqdm wants widgets, which Colab has; Keras' quantized embedding
        # transposes its scales, of one axis.
        "PYTHONWARNINGS": "ignore:IProgress not found,"
        "ignore:The use of `x.T` on tensors",
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory() as sockets:
        connection = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=arguments,
            config=traitlets.config.Config(KernelManager=connection),
        )
        return client.execute(cwd=str(folder), env=environment)


def with_address(text):
    """A text with the repository's address as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    address = project["project"]["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/")
    text = REPOSITORY.sub(address, text)
    return COLAB.sub(f"https://colab.research.google.com/github/{owner}", text)


def up_to_date(text):
    """A script's text with the address and the version of today."""
    version = re.search(
        r'"(.+)"', (ROOT / "keras_griffin" / "version.py").read_text("utf-8")
    ).group(1)
    return re.sub(
        r"(keras_griffin@v)[\w.]+", rf"\g<1>{version}", with_address(text)
    )


def _cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
