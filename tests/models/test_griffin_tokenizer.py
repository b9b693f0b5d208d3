"""Text survives the tokenizer, and what is no text is refused."""

import gc
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_griffin import GriffinBackbone
from keras_griffin import GriffinTokenizer

ROOT = Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT / "benchmarks" / "data" / "tinyshakespeare.txt"
VOCABULARY = (
    ROOT
    / "presets"
    / "griffin_shakespeare_en"
    / "assets"
    / "tokenizer"
    / "vocabulary.spm"
)

TEXTS = {
    "words": "To be, or not to be: that is the question.",
    "empty": "",
    "one_space": " ",
    "spaces_at_both_ends": "  a  ",
    "runs_of_spaces": "a  b   c          d",
    "newlines": "\n\na\n\n\nb\n",
    "tabs_and_returns": "a\tb\t\tc\r\nd\re\x0b\x0c",
    "controls": "\x00\x01\x1b[31m\x7f",
    "accents": "Grüße, Ærøskøbing, naïve: e\u0301 is not \u00e9",
    "ligature_is_not_normalized": "\ufb01 \u00b2 \uff21 \u2126",
    "scripts": "漢字 かな 한국어 العربية עברית हिन्दी ไทย",
    "emoji_with_joiners": "😀 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈",
    "spaces_of_other_kinds": "a\u00a0b\u2003c\u200bd\ufeffe\u3000f",
    "beyond_unicode_s_first_plane": "𝔊𝔯𝔦𝔣𝔣𝔦𝔫 \U0010ffff",
    "special_tokens_spelled_out": "<bos>a<eos><pad><unk><0x41>",
    "right_to_left_marks": "\u202eabc\u202c",
}


@pytest.fixture(scope="module")
def tokenizer():
    return GriffinTokenizer(VOCABULARY.read_bytes())


def to_list(ids):
    return keras.ops.convert_to_numpy(ids).tolist()


@pytest.mark.backend_independent
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_survives(tokenizer, text):
    ids = tokenizer(text)
    assert tokenizer.detokenize(ids) == text
    assert not set(to_list(ids)) & set(tokenizer.special_token_ids)


@pytest.mark.backend_independent
def test_batch_is_each_text_alone(tokenizer):
    texts = list(TEXTS.values())
    ids = tokenizer(texts)
    assert ids == [to_list(tokenizer(text)) for text in texts]
    assert tokenizer.detokenize(ids) == texts


@pytest.mark.backend_independent
def test_whole_shakespeare_survives(tokenizer):
    text = SHAKESPEARE.read_text(encoding="utf-8")
    ids = to_list(tokenizer(text))
    assert tokenizer.detokenize(ids) == text
    # Bytes are for what training has not seen: not one is needed here.
    pieces = {tokenizer.id_to_token(id) for id in set(ids)}
    assert not [piece for piece in pieces if piece.startswith("<0x")]


@pytest.mark.backend_independent
def test_sentence_piece_s_sign_for_a_space_becomes_one(tokenizer):
    assert tokenizer.detokenize(tokenizer("a\u2581b")) == "a b"


@pytest.mark.backend_independent
def test_half_a_character_is_replaced(tokenizer):
    ids = to_list(tokenizer("é"))
    assert len(ids) == 2
    assert tokenizer.detokenize(ids[:1]) == "\ufffd"


