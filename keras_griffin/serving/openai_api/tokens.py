"""The text of one token, as log-probabilities name it."""

import re

# SentencePiece's sign for a space, and its name of a byte.
SPACE = "\u2581"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_text(tokenizer, id):
    """Text of a token; a lone byte as OpenAI writes it, `bytes:\\xe2`."""
    piece = _piece(tokenizer, id)
    byte = BYTE.fullmatch(piece)
    if byte is None:
        return piece.replace(SPACE, " ")
    value = int(byte[1], 16)
    return chr(value) if value < 128 else f"bytes:\\x{value:02x}"


def token_bytes(tokenizer, id):
    """The UTF-8 bytes of a token's text."""
    piece = _piece(tokenizer, id)
    byte = BYTE.fullmatch(piece)
    if byte is None:
        return piece.replace(SPACE, " ").encode()
    return bytes([int(byte[1], 16)])


def _piece(tokenizer, id):
    piece = tokenizer.id_to_token(id)
    return piece.decode() if isinstance(piece, bytes) else str(piece)
