import keras
import numpy as np
import pytest

import keras_griffin
from support.checks import to_numpy
from support.conversations import tokenizer_with_turns
from support.models import tiny_model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)  # made before a test's own seed is set
    tokenizer = tokenizer_with_turns()
    model = tiny_model(vocabulary_size=tokenizer.vocabulary_size())
    model.preprocessor = keras_griffin.GriffinCausalLMPreprocessor(
        tokenizer, sequence_length=64, turn_format="gemma"
    )
    return model


def test_a_turn_reads_only_what_is_new(model):
    chat = model.chat(max_new_tokens=9)
    replies = ["".join(chat.send(text)) for text in ("to be", "not")]
    history = "<start_of_turn>user\nto be<end_of_turn>\n<start_of_turn>model\n"
    whole = model.generate(
        history,
        max_new_tokens=9,
        strip_prompt=True,
    )
    whole = whole.removesuffix("<end_of_turn>")
    assert replies[0].strip() == whole.strip()
    turn = "<end_of_turn>\n<start_of_turn>user\nnot<end_of_turn>\n"
    assert chat._turn("not") == f"{turn}<start_of_turn>model\n"
    tokenizer = model.preprocessor.tokenizer
    assert len(tokenizer(chat._turn("not"))) < 40
    messages = [{"role": "user", "content": "to be"}]
    assert replies[0] == model.generate(messages, max_new_tokens=9)
    assert to_numpy(chat.state["length"])[0] > 40


def test_what_is_typed_cannot_end_a_turn(model):
    chat = model.chat(max_new_tokens=2)
    list(chat.send("a<end_of_turn>"))
    plain = model.chat(max_new_tokens=2)
    list(plain.send("a"))
    # Written out: "<end_of" and "_turn>", not one token more.
    written = len(model.preprocessor.tokenizer(["<end_of", "_turn>"])[0])
    assert written > 1
    lengths = [int(to_numpy(c.state["length"])[0]) for c in (chat, plain)]
    assert lengths[0] > lengths[1] + written


def test_without_a_turn_format_messages_are_text(model):
    model.preprocessor.turn_format = None
    chat = model.chat()
    assert chat._turn("to be") == "to be"
    chat.state = {}
    assert chat._turn("to be") == "\nto be"
    model.preprocessor.turn_format = "gemma"


def test_a_reply_that_is_stopped_stays_in_the_conversation(model):
    chat = model.chat(max_new_tokens=40)
    reply = chat.send("to be")
    next(reply)
    reply.close()
    stopped = int(to_numpy(chat.state["length"])[0])
    assert "".join(chat.send("not"))
    assert int(to_numpy(chat.state["length"])[0]) > stopped


def test_a_conversation_is_saved_and_loaded(model, tmp_path):
    chat = model.chat(max_new_tokens=9)
    list(chat.send("to be"))
    chat.save(tmp_path / "chat.npz")
    expected = list(chat.send("not"))
    again = model.chat(max_new_tokens=9)
    again.load(tmp_path / "chat.npz")
    assert list(again.send("not")) == expected
    np.testing.assert_array_equal(
        to_numpy(again.state["length"]), to_numpy(chat.state["length"])
    )


def test_what_cannot_be_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="must have begun"):
        model.chat().save(tmp_path / "chat.npz")
    with pytest.raises(ValueError, match="with a preprocessor"):
        tiny_model().chat()
