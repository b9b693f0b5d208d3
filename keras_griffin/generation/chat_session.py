from keras_griffin.generation import chat_template


class ChatSession:
    """A conversation that keeps the model's state between the turns.

    A turn reads the new message alone, never the history, and the state does
    not grow. Where the preprocessor has a `turn_format`, as those of the
    instruction-tuned presets, messages are turns in it; otherwise a message is
    text that the model continues.

    Args:
        model: a `GriffinCausalLM` with a preprocessor.
        max_new_tokens: int. Most tokens of a reply. Defaults to `1024`.
        sampler: see `GriffinCausalLM.generate`. Defaults to `None`: the
            model's.
        temperature: see `GriffinCausalLM.generate`. Defaults to `None`: the
            sampler's.

    Attributes:
        state: the state after the last turn, `None` before the first.

    Raises:
        ValueError: for a model without a preprocessor.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    chat = model.chat(max_new_tokens=20)
    for piece in chat.send("JULIET: Who is there?"):
        print(piece, end="", flush=True)
    chat.save("chat.npz")
    ```

    Source:
        arXiv:2404.07839, section 4; recurrentgemma's instruct format.
    """

    def __init__(
        self, model, max_new_tokens=1024, sampler=None, temperature=None
    ):
        if model.preprocessor is None:
            raise ValueError(
                "A chat needs a model with a preprocessor, to read text. "
                "Received: preprocessor=None. Load it with `from_preset`."
            )
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.sampler = sampler
        self.temperature = temperature
        self.state = None

    def send(self, message):
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
        pieces = self.model.generate_stream(
            self._turn(message),
            max_new_tokens=self.max_new_tokens,
            sampler=self.sampler,
            temperature=self.temperature,
            state=self.state,
            return_state=True,
        )
        for text, self.state in pieces:
            if text:
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

    def save(self, path):
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

    def load(self, path):
        """Goes on with a conversation that `save` wrote.

        Args:
            path: str or path.

        Raises:
            ValueError: for a file that is not a state of this model.
        """
        self.state = self.model.load_state(path)
