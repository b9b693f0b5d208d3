"""What clients get: pieces of text in OpenAI's shapes."""

import time
import uuid

from keras_griffin.serving.openai_api.tokens import token_bytes
from keras_griffin.serving.openai_api.tokens import token_text


class Answer:
    """One answer's shapes, whole or in chunks.

    Args:
        model: str. The name that the server gives its model.
        tokenizer: a `GriffinTokenizer`.
        with_logprobs: bool. Whether log-probabilities were asked for.
    """

    whole_object = chunk_object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, model, tokenizer, with_logprobs):
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._offsets = {}  # characters of each choice so far

    def whole(self, completions, usage):
        """The answer that is not streamed.

        Args:
            completions: list of `Completion`s, one a choice.
            usage: dict.
        """
        choices = [
            {
                "index": index,
                **self._text(c.text),
                "logprobs": self._logprobs(index, c),
                "finish_reason": c.finish_reason,
            }
            for index, c in enumerate(completions)
        ]
        return {
            **self._head,
            "object": self.whole_object,
            "choices": choices,
            "usage": usage,
        }

    def chunk(self, index, piece):
        """The chunk of a choice's new piece."""
        choice = {
            "index": index,
            **self._new_text(index, piece.text),
            "logprobs": self._logprobs(index, piece),
            "finish_reason": piece.finish_reason,
        }
        return self._chunk([choice])

    def last_chunk(self, usage):
        """The chunk of the usage alone, which comes last."""
        return {**self._chunk([]), "usage": usage}

    def _chunk(self, choices):
        return {**self._head, "object": self.chunk_object, "choices": choices}

    def _text(self, text):
        return {"text": text}

    def _new_text(self, index, text):
        return {"text": text}

    def _logprobs(self, index, piece):
        if not self._with_logprobs:
            return None
        names = [self._name(id) for id in piece.token_ids]
        offsets, offset = [], self._offsets.get(index, 0)
        for name in names:
            offsets.append(offset)
            offset += len(name)
        self._offsets[index] = offset
        return {
            "tokens": names,
            "token_logprobs": list(piece.logprobs),
            "top_logprobs": [
                {self._name(id): value for id, value in top.items()}
                for top in piece.top_logprobs
            ],
            "text_offset": offsets,
        }

    def _name(self, id):
        return token_text(self._tokenizer, id)


class ChatAnswer(Answer):
    """The same of /v1/chat/completions."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(self, model, tokenizer, with_logprobs):
        super().__init__(model, tokenizer, with_logprobs)
        self._begun = set()

    def _text(self, text):
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message}

    def _new_text(self, index, text):
        delta = {"content": text}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
        return {"delta": delta}

    def _logprobs(self, index, piece):
        if not self._with_logprobs:
            return None
        content = [
            {
                **self._token(id, value),
                "top_logprobs": [self._token(*pair) for pair in top.items()],
            }
            for id, value, top in zip(
                piece.token_ids,
                piece.logprobs,
                piece.top_logprobs,
                strict=True,
            )
        ]
        return {"content": content, "refusal": None}

    def _token(self, id, logprob):
        return {
            "token": self._name(id),
            "logprob": logprob,
            "bytes": list(token_bytes(self._tokenizer, id)),
        }


def usage(requests, new_tokens):
    """The tokens of an answer, as OpenAI counts them.

    Args:
        requests: list of the engine's `Request`s.
        new_tokens: int.
    """
    prompt = sum(r.prompt_tokens for r in requests)
    cached = sum(r.cached_tokens for r in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new_tokens,
        "total_tokens": prompt + new_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
