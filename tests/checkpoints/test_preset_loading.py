"""What a name, a folder or a handle stands for, without a network."""

import json
import shutil
import types

import keras
import keras_hub
import numpy as np
import pytest
import requests

import keras_griffin
from keras_griffin.checkpoints import preset_index
from keras_griffin.checkpoints import preset_loading
from keras_griffin.checkpoints import weight_map
from support import peers
from support.checks import to_numpy
from support.models import randomize

NAMES = preset_index.preset_names()
FORMS = ("keras", "transformers", "flax", "torch")


@pytest.fixture(scope="module")
def model():
    tokenizer = keras_griffin.GriffinTokenizer(
        peers.train_tokenizer("bpe", exact=True)
    )
    backbone = keras_griffin.GriffinBackbone(
        **{
            **peers.GRIFFIN,
            "vocabulary_size": tokenizer.vocabulary_size(),
            # What DeepMind's archives are taken to have.
            "attention_window_size": 2048,
            "final_logit_soft_cap": 30.0,
        }
    )
    randomize(backbone)
    return keras_griffin.GriffinCausalLM(
        backbone, keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    )


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The model in every form."""
    root = tmp_path_factory.mktemp("forms")
    model.save_to_preset(root / "keras")
    model.export_to_transformers(root / "transformers", max_shard_size=1e-5)
    for framework in ("flax", "torch"):
        model.export_to_deepmind(root / framework, framework)
        # As Google's archives are.
        (root / framework / "keras_griffin.json").unlink()
    return root


def check_equal(received, expected):
    for ours, theirs in zip(received.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            to_numpy(ours.value), to_numpy(theirs.value)
        )


@pytest.mark.parametrize("form", FORMS)
def test_no_number_is_drawn_that_a_file_replaces(folders, form, monkeypatch):
    def draw(self, shape, dtype=None):
        pytest.fail(f"{type(self).__name__} draws {shape}")

    for name in ("RandomNormal", "VarianceScaling"):
        monkeypatch.setattr(getattr(keras.initializers, name), "__call__", draw)
    path = str(folders / form)
    keras_griffin.GriffinCausalLM.from_preset(path)
    with pytest.raises(pytest.fail.Exception, match="draws"):
        keras_griffin.GriffinCausalLM.from_preset(path, load_weights=False)


@pytest.mark.parametrize("form", FORMS)
def test_all_classes_read_all_forms(folders, model, form):
    folder = str(folders / form)
    loaded = keras_griffin.GriffinCausalLM.from_preset(folder)
    check_equal(loaded, model)
    backbone = keras_griffin.GriffinBackbone.from_preset(folder)
    check_equal(backbone, model.backbone)
    tokenizer = keras_griffin.GriffinTokenizer.from_preset(folder)
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor.from_preset(folder)
    expected = model.preprocessor.tokenizer(peers.TEXT).tolist()
    for received in (tokenizer, preprocessor.tokenizer):
        assert received(peers.TEXT).tolist() == expected


@pytest.mark.parametrize("form", FORMS)
def test_without_weights_and_with_a_dtype(folders, form):
    folder = str(folders / form)
    loaded = keras_griffin.GriffinCausalLM.from_preset(folder, dtype="bfloat16")
    assert {v.dtype for v in loaded.weights} == {"bfloat16"}
    empty = keras_griffin.GriffinBackbone.from_preset(
        folder, load_weights=False
    )
    assert empty.count_params() == loaded.count_params()
    assert empty.blocks[0].temporal.conv.bias.value is not None


@pytest.mark.backend_independent
@pytest.mark.parametrize("form", FORMS)
def test_stored_dtype(folders, form):
    source = preset_loading.find_preset(str(folders / form))
    assert preset_loading.stored_dtype(source) == "float32"


@pytest.mark.parametrize("as_handle", [False, True])
def test_kerashubs_base_classes(folders, model, as_handle, monkeypatch):
    preset = str(folders / "keras")
    if as_handle:
        serve(monkeypatch, folders / "keras")
        preset = "hf://someone/griffin"
    loaded = keras_hub.models.CausalLM.from_preset(preset)
    assert type(loaded) is keras_griffin.GriffinCausalLM
    check_equal(loaded, model)
    classes = {
        keras_hub.models.Backbone: keras_griffin.GriffinBackbone,
        keras_hub.models.Tokenizer: keras_griffin.GriffinTokenizer,
        keras_hub.models.CausalLMPreprocessor: (
            keras_griffin.GriffinCausalLMPreprocessor
        ),
    }
    for base, ours in classes.items():
        assert type(base.from_preset(preset)) is ours


@pytest.mark.backend_independent
def test_kerashubs_base_classes_know_our_names_and_formats_not(folders):
    """So a name is given to our class, and so is another library's folder."""
    with pytest.raises(ValueError, match="Unknown preset identifier"):
        keras_hub.models.CausalLM.from_preset("griffin_shakespeare_en")
    with pytest.raises(ValueError, match="recurrent_gemma"):
        keras_hub.models.CausalLM.from_preset(str(folders / "transformers"))


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_builds_without_memory(name):
    backbone = weight_map.build_empty(
        lambda: keras_griffin.GriffinBackbone.from_preset(
            name, load_weights=False
        )
    )
    entry = preset_index.preset_entry(name)
    assert backbone.count_params() == entry["parameters"]
    assert all(variable._value is None for variable in backbone.variables)


