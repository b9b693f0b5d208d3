"""SentencePiece vocabularies for a text of one's own."""

import io

# Ids and names of Gemma's tokenizer; then every byte, so that every text has
# tokens and comes back from them as it was.
SETTINGS = {
    "model_type": "unigram",
    "byte_fallback": True,
    "character_coverage": 1.0,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "unk_piece": "<unk>",
    "num_threads": 1,  # the result depends on the number
    "minloglevel": 2,
}
# 4 special tokens, 256 bytes, and the space, which SentencePiece writes as a
# character of three bytes.
BYTES_SIZE = 261


def learn(text, size):
    """Learns the pieces of a text.

    Args:
        text: str.
        size: int. Number of pieces, the special tokens and bytes among them.

    Returns:
        bytes: a lossless SentencePiece model.

    Raises:
        ValueError: if the text has not enough pieces, or more characters
            than there are to be pieces.
    """
    lines = text.splitlines(keepends=True)
    try:
        return _train(lines, size, user_defined_symbols=["\n"])
    except RuntimeError as error:
        raise ValueError(
            "A vocabulary must have room for each character of the text, and "
            f"no more pieces than the text has. Received: {size} pieces for "
            f"{len(text)} characters ({error}). Take another number, or bytes."
        ) from error


def of_bytes():
    """The SentencePiece model, as bytes, whose tokens are bytes."""
    return _train([" "], BYTES_SIZE)


def _train(lines, size, **settings):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        **SETTINGS,
        **settings,
    )
    return model.getvalue()
