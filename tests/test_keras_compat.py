"""Private names of Keras and its like: in one file each, and still there."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import keras
import keras_hub
import pytest
from keras.src.backend.common import global_state

from keras_griffin import keras_compat

ROOT = Path(__file__).resolve().parent.parent
# Where private names of other packages may stand.
PLACES = {
    "keras_griffin/keras_compat.py",
    "keras_griffin/generation/recorded_torch.py",
    "keras_griffin/layers/linear_torch.py",
    "keras_griffin/training/clipping_torch.py",
    "kernels/pallas_compat.py",
}
OTHERS = ("jax", "keras", "keras_hub", "tensorflow", "torch")
# Of named tuples, and of Grain for those that derive from its classes.
PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_parent"}
# What has each name that keras_compat.py touches.
OWNERS = {
    "_add_special_token": keras_hub.tokenizers.Tokenizer,
    "_aggregate_additional_loss": keras.Model,
    "_deferred_initialize": keras.Variable,
    "_dtype_policy": keras.Layer,
    "_flatten_layers": keras.Layer,
    "_get_kernel_with_merged_lora": keras.layers.Dense,
    "_initialize": keras.Variable,
    "_kernel": keras.layers.Dense,
    "_layout": keras.Variable,
    "_lora_enabled_layers": keras_hub.models.Backbone,
    "_sentence_piece": keras_hub.tokenizers.SentencePieceTokenizer,
    "_symbolic_build": keras.Model,
    "_trainable_variables": keras.optimizers.Optimizer,
    "_untrack_variable": keras.Layer,
    "_value": keras.Variable,
}
OWNERS_ON = {
    "jax": {
        "_get_jax_state": keras.Model,
        "_jax_state": keras.Model,
        "_jax_state_synced": keras.Model,
        "_make_function": keras.Model,
        "_purge_model_variables": keras.Model,
    },
    "tensorflow": {
        "_distribute_strategy": keras.Model,
        "_maybe_symbolic_build": keras.Model,
    },
    "torch": {
        "_apply": keras.Layer,
        "_modules": keras.Layer,
        "_torch_params": keras.Layer,
        "_track_variables": keras.Layer,
    },
}


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(tree):
    """Yields `(line, name)` of the private attributes in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("delattr", "getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
            and is_private(node.args[1].value)
        ):
            yield node.lineno, node.args[1].value


def private_imports(tree):
    """Yields `(line, module)` of what is imported from inside of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for module in modules:
            package, *parts = module.split(".")
            if package in OTHERS and any(
                part == "src" or is_private(part) for part in parts
            ):
                yield node.lineno, module


def defined_names(tree):
    """The private names that a file gives to something itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def foreign_names(root):
    """`file:line name` of what is private to another package."""
    trees = {
        file.relative_to(root).as_posix(): ast.parse(file.read_text("utf-8"))
        for folder in ("keras_griffin", "kernels")
        for file in sorted((root / folder).rglob("*.py"))
    }
    own = PUBLIC.union(*map(defined_names, trees.values()))
    return [
        f"{path}:{line} {name}"
        for path, tree in trees.items()
        if path not in PLACES
        for line, name in [*private_names(tree), *private_imports(tree)]
        if name not in own
    ]


def hidden_names(cls):
    """Private names of a class that one of its foreign bases has too."""
    bases = [b for b in cls.__mro__ if b.__module__.split(".")[0] in OTHERS]
    known = set()
    for base in bases:
        known |= set(re.findall(r"\b_\w+", inspect.getsource(base)))
    own = defined_names(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    return sorted(own & known)


def own_classes():
    for file in sorted((ROOT / "keras_griffin").rglob("*.py")):
        # Other backends' files and lm-eval's adapter need not be importable.
        if {"jax", "tensorflow", "torch"} & {*file.stem.split("_")}:
            continue
        if file.stem.startswith("__") or file.stem == "griffin_lm":
            continue
        path = file.relative_to(ROOT).with_suffix("")
        module = importlib.import_module(".".join(path.parts))
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


@pytest.mark.backend_independent
def test_private_names_stand_in_one_place():
    assert foreign_names(ROOT) == []


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "statement, name",
    [
        ("variable._layout", "_layout"),
        ("getattr(variable, '_layout', None)", "_layout"),
        ("self._symbolic_build()", "_symbolic_build"),
        ("from keras.src import backend", "keras.src.backend"),
        ("import jax._src.core", "jax._src.core"),
        ("from torch.utils import _pytree", "torch.utils._pytree"),
        ("from keras_hub import src", "keras_hub.src"),
    ],
)
def test_a_private_name_is_found(tmp_path, statement, name):
    (tmp_path / "kernels").mkdir()
    file = tmp_path / "kernels" / "a.py"
    file.write_text(f"import keras\nclass A:\n  _own = 1\n{statement}\nA._own")
    assert foreign_names(tmp_path) == [f"kernels/a.py:4 {name}"]


def test_no_private_method_of_a_base_class_is_overridden():
    found = {cls: hidden_names(cls) for cls in own_classes()}
    assert len(found) > 20
    assert {cls: names for cls, names in found.items() if names} == {}


class Overriding(keras.Model):
    def _symbolic_build(self):
        pass

    def call(self, x):
        self._tracker = x


def test_an_overridden_method_is_found():
    assert hidden_names(Overriding) == ["_symbolic_build", "_tracker"]


def test_every_private_name_is_still_there():
    tree = ast.parse(inspect.getsource(keras_compat))
    used = {name for _, name in private_names(tree)}
    assert used == set(OWNERS).union(*OWNERS_ON.values())
    owners = {**OWNERS, **OWNERS_ON.get(keras.config.backend(), {})}
    gone = [
        f"{owner.__module__}.{owner.__name__}.{name}"
        for name, owner in owners.items()
        if not any(
            re.search(rf"\b{name}\b", inspect.getsource(base))
            for base in owner.__mro__[:-1]
        )
    ]
    assert gone == [], "keras_compat.py needs another way than these"


def test_a_variable_without_a_value():
    with keras.StatelessScope(initialize_variables=False):
        variable = keras.Variable(keras.initializers.Ones(), (2,), "float32")
    waiting = global_state.get_global_attribute("uninitialized_variables")
    assert variable in waiting
    keras_compat.forget_uninitialized()
    with keras.StatelessScope():
        pass
    assert not keras_compat.has_value(variable)
    keras_compat.initialize(variable)
    assert keras_compat.has_value(variable)
    assert keras.ops.convert_to_numpy(variable).tolist() == [1, 1]


def test_a_weight_is_removed():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    keras_compat.remove_weight(layer, "bias")
    assert layer.bias is None
    assert [weight.name for weight in layer.weights] == ["kernel"]
