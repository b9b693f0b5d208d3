"""One text while it is made: from ids to pieces."""

from keras_griffin.generation.prompts import TextStream
from keras_griffin.generation.stop_strings import StopStrings
from keras_griffin.serving.request import Piece


class Text:
    """What becomes of one row's tokens.

    Args:
        request: `Request`.
        index: int. Which of its texts.
        tokenizer: a `GriffinTokenizer`, or `None` for pieces without text.
    """

    def __init__(self, request, index, tokenizer):
        self.request = request
        self.token_ids = []  # those that the row has read, too
        self.is_finished = False
        self._index = index
        self._stream = None
        if tokenizer is not None:
            self._stream = TextStream(tokenizer, request.token_ids)
        self._stops = StopStrings(request.settings.stop)

    def take(self, token_ids, logprobs, top_logprobs, finish_reason=None):
        """The piece of new tokens, up to a stop string; `None` if empty.

        Args:
            token_ids: list of int.
            logprobs: list of float.
            top_logprobs: list of dicts.
            finish_reason: str. Why these are the last ones, if they are.
        """
        text, size = self._text(token_ids)
        if self._stops.is_stopped:
            finish_reason = "stop"
        elif finish_reason is not None:
            text += self._rest()
            if self._stops.is_stopped:
                finish_reason = "stop"
        self.token_ids += token_ids
        self.is_finished = finish_reason is not None
        if not (text or size or self.is_finished):
            return None
        return Piece(
            index=self._index,
            text=text,
            token_ids=tuple(token_ids[:size]),
            logprobs=tuple(logprobs[:size]),
            top_logprobs=tuple(top_logprobs[:size]),
            finish_reason=finish_reason,
        )

    def end(self, finish_reason):
        """The last piece, with what was held back."""
        return Piece(self._index, self._rest(), finish_reason=finish_reason)

    def _text(self, token_ids):
        """Certain text, and how many of the ids it took."""
        if self._stream is None:
            return "", len(token_ids)
        if not self.request.settings.stop:
            return self._stream.push(token_ids), len(token_ids)
        text = ""
        for i, id in enumerate(token_ids):
            # One by one: which token completes a stop string.
            text += self._stops.push(self._stream.push([id]))
            if self._stops.is_stopped:
                return text, i + 1
        return text, len(token_ids)

    def _rest(self):
        if self._stream is None or self._stops.is_stopped:
            return ""
        return self._stops.push(self._stream.rest(), is_last=True)