@pytest.mark.backend_independent
def test_special_tokens_are_gemma_s(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.token_to_id("<pad>") == 0
    assert tokenizer.end_token_id == tokenizer.token_to_id("<eos>") == 1
    assert tokenizer.start_token_id == tokenizer.token_to_id("<bos>") == 2
    assert tokenizer.token_to_id("<unk>") == 3
    assert sorted(tokenizer.special_token_ids) == [0, 1, 2]


@pytest.mark.backend_independent
def test_special_tokens_leave_no_text(tokenizer):
    assert tokenizer.detokenize([2, *to_list(tokenizer("a")), 1, 0]) == "a"


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        np.array,
        lambda texts: np.array(texts, object),
        lambda texts: np.array([text.encode() for text in texts]),
        lambda texts: [np.str_(text) for text in texts],
        tf.constant,
    ],
    ids=["list", "tuple", "numpy", "object", "bytes", "scalars", "tensor"],
)
def test_kinds_of_text(tokenizer, wrap):
    texts = ["To be", "or not to be"]
    assert tokenizer(wrap(texts)) == tokenizer(texts)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "text", ["a b", b"a b", np.array("a b"), tf.constant("a b")]
)
def test_one_text_is_one_row(tokenizer, text):
    ids = tokenizer(text)
    assert keras.backend.standardize_dtype(ids.dtype) == "int32"
    assert to_list(ids) == tokenizer(["a b"])[0]


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        np.array,
        lambda ids: np.array(ids, "int64"),
        keras.ops.convert_to_tensor,
        tf.constant,
    ],
    ids=["list", "numpy", "int64", "tensor", "tensorflow"],
)
def test_kinds_of_ids(tokenizer, wrap):
    ids = to_list(tokenizer("To be"))
    assert tokenizer.detokenize(wrap(ids)) == "To be"
    assert tokenizer.detokenize(wrap([ids, ids])) == ["To be", "To be"]


@pytest.mark.backend_independent
def test_in_tf_data(tokenizer):
    texts = list(TEXTS.values())
    rows = tf.data.Dataset.from_tensor_slices(texts)
    for data in (rows, rows.batch(3)):
        back = data.map(lambda x: tokenizer.detokenize(tokenizer(x)))
        back = np.concatenate([np.ravel(x) for x in back.as_numpy_iterator()])
        assert [text.decode() for text in back] == texts
    ragged = next(iter(rows.batch(3).map(tokenizer)))
    assert ragged.to_list() == tokenizer(texts[:3])


def test_in_tf_data_after_a_new_seed(tokenizer):
    data = tf.data.Dataset.from_tensor_slices(["To be"])
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        ids = next(data.map(tokenizer).as_numpy_iterator())
        assert ids.tolist() == to_list(tokenizer("To be"))
    keras.utils.set_random_seed(3)
    back = data.map(lambda x: tokenizer.detokenize(tokenizer(x)))
    assert list(back.as_numpy_iterator()) == [b"To be"]


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "inputs, received",
    [
        (3, "int 3"),
        (None, "NoneType None"),
        ([1, 2], "a list with int 1"),
        (["a", None], "a list with NoneType None"),
        (np.array([1, 2]), "ndarray of dtype int64"),
        (np.array(["a", 3], object), "ndarray of dtype object"),
        (np.ones((2, 3), "float32"), "ndarray of dtype float32"),
    ],
)
def test_ids_are_no_text(tokenizer, inputs, received):
    with pytest.raises(ValueError, match="Text must be") as error:
        tokenizer.tokenize(inputs)
    assert f"Received: {received}. `detokenize` turns" in str(error.value)
    with pytest.raises(ValueError, match="Text must be"):
        tokenizer(inputs)


def test_tensors_are_no_text(tokenizer):
    ids = keras.ops.convert_to_tensor([5, 6])
    with pytest.raises(ValueError, match="Text must be.*of dtype .*int32"):
        tokenizer.tokenize(ids)
    with pytest.raises(ValueError, match="Text must be.*of dtype int64"):
        tokenizer.tokenize(tf.constant([5, 6], "int64"))


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "inputs, received",
    [
        ([["a"]], "a list with list"),
        (np.array([["a"]]), r"an array of shape \(1, 1\)"),
    ],
)
def test_texts_are_a_flat_list(tokenizer, inputs, received):
    with pytest.raises(ValueError, match=f"Received: {received}.*Flatten"):
        tokenizer.tokenize(inputs)


@pytest.mark.backend_independent
def test_dict_of_ids_needs_no_preprocessor(tokenizer):
    with pytest.raises(
        ValueError, match=r"a dict with \['token_ids'\].*preprocessor=None"
    ):
        tokenizer.tokenize({"token_ids": [[1]]})


@pytest.mark.backend_independent
@pytest.mark.parametrize("text", [b"\xff\xfe", "a\udce2"])
def test_text_is_unicode(tokenizer, text):
    with pytest.raises(ValueError, match="UTF-8 can encode. Received: .*err"):
        tokenizer.tokenize(text)


