"""Guides: notebooks equal their scripts, use public names, and run."""

import ast
import importlib
import importlib.util
import re
import types
from pathlib import Path

import nbformat
import pytest

# A guide chooses its backend.
pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "guides"
NO_NETWORK = Path(__file__).with_name("no_network.py")

TINY = "a preset that `tiny_preset` makes"
# What the tests change in a guide's cell of parameters.
SIZES = {
    "add_and_publish_a_preset": {},
    "classify_and_search": {
        "PRESET": TINY,
        "LINES": 64,
        "EPOCHS": 1,
        "CORPUS": 32,
    },
    "evaluate_a_model": {
        "PRESET": TINY,
        "CHARACTERS": 4_000,
        "LENGTH": 64,
        "QUESTIONS": 8,
    },
    "finetune_with_lora": {
        "PRESET": TINY,
        "TAKES": 1,
        "NEW_TOKENS": 8,
        "EPOCHS": 1,
    },
    "long_contexts_and_state": {
        "PRESET": TINY,
        "LENGTHS": [32, 64],
        "ROUNDS": 4,
        "STANZAS": 1,
        "NEW_TOKENS": 8,
        "DOCUMENTS": 16,
        "EPOCHS": 1,
    },
    "many_tpu_chips_jax": {"PRESET": TINY, "EPOCHS": 2, "NEW_TOKENS": 8},
    "many_tpu_chips_tensorflow": {
        "PRESET": TINY,
        "EPOCHS": 2,
        "NEW_TOKENS": 8,
    },
    "preference_tuning": {
        "PRESET": TINY,
        "TAKES": 4,
        "NEW_TOKENS": 32,
        "EPOCHS": 1,
    },
    "pretrain_from_scratch": {
        "MAX_CHARACTERS": 6_000,
        "VOCABULARY": 512,
        "ROW": 64,
        "WIDTH": 64,
        "STEPS": 6,
        "EPOCHS": 2,
        "VALIDATION_STEPS": 2,
        "NEW_TOKENS": 16,
    },
    "quickstart": {"NEW_TOKENS": 20},
    "serve_a_model": {"CLIENTS": 4, "NEW_TOKENS": 8, "STANZAS": 2},
    "time_series": {"SERIES": 32, "LONGEST": 60, "EPOCHS": 1},
    "write_a_pallas_kernel": {},
}

# Modules that a user may import from, or reach as an attribute.
PUBLIC = {
    "keras_griffin",
    "keras_griffin.distribution",
    "keras_griffin.evaluation",
    "keras_griffin.kernels",
    "keras_griffin.kernels.dispatch",
    "keras_griffin.kernels.linear_scan",
    "keras_griffin.kernels.rg_lru",
    "keras_griffin.layers",
    "keras_griffin.training",
}
BADGE = re.compile(
    r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/"
    r"colab-badge\.svg\)\]\(https://colab\.research\.google\.com/github/"
    r"[\w.-]+/keras_griffin/blob/main/guides/(\w+)\.ipynb\)"
)
HEADER = [
    "Author",
    "Date created",
    "Last modified",
    "Description",
    "Accelerator",
    "Takes",
]
# Of a GitHub page a guide may be a large part; a plot is not.
MAX_NOTEBOOK = 400_000  # bytes


