"""A small model in a folder, and a fake one that notes what it is asked."""

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model of a few thousand parameters, saved as a preset."""
    import sentencepiece

    import keras_griffin

    folder = tmp_path_factory.mktemp("cli")
    text = "To be, or not to be: that is the question.\n" * 8
    (folder / "text.txt").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "vocabulary"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    tokenizer = keras_griffin.GriffinTokenizer(
        (folder / "vocabulary.model").read_bytes()
    )
    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=3,
        hidden_dim=16,
        intermediate_dim=16,
        num_query_heads=2,
        num_gate_blocks=2,
        attention_window_size=8,
    )
    model = keras_griffin.GriffinCausalLM(
        backbone, keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    )
    model.save_to_preset(str(folder / "model"))
    return folder / "model"


class FakeModel:
    """Notes what the command asks of a model."""

    def __init__(self, pieces=(" or", " not")):
        self.pieces = pieces
        self.mode = None

    def quantize(self, mode):
        self.mode = mode

    def generate_stream(self, prompt, **settings):
        self.prompt, self.settings = prompt, settings
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


@pytest.fixture
def fake(monkeypatch):
    """Any preset is this model, in `fake.kind` of a checkpoint."""
    from keras_griffin.checkpoints import preset_loading
    from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

    model = FakeModel()
    model.kind = "keras"

    def from_preset(preset, dtype):
        model.preset, model.dtype = preset, dtype
        return model

    def find_preset(preset):
        return preset_loading.PresetSource(model.kind, preset)

    monkeypatch.setattr(GriffinCausalLM, "from_preset", from_preset)
    monkeypatch.setattr(preset_loading, "find_preset", find_preset)
    monkeypatch.setattr(preset_loading, "stored_dtype", lambda s: "bfloat16")
    return model
