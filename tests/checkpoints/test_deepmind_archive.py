import builtins
import json
import sys

import numpy as np
import pytest

from keras_griffin.checkpoints import deepmind
from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.models.griffin_backbone import GriffinBackbone
from support.checks import to_numpy
from support.models import tiny_backbone

torch = pytest.importorskip("torch")

# What DeepMind's code can express.
SETTINGS = {"num_gate_blocks": 2, "scale_embeddings": True}
FRAMEWORKS = deepmind_archive.FRAMEWORKS


def backbone(**changes):
    return tiny_backbone(**{**SETTINGS, **changes})


def load(folder, **changes):
    archive = deepmind_archive.find(folder)
    config = deepmind_archive.backbone_config(archive)
    loaded = GriffinBackbone(**{**config, **changes})
    deepmind_archive.load_weights(loaded, archive)
    return loaded


def check_equal(received, expected):
    for ours, theirs in zip(received.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            to_numpy(ours.value), to_numpy(theirs.value)
        )


def settings(model):
    config = model.get_config()
    return {k: v for k, v in config.items() if k not in ("name", "dtype")}


@pytest.mark.backend_independent
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_exact(tmp_path, framework, dtype):
    model = backbone(dtype=dtype, block_types=("recurrent", "local_attention"))
    deepmind_archive.write(model, tmp_path, framework)
    archive = deepmind_archive.find(tmp_path)
    assert archive.framework == framework
    assert deepmind_archive.stored_dtypes(archive) == {dtype}
    loaded = load(tmp_path, dtype=dtype)
    check_equal(loaded, model)
    assert settings(loaded) == settings(model)


@pytest.mark.backend_independent
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_archive_alone_is_taken_for_a_recurrent_gemma(tmp_path, framework):
    model = backbone()
    deepmind_archive.write(model, tmp_path, framework)
    (tmp_path / deepmind_archive.SETTINGS_FILE).unlink()
    loaded = load(tmp_path)
    check_equal(loaded, model)
    assert settings(loaded) == {
        **settings(model),
        **deepmind_archive.RECURRENT_GEMMA,
        "decay_initializer": "reference",
    }


@pytest.mark.backend_independent
@pytest.mark.parametrize("wrapped", [False, True])
def test_flax_trees_of_both_kinds(tmp_path, wrapped):
    import orbax.checkpoint

    model = backbone()
    params = deepmind.to_flax_params(model)
    orbax.checkpoint.PyTreeCheckpointer().save(
        tmp_path / "2b", {"params": params} if wrapped else params
    )
    (tmp_path / "tokenizer.model").write_bytes(b"")
    for path in (tmp_path, tmp_path / "2b"):
        archive = deepmind_archive.find(path)
        assert archive.checkpoint == tmp_path / "2b"
        assert archive.tokenizer == tmp_path / "tokenizer.model"
        check_equal(load(path), model)


