"""Every writer is ended at each of its steps, and on a full disk.

What is loaded then is the old content or the new one, whole; or an error says
that there is none. The next try leaves nothing of an earlier one.
"""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import keras_griffin
from keras_griffin.files import whole
from support import kills
from support.checks import to_numpy
from support.models import assert_same_weights
from support.models import model_with_tokenizer
from support.models import tiny_backbone
from support.models import tiny_model

pytestmark = pytest.mark.backend_independent

SHARD = 4e-6  # GB: several shards of a tiny model
SIZES = {"vocabulary_size": 29, "num_layers": 2, "hidden_dim": 8}


def text_of(path):
    return path.read_text() if path.exists() else None


def hidden(folder):
    return [p for p in folder.rglob("*") if p.name.startswith(whole.PARTIAL)]


def sweep(write, load, old, new, root, most=None):
    """Ends `write` after each number of steps.

    Args:
        write: callable. Writes what `new` is below `root`.
        load: callable. Reads it, as `old` and `new` are.
        old: what is there before; `None`: nothing.
        new: what is there after.
        root: path.
        most: int. Of how many steps one is tried. Defaults to `None`: all.
    """
    restore = keep(root)
    steps = kills.count_steps(write, root)
    assert load() == new and not hidden(root)
    for after in range(0, steps, most or 1):
        for end in (kills.kill, kills.fill_disk):
            restore()
            error = end(write, root, after)
            if end is kills.fill_disk and error is not None:
                assert "room" in str(error)
                assert not hidden(root)
            assert load() in (old, new), after
            kills.count_steps(write, root)
            assert load() == new and not hidden(root), after


