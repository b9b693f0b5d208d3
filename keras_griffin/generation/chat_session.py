from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from keras_griffin.generation import chat_template
from keras_griffin.generation.arguments import check_whole
from keras_griffin.generation.sampling_settings import call_settings


@dataclasses.dataclass
class Turn:
    """What was said, what was answered, and the state before both."""

    message: str
    state: object
    reply: str = ""


class ChatSession:
    """A conversation that keeps the model's state between the turns.

    A turn reads the new message alone, never the history, and the state does
    not grow. The state before each turn is kept, to answer it anew. Where the
    preprocessor has a `turn_format`, as those of the instruction-tuned
    presets, messages are turns in it; otherwise a message is text that the
    model continues.

    Args:
        model: a `GriffinCausalLM` with a preprocessor.
        max_new_tokens: int. Most tokens of a reply. Defaults to `1024`.
        sampler: see `GriffinCausalLM.generate`. Defaults to `None`: the
            model's.
        temperature: see `GriffinCausalLM.generate`. Defaults to `None`: the
            sampler's.
        **settings: see `GriffinCausalLM.generate`.

    Attributes:
        state: the state after the last turn, `None` before the first.
        turns: list of the turns since the session was made or loaded, each
            with `message`, `reply` and the `state` before it.

    Raises:
        ValueError: for a model without a preprocessor, and for settings that
            `generate` would refuse.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    chat = model.chat(max_new_tokens=20)
    for piece in chat.send("JULIET: Who is there?"):
        print(piece, end="", flush=True)
    chat.save("chat.npz")
    other = chat.fork()
    print("".join(other.edit(0, "JULIET: Who are you?")))
    print("".join(chat.regenerate()))
    ```

    Source:
        arXiv:2404.07839, section 4; recurrentgemma's instruct format.
    """

    def __init__(
        self,
        model: Any,
        max_new_tokens: int = 1024,
        sampler: Any = None,
        temperature: float | None = None,
        **settings: Any,
    ) -> None:
        if model.preprocessor is None:
            raise ValueError(
                "A chat needs a model with a preprocessor, to read text. "
                "Received: preprocessor=None. Load it with `from_preset`."
            )
        if settings:
            call_settings(model, sampler, temperature, None, settings)
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.sampler = sampler
        self.temperature = temperature
        self.settings = settings
        self.state = None
        self.turns = []

    def send(self, message: str) -> Iterator[str]:
        """Reads a message and yields the reply as it is made.

        Whoever stops reading, by Ctrl-C say, stops the reply; what was made
        of it stays in the conversation.

        Args:
            message: str.

        Yields:
            str: pieces of text.

        Raises:
            ValueError: for an empty message where there is no turn format.
        """
        yield from self._answer(message, len(self.turns), self.state)

    def regenerate(self) -> Iterator[str]:
        """Answers the last message anew; the old reply is forgotten.

        Neither the history nor the old reply is read: the conversation goes
        on from the state before the message.

        Yields:
            str: pieces of text.

        Raises:
            ValueError: before the first message.
        """
        self._check_has_turns()
        return self.edit(len(self.turns) - 1, self.turns[-1].message)

    def edit(self, i: int, text: str) -> Iterator[str]:
        """Puts another message in place of turn `i`, and answers it.

        The turns after it are forgotten. Nothing before it is read again.

        Args:
            i: int. Index in `turns`, from 0.
            text: str. The new message.

        Yields:
            str: pieces of text.

        Raises:
            ValueError: for a turn that there is not.
        """
        self._check_has_turns()
        last = len(self.turns) - 1
        check_whole("i", i, 0, last, "Loaded turns cannot be edited.")
        return self._answer(text, i, self.turns[i].state)

    def fork(self) -> ChatSession:
        """Returns a session that goes on from here by itself.

        What is said in one of them does not change the other.

        Returns:
            A `ChatSession`.
        """
        other = ChatSession(
            self.model,
            self.max_new_tokens,
            self.sampler,
            self.temperature,
            **self.settings,
        )
        other.state = self.state
        other.turns = [dataclasses.replace(turn) for turn in self.turns]
        return other

    def _check_has_turns(self):
        if not self.turns:
            raise ValueError(
                "A message must have been sent to be answered anew. Received: "
                "no message since the session was made or loaded. Call `send` "
                "first."
            )

    def _answer(self, message, i, state):
        """Reads a message as turn `i`, after a state."""
        turn = Turn(message, state)
        self.turns[i:] = [turn]
        self.state = state
        pieces = self.model.generate_stream(
            self._turn(message),
            max_new_tokens=self.max_new_tokens,
            sampler=self.sampler,
            temperature=self.temperature,
            state=state,
            return_state=True,
            **self.settings,
        )
        for text, self.state in pieces:
            if text:
                turn.reply += text
                yield text

    def _turn(self, message):
        if self.model.preprocessor.turn_format is None:
            return message if self.state is None else f"\n{message}"
        turn = (
            chat_template.user_turn
            if self.state is None
            else chat_template.next_turn
        )
        return chat_template.Turns(turn(message))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation so far: its state, whatever its length.

        Args:
            path: str or path. The `.npz` file.

        Raises:
            ValueError: before the first message.
        """
        if self.state is None:
            raise ValueError(
                "A chat must have begun to be saved. Received: no message "
                "yet. Call `send` first."
            )
        self.model.save_state(self.state, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on with a conversation that `save` wrote.

        Args:
            path: str or path.

        Raises:
            ValueError: for a file that is not a state of this model.
        """
        self.state = self.model.load_state(path)
        self.turns = []
