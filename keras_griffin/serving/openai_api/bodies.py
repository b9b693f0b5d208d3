"""What clients send: JSON to checked fields."""

from typing import Literal

import pydantic
import pydantic_core

from keras_griffin.generation import chat_template
from keras_griffin.near_names import did_you_mean
from keras_griffin.serving.openai_api.errors import ApiError

# Tokens of a completion that does not say how many, as OpenAI has it.
COMPLETION_TOKENS = 16
# Most log-probabilities of a token of /v1/completions, as OpenAI has it.
COMPLETION_LOGPROBS = 5
# Most stop strings: each is looked for after each token.
MAX_STOPS = 16
# Fields of OpenAI's API that do nothing here, and the values that ask for
# nothing. Any other value is refused.
NOT_SUPPORTED = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
# The settings of `Engine.submit` that have the same name and meaning here.
SETTINGS = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "stop", "n"),
    "stop_token_ids",
)


class Strict(pydantic.BaseModel):
    """Takes the fields that it has, of their types, alone."""

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )


class StreamOptions(Strict):
    include_usage: bool = False


class Body(Strict):
    """What both kinds of request have. See `SamplingSettings`."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: object = None  # str or list of str: `SamplingSettings` looks
    stop_token_ids: list[int] | None = None
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None  # OpenAI's for their statistics; changes nothing

    def settings(self, most_new_tokens):
        """The arguments of `Engine.submit`.

        Args:
            most_new_tokens: int. The server's limit.
        """
        self._check_stop()
        settings = {
            name: getattr(self, name)
            for name in SETTINGS
            if getattr(self, name) is not None
        }
        if self.logit_bias is not None:
            settings["logit_bias"] = _token_ids(self.logit_bias)
        settings["max_new_tokens"] = self._new_tokens(most_new_tokens)
        settings["top_logprobs"] = self.wanted_logprobs() or 0
        return settings

    def _check_stop(self):
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOPS:
            raise ApiError(
                400,
                f"`stop` may have {MAX_STOPS} strings. Received: "
                f"{len(self.stop)}. Leave some out.",
                param="stop",
            )

    def _new_tokens(self, most):
        name, value = self._length()
        if value is not None and value > most:
            raise ApiError(
                400,
                f"`{name}` must be at most {most}, which this server allows. "
                f"Received: {value}. Ask for less, or start the server with "
                "a larger --max-new-tokens.",
                param=name,
            )
        return value or self.default_length(most)


class CompletionBody(Body):
    prompt: object  # str, list of ids, or list of these
    logprobs: int | None = None

    def _length(self):
        return "max_tokens", _checked_length("max_tokens", self.max_tokens)

    def default_length(self, most):
        return min(COMPLETION_TOKENS, most)

    def wanted_logprobs(self):
        """How many log-probabilities of each token; `None` for none."""
        most = COMPLETION_LOGPROBS
        if self.logprobs is not None and not 0 <= self.logprobs <= most:
            raise ApiError(
                400,
                f"`logprobs` must be in [0, {most}]. Received: "
                f"{self.logprobs}. /v1/chat/completions gives up to 20.",
                param="logprobs",
            )
        return self.logprobs

    def prompts(self):
        """The prompts, each a string or a list of token ids."""
        prompt = self.prompt
        if isinstance(prompt, str) or _is_ids(prompt):
            return [prompt]
        if isinstance(prompt, list) and prompt:
            if all(isinstance(p, str) or _is_ids(p) for p in prompt):
                return prompt
        raise ApiError(
            400,
            "`prompt` must be a string, a list of token ids, or a list of "
            f"such prompts, none of them empty. Received: {prompt!r:.80}.",
            param="prompt",
        )


class TextPart(Strict):
    type: str
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None  # a field of the answers, which clients send back

    def text(self):
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text":
                raise ApiError(
                    400,
                    "A message's parts must be of type 'text': the model "
                    f"reads nothing else. Received: {part.type!r:.80}.",
                    param="messages",
                )
        return "".join(part.text for part in self.content)


class ChatBody(Body):
    messages: list[Message] = pydantic.Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    def _length(self):
        names = ("max_completion_tokens", "max_tokens")
        for name in names:
            value = _checked_length(name, getattr(self, name))
            if value is not None:
                return name, value
        return names[0], None

    def default_length(self, most):
        return most

    def wanted_logprobs(self):
        """How many log-probabilities of each token; `None` for none."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400,
                "`top_logprobs` needs `logprobs`. Received: top_logprobs="
                f"{self.top_logprobs} alone. Add logprobs=true.",
                param="top_logprobs",
            )
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompt(self, turn_format):
        """What `Engine.submit` takes.

        Args:
            turn_format: of the preprocessor. Where it is `None` the model
                continues the messages' texts, as `ChatSession` has it.
        """
        messages = [
            {"role": m.role, "content": m.text()} for m in self.messages
        ]
        if turn_format is not None:
            return chat_template.fold_system(messages)
        text = ""
        for message in messages:
            if text and message["role"] != "assistant":
                text += "\n"
            text += message["content"]
        return text


def parse(body_class, data):
    """The fields of a request's body.

    Args:
        body_class: `CompletionBody` or `ChatBody`.
        data: bytes. JSON.

    Raises:
        ApiError: for what is no such body.
    """
    try:
        fields = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(
            400, f"The body must be JSON. Received: {error}."
        ) from error
    if not isinstance(fields, dict):
        raise ApiError(
            400,
            "The body must be a JSON object. Received: "
            f'{type(fields).__name__}. Send {{"prompt": "Hello"}}, say.',
        )
    fields = {k: v for k, v in fields.items() if v is not None}
    for name in [name for name in fields if name in NOT_SUPPORTED]:
        value = fields.pop(name)
        if name not in body_class.model_fields and not _is_one_of(
            value, NOT_SUPPORTED[name]
        ):
            raise ApiError(
                400,
                f"This server does not have OpenAI's `{name}`. Received: "
                f"{value!r:.80}. Leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return body_class.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _api_error(body_class, error.errors()[0]) from error


def _is_one_of(value, values):
    # Python has 1 == True.
    return any(type(value) is type(v) and value == v for v in values)


def _api_error(body_class, first):
    """OpenAI's shape of pydantic's first error."""
    place = ".".join(map(str, first["loc"]))
    name = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(body_class, first["loc"])
        message = (
            f"`{place:.80}` is no field of this request. "
            f"{did_you_mean(name, known)}It takes {', '.join(known)}."
        )
        return ApiError(400, message, param=place, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(
            400, f"The request needs `{place}`. Received: none.", param=place
        )
    return ApiError(
        400,
        f"`{place}`: {first['msg']}. Received: {first['input']!r:.80}.",
        param=place,
    )


def _fields_at(body_class, location):
    if location[0] == "stream_options":
        body_class = StreamOptions
    elif location[0] == "messages" and len(location) > 1:
        body_class = TextPart if "content" in location else Message
    return sorted(body_class.model_fields)


def _checked_length(name, value):
    if value is not None and value < 1:
        raise ApiError(
            400,
            f"`{name}` must be at least 1. Received: {value}.",
            param=name,
        )
    return value


def _is_ids(x):
    return (
        isinstance(x, list)
        and bool(x)
        and all(isinstance(id, int) and not isinstance(id, bool) for id in x)
    )


def _token_ids(bias):
    try:
        return {int(id): value for id, value in bias.items()}
    except ValueError as error:
        raise ApiError(
            400,
            "The keys of `logit_bias` must be token ids in quotes. Received: "
            f"{list(bias)!r:.80}.",
            param="logit_bias",
        ) from error