@pytest.mark.backend_independent
def test_what_is_no_archive(tmp_path):
    assert deepmind_archive.find(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert deepmind_archive.find(tmp_path) is None
    assert deepmind_archive.find(tmp_path / "model.safetensors") is None
    for name in ("2b.pt", "2b-it.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="one checkpoint.*2b-it.pt, 2b.pt"):
        deepmind_archive.find(tmp_path)
    archive = deepmind_archive.find(tmp_path / "2b.pt")
    assert archive.checkpoint == tmp_path / "2b.pt"


@pytest.mark.backend_independent
def test_a_cut_pt_file(tmp_path):
    deepmind_archive.write(backbone(), tmp_path, "torch")
    path = tmp_path / deepmind_archive.TORCH_FILE
    content = path.read_bytes()
    for left in (0, 10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:left])
        with pytest.raises(ValueError, match="complete and undamaged"):
            load(tmp_path)


@pytest.mark.backend_independent
def test_a_pt_file_of_the_old_kind(tmp_path):
    model = backbone()
    state_dict = {
        name: torch.from_numpy(x)
        for name, x in deepmind.to_torch_params(model).items()
    }
    torch.save(
        state_dict,
        tmp_path / "2b.pt",
        _use_new_zipfile_serialization=False,
    )
    check_equal(load(tmp_path), model)


class Bomb:
    def __reduce__(self):
        return (builtins.exec, ("raise SystemExit('code was run')",))


@pytest.mark.backend_independent
@pytest.mark.parametrize("old", [False, True])
def test_a_pt_file_runs_no_code(tmp_path, old):
    torch.save(
        {"a": Bomb()},
        tmp_path / "2b.pt",
        _use_new_zipfile_serialization=not old,
    )
    with pytest.raises(ValueError, match="nothing but tensors"):
        load(tmp_path)


@pytest.mark.backend_independent
@pytest.mark.parametrize("content", [[1], {"a": 1}])
def test_a_pt_file_of_other_things(tmp_path, content):
    torch.save(content, tmp_path / "2b.pt")
    with pytest.raises(ValueError, match="must hold a state dict"):
        load(tmp_path)


@pytest.mark.backend_independent
def test_integers_are_no_weights(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "2b.pt")
    with pytest.raises(ValueError, match="with a as int8"):
        load(tmp_path)


@pytest.mark.backend_independent
def test_nan_in_an_archive(tmp_path):
    model = backbone()
    state_dict = deepmind.to_torch_params(model)
    state_dict["final_norm.scale"][2] = np.nan
    state_dict = {k: torch.from_numpy(x) for k, x in state_dict.items()}
    torch.save(state_dict, tmp_path / "2b.pt")
    with pytest.raises(ValueError, match="final_norm.scale with 1 of 16"):
        load(tmp_path)


@pytest.mark.backend_independent
def test_a_damaged_flax_checkpoint(tmp_path):
    deepmind_archive.write(backbone(), tmp_path, "flax")
    folder = tmp_path / deepmind_archive.FLAX_FOLDER
    metadata = (folder / "_METADATA").read_bytes()
    (folder / "_METADATA").unlink()
    with pytest.raises(ValueError, match="orbax finds no parameters"):
        load(tmp_path / "model")
    (folder / "_METADATA").write_bytes(metadata[:100])
    with pytest.raises(ValueError, match="complete and undamaged"):
        load(tmp_path / "model")
    (folder / "_METADATA").write_bytes(metadata)
    for file in (folder / "ocdbt.process_0").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="complete and undamaged"):
        load(tmp_path / "model")


@pytest.mark.backend_independent
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_types": ("global_attention",)}, "Attention is local"),
        ({"recurrence": "complex"}, "recurrence is real"),
        ({"conv_kernel_size": 3}, "`conv_kernel_size` is 4"),
        ({"num_gate_blocks": 4}, "`num_gate_blocks` is `num_query_heads`"),
        ({"head_dim": 4}, "`head_dim` is"),
        ({"rope_fraction": 1.0}, "`rope_fraction` is 0.5.*Received: 1.0"),
        ({"rope_max_wavelength": 1e5}, "`rope_max_wavelength` is"),
        ({"layer_norm_epsilon": 1e-5}, "`layer_norm_epsilon` is"),
    ],
)
def test_what_it_cannot_express(tmp_path, framework, changes, message):
    model = GriffinBackbone(**{**backbone().get_config(), **changes})
    with pytest.raises(ValueError, match=message):
        deepmind_archive.write(model, tmp_path, framework)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
def test_hawk_and_attention_alone_can_be_expressed(tmp_path):
    hawk = backbone(block_types=("recurrent",))
    deepmind_archive.write(hawk, tmp_path, "torch")
    check_equal(load(tmp_path), hawk)


@pytest.mark.backend_independent
def test_unknown_framework(tmp_path):
    with pytest.raises(ValueError, match="flax, torch. Received: 'tf'"):
        deepmind_archive.write(backbone(), tmp_path, "tf")


@pytest.mark.backend_independent
def test_packages_that_are_missing(tmp_path, monkeypatch):
    model = backbone()
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"keras-griffin\[convert\]"):
        deepmind_archive.write(model, tmp_path, "flax")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        deepmind_archive.write(model, tmp_path, "torch")


@pytest.mark.backend_independent
def test_settings_of_an_archive_are_json(tmp_path):
    deepmind_archive.write(backbone(), tmp_path, "torch")
    path = tmp_path / deepmind_archive.SETTINGS_FILE
    assert json.loads(path.read_text())["attention_window_size"] == 6
    path.write_text("{")
    with pytest.raises(ValueError, match="keras_griffin.json must be JSON"):
        load(tmp_path)
