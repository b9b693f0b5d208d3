"""A tiny vocabulary that has Gemma's turn tokens."""

import functools
import io

import sentencepiece

import keras_griffin

START, END = "<start_of_turn>", "<end_of_turn>"


@functools.cache
def vocabulary(model_type="bpe", add_dummy_prefix=False, pieces=(START, END)):
    """A SentencePiece model of Gemma's kind, a few hundred pieces small."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["to be or not to be: user, model"] * 4),
        model_writer=file,
        model_type=model_type,
        vocab_size=300,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=[*pieces, "\n"],
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return file.getvalue()


def tokenizer_with_turns(**changes):
    return keras_griffin.GriffinTokenizer(vocabulary(**changes))


def instruction_preprocessor(**arguments):
    arguments = {"sequence_length": 48, "turn_format": "gemma", **arguments}
    return keras_griffin.GriffinCausalLMPreprocessor(
        tokenizer_with_turns(), **arguments
    )


def user(content):
    return {"role": "user", "content": content}


def model(content):
    return {"role": "model", "content": content}
