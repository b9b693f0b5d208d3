"""Text that is made while somebody reads along."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from keras_griffin.generation import chat_template
from keras_griffin.generation.arguments import check_lengths
from keras_griffin.generation.decoding import decode
from keras_griffin.generation.prompts import make_prompts
from keras_griffin.generation.prompts import stream_text
from keras_griffin.generation.sampling import call_sampler
from keras_griffin.generation.sampling import find_stop_token_ids
from keras_griffin.generation.sampling import is_search
from keras_griffin.generation.sampling_settings import call_settings
from keras_griffin.generation.stop_strings import StopStrings

# New tokens of one call of the device.
STREAM_CHUNK = 4


def generate_stream(
    model: Any,
    inputs: Any,
    max_length: int | None = None,
    stop_token_ids: str | Sequence[int] | None = "auto",
    max_new_tokens: int | None = None,
    sampler: Any = None,
    temperature: float | None = None,
    seed: int | None = None,
    state: dict[str, Any] | None = None,
    return_state: bool = False,
    **settings: Any,
) -> Iterator[Any]:
    """Generates text for one prompt, and yields it as it is made.

    Args:
        model: a `GriffinCausalLM`.
        inputs: str, or messages that end with the user's. The prompt.
        max_length: see `generate`.
        stop_token_ids: see `generate`.
        max_new_tokens: see `generate`.
        sampler: see `generate`.
        temperature: see `generate`.
        seed: see `generate`.
        state: see `generate`.
        return_state: bool. Also yield the state after all tokens so far,
            with an empty text where no character is complete. Defaults
            to `False`.
        **settings: see `generate`.

    Yields:
        str: pieces of text, of some tokens each; a character whose bytes
        are not all there yet waits for them. With `return_state=True`
        `(text, state)`.

    Raises:
        ValueError: without a preprocessor, for a prompt that is not a
            string, and for samplers that choose among whole texts.

    Example:
    ```python
    for piece in model.generate_stream("ROMEO:", max_new_tokens=20):
        print(piece, end="", flush=True)
    ```
    """
    if model.preprocessor is None:
        raise ValueError(
            "`generate_stream` yields text, so that the model needs a "
            "preprocessor. Received: preprocessor=None. Use `generate` for "
            "ids."
        )
    if not (isinstance(inputs, str) or chat_template.is_conversation(inputs)):
        raise ValueError(
            "`generate_stream` takes one prompt: a string, or messages. "
            f"Received: {type(inputs).__name__} {inputs!r:.50}. Use "
            "`generate` for several."
        )
    if settings:
        sampler = call_settings(model, sampler, temperature, seed, settings)
    else:
        sampler = call_sampler(model, sampler, temperature, seed)
    if return_state and settings.get("draft") is not None:
        raise ValueError(
            "With a draft there is a state at the end alone. Received: "
            "return_state=True in a stream. Leave the draft out, or call "
            "`generate`."
        )
    if is_search(sampler):
        raise ValueError(
            "Streaming needs a sampler that takes one token after the "
            f"other. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p' or 'random'."
        )
    check_lengths(max_length, max_new_tokens)
    prompts = make_prompts(model, [inputs], max_length, max_new_tokens, state)
    stop_token_ids = find_stop_token_ids(model, stop_token_ids)
    given = prompts, stop_token_ids, sampler, state
    pieces = (
        (prompts.cut(tokens[0], stop_token_ids, keep_stop=False), state)
        for tokens, state in decode(model, *given, STREAM_CHUNK, return_state)
    )
    texts = stream_text(model.preprocessor.tokenizer, prompts.rows[0], pieces)
    if settings:
        texts = _up_to_stop(texts, StopStrings(sampler.stop))
    if return_state:
        return texts
    return (text for text, _ in texts if text)


def _up_to_stop(pieces, stop):
    """The `(text, state)` pieces up to a stop string."""
    state = None
    for text, state in pieces:
        yield stop.push(text), state
    rest = stop.push("", is_last=True)
    if rest:
        yield rest, state
