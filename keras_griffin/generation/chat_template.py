"""Gemma's turn format: messages to text, and that text to tokens.

```
<start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n
{content}<end_of_turn>\n ...
```

Source: arXiv:2404.07839, tables 3 and 4; the whitespace around a content is
left out as in the chat template that Google published with the checkpoints.
"""

import re

import numpy as np

# What `render` writes, in Jinja: for transformers.
CHAT_TEMPLATES = {
    None: None,
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + "
        "('user' if m['role'] == 'user' else 'model') + '\n' + "
        "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
}
TURN_FORMATS = tuple(CHAT_TEMPLATES)

START_OF_TURN = "<start_of_turn>"
END_OF_TURN = "<end_of_turn>"
USER_ROLE = "user"
SYSTEM_ROLES = ("system", "developer")
MODEL_ROLES = ("model", "assistant")

# Two of Unicode's noncharacters, which no text has: where text is cut before
# it is tokenized, and where what is to be learned begins and ends.
BREAK = "\ufdd0"
LEARN = "\ufdd1"

_MARKS = f"[{BREAK}{LEARN}]"
_TURN_TOKEN = "<(start|end)_of_turn>"
# Cut in two, it is written the same and is no control token.
_WRITTEN_OUT = rf"<\1_of{BREAK}_turn>"
# What `tf.strings.strip` takes away.
_WHITESPACE = " \t\n\v\f\r"


class Turns(str):
    """Text in the turn format, marks included: its control tokens are real."""


def user_turn(content):
    """The user's turn and the head of the model's.

    Here and below texts are strings or `tf.Tensor`s of them.
    """
    content = _content(content)
    return (
        f"{START_OF_TURN}user\n"
        + content
        + f"{END_OF_TURN}\n{START_OF_TURN}model\n"
    )


def model_turn(content):
    """The rest of the model's turn: what it says is learned, and its end."""
    return LEARN + _content(content) + f"{END_OF_TURN}{LEARN}\n"


def next_turn(content):
    """What a conversation reads after a reply, whose end it has not read."""
    return f"{END_OF_TURN}\n" + user_turn(content)


def plain_pair(prompt, response):
    """A prompt and a response without turns; the response is learned."""
    return _replace(prompt, _MARKS, "") + LEARN + _replace(response, _MARKS, "")


def is_conversation(x):
    """Whether `x` is a list of messages."""
    return isinstance(x, (list, tuple)) and any(isinstance(m, dict) for m in x)


def are_conversations(x):
    """Whether `x` is a list of lists of messages."""
    return isinstance(x, (list, tuple)) and any(is_conversation(c) for c in x)


def fold_system(messages):
    """Messages whose first, of the system, is part of the user's first.

    Gemma's turns have no role for it.

    Args:
        messages: list of `{"role": ..., "content": ...}`.
    """
    messages = list(messages)
    while len(messages) > 1 and messages[0]["role"] in SYSTEM_ROLES:
        system, first, *rest = messages
        content = f"{system['content']}\n\n{first['content']}"
        messages = [{**first, "content": content}, *rest]
    return messages


def render(messages, last):
    """One conversation as `Turns`.

    Args:
        messages: list of `{"role": ..., "content": ...}`.
        last: `"user"` for a prompt, `"model"` for a text to learn from.
    """
    _check_messages(messages, last)
    return Turns(
        "".join(
            (user_turn if i % 2 == 0 else model_turn)(message["content"])
            for i, message in enumerate(messages)
        )
    )


def tokenize(tokenizer, texts):
    """Token ids of texts with marks, and which of them are to be learned.

    Args:
        tokenizer: a `GriffinTokenizer`.
        texts: a list of strings or, in a `tf.data` pipeline, a `tf.Tensor` of
            rank 1.

    Returns:
        `(ids, learned)`: two lists of lists of ints, or ragged tensors.
    """
    if not isinstance(texts, list):
        return _tokenize_tensor(tokenizer, texts)
    parts = [
        (row, index % 2, part)
        for row, text in enumerate(texts)
        for index, segment in enumerate(text.split(LEARN))
        for part in segment.split(BREAK)
    ]
    ids, learned = [[] for _ in texts], [[] for _ in texts]
    pieces = tokenizer([part for _, _, part in parts])
    for (row, learn, _), piece in zip(parts, pieces, strict=True):
        ids[row] += piece
        learned[row] += [learn] * len(piece)
    return ids, learned


def _tokenize_tensor(tokenizer, texts):
    import tensorflow as tf

    segments = tf.strings.split(texts, LEARN)
    parts = tf.strings.split(segments, BREAK)
    ids = parts.with_flat_values(tokenizer(parts.flat_values))
    ids = ids.merge_dims(2, 3)
    learn = tf.ragged.range(segments.row_lengths()) % 2
    learn = tf.cast(tf.expand_dims(learn, -1), ids.dtype)
    learned = tf.ones_like(ids) * learn
    return ids.merge_dims(1, 2), learned.merge_dims(1, 2)


def strings(x):
    """A string, or a list, array or eager tensor of them, as a list."""
    array = np.asarray(x, dtype=object)
    return [
        text.decode() if isinstance(text, bytes) else str(text)
        for text in array.ravel()
    ]


def _content(text):
    text = _replace(text, _MARKS, "")
    if isinstance(text, str):
        text = text.strip(_WHITESPACE)
    else:
        import tensorflow as tf

        text = tf.strings.strip(text)
    return _replace(text, _TURN_TOKEN, _WRITTEN_OUT)


def _replace(text, pattern, replacement):
    if isinstance(text, str):
        return re.sub(pattern, replacement, text)
    import tensorflow as tf

    return tf.strings.regex_replace(text, pattern, replacement)


def _check_messages(messages, last):
    for message in messages:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise ValueError(
                "A message must be a dict of two strings, 'role' and "
                f"'content'. Received: {message!r:.80}. Write {{'role': "
                "'user', 'content': 'Hello'}."
            )
    roles = [message["role"] for message in messages]
    for i, role in enumerate(roles):
        if role not in ((USER_ROLE,) if i % 2 == 0 else MODEL_ROLES):
            raise ValueError(
                "Gemma's turns alternate between 'user' and 'model' (or "
                f"'assistant'), and 'user' begins. Received: roles {roles}. "
                "There is no system role: put such a text in front of the "
                "first message."
            )
    ends_with_user = len(messages) % 2 == 1
    if ends_with_user and last != USER_ROLE:
        raise ValueError(
            "A conversation to learn from must end with the model's answer. "
            f"Received: roles {roles}. Leave the last question out."
        )
    if not ends_with_user and last == USER_ROLE:
        raise ValueError(
            "A conversation to answer must end with a message of the user. "
            f"Received: roles {roles}. Leave the last answer out."
        )