@pytest.mark.backend_independent
def test_presets_of_the_classes():
    classes = [
        keras_griffin.GriffinBackbone,
        keras_griffin.GriffinCausalLM,
        keras_griffin.GriffinTokenizer,
        keras_griffin.GriffinCausalLMPreprocessor,
    ]
    for cls in classes:
        assert list(cls.presets) == NAMES
    preset = keras_griffin.GriffinBackbone.presets["recurrent_gemma_9b_en"]
    assert preset["metadata"]["params"] == 8_579_977_216
    assert preset["metadata"]["description"].startswith("RecurrentGemma 9B")
    assert "arxiv.org" in preset["metadata"]["source"]
    assert preset["kaggle_handle"].endswith("/flax/9b")
    assert preset["hf_handle"] == "hf://google/recurrentgemma-9b"
    # KerasHub's own entries have these.
    (entry, *_) = keras_hub.models.GemmaBackbone.presets.values()
    assert {"description", "params", "path"} <= set(entry["metadata"])
    assert set(preset["metadata"]) >= {"description", "params", "path"}


# --- Hubs ---


def serve(monkeypatch, folder):
    """Lets Hugging Face and Kaggle hand out a folder; returns the calls."""
    import huggingface_hub
    import kagglehub
    from huggingface_hub import errors

    calls = []

    def hf_hub_download(repo_id, filename):
        calls.append((repo_id, filename))
        if not (folder / filename).is_file():
            raise hub_error(errors.RemoteEntryNotFoundError, 404)
        return str(folder / filename)

    def snapshot_download(repo_id, allow_patterns):
        calls.append((repo_id, allow_patterns))
        return str(folder)

    def model_download(handle, path=None):
        calls.append((handle, path))
        if path is not None and not (folder / path).is_file():
            raise ValueError(f"{path} is not present in the model files")
        return str(folder if path is None else folder / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(kagglehub, "model_download", model_download)
    return calls


def hub_error(cls, status):
    response = types.SimpleNamespace(
        headers={}, request=None, status_code=status
    )
    return cls("No.", response=response)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "handle, form",
    [
        ("hf://google/recurrentgemma-2b", "transformers"),
        ("hf://google/recurrentgemma-2b-flax", "flax"),
        ("hf://someone/griffin", "keras"),
        ("kaggle://google/recurrentgemma/flax/2b", "flax"),
        ("kaggle://google/recurrentgemma/pyTorch/2b/1", "torch"),
        ("kaggle://google/recurrentgemma/transformers/2b", "transformers"),
        ("kaggle://someone/griffin/keras/small", "keras"),
    ],
)
def test_handles(folders, model, monkeypatch, handle, form):
    calls = serve(monkeypatch, folders / form)
    loaded = keras_griffin.GriffinCausalLM.from_preset(handle)
    check_equal(loaded, model)
    assert loaded.preprocessor.tokenizer(peers.TEXT).tolist() == (
        model.preprocessor.tokenizer(peers.TEXT).tolist()
    )
    name = handle.split("://")[1]
    assert {call[0] for call in calls} == {name}


