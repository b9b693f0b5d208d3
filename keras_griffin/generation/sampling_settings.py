import dataclasses
import math
import numbers
import random

from keras_hub import samplers

from keras_griffin.generation.arguments import MAX_SEED
from keras_griffin.generation.arguments import check_lengths
from keras_griffin.generation.arguments import check_seed
from keras_griffin.generation.arguments import check_whole
from keras_griffin.near_names import check_arguments

# Most log-probabilities of a token: as many as OpenAI's API gives.
MAX_TOP_LOGPROBS = 20
# Most tokens that a draft proposes: those of one call of the device.
MAX_DRAFT_TOKENS = 32
PROMPT_LOOKUP = "prompt_lookup"


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How the next token of a text is chosen, and where the text ends.

    The names are those of OpenAI's and Hugging Face's APIs. In this order:
    the logits processor, `logit_bias`, the penalties, the temperature,
    `top_k`, `top_p` among those that are left, `min_p`, the draw.

    Args:
        max_new_tokens: int. Most new tokens. Defaults to `None`: see who
            takes the settings.
        temperature: float of at least 0. Divides the logits; 0 takes the
            likeliest token. Defaults to `1.0`.
        top_k: int. Draw from the `top_k` likeliest tokens. Defaults to
            `None`: from all.
        top_p: float in (0, 1]. Draw from the likeliest tokens that together
            reach this probability. Defaults to `1.0`.
        min_p: float in [0, 1]. Leave out tokens less likely than this part
            of the likeliest one's probability. Defaults to `0.0`.
        repetition_penalty: float above 0. Logits of tokens that the prompt or
            the new text has are divided by it where they are positive, and
            multiplied where they are negative. Defaults to `1.0`.
        presence_penalty: float. Taken from the logits of tokens that the new
            text has. Defaults to `0.0`.
        frequency_penalty: float. The same, for each time that it has them.
            Defaults to `0.0`.
        logit_bias: dict of token id to float, added to its logit. Defaults
            to `None`.
        seed: int in [0, 2**31 - 1]. A text's draws are a function of its seed
            and of the places of its tokens alone. Text `i` of several draws
            as `seed + i` would alone. Defaults to `None`: another one each
            time.
        stop_token_ids: see `GriffinCausalLM.generate`. Defaults to `"auto"`.
        stop: str or sequence of str. The text ends before the first of these.
            Defaults to `()`.
        top_logprobs: int in [0, 20]. How many of the likeliest tokens'
            log-probabilities to tell. Defaults to `0`.
        n: int. Texts of one prompt. Defaults to `1`.
        logits_processor: callable `(token_ids, logits) -> logits`, of NumPy
            arrays: the ids of the prompt and the new text `(tokens,)`, and
            the logits of the next token `(vocabulary_size,)`; `-inf` forbids
            a token. It runs on the host, once a token: each token is then a
            call of the device of its own. Defaults to `None`.
        draft: who proposes tokens, several of which the model then verifies
            in one pass: a smaller `GriffinCausalLM` of the same vocabulary,
            or `"prompt_lookup"`, which proposes what came after the same
            words before. The text is the one without it. Of `generate` and
            `generate_stream` alone. Defaults to `None`.
        draft_tokens: int in [1, 32]. Tokens proposed for a pass. Defaults to
            `4`.

    Raises:
        ValueError: for values out of their range.

    Example:
    ```python
    model.generate("ROMEO:", max_new_tokens=20, top_p=0.9, min_p=0.05)

    def no_question(token_ids, logits):
        logits[model.preprocessor.tokenizer.token_to_id("?")] = -np.inf
        return logits

    model.generate("ROMEO:", max_new_tokens=9, logits_processor=no_question)
    ```

    Source:
        arXiv:1904.09751 (top p), arXiv:2407.01082 (min p), arXiv:1909.05858
        (repetition penalty).
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict | None = None
    seed: int | None = None
    stop_token_ids: object = "auto"
    stop: tuple = ()
    top_logprobs: int = 0
    n: int = 1
    logits_processor: object = None
    draft: object = None
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        check_lengths(None, self.max_new_tokens)
        for name, (low, high, is_open) in RANGES.items():
            _check_number(name, getattr(self, name), low, high, is_open)
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1, None, "`None` takes all.")
        check_whole("n", self.n, 1, None, "It counts the texts of a prompt.")
        check_whole(
            "top_logprobs",
            self.top_logprobs,
            0,
            MAX_TOP_LOGPROBS,
            "The chosen token's is always told.",
        )
        if self.seed is not None:
            check_seed(self.seed)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        _check_bias(self.logit_bias)
        if self.logits_processor is not None and not callable(
            self.logits_processor
        ):
            raise ValueError(
                "`logits_processor` must be a function (token_ids, logits) -> "
                f"logits. Received: {self.logits_processor!r:.80}. To change "
                "logits by fixed numbers take `logit_bias`."
            )
        check_whole(
            "draft_tokens",
            self.draft_tokens,
            1,
            MAX_DRAFT_TOKENS,
            "4 is usual.",
        )

    def seeds(self, count: int) -> list[int]:
        """A seed for each of `count` texts."""
        first = random.randint(0, MAX_SEED) if self.seed is None else self.seed
        return [(first + i) % (MAX_SEED + 1) for i in range(count)]


