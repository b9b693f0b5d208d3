"""Checkpoints that go out are read by the libraries they are for.

And those that DeepMind's package writes come in. What transformers writes is
read in test_huggingface.py.
"""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from support import peers
from support.models import randomize

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
WINDOW = peers.GRIFFIN["attention_window_size"]
LENGTH = 2 * WINDOW + 3
TOKEN_IDS = np.random.default_rng(0).integers(4, 40, (2, LENGTH))
TOKEN_IDS = TOKEN_IDS.astype("int32")
POSITIONS = np.arange(LENGTH)[None].repeat(2, 0).astype("int32")


def make_model(dtype="float32", **changes):
    backbone = keras_griffin.GriffinBackbone(
        **{**peers.GRIFFIN, "dtype": dtype, **changes}
    )
    randomize(backbone)
    return GriffinCausalLM(backbone)


def our_logits(model):
    mask = np.ones_like(TOKEN_IDS)
    inputs = {"token_ids": TOKEN_IDS, "padding_mask": mask}
    return peers.our_outputs(model, inputs)


def check_equal(received, expected):
    for ours, theirs in zip(
        received.backbone.weights, expected.backbone.weights, strict=True
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours.value),
            keras.ops.convert_to_numpy(theirs.value),
        )


def config_of(model):
    config = model.backbone.get_config()
    return {
        name: value
        for name, value in config.items()
        if name not in ("name", "dtype", "decay_initializer")
    }