@pytest.mark.backend_independent
def test_a_name_takes_the_hub_and_no_more_than_it_needs(folders, monkeypatch):
    calls = serve(monkeypatch, folders / "transformers")
    keras_griffin.GriffinCausalLM.from_preset("recurrent_gemma_instruct_2b_en")
    assert {call[0] for call in calls} == {"google/recurrentgemma-2b-it"}
    calls.clear()
    called_so = keras_griffin.GriffinCausalLM.from_preset(
        "google/recurrentgemma-2b-it"
    )
    assert called_so.preprocessor.turn_format == "gemma"
    assert {call[0] for call in calls} == {"google/recurrentgemma-2b-it"}
    calls.clear()
    handle = "hf://google/recurrentgemma-2b"
    keras_griffin.GriffinTokenizer.from_preset(handle)
    keras_griffin.GriffinBackbone.from_preset(handle, load_weights=False)
    patterns = [p for _, p in calls if isinstance(p, list)]
    assert patterns
    assert not any("safetensors" in p for found in patterns for p in found)


def refuse(monkeypatch, error):
    import huggingface_hub
    import kagglehub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(kagglehub, "model_download", fail)


def hf_errors():
    from huggingface_hub import errors

    gated = "https://huggingface.co/google/recurrentgemma-2b, then set HF_TOKEN"
    yield hub_error(errors.GatedRepoError, 403), PermissionError, gated
    yield hub_error(errors.RepositoryNotFoundError, 401), PermissionError, gated
    yield hub_error(errors.HfHubHTTPError, 403), PermissionError, gated
    missing = "must name an existing model"
    yield (
        hub_error(errors.RepositoryNotFoundError, 404),
        FileNotFoundError,
        missing,
    )
    # What nobody here can act on is the hub's to say.
    yield hub_error(errors.HfHubHTTPError, 500), errors.HfHubHTTPError, "No."
    offline = "downloaded once.*HF_HUB_OFFLINE"
    yield errors.LocalEntryNotFoundError("x"), ConnectionError, offline
    yield errors.OfflineModeIsEnabled("x"), ConnectionError, offline
    yield errors.HFValidationError("x"), errors.HFValidationError, "x"


@pytest.mark.backend_independent
@pytest.mark.parametrize("error, kind, match", list(hf_errors()))
def test_hugging_face_refuses(monkeypatch, error, kind, match):
    refuse(monkeypatch, error)
    for cls in (
        keras_griffin.GriffinCausalLM,
        keras_griffin.GriffinTokenizer,
    ):
        for preset in (
            "hf://google/recurrentgemma-2b",
            "recurrent_gemma_2b_en",
        ):
            with pytest.raises(kind, match=match):
                cls.from_preset(preset)


def kaggle_errors():
    from kagglehub import exceptions

    gated = (
        "https://www.kaggle.com/models/google/recurrentgemma, then set "
        "KAGGLE_USERNAME and KAGGLE_KEY"
    )
    for status in (401, 403):
        response = requests.Response()
        response.status_code = status
        error = exceptions.KaggleApiHTTPError("No.", response)
        yield error, PermissionError, gated
    yield exceptions.UnauthenticatedError(), PermissionError, gated
    yield exceptions.CredentialError(), PermissionError, gated
    response = requests.Response()
    response.status_code = 404
    error = exceptions.KaggleApiHTTPError("No.", response)
    yield error, FileNotFoundError, "must name an existing model"
    yield requests.ConnectionError("x"), ConnectionError, "cannot be reached"
    response = requests.Response()
    response.status_code = 500
    error = exceptions.KaggleApiHTTPError("No.", response)
    yield error, exceptions.KaggleApiHTTPError, "No."


@pytest.mark.backend_independent
@pytest.mark.parametrize("error, kind, match", list(kaggle_errors()))
def test_kaggle_refuses(monkeypatch, error, kind, match):
    refuse(monkeypatch, error)
    with pytest.raises(kind, match=match):
        keras_griffin.GriffinCausalLM.from_preset(
            "kaggle://google/recurrentgemma/flax/2b"
        )


@pytest.mark.backend_independent
def test_handles_that_are_none(monkeypatch):
    with pytest.raises(ValueError, match="kaggle://owner/model/framework"):
        keras_griffin.GriffinBackbone.from_preset("kaggle://google/gemma")


@pytest.mark.backend_independent
def test_a_repository_without_tokenizer(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="tokenizer.model.*kaggle://google"):
        keras_griffin.GriffinTokenizer.from_preset("recurrent_gemma_2b_en")