NAMES = tuple(field.name for field in dataclasses.fields(SamplingSettings))
# Those that `generate` has no argument of its own for.
OF_A_CALL = (
    *("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "stop", "logits_processor"),
    *("draft", "draft_tokens"),
)
# Its own.
ARGUMENTS = (
    *("max_length", "max_new_tokens", "return_state", "sampler", "seed"),
    *("state", "stop_token_ids", "strip_prompt", "temperature"),
)
OF_A_REQUEST = tuple(n for n in NAMES if n not in ("draft", "draft_tokens"))
# Lowest and highest value, and whether the lowest is left out.
RANGES = {
    "temperature": (0, math.inf, False),
    "top_p": (0, 1, True),
    "min_p": (0, 1, False),
    "repetition_penalty": (0, math.inf, True),
    "presence_penalty": (-math.inf, math.inf, False),
    "frequency_penalty": (-math.inf, math.inf, False),
}


def call_settings(model, sampler, temperature, seed, given):
    """The settings of a call of `generate`, in place of a sampler."""
    if sampler is not None:
        raise ValueError(
            "A call takes a sampler or settings that draw without one. "
            f"Received: sampler={sampler!r:.80} and {', '.join(given)}. Leave "
            "one of them out."
        )
    check_arguments("generate", given, (*OF_A_CALL, *ARGUMENTS))
    if temperature is None and set(given) <= {"draft", "draft_tokens"}:
        temperature = _of_greedy_sampler(model.sampler)
    if temperature is not None:
        given = {**given, "temperature": temperature}
    settings = SamplingSettings(**given, seed=seed)
    check_vocabulary(settings, model.backbone.vocabulary_size)
    check_has_text(model, settings)
    if settings.draft is not None:
        _check_draft(model, settings)
    return settings


def _of_greedy_sampler(sampler):
    """The temperature that does what the model's sampler does."""
    if isinstance(sampler, samplers.GreedySampler):
        return 0
    raise ValueError(
        "With a draft, tokens are drawn by settings, not by the model's "
        f"sampler. Received: a {type(sampler).__name__} and no settings. Give "
        "temperature=0 for the likeliest tokens, or temperature=1.0 and "
        "perhaps top_p."
    )


def _check_draft(model, settings):
    draft, size = settings.draft, model.backbone.vocabulary_size
    if settings.logits_processor is not None:
        raise ValueError(
            "A logits processor sees one token after the other, and a draft "
            "proposes several. Received: both. Leave one of them out."
        )
    if isinstance(draft, str) and draft == PROMPT_LOOKUP:
        return
    backbone = getattr(draft, "backbone", None)
    if not hasattr(backbone, "call_with_state"):
        raise ValueError(
            f"`draft` must be a GriffinCausalLM or {PROMPT_LOOKUP!r}. "
            f"Received: {draft!r:.80}. `None` proposes nothing."
        )
    if backbone.vocabulary_size != size:
        raise ValueError(
            "A draft must have the model's vocabulary. Received: one of "
            f"{backbone.vocabulary_size} tokens for a model of {size}. Take a "
            "smaller model with the same tokenizer."
        )


def check_has_text(model, settings):
    """Raises where stop strings would be looked for without text."""
    if settings.stop and model.preprocessor is None:
        raise ValueError(
            "Stop strings are looked for in text, so that the model needs a "
            f"preprocessor. Received: stop={settings.stop!r:.80}. Take "
            "`stop_token_ids`."
        )


def check_vocabulary(settings, vocabulary_size):
    """Raises where a bias is of no token of the vocabulary."""
    for id in settings.logit_bias or ():
        if not 0 <= id < vocabulary_size:
            raise ValueError(
                "`logit_bias` must be of token ids in "
                f"[0, {vocabulary_size - 1}], the vocabulary. Received: {id}. "
                "The tokenizer's `token_to_id` gives the id of a token."
            )


def _check_number(name, value, low, high, is_open):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and low <= value <= high:
        if not (is_open and value == low):
            return
    bounds = f"{'(' if is_open or low == -math.inf else '['}{low}, {high}"
    bounds += ")" if high == math.inf else "]"
    raise ValueError(
        f"`{name}` must be a number in {bounds}. Received: {name}={value!r}. "
        f"Without it, it is {DEFAULTS[name]}, which changes nothing."
    )


def _stop_strings(stop):
    strings = (stop,) if isinstance(stop, str) else stop
    strings = () if strings is None else strings
    is_sequence = isinstance(strings, (list, tuple))
    if not is_sequence or not all(isinstance(s, str) and s for s in strings):
        raise ValueError(
            "`stop` must be a string or a sequence of strings, none of them "
            f"empty. Received: {stop!r:.80}. Ids of tokens go into "
            "`stop_token_ids`."
        )
    return tuple(strings)


def _check_bias(bias):
    if bias is None:
        return
    is_bias = isinstance(bias, dict) and all(
        isinstance(id, numbers.Integral)
        and isinstance(value, numbers.Real)
        and math.isfinite(value)
        for id, value in bias.items()
    )
    if not is_bias:
        raise ValueError(
            "`logit_bias` must be a dict of token id to a finite number. "
            f"Received: {bias!r:.80}. -100 all but forbids a token."
        )


DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(SamplingSettings)
}