def load_tool():
    path = GUIDES / "make_notebooks.py"
    spec = importlib.util.spec_from_file_location("make_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
SCRIPTS = tool.scripts()
each_guide = pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_links_of_the_readme():
    text = (GUIDES / "README.md").read_text("utf-8")
    assert tool.with_address(text) == text, "run guides/make_notebooks.py"
    badges = BADGE.findall(text)
    assert sorted(badges) == [script.stem for script in SCRIPTS]


def test_every_notebook_has_a_script():
    names = {script.stem for script in SCRIPTS}
    assert names == set(SIZES)
    assert {path.stem for path in GUIDES.glob("*.ipynb")} == names
    for page in ("README.md", "guides/README.md"):
        text = (ROOT / page).read_text("utf-8")
        for name in names:
            assert f"{name}.ipynb" in text, (page, name)


@each_guide
def test_notebook_equals_its_script(script):
    path = script.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    made = tool.read(script)
    assert cells(notebook) == cells(made)
    for key, value in made.metadata.items():
        kept = notebook.metadata[key]
        assert (
            {**kept, **value} == kept
            if key == "kernelspec"
            else (kept == value)
        )
    assert path.stat().st_size < MAX_NOTEBOOK


@each_guide
def test_committed_outputs_are_of_a_whole_run(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(
        range(1, len(code) + 1)
    )
    check_outputs(notebook)


@each_guide
def test_what_a_guide_begins_with(script):
    text = script.read_text("utf-8")
    assert tool.up_to_date(text) == text, "run guides/make_notebooks.py"
    title, install, *_ = tool.read(script).cells
    assert title.source.startswith("# ")
    assert BADGE.search(title.source).group(1) == script.stem
    (fields,) = re.findall(r"(?:\n\*\*.+)+", title.source)
    assert re.findall(r"^\*\*(.+?):\*\* \S", fields, re.MULTILINE) == HEADER
    dates = re.findall(r"\b\d{4}/\d\d/\d\d\b", fields)
    assert dates == sorted(dates) and len(dates) == 2
    assert re.search(r"\*\*Takes:\*\* .*\d+ (s|min).*GiB", title.source)
    (line,) = [line for line in install.source.splitlines() if "pip" in line]
    packages = re.findall(r'"([^"]+)"', line)
    assert re.match(
        rf"keras-griffin\[[\w,]+\] @ git\+https://.*@v{version()}$", packages[0]
    )
    # Colab's own releases are kept where they are new enough.
    assert "==" not in line
    assert line.startswith("!pip show -q keras-griffin 2>/dev/null || pip ")


def version():
    from keras_griffin.version import __version__

    return __version__


def test_a_stale_line_is_brought_up_to_date():
    fresh = tool.up_to_date(
        "https://github.com/someone/keras_griffin@v0.0.1 "
        "https://colab.research.google.com/github/a/keras_griffin"
    )
    assert f"keras_griffin@v{version()} " in fresh
    assert "someone" not in fresh and "/a/" not in fresh


def parameters_of(source):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    return nbformat.v4.new_notebook(cells=[cell])


def test_parameters_are_changed():
    notebook = parameters_of("A = [\n    1,\n]\nB = 2  # rows\nC = 3")
    changed = tool.with_parameters(notebook, {"A": [5], "C": "x"})
    assert changed.cells[0].source == "A = [5]\nB = 2  # rows\nC = 'x'"
    assert notebook.cells[0].source.startswith("A = [\n")
    with pytest.raises(ValueError, match=r"Received: \['D'\]"):
        tool.with_parameters(notebook, {"D": 1})


def private_names(source):
    """What a script takes that is no public name, as `(line, name)`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += check_module(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            found += check_module(node.lineno, node.module)
            for alias in node.names:
                found += check_name(node.lineno, node.module, alias.name)
        elif isinstance(node, ast.Attribute):
            base = ast.unparse(node.value)
            if base in PUBLIC:
                found += check_name(node.lineno, base, node.attr)
            elif is_private(node.attr) or node.attr == "src":
                found.append((node.lineno, node.attr))
    return found


def check_module(line, module):
    parts = module.split(".")
    if parts[0] in ("keras_griffin", "tests", "support", "benchmarks"):
        return [] if module in PUBLIC else [(line, module)]
    bad = "src" in parts or any(map(is_private, parts))
    return [(line, module)] if bad else []


def check_name(line, module, name):
    whole = f"{module}.{name}"
    if module not in PUBLIC:
        return [(line, whole)] if is_private(name) else []
    if whole in PUBLIC:
        return []
    value = getattr(importlib.import_module(module), name)
    bad = isinstance(value, types.ModuleType) or (
        is_private(name) and name != "__version__"
    )
    return [(line, whole)] if bad else []


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


@each_guide
def test_public_names_only(script):
    assert private_names(script.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import keras_griffin.generation.state_files",
        "from keras_griffin.generation.state_files import save_state",
        "from keras_griffin import models",
        "import keras_griffin\nkeras_griffin.models",
        "from keras_griffin.kernels.linear_scan.api import linear_scan",
        "import support.models",
        "from keras.src import utils",
        "import keras\nkeras.src.utils",
        "model._run",
        "from jax._src import core",
    ],
)
def test_a_private_name_is_found(source):
    assert private_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "import keras_griffin\nkeras_griffin.layers.RGLRU(4)",
        "keras_griffin.training.resumable_fit",
        "from keras_griffin.kernels.linear_scan import linear_scan",
        "keras_griffin.__version__\nmodel.state",
    ],
)
def test_a_public_name_is_not_reported(source):
    assert private_names(source) == []


def check_outputs(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            # Neither warnings nor errors are shown.
            assert output.output_type in ("stream", "display_data"), cell
            assert output.get("name") != "stderr", output
            if output.output_type == "display_data":
                assert "image/png" in output.data


@pytest.fixture(scope="module")
def tiny_preset(tmp_path_factory):
    """A folder with a model of two blocks and the shipped tokenizer."""
    import keras_griffin

    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            vocabulary_size=1024,
            num_layers=2,
            hidden_dim=64,
            intermediate_dim=128,
            num_query_heads=4,
            num_gate_blocks=4,
            block_types=("recurrent", "local_attention"),
            attention_window_size=32,
        ),
        keras_griffin.GriffinCausalLMPreprocessor.from_preset(
            "griffin_shakespeare_en"
        ),
    )
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    model.save_to_preset(str(folder))
    return str(folder)


@each_guide
def test_guide_runs_without_network(script, tmp_path, tiny_preset):
    notebook = tool.read(script)
    sizes = {**SIZES[script.stem], **tool.local_data(notebook)}
    if sizes.get("PRESET") == TINY:
        sizes["PRESET"] = tiny_preset
    notebook = tool.execute(
        tool.with_parameters(notebook, sizes),
        tmp_path,
        environment={
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            # Where a reader may choose; it compiles nothing.
            "KERAS_BACKEND": "torch",
            "OMP_NUM_THREADS": "1",
            # The TPU's compiler, in one of them, refuses other flags.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        },
        startup=NO_NETWORK,
    )
    check_outputs(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any(cell.outputs for cell in code)
