"""Equal to transformers' RecurrentGemma, from a folder that it wrote.

In transformers a token sees W keys, itself included; here and in DeepMind's
code it sees itself and W before it. So the oracle for our window W runs with
W + 1, without padding and in one pass: elsewhere transformers 5.23 is wrong.
"""

import keras
import numpy as np
import pytest

from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from support import peers

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
WINDOW = peers.GRIFFIN["attention_window_size"]
TOKEN_IDS = np.random.default_rng(0).integers(4, 40, (5, 2 * WINDOW + 3))
TOKEN_IDS = TOKEN_IDS.astype("int32")


def our_logits(model):
    mask = np.ones_like(TOKEN_IDS)
    inputs = {"token_ids": TOKEN_IDS, "padding_mask": mask}
    return peers.our_outputs(model, inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_types": ("recurrent",), "recurrent_dim": 32},
        {"block_types": ("local_attention",)},
        {"block_types": ("recurrent", "local_attention"), "num_layers": 5},
        {"final_logit_soft_cap": 30.0},
    ],
    ids=["griffin", "hawk", "attention", "pattern of 2", "soft cap 30"],
)
def test_logits_of_a_folder(tmp_path, changes, record_error):
    peer = peers.HuggingFaceGriffin({**peers.GRIFFIN, **changes})
    peer.save(tmp_path)
    config = huggingface_config.read_config(tmp_path)
    backbone = GriffinBackbone(**huggingface_config.backbone_config(config))
    assert backbone.attention_window_size == WINDOW
    huggingface_weights.load_weights(backbone, tmp_path)
    error = peers.relative_error(
        our_logits(GriffinCausalLM(backbone)),
        peer.logits(TOKEN_IDS, window=WINDOW),
    )
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.parametrize(
    "dtype, options",
    [("float32", {}), ("bfloat16", {"max_shard_size": "8KB"})],
    ids=["one file", "bfloat16 shards"],
)
def test_from_preset(tmp_path, dtype, options, record_error):
    peer = peers.HuggingFaceGriffin(peers.GRIFFIN)
    peer.save(tmp_path, dtype, **options)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == bool(options)
    model = GriffinCausalLM.from_preset(str(tmp_path))
    error = peers.relative_error(
        our_logits(model), peer.logits(TOKEN_IDS, window=WINDOW)
    )
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.backend_independent
def test_tokenizer_of_a_folder(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    peers.HuggingFaceGriffin(peers.GRIFFIN).save(tmp_path)
    model = GriffinCausalLM.from_preset(str(tmp_path))
    original = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "tokenizer.model")
    )
    text = "the lazy fox"
    expected = original.encode(text)
    ids = model.preprocessor.tokenizer(text)
    assert list(keras.ops.convert_to_numpy(ids)) == expected
    inputs = model.preprocessor.generate_preprocess(
        [text], sequence_length=len(expected) + 4
    )
    ids = keras.ops.convert_to_numpy(inputs["token_ids"])[0]
    assert list(ids) == [original.bos_id(), *expected, 0, 0, 0]


@pytest.mark.backend_independent
def test_export_is_exact(tmp_path):
    peer = peers.HuggingFaceGriffin(peers.GRIFFIN)
    peer.save(tmp_path)
    config = huggingface_config.read_config(tmp_path)
    backbone = GriffinBackbone(**huggingface_config.backbone_config(config))
    huggingface_weights.load_weights(backbone, tmp_path)
    exported = dict(huggingface_weights.export_tensors(backbone))
    expected = dict(peer.model.named_parameters())
    assert set(exported) == set(expected)
    for name, parameter in expected.items():
        np.testing.assert_array_equal(
            exported[name], parameter.detach().numpy()
        )
