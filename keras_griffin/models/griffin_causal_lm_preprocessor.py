from __future__ import annotations

import os
from typing import Any
from typing import Self

import keras
import numpy as np
from keras_hub.layers import StartEndPacker
from keras_hub.models import CausalLMPreprocessor

from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints.preset_download import CHAT_TEMPLATE_FILE
from keras_griffin.checkpoints.preset_download import TOKENIZER_CONFIG_FILE
from keras_griffin.checkpoints.preset_index import preprocessor_arguments
from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.checkpoints.preset_loading import loading
from keras_griffin.files import inside
from keras_griffin.generation import chat_template
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_tokenizer import GriffinTokenizer
from keras_griffin.models.griffin_tokenizer import check_text
from keras_griffin.near_names import check_arguments_of

PAIR = {"prompts", "responses"}
# Conversations on their way through a pipeline.
TURNS_KEY = "turns"


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinCausalLMPreprocessor(CausalLMPreprocessor):
    """Text to what `GriffinCausalLM` trains on and generates from.

    Called, it makes rows of `sequence_length` tokens for training: the text
    between a start and an end token, cut off or padded, with each position's
    next token as its label. `generate_preprocess` and `generate_postprocess`
    stand at both ends of `GriffinCausalLM.generate`.

    Two things differ from KerasHub's other preprocessors: a prompt that does
    not fit is an error, not cut off without a word, and `add_start_token`
    holds for prompts too.

    Besides text it takes instructions, of which only the responses are
    learned: `{"prompts": ..., "responses": ...}` and, with a `turn_format`,
    conversations, lists of messages `{"role": "user" or "model", "content":
    ...}` (`"assistant"` is `"model"`). With `turn_format="gemma"` both are
    written in turns,
    ```
    <start_of_turn>user
    Hello<end_of_turn>
    <start_of_turn>model
    Hi!<end_of_turn>
    ```
    and what is learned is the model's words and its `<end_of_turn>`; without,
    a response follows its prompt and ends with the end token. A content that
    spells `<end_of_turn>` out is read as these letters, not as the token.

    Args:
        tokenizer: a `GriffinTokenizer`.
        sequence_length: int. Length of the rows, and default of `generate`'s
            `max_length`. Defaults to `1024` [tokens].
        add_start_token: bool. Begin with the start token. Defaults to `True`.
        add_end_token: bool. End training texts that fit with the end token;
            turns have their own end. Defaults to `True`.
        turn_format: `"gemma"`, which the instruction-tuned presets have, or
            `None`. Plain strings stay as they are in any case. Defaults to
            `None`.
        **kwargs: see `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: str, list of str, or array or `tf.Tensor` of strings; a dict of
            them as `"prompts"` and `"responses"`; a list of messages, or a
            list of such lists (which a `tf.data` pipeline can't hold).
        y: must be `None`: labels come from `x`. Ignored.
        sample_weight: must be `None`, likewise. Ignored.
        sequence_length: int. Overrides the constructor's.

    Returns:
        `(x, y, sample_weight)`: the dict of `"token_ids"` and
        `"padding_mask"`, the next tokens, and true where there is one that is
        to be learned. Shape `(batch, sequence_length)` each.

    Raises:
        ValueError: for an unknown `turn_format` or a vocabulary without its
            tokens, for inputs that are not text, for messages without a
            `turn_format`, in another order or of another role, and in
            `generate_preprocess` for a prompt longer than `sequence_length`
            (in a `tf.data` pipeline `tf.errors.InvalidArgumentError`).

    Example:
    ```python
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor.from_preset(
        "griffin_shakespeare_en", sequence_length=64
    )
    x, y, sample_weight = preprocessor(["To be, or not to be"])
    prompt = preprocessor.generate_preprocess(["ROMEO:"])
    preprocessor.generate_postprocess(prompt)  # ["ROMEO:"]

    data = {"prompts": ["Who is there?"], "responses": ["Romeo."]}
    x, y, sample_weight = preprocessor(data)  # weight on the response alone
    ```

    Source:
        `keras_hub.models.CausalLMPreprocessor`.
    """

    backbone_cls = GriffinBackbone
    tokenizer_cls = GriffinTokenizer
    presets = GriffinBackbone.presets

    def __init__(
        self,
        tokenizer: GriffinTokenizer,
        sequence_length: int = 1024,
        add_start_token: bool = True,
        add_end_token: bool = True,
        turn_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments_of(type(self), kwargs)
        if turn_format not in chat_template.TURN_FORMATS:
            raise ValueError(
                f"`turn_format` must be one of {chat_template.TURN_FORMATS}. "
                f"Received: {turn_format!r}. RecurrentGemma's "
                "instruction-tuned models use 'gemma'."
            )
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            add_start_token=add_start_token,
            add_end_token=add_end_token,
            **kwargs,
        )
        self.turn_format = turn_format

    @classmethod
    def from_preset(cls, preset: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads the preprocessor of a preset, with its tokenizer.

        Args:
            preset: str. A name, a folder or a handle, as of
                `GriffinTokenizer.from_preset`.
            **kwargs: arguments of the constructor to override,
                `sequence_length` say.

        Returns:
            A `GriffinCausalLMPreprocessor`.

        Raises:
            ValueError: as `GriffinTokenizer.from_preset`.
        """
        check_arguments_of(cls, kwargs)
        source = find_preset(preset, load_weights=False)
        if source.kind == "keras":
            with loading(source, weights=False):
                return super().from_preset(source.path, **kwargs)
        if source.kind == "huggingface":
            kwargs = {"turn_format": _turn_format(source.path), **kwargs}
        kwargs = {**preprocessor_arguments(preset), **kwargs}
        return cls(GriffinTokenizer.from_preset(preset), **kwargs)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end what is generated, a tuple."""
        stops = (self.tokenizer.end_token_id,)
        if self.turn_format is None:
            return stops
        return (*stops, self.tokenizer.token_to_id(chat_template.END_OF_TURN))

    def save_to_preset(self, preset_dir: str | os.PathLike[str]) -> None:
        """Saves the preprocessor as KerasHub does, whole or not at all.

        Args:
            preset_dir: str or path. A folder; other files in it stay.
        """
        exporting.save_part_of_preset(super().save_to_preset, preset_dir)

    def export_to_transformers(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer for transformers, and the turn format.

        Args:
            path: str or path. A folder; other files in it stay.
        """
        exporting.export_tokenizer(path, self.tokenizer, self.turn_format)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.turn_format is not None:
            _check_turn_tokens(self.tokenizer)
        self._learned_packer = StartEndPacker(
            start_value=0 if self.add_start_token else None,
            end_value=1,
            pad_value=0,
            sequence_length=self.sequence_length,
        )
        if not self.add_start_token:
            # KerasHub starts prompts with the packer's token in any case.
            self.packer = StartEndPacker(
                end_value=self.tokenizer.end_token_id,
                pad_value=self.tokenizer.pad_token_id,
                sequence_length=self.sequence_length,
                return_padding_mask=True,
            )

    def call(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        sequence_length: int | None = None,
    ) -> Any:
        x = self.for_pipeline(x)
        if isinstance(x, dict) and set(x) & {*PAIR, TURNS_KEY}:
            _check_pairs(x)
            return self._call_on_pairs(x, sequence_length)
        check_text(x)
        # KerasHub puts the end token where it cuts a text off: into a column
        # more than wanted, which is left out.
        packed = super().call(
            x,
            y=y,
            sample_weight=sample_weight,
            sequence_length=(sequence_length or self.sequence_length) + 1,
        )
        return keras.tree.map_structure(lambda rows: rows[..., :-1], packed)

    def for_pipeline(self, x: Any) -> Any:
        """Conversations to learn from as strings, anything else as it is."""
        if chat_template.is_conversation(x):
            return {TURNS_KEY: self._render(x, "model")}
        if chat_template.are_conversations(x):
            return {TURNS_KEY: [self._render(c, "model") for c in x]}
        return x

    def _render(self, messages, last):
        if self.turn_format is None:
            raise ValueError(
                "Messages need a `turn_format`. Received: a list of messages, "
                "and turn_format=None. For a model that knows Gemma's turns "
                "load the preprocessor with turn_format='gemma', or write the "
                "conversation as plain text."
            )
        return chat_template.render(messages, last)

    def _call_on_pairs(self, x, sequence_length):
        # As in `call`, with one column more for the labels.
        length = (sequence_length or self.sequence_length) + 2
        token_ids, learned = self._tokenize_pairs(x)
        arguments = {
            "sequence_length": length,
            "add_start_value": self.add_start_token,
            "add_end_value": self.add_end_token and self.turn_format is None,
        }
        token_ids, mask = self.packer(token_ids, **arguments)
        learned = self._learned_packer(learned, **arguments)
        x = {"token_ids": token_ids[..., :-2], "padding_mask": mask[..., :-2]}
        return x, token_ids[..., 1:-1], learned[..., 1:-1] == 1

    def _tokenize_pairs(self, x):
        """Token ids of a dict of texts, and which of them are learned."""
        first = next(iter(x.values()))
        if _is_symbolic(first):
            texts, scalar = self._join(x), first.shape.rank == 0
            texts = texts[None] if scalar else texts
        else:
            scalar = isinstance(first, str) or getattr(first, "ndim", 1) == 0
            columns = {
                name: chat_template.strings(text) for name, text in x.items()
            }
            sizes = {name: len(texts) for name, texts in columns.items()}
            if len(set(sizes.values())) > 1:
                raise ValueError(
                    "There must be one response for each prompt. Received: "
                    f"{sizes}. Give lists of the same length."
                )
            rows = zip(*columns.values(), strict=True)
            texts = [
                self._join(dict(zip(columns, row, strict=True))) for row in rows
            ]
        ids, learned = chat_template.tokenize(self.tokenizer, texts)
        return (ids[0], learned[0]) if scalar else (ids, learned)

    def _join(self, x):
        if TURNS_KEY in x:
            return x[TURNS_KEY]
        if self.turn_format is None:
            return chat_template.plain_pair(x["prompts"], x["responses"])
        return chat_template.user_turn(x["prompts"]) + chat_template.model_turn(
            x["responses"]
        )

    def _tokenize_prompts(self, x):
        if isinstance(x, chat_template.Turns):
            ids, _ = chat_template.tokenize(self.tokenizer, [x])
            return np.array(ids[0], "int32")
        if isinstance(x, list) and any(
            isinstance(t, chat_template.Turns) for t in x
        ):
            return chat_template.tokenize(self.tokenizer, x)[0]
        return self.tokenizer(x)

    def render_prompts(self, x: Any) -> Any:
        """Conversations to answer as strings, anything else checked."""
        if chat_template.is_conversation(x):
            return self._render(x, "user")
        if chat_template.are_conversations(x):
            return [self._render(c, "user") for c in x]
        check_text(x)
        return x

    def generate_preprocess(
        self, x: Any, sequence_length: int | None = None
    ) -> dict[str, Any]:
        """Returns the token ids and padding mask of prompts.

        Args:
            x: str, list of str, or array or `tf.Tensor` of strings; or
                messages, the last one the user's, or a list of such lists.
            sequence_length: int. Room for prompt and generated text. Defaults
                to the constructor's [tokens].

        Returns:
            dict of `"token_ids"` and `"padding_mask"`, shape
            `(batch, sequence_length)` or, for one string,
            `(sequence_length,)`.

        Raises:
            ValueError: for a prompt that is longer than `sequence_length`.
        """
        if not self.built:
            self.build(None)
        sequence_length = sequence_length or self.sequence_length
        token_ids = self._tokenize_prompts(self.render_prompts(x))
        self._check_fits(token_ids, sequence_length)
        token_ids, padding_mask = self.packer(
            token_ids, sequence_length=sequence_length, add_end_value=False
        )
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    def prompt_rows(self, x: Any, is_start: bool = True) -> list[list[int]]:
        """Returns the token ids of prompts as a list of lists, unpadded.

        Args:
            x: list, array or `tf.Tensor` of strings, or a list of lists of
                messages.
            is_start: bool. Whether the prompts begin with the start token,
                if the preprocessor adds one. Defaults to `True`.
        """
        x = self.render_prompts(x)
        if not isinstance(x, list):
            x = chat_template.strings(x)
        start = [self.tokenizer.start_token_id] if self.add_start_token else []
        rows = self._tokenize_prompts(x)
        return [[*(start if is_start else []), *row] for row in rows]

    def _check_fits(self, token_ids, sequence_length):
        start = 1 if self.add_start_token else 0
        rule = (
            "A prompt must fit into `max_length` (here `sequence_length`) "
            f"tokens{', the start token included' if start else ''}. "
            f"Received: max_length={sequence_length}"
        )
        advice = (
            "Shorten the prompt, or give more room: "
            "`generate(..., max_length=...)`."
        )
        if type(token_ids).__module__.startswith("tensorflow"):
            # In a `tf.data` pipeline the length is not known yet.
            import tensorflow as tf

            if isinstance(token_ids, tf.RaggedTensor):
                longest = tf.reduce_max(token_ids.row_lengths())
            else:
                longest = tf.shape(token_ids)[-1]
            tf.debugging.assert_less_equal(
                longest + start,
                tf.cast(sequence_length, longest.dtype),
                message=f"{rule} and a longer prompt. {advice}",
            )
            return
        rows = token_ids if isinstance(token_ids, list) else [token_ids]
        longest = start + max((len(row) for row in rows), default=0)
        if longest > sequence_length:
            raise ValueError(
                f"{rule} and a prompt of {longest} tokens. {advice}"
            )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "turn_format": self.turn_format}


def _check_pairs(x):
    if set(x) not in (PAIR, {TURNS_KEY}):
        raise ValueError(
            "Instructions must be a dict of 'prompts' and 'responses'. "
            f"Received: a dict with {sorted(x)}. Prompts alone are learned as "
            "plain text, without a dict."
        )
    for texts in x.values():
        check_text(texts)


def _is_symbolic(x):
    """Whether `x` is a tensor in a `tf.data` pipeline."""
    return type(x).__module__.startswith("tensorflow") and (
        type(x).__name__ != "EagerTensor"
    )


def _turn_format(folder):
    """The turn format of a checkpoint in Hugging Face's format."""
    # Newer versions of transformers give a template a file of its own.
    for name in (CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE):
        if not inside.has_file(folder, name):
            continue
        if name == TOKENIZER_CONFIG_FILE:
            text = str(inside.read_json(folder, name).get("chat_template"))
        else:
            path = inside.file_inside(folder, name, inside.JSON_LIMIT)
            text = path.read_text(encoding="utf-8", errors="replace")
        if chat_template.START_OF_TURN in text:
            return "gemma"
    return None


def _check_turn_tokens(tokenizer):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(
        model_proto=tokenizer.proto
    )
    for token in (chat_template.START_OF_TURN, chat_template.END_OF_TURN):
        ids = processor.encode(token)
        if len(ids) != 1 or processor.id_to_piece(ids[0]) != token:
            raise ValueError(
                "turn_format='gemma' needs a vocabulary that reads "
                f"{chat_template.START_OF_TURN} and "
                f"{chat_template.END_OF_TURN} as one token each "
                "(user-defined pieces, and no space put in front). "
                f"Received: one that reads {token} as "
                f"{[processor.id_to_piece(i) for i in ids]}. Take the "
                "tokenizer of an instruction-tuned model, or turn_format=None."
            )