@pytest.mark.parametrize(
    "ids, received",
    [
        ("abc", "<U3 .*abc"),
        (["ab", "c"], "<U2 .*ab"),
        ([1.5], "float64 .*1.5"),
        (np.array([[5.0]], "float32"), "float32 .*5.0"),
        (None, "object .*None"),
        (tf.constant([1.5]), "dtype float32"),
    ],
)
def test_ids_are_integers(tokenizer, ids, received):
    with pytest.raises(ValueError, match=f"be integers. Received: {received}"):
        tokenizer.detokenize(ids)


@pytest.mark.parametrize(
    "wrap",
    [list, np.array, keras.ops.convert_to_tensor, tf.constant],
    ids=["list", "numpy", "tensor", "tensorflow"],
)
@pytest.mark.parametrize("wrong", [-1, 100_000])
def test_ids_are_of_the_vocabulary(tokenizer, wrap, wrong):
    with pytest.raises(
        ValueError, match=rf"lie in \[0, \d+\].*Received: .*{wrong}"
    ):
        tokenizer.detokenize(wrap([5, wrong]))
    with pytest.raises(ValueError, match="lie in"):
        tokenizer.detokenize(wrap([[5, 6], [5, wrong]]))


@pytest.mark.backend_independent
# KerasHub leaves the file open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_vocabulary_may_be_a_path(tokenizer):
    again = GriffinTokenizer(str(VOCABULARY))
    assert again.proto == tokenizer.proto
    gc.collect()


@pytest.mark.backend_independent
def test_vocabulary_needs_the_special_tokens(tokenizer):
    proto = tokenizer.proto.replace(b"<bos>", b"<sos>")
    with pytest.raises(ValueError, match="Cannot find special token `'<bos>'"):
        GriffinTokenizer(proto)


@pytest.mark.backend_independent
def test_configuration_and_preset_round_trip(tokenizer, tmp_path):
    tokenizer.save_to_preset(tmp_path)
    config = keras.saving.serialize_keras_object(tokenizer)
    assert config["registered_name"] == "keras_griffin>GriffinTokenizer"
    again = keras.saving.deserialize_keras_object(config)
    assert again.proto is None
    again.load_assets(tmp_path / "assets" / "tokenizer")
    assert again.proto == tokenizer.proto
    assert again.start_token_id == 2


def small_backbone(vocabulary_size):
    return GriffinBackbone(
        vocabulary_size=vocabulary_size,
        num_layers=1,
        hidden_dim=16,
        intermediate_dim=16,
        num_query_heads=2,
        num_gate_blocks=2,
    )


@pytest.mark.backend_independent
def test_from_a_keras_preset(tokenizer, tmp_path):
    small_backbone(tokenizer.vocabulary_size()).save_to_preset(tmp_path)
    tokenizer.save_to_preset(tmp_path)
    again = GriffinTokenizer.from_preset(str(tmp_path))
    assert again.get_vocabulary() == tokenizer.get_vocabulary()


@pytest.mark.backend_independent
def test_from_a_hugging_face_folder(tokenizer, tmp_path):
    config = {"model_type": "recurrent_gemma"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="come with tokenizer.model"):
        GriffinTokenizer.from_preset(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.proto)
    again = GriffinTokenizer.from_preset(str(tmp_path))
    assert again("To be").tolist() == tokenizer("To be").tolist()


@pytest.mark.backend_independent
def test_named_preset_downloads_its_tokenizer_alone(
    tokenizer, tmp_path, monkeypatch
):
    import huggingface_hub

    calls = []

    def download(repository, file):
        calls.append((repository, file))
        path = tmp_path / file
        path.write_bytes(tokenizer.proto)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    GriffinTokenizer.from_preset("recurrent_gemma_2b_en")
    assert calls == [("google/recurrentgemma-2b", "tokenizer.model")]


@pytest.mark.backend_independent
def test_an_architecture_has_no_tokenizer():
    with pytest.raises(ValueError, match="trained.*Received: 'hawk_1b'"):
        GriffinTokenizer.from_preset("hawk_1b")
