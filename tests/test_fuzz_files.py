"""Damaged files of every form: an error that says so, or the same model.

Seeded and bounded. For a longer search:

    FUZZ_CASES=2000 FUZZ_SEED=7 pytest tests/test_fuzz_files.py
"""

import json
import os
import random
import shutil
import traceback

import keras
import numpy as np
import pytest

import keras_griffin
from support.checks import to_numpy
from support.models import model_with_tokenizer

pytestmark = pytest.mark.backend_independent

CASES = int(os.environ.get("FUZZ_CASES", "12"))  # of each form
SEED = int(os.environ.get("FUZZ_SEED", "0"))
# What JSON can hold, sane and not.
VALUES = (None, True, 0, -1, 1, 3, 2**31, 10**9, 1e400, 0.5, "", "x", [], {})
# A value of these is no damage that a file shows: a changed number is a number.
WITHOUT_DIGESTS = ("keras", "transformers", "flax", "torch", "lora")


@pytest.fixture(scope="module")
def model():
    model = model_with_tokenizer()
    model.backbone.enable_lora(2)
    return model


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    (root / "lora").mkdir()
    (root / "state").mkdir()
    (root / "file").mkdir()
    model.backbone.save_lora_weights(root / "lora" / "a.lora.h5")
    _, state = model.prefill(inputs())
    model.save_state(state, root / "state" / "a.npz")
    model.backbone.merge_lora()
    model.save_to_preset(root / "checked", max_shard_size=4e-5)
    shutil.copytree(root / "checked", root / "keras")
    (root / "keras" / "keras_griffin_files.json").unlink()
    model.export_to_transformers(root / "transformers", max_shard_size=1e-4)
    model.export_to_deepmind(root / "flax", "flax")
    model.export_to_deepmind(root / "torch", "torch")
    model.save(root / "file" / "a.keras")
    return root


def inputs():
    return {"token_ids": np.array([[5, 6, 7, 8]], "int32")}


def load(form, folder, model):
    """Loads a form; returns all its numbers."""
    if form == "state":
        state = model.load_state(folder / "a.npz")
        return [to_numpy(leaf) for leaf in keras.tree.flatten(state)]
    if form == "file":
        other = keras_griffin.GriffinCausalLM(
            keras_griffin.GriffinBackbone.from_config(
                model.backbone.get_config()
            )
        )
        other.load_weights(folder / "a.keras")
    elif form == "lora":
        other = keras_griffin.GriffinBackbone.from_config(
            model.backbone.get_config()
        )
        other.load_lora_weights(folder / "a.lora.h5")
        return [to_numpy(w.value) for w in other.trainable_weights]
    else:
        other = keras_griffin.GriffinCausalLM.from_preset(folder)
        other.preprocessor.tokenizer("To be")
    return [to_numpy(weight.value) for weight in other.weights]


def damage(folder, rng):
    """Changes one file of a folder; returns what was done to it."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    name = path.relative_to(folder)
    if path.suffix == ".json" and rng.random() < 0.7:
        try:
            return f"{name}: {change_json(path, json.loads(content), rng)}"
        except ValueError:
            pass  # one of orbax's that is not JSON
    how = rng.choice(("flip", "cut", "zero", "random", "remove", "head"))
    if how == "remove":
        path.unlink()
        return f"{name}: removed"
    # Half of them near the start, where headers are.
    near = rng.random() < 0.5
    start = rng.randrange(min(len(content), 256) if near else len(content) or 1)
    length = rng.choice((1, 4, 64))
    if how == "flip":
        content[start : start + 1] = bytes(
            b ^ (1 << rng.randrange(8)) for b in content[start : start + 1]
        )
    elif how == "cut":
        del content[start:]
    elif how == "head":
        del content[:length]
    else:
        piece = bytes(length) if how == "zero" else rng.randbytes(length)
        content[start : start + length] = piece[: len(content) - start]
    path.write_bytes(bytes(content))
    return f"{name}: {how} at {start}"


def change_json(path, content, rng):
    """Replaces or removes one value, at any depth."""
    places = []

    def walk(value):
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        else:
            return
        for key, inner in items:
            places.append((value, key))
            walk(inner)

    walk(content)
    if not places:
        raise ValueError("nothing to change")
    parent, key = rng.choice(places)
    value = rng.choice((*VALUES, "remove"))
    if value == "remove":
        del parent[key]
    else:
        parent[key] = value
    path.write_text(json.dumps(content))
    return f"{key} = {value}"


@pytest.mark.parametrize("form", ["checked", "file", "state", *WITHOUT_DIGESTS])
@pytest.mark.filterwarnings("ignore")  # of the libraries that read
def test_damaged_files(sources, model, tmp_path, form):
    expected = load(form, sources / form, model)
    rng = random.Random(f"{SEED} {form}")
    wrong = []
    for case in range(CASES):
        folder = tmp_path / str(case)
        shutil.copytree(sources / form, folder)
        done = damage(folder, rng)
        try:
            received = load(form, folder, model)
        except (ValueError, OSError) as error:
            if "Received" not in str(error):
                wrong.append(f"{done}: {type(error).__name__}: {error}")
        except Exception:
            wrong.append(f"{done}: {traceback.format_exc(limit=-3)}")
        else:
            equal = all(map(np.array_equal, received, expected))
            if not equal and form not in WITHOUT_DIGESTS:
                wrong.append(f"{done}: other weights")
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} cases\n" + "\n".join(wrong)