def keep(root):
    """Returns a function that makes a folder what it is now."""
    files = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}

    def restore():
        for path in sorted(root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return restore


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file(tmp_path, old):
    file = tmp_path / "file"
    if old is not None:
        file.write_text(old)

    def write():
        with whole.whole_file(file) as place:
            place.write_text("new")

    sweep(write, lambda: text_of(file), old, "new", tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder(tmp_path, exists):
    folder = tmp_path / "folder"
    names = ("config.json", "sub/a", "w_1", "w_2")
    if exists:
        (folder / "sub").mkdir(parents=True)
        for name in (*names, "w_3", "mine"):
            (folder / name).write_text("old")

    def write():
        with whole.whole_folder(folder, replace=True, stale=["w_*"]) as place:
            (place / "sub").mkdir()
            for name in names:
                (place / name).write_text("new")

    def load():
        whole.finish(folder)
        return {
            p.relative_to(folder).as_posix(): p.read_text()
            for p in folder.rglob("*")
            if p.is_file() and whole.PARTIAL not in str(p)
        } or None

    old = load()
    new = {**dict.fromkeys(names, "new"), **({"mine": "old"} if exists else {})}
    sweep(write, load, old, new, tmp_path)


def backbone_of(number):
    """A backbone all of whose weights are a number."""
    backbone = tiny_backbone(**SIZES)
    for weight in backbone.weights:
        weight.assign(np.full(weight.shape, number, "float32"))
    return backbone


def loaded(path):
    """The number that all weights of a preset are, `None` without one."""
    if not path.exists():
        return None
    backbone = keras_griffin.GriffinBackbone.from_preset(path)
    values = [to_numpy(weight.value) for weight in backbone.weights]
    (number,) = np.unique(np.concatenate([value.ravel() for value in values]))
    return float(number)


@pytest.mark.parametrize(
    "before, shard", [(None, 10), (10, SHARD), (SHARD, 10)]
)
def test_a_preset(tmp_path, before, shard):
    old, new = backbone_of(1.0), backbone_of(2.0)
    path = tmp_path / "model"
    if before is not None:
        old.save_to_preset(path, before)
    sweep(
        lambda: new.save_to_preset(path, shard),
        lambda: loaded(path),
        None if before is None else 1.0,
        2.0,
        tmp_path,
        most=11,
    )
    assert (len(list(path.glob("model_*"))) > 1) == (shard == SHARD)


@pytest.fixture(scope="module")
def text_model():
    return model_with_tokenizer()


WRITERS = {
    "state.npz": lambda m, p: m.save_state(m.init_state(1, 8), p),
    "m.keras": lambda m, p: m.save(p),
    "m.weights.h5": lambda m, p: m.save_weights(p),
    "a.lora.h5": lambda m, p: m.backbone.save_lora_weights(p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_a_model(tmp_path, name):
    model = tiny_model(**SIZES)
    if "lora" in name:
        model.backbone.enable_lora(2)
    file = tmp_path / name
    file.write_bytes(b"old")

    def write():
        WRITERS[name](model, file)

    sweep(
        write,
        lambda: "old" if file.read_bytes() == b"old" else "new",
        "old",
        "new",
        tmp_path,
    )


EXPORTS = {
    "transformers": lambda m, p: m.export_to_transformers(p, 1e-5),
    "torch": lambda m, p: m.export_to_deepmind(p, "torch"),
    "flax": lambda m, p: m.export_to_deepmind(p, "flax"),
    "tokenizer": lambda m, p: m.preprocessor.tokenizer.save_to_preset(p),
    "preprocessor": lambda m, p: m.preprocessor.save_to_preset(p),
    "task": lambda m, p: m.save_to_preset(p),
}


@pytest.mark.parametrize("form", EXPORTS)
def test_exports_appear_whole_or_not_at_all(tmp_path, text_model, form):
    path = tmp_path / form

    def files():
        whole.finish(path)
        # Further down orbax names files by chance.
        found = path.iterdir() if path.exists() else ()
        names = sorted(p.name for p in found)
        return [n for n in names if not n.startswith(whole.PARTIAL)] or None

    def write():
        EXPORTS[form](text_model, path)

    steps = kills.count_steps(write, tmp_path)
    new = files()
    assert new
    for after in sorted({*range(0, steps, 1 + steps // 6), steps - 1}):
        remove(path)
        kills.kill(write, tmp_path, after)
        assert files() in (None, new), after
    remove(path)
    write()
    assert files() == new and not hidden(tmp_path)


def remove(path):
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    if path.exists():
        path.rmdir()


SAVE = """
import sys
sys.path.insert(0, {tests!r})
from files.test_kills import SHARD, backbone_of
backbone = backbone_of(2.0)
print("ready", flush=True)
while True:
    for number in (1.0, 2.0):
        for weight in backbone.weights:
            weight.assign(weight * 0 + number)
        backbone.save_to_preset({path!r}, SHARD)
"""


@pytest.mark.slow
def test_a_real_kill(tmp_path):
    """SIGKILL at some moment of many saves, several times."""
    path = tmp_path / "model"
    backbone_of(1.0).save_to_preset(path)
    code = SAVE.format(
        tests=str(pathlib.Path(__file__).parents[1]), path=str(path)
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        os.kill(process.pid, signal.SIGKILL)
    assert loaded(path) in (1.0, 2.0)
    backbone_of(3.0).save_to_preset(path)
    assert loaded(path) == 3.0 and not hidden(tmp_path)


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "model"
    with whole.whole_folder(path, replace=True) as first:
        (first / "config.json").write_text("first")
        with whole.whole_folder(path, replace=True) as second:
            (second / "config.json").write_text("second")
            (second / "b").write_text("second")
        assert (path / "b").read_text() == "second"
    assert (path / "config.json").read_text() == "first"
    assert not hidden(tmp_path)


def test_parts_of_two_saves_are_refused(tmp_path):
    for number in (1.0, 2.0):
        backbone_of(number).save_to_preset(tmp_path / str(number), SHARD)
    shard = "model_00000.weights.h5"
    os.replace(tmp_path / "1.0" / shard, tmp_path / "2.0" / shard)
    with pytest.raises(ValueError, match=f"saved together.*{shard} has"):
        keras_griffin.GriffinBackbone.from_preset(tmp_path / "2.0")
    (tmp_path / "2.0" / "keras_griffin_files.json").unlink()
    keras_griffin.GriffinBackbone.from_preset(tmp_path / "2.0")


def test_a_task_is_replaced_by_a_backbone(tmp_path, text_model):
    """task.json has a backbone of its own, which would be built."""
    text_model.save_to_preset(tmp_path)
    backbone = keras_griffin.GriffinBackbone.from_config(
        {**text_model.backbone.get_config(), "final_logit_soft_cap": 7.0}
    )
    backbone.save_to_preset(tmp_path)
    model = keras_griffin.GriffinCausalLM.from_preset(tmp_path)
    assert model.backbone.final_logit_soft_cap == 7.0
    assert_same_weights(model.backbone, backbone)