@pytest.mark.backend_independent
# 2 kB: several shards.
@pytest.mark.parametrize("max_shard_size", [5, 2e-6])
def test_transformers_loads_it(tmp_path, max_shard_size, record_error):
    transformers = pytest.importorskip("transformers")
    import torch

    transformers.utils.logging.disable_progress_bar()
    changes = {} if max_shard_size == 5 else {"rope_max_wavelength": 50.0}
    model = make_model(**changes)
    model.export_to_transformers(tmp_path / "out", max_shard_size)
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert (shards > 1) == (max_shard_size < 1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        tokens = torch.from_numpy(TOKEN_IDS.astype("int64"))
        logits = theirs(tokens, use_cache=False).logits.numpy()
    error = peers.relative_error(our_logits(model), logits)
    record_error(error)
    assert error < TOLERANCE
    # Back from the folder, and from what transformers makes of it.
    theirs.save_pretrained(tmp_path / "again")
    for folder in ("out", "again"):
        loaded = GriffinCausalLM.from_preset(
            tmp_path / folder, preprocessor=None
        )
        check_equal(loaded, model)
        assert config_of(loaded) == config_of(model)


@pytest.mark.backend_independent
def test_the_shipped_preset_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    transformers.utils.logging.disable_progress_bar()
    model = GriffinCausalLM.from_preset(
        "griffin_shakespeare_en", dtype="float32"
    )
    model.export_to_transformers(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        tokens = torch.from_numpy(TOKEN_IDS.astype("int64"))
        logits = theirs(tokens, use_cache=False).logits.numpy()
    assert peers.relative_error(our_logits(model), logits) < TOLERANCE


def test_bfloat16_stays_what_it_is(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    transformers.utils.logging.disable_progress_bar()
    model = make_model("bfloat16")
    model.export_to_transformers(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    loaded = GriffinCausalLM.from_preset(
        tmp_path / "out", dtype="bfloat16", preprocessor=None
    )
    check_equal(loaded, model)


@pytest.mark.backend_independent
def test_googles_number_of_the_window_is_deepminds(tmp_path):
    """From Google's file and out again: 2048 there is 2049 for transformers."""
    peers.HuggingFaceGriffin(peers.GRIFFIN).save(tmp_path / "in")
    model = GriffinCausalLM.from_preset(tmp_path / "in", preprocessor=None)
    assert model.backbone.attention_window_size == WINDOW
    model.export_to_transformers(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["attention_window_size"] == WINDOW + 1
    again = GriffinCausalLM.from_preset(tmp_path / "out", preprocessor=None)
    assert again.backbone.attention_window_size == WINDOW
    peers.edit_json(tmp_path / "out" / "config.json", attention_window_size=99)
    with pytest.raises(ValueError, match="one more than.*99 and 5"):
        GriffinCausalLM.from_preset(tmp_path / "out", preprocessor=None)


@pytest.mark.backend_independent
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokenizer_in_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = keras_griffin.GriffinTokenizer(
        peers.train_tokenizer(kind, exact=True)
    )
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    model = make_model(vocabulary_size=tokenizer.vocabulary_size())
    model = GriffinCausalLM(model.backbone, preprocessor)
    model.export_to_transformers(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (peers.TEXT, "the  FOX\n\t jumps", "\u6f22\u00e9", ""):
        ids = tokenizer(text).tolist()
        assert theirs(text).input_ids == [tokenizer.start_token_id, *ids]
        assert theirs.decode(ids) == text
    again = GriffinCausalLM.from_preset(tmp_path / "out")
    assert again.preprocessor.tokenizer(peers.TEXT).tolist() == (
        tokenizer(peers.TEXT).tolist()
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["bos_token_id"] == theirs.bos_token_id == 2
    # Beside a model that was exported without it.
    model.backbone.export_to_transformers(tmp_path / "two")
    preprocessor.export_to_transformers(tmp_path / "two")
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        p.name for p in (tmp_path / "out").iterdir()
    }


@pytest.mark.backend_independent
def test_a_tokenizer_that_changes_text_is_refused(tmp_path):
    tokenizer = keras_griffin.GriffinTokenizer(
        peers.train_tokenizer("unigram", exact=False)
    )
    with pytest.raises(ValueError, match="leave text as it is"):
        tokenizer.export_to_transformers(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
@pytest.mark.parametrize("soft_cap", [5.0, None])
def test_deepminds_torch_loads_it(tmp_path, soft_cap, record_error):
    pytest.importorskip("recurrentgemma")
    import torch

    settings = {**peers.GRIFFIN, "final_logit_soft_cap": soft_cap}
    model = make_model(**settings)
    model.export_to_deepmind(tmp_path / "out", framework="torch")
    peer = peers.DeepMindTorchGriffin(settings)
    peer.model.load_state_dict(
        torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    )
    error = peers.relative_error(
        our_logits(model), peer.logits(TOKEN_IDS, POSITIONS)
    )
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.backend_independent
def test_the_model_card_builds_deepminds_model(tmp_path):
    pytest.importorskip("recurrentgemma")
    make_model().export_to_deepmind(tmp_path / "out", framework="torch")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[2].split("```")[0]
    names = {}
    exec(code, names)
    expected = peers.deepmind_config(peers.GRIFFIN)
    assert names["config"]._replace(scan_type=expected.scan_type) == expected


@pytest.mark.backend_independent
def test_deepminds_jax_loads_it(tmp_path, record_error):
    pytest.importorskip("recurrentgemma")
    import orbax.checkpoint

    model = make_model()
    model.export_to_deepmind(tmp_path / "out", framework="flax")
    peer = peers.DeepMindGriffin(peers.GRIFFIN)
    peer.params = orbax.checkpoint.PyTreeCheckpointer().restore(
        tmp_path / "out" / "model"
    )
    error = peers.relative_error(
        our_logits(model), peer.logits(TOKEN_IDS, POSITIONS)
    )
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.backend_independent
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_archive_of_deepminds_torch(tmp_path, dtype, record_error):
    pytest.importorskip("recurrentgemma")
    import torch

    peer = peers.DeepMindTorchGriffin(peers.GRIFFIN)
    stored = {
        name: x.to(getattr(torch, dtype))
        for name, x in peer.model.state_dict().items()
    }
    peer.model.load_state_dict(stored)  # the oracle has the rounded ones
    torch.save(stored, tmp_path / "2b.pt")
    peers.write_tokenizer(tmp_path / "tokenizer.model")
    error = archive_error(tmp_path, peer)
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.backend_independent
def test_an_archive_of_deepminds_jax(tmp_path, record_error):
    pytest.importorskip("recurrentgemma")
    from recurrentgemma.jax import utils

    peer = peers.DeepMindGriffin(peers.GRIFFIN)
    utils.save_parameters(tmp_path / "2b", peer.params)
    peers.write_tokenizer(tmp_path / "tokenizer.model")
    error = archive_error(tmp_path, peer)
    record_error(error)
    assert error < TOLERANCE


def archive_error(folder, peer):
    """The error of a model that is told what archives do not tell."""
    names = ("attention_window_size", "final_logit_soft_cap")
    overrides = {name: peers.GRIFFIN[name] for name in names}
    backbone = keras_griffin.GriffinBackbone.from_preset(folder, **overrides)
    model = GriffinCausalLM.from_preset(folder, backbone=backbone)
    assert model.preprocessor.tokenizer(peers.TEXT).tolist()
    # Nothing told: RecurrentGemma's window and soft cap.
    plain = GriffinCausalLM.from_preset(folder, load_weights=False)
    assert plain.backbone.attention_window_size == 2048
    assert plain.backbone.final_logit_soft_cap == 30.0
    return peers.relative_error(
        our_logits(model), peer.logits(TOKEN_IDS, POSITIONS)
    )


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_types": ("global_attention",)}, "Attention is local"),
        ({"recurrence": "complex"}, "recurrence is real"),
        ({"scale_embeddings": False}, "Embeddings are always scaled"),
        ({"final_logit_soft_cap": None}, "Logits always have a soft cap"),
        ({"num_gate_blocks": 8}, "`num_gate_blocks` is `num_query_heads`"),
        ({"head_dim": 4}, "`head_dim` is"),
    ],
)
def test_what_transformers_cannot_express(tmp_path, changes, message):
    model = make_model(**changes)
    with pytest.raises(ValueError, match=f"{message}.*save_to_preset"):
        model.export_to_transformers(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
def test_folders_that_are_taken(tmp_path):
    model = make_model()
    (tmp_path / "file").write_text("")
    for export in (model.export_to_transformers, model.export_to_deepmind):
        with pytest.raises(ValueError, match="new or empty"):
            export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.backend_independent
@pytest.mark.parametrize("form", ["transformers", "deepmind"])
def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, form):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", fail)
    model = make_model()
    with pytest.raises(OSError, match="No space left"):
        getattr(model, f"export_to_{form}")(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_adapted_weights_are_merged(tmp_path):
    model = make_model()
    dense = model.backbone.blocks[0].temporal.linear_x
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    before = our_logits(model)
    model.export_to_transformers(tmp_path / "out")
    again = GriffinCausalLM.from_preset(tmp_path / "out", preprocessor=None)
    assert peers.relative_error(our_logits(again), before) < TOLERANCE


@pytest.mark.backend_independent
def test_quantized_weights_are_refused(tmp_path):
    model = make_model()
    model.backbone.blocks[0].temporal.linear_x.quantize("int8")
    for export in (model.export_to_transformers, model.export_to_deepmind):
        with pytest.raises(ValueError, match="linear_x.kernel in int8"):
            export(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
def test_separate_output_embedding(tmp_path):
    """As in the 9B files: accepted if it repeats the embedding."""
    from safetensors.numpy import load_file
    from safetensors.numpy import save_file

    model = make_model()
    model.export_to_transformers(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, file)
    check_equal(
        GriffinCausalLM.from_preset(tmp_path / "out", preprocessor=None), model
    )
    tensors["lm_head.weight"][3, 1] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match="lm_head.weight must equal"):
        GriffinCausalLM.from_preset(tmp_path / "out", preprocessor=None)
    shutil.rmtree(tmp_path / "out")
