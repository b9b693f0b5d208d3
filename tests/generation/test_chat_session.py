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


@pytest.mark.backend_independent
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


@pytest.mark.backend_independent
def test_without_a_turn_format_messages_are_text(model):
    model.preprocessor.turn_format = None
    chat = model.chat()
    assert chat._turn("to be") == "to be"
    chat.state = {}
    assert chat._turn("to be") == "\nto be"
    model.preprocessor.turn_format = "gemma"


@pytest.mark.backend_independent
def test_a_reply_that_is_stopped_stays_in_the_conversation(model):
    chat = model.chat(max_new_tokens=40)
    reply = chat.send("to be")
    next(reply)
    reply.close()
    stopped = int(to_numpy(chat.state["length"])[0])
    assert "".join(chat.send("not"))
    assert int(to_numpy(chat.state["length"])[0]) > stopped


@pytest.mark.backend_independent
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


@pytest.mark.backend_independent
def test_what_cannot_be_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="must have begun"):
        model.chat().save(tmp_path / "chat.npz")
    with pytest.raises(ValueError, match="with a preprocessor"):
        tiny_model().chat()


@pytest.mark.backend_independent
def test_a_message_is_answered_anew(model, monkeypatch):
    chat = model.chat(max_new_tokens=9)
    replies = ["".join(chat.send(text)) for text in ("to be", "not")]
    assert [turn.reply for turn in chat.turns] == replies
    length = int(to_numpy(chat.state["length"])[0])
    read = []
    stream = type(model).generate_stream

    def counted(self, text, **options):
        read.append(text)
        return stream(self, text, **options)

    monkeypatch.setattr(type(model), "generate_stream", counted)
    assert "".join(chat.regenerate()) == replies[1]
    assert int(to_numpy(chat.state["length"])[0]) == length
    assert "be" not in read[0]
    assert "".join(chat.edit(0, "to be")) == replies[0]
    assert len(chat.turns) == 1
    assert "".join(chat.send("not")) == replies[1]
    # Another reply, if it is drawn.
    chat.temperature, chat.sampler = 5.0, "random"
    assert len({"".join(chat.regenerate()) for _ in range(3)}) > 1
    assert [turn.message for turn in chat.turns] == ["to be", "not"]


@pytest.mark.backend_independent
def test_an_edited_turn_is_as_if_it_had_been_said(model):
    chat = model.chat(max_new_tokens=9)
    for text in ("to be", "not", "or"):
        list(chat.send(text))
    edited = "".join(chat.edit(1, "user"))
    other = model.chat(max_new_tokens=9)
    replies = ["".join(other.send(text)) for text in ("to be", "user")]
    assert edited == replies[1]
    assert "".join(chat.send("or")) == "".join(other.send("or"))
    np.testing.assert_array_equal(
        to_numpy(chat.state["length"]), to_numpy(other.state["length"])
    )


@pytest.mark.backend_independent
def test_a_fork_goes_its_own_way(model):
    chat = model.chat(max_new_tokens=9, top_p=0.5, temperature=0)
    list(chat.send("to be"))
    fork = chat.fork()
    assert fork.settings == {"top_p": 0.5}
    reply = "".join(fork.send("not"))
    assert len(chat.turns) == 1 and len(fork.turns) == 2
    assert "".join(chat.send("not")) == reply
    list(fork.edit(0, "or"))
    assert len(chat.turns) == 2
    assert chat.turns[0].message == "to be"


@pytest.mark.backend_independent
def test_a_stop_string_ends_a_reply_and_its_state(model):
    tokenizer = model.preprocessor.tokenizer
    # Bytes that make no characters would be all of this model's text.
    bias = {
        id: -100
        for id in range(tokenizer.vocabulary_size())
        if tokenizer.id_to_token(id).startswith("<")
    }
    options = {"temperature": 0, "logit_bias": bias}
    free = "".join(model.chat(max_new_tokens=20, **options).send("to be"))
    stop = free[4:6]
    chat = model.chat(max_new_tokens=20, stop=stop, **options)
    assert "".join(chat.send("to be")) == free[: free.index(stop)]
    length = int(to_numpy(chat.state["length"])[0])
    # As many tokens as if they had been all.
    for count in range(1, 20):
        short = model.chat(max_new_tokens=count, **options)
        if stop in "".join(short.send("to be")):
            break
    assert int(to_numpy(short.state["length"])[0]) == length
    assert "".join(chat.send("not"))


@pytest.mark.backend_independent
def test_turns_that_there_are_not(model, tmp_path):
    chat = model.chat(max_new_tokens=2)
    for call in (chat.regenerate, lambda: chat.edit(0, "a")):
        with pytest.raises(ValueError, match="must have been sent"):
            call()
    list(chat.send("to be"))
    with pytest.raises(ValueError, match=r"`i` must be an integer in \[0, 0"):
        chat.edit(1, "a")
    chat.save(tmp_path / "chat.npz")
    chat.load(tmp_path / "chat.npz")
    with pytest.raises(ValueError, match="made or loaded"):
        chat.regenerate()
    with pytest.raises(ValueError, match="Did you mean top_k"):
        model.chat(topk=3)