# --- Folders with something wrong ---


@pytest.fixture
def copy(folders, tmp_path):
    def copy(form):
        shutil.copytree(folders / form, tmp_path / form)
        return tmp_path / form

    return copy


@pytest.mark.backend_independent
@pytest.mark.parametrize("form", ["flax", "torch", "transformers"])
def test_a_checkpoint_without_tokenizer(copy, form):
    folder = copy(form)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="come with tokenizer.model"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    model = keras_griffin.GriffinCausalLM.from_preset(folder, preprocessor=None)
    assert model.preprocessor is None


@pytest.mark.backend_independent
@pytest.mark.parametrize("preset", [None, 3, ["griffin_1b"]])
def test_what_is_no_preset(preset):
    with pytest.raises(ValueError, match="a name, a folder or a handle"):
        keras_griffin.GriffinBackbone.from_preset(preset)


@pytest.mark.backend_independent
def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="folder must exist"):
        keras_griffin.GriffinBackbone.from_preset(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="must hold config.json, or a check"):
        keras_griffin.GriffinBackbone.from_preset(tmp_path)
    with pytest.raises(ValueError, match="never released"):
        keras_griffin.GriffinBackbone.from_preset("hawk_1b")


@pytest.mark.backend_independent
def test_another_model(copy):
    folder = copy("transformers")
    peers.edit_json(folder / "config.json", model_type="gemma")
    with pytest.raises(ValueError, match='model_type` must be "recurrent_gem'):
        keras_griffin.GriffinCausalLM.from_preset(folder)


@pytest.mark.backend_independent
def test_damaged_transformers_folders(copy):
    folder = copy("transformers")
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="complete and undamaged"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=f"without {shard.name}"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    shard.write_bytes(content)
    peers.edit_json(folder / "config.json", lru_width=64)
    with pytest.raises(ValueError, match="must be that of the weights"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    (folder / "config.json").write_text('{"model_type')
    with pytest.raises(ValueError, match="config.json must be JSON"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


def test_other_models_work_after_a_load_that_failed(copy, folders, model):
    folder = copy("transformers")
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="NaN or infinite"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    layer = keras.layers.Dense(2)
    assert layer(np.ones((1, 3), "float32")).shape == (1, 2)
    loaded = keras_griffin.GriffinCausalLM.from_preset(folders / "torch")
    check_equal(loaded, model)


@pytest.mark.backend_independent
def test_damaged_keras_folders(copy, model, tmp_path):
    folder = copy("keras")
    (folder / "model.weights.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match="model.weights.h5 must be a whole"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    (folder / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match="must hold its weights"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    model.save_to_preset(folder, max_shard_size=4e-5)
    shards = sorted(folder.glob("model_*.weights.h5"))
    shards[1].write_bytes(b"")
    with pytest.raises(ValueError, match=f"{shards[1].name} must be a whole"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"without {shards[1].name}"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


@pytest.mark.backend_independent
def test_stored_dtype_of_other_models(copy, model):
    folder = copy("keras")
    config = json.loads((folder / "config.json").read_text())
    source = preset_loading.find_preset(folder)
    for name, expected in {
        "bfloat16": "bfloat16",
        "mixed_bfloat16": "float32",
    }.items():
        config["config"]["dtype"]["config"]["name"] = name
        (folder / "config.json").write_text(json.dumps(config))
        assert preset_loading.stored_dtype(source) == expected
    config["config"]["dtype"]["config"]["name"] = "int8_from_float32"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a quantized model"):
        preset_loading.stored_dtype(source)


def test_a_bucket_that_cannot_be_read(monkeypatch):
    """KerasHub reads `gs://` by TensorFlow, whose errors are its own."""
    import tensorflow as tf

    def load(*args, **kwargs):
        raise tf.errors.NotFoundError(None, None, "No such object")

    monkeypatch.setattr(keras_hub.models.CausalLM, "from_preset", load)
    with pytest.raises(ConnectionError, match="'gs://a/b', which could not be"):
        keras_griffin.GriffinCausalLM.from_preset("gs://a/b")


@pytest.mark.backend_independent
def test_an_argument_of_transformers():
    with pytest.raises(ValueError, match="'torch_dtype'. Did you mean dtype"):
        keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en", torch_dtype="bfloat16"
        )
