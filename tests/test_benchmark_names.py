"""Benchmarks are not run by the tests: what they name of ours exists."""

import ast
from pathlib import Path

import pytest

import keras_griffin

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))
# Private names of PyTorch (2.13), which has no public ones for them.
OF_OTHERS = {
    "_foreach_utils._get_foreach_kernels_supported_devices",
    "operation._schema",
    "torch.ops.aten._scaled_dot_product_efficient_attention",
}


def file_of(module):
    """Where a module of ours, or a benchmark's neighbour, is; or `None`."""
    parts = module.split(".")
    if parts[:2] == ["keras_griffin", "kernels"]:
        parts = parts[1:]
    places = [ROOT.joinpath(*parts)]
    if parts[0] not in ("keras_griffin", "kernels"):
        places = [script.with_suffix("") for script in SCRIPTS]
        places = [p for p in places if p.name == module]
    for place in places:
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.exists():
                return path
    return None


def names_in(module):
    """The names that `import module` gives, without importing it."""
    if module == "keras_griffin":
        return {*keras_griffin.__all__, "__version__"}
    names = set()
    for node in ast.parse(file_of(module).read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
        else:
            names |= {
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    return names


def missing(text):
    """`line name` of what a script names and nobody has."""
    tree, modules, found = ast.parse(text), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if file_of(name.name):
                    modules[name.asname or name.name] = name.name
        elif isinstance(node, ast.ImportFrom) and (
            file_of(node.module) or node.module.startswith("keras_griffin")
        ):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                if file_of(whole):
                    modules[name.asname or name.name] = whole
                elif not file_of(node.module) or (
                    name.name not in names_in(node.module)
                ):
                    found.append(f"{node.lineno} {whole}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        whole = f"{modules.get(owner)}.{node.attr}"
        if owner in modules:
            if not file_of(whole) and node.attr not in names_in(modules[owner]):
                found.append(f"{node.lineno} {whole}")
        elif node.attr.startswith("_") and not node.attr.startswith("__"):
            if owner != "self" and f"{owner}.{node.attr}" not in OF_OTHERS:
                found.append(f"{node.lineno} {owner}.{node.attr}")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_names_exists(script):
    assert missing(script.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text, name",
    [
        ("from keras_griffin.layers import Gone", "keras_griffin.layers.Gone"),
        ("from keras_griffin.gone import x", "keras_griffin.gone.x"),
        ("import keras_griffin as k\nk.Gone", "keras_griffin.Gone"),
        ("import tpu_schedule\ntpu_schedule.gone()", "tpu_schedule.gone"),
        ("layer = make()\nlayer._gone(x)", "layer._gone"),
    ],
)
def test_what_is_gone_is_found(text, name):
    assert [found.partition(" ")[2] for found in missing(text)] == [name]


def test_what_is_there_is_not_reported():
    assert (
        missing(
            "import keras_griffin, tpu_schedule\n"
            "from keras_griffin.kernels.rg_lru import rg_lru\n"
            "from keras_griffin import layers\n"
            "tpu_schedule.measure, keras_griffin.GriffinBackbone\n"
            "layers.RGLRU, layers.splash_attention_jax.attend\n"
        )
        == []
    )
