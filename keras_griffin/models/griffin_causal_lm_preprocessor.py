import keras
from keras_hub.layers import StartEndPacker
from keras_hub.models import CausalLMPreprocessor

from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_tokenizer import GriffinTokenizer
from keras_griffin.models.griffin_tokenizer import check_text
from keras_griffin.models.preset_loading import find_preset


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

    Args:
        tokenizer: a `GriffinTokenizer`.
        sequence_length: int. Length of the rows, and default of `generate`'s
            `max_length`. Defaults to `1024` [tokens].
        add_start_token: bool. Begin with the start token. Defaults to `True`.
        add_end_token: bool. End training texts that fit with the end token.
            Defaults to `True`.
        **kwargs: see `keras_hub.models.CausalLMPreprocessor`.

    Call arguments:
        x: str, list of str, or array or `tf.Tensor` of strings.
        y: must be `None`: labels come from `x`. Ignored.
        sample_weight: must be `None`, likewise. Ignored.
        sequence_length: int. Overrides the constructor's.

    Returns:
        `(x, y, sample_weight)`: the dict of `"token_ids"` and
        `"padding_mask"`, the next tokens, and true where there is one. Shape
        `(batch, sequence_length)` each.

    Raises:
        ValueError: for inputs that are not text, and in `generate_preprocess`
            for a prompt longer than `sequence_length` (in a `tf.data`
            pipeline `tf.errors.InvalidArgumentError`).

    Example:
    ```python
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor.from_preset(
        "griffin_shakespeare_en", sequence_length=64
    )
    x, y, sample_weight = preprocessor(["To be, or not to be"])
    prompt = preprocessor.generate_preprocess(["ROMEO:"])
    preprocessor.generate_postprocess(prompt)  # ["ROMEO:"]
    ```

    Source:
        `keras_hub.models.CausalLMPreprocessor`.
    """

    backbone_cls = GriffinBackbone
    tokenizer_cls = GriffinTokenizer
    presets = GriffinBackbone.presets

    @classmethod
    def from_preset(cls, preset, **kwargs):
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
        source = find_preset(preset, load_weights=False)
        if source.kind == "keras":
            return super().from_preset(source.path, **kwargs)
        return cls(GriffinTokenizer.from_preset(preset), **kwargs)

    def export_to_transformers(self, path):
        """Writes the tokenizer for transformers. See `GriffinTokenizer`.

        Args:
            path: str or path. A folder; other files in it stay.
        """
        self.tokenizer.export_to_transformers(path)

    def build(self, input_shape):
        super().build(input_shape)
        if not self.add_start_token:
            # KerasHub starts prompts with the packer's token in any case.
            self.packer = StartEndPacker(
                end_value=self.tokenizer.end_token_id,
                pad_value=self.tokenizer.pad_token_id,
                sequence_length=self.sequence_length,
                return_padding_mask=True,
            )

    def call(self, x, y=None, sample_weight=None, sequence_length=None):
        check_text(x)
        return super().call(
            x,
            y=y,
            sample_weight=sample_weight,
            sequence_length=sequence_length,
        )

    def generate_preprocess(self, x, sequence_length=None):
        """Returns the token ids and padding mask of prompts.

        Args:
            x: str, list of str, or array or `tf.Tensor` of strings.
            sequence_length: int. Room for prompt and generated text. Defaults
                to the constructor's [tokens].

        Returns:
            dict of `"token_ids"` and `"padding_mask"`, shape
            `(batch, sequence_length)` or, for one string,
            `(sequence_length,)`.

        Raises:
            ValueError: for a prompt that is longer than `sequence_length`.
        """
        check_text(x)
        sequence_length = sequence_length or self.sequence_length
        self._check_fits(self.tokenizer(x), sequence_length)
        return super().generate_preprocess(x, sequence_length=sequence_length)

    def longest_prompt(self, x):
        """Returns the tokens of the longest prompt, the start token included.

        Args:
            x: str, list of str, or array or `tf.Tensor` of strings.
        """
        check_text(x)
        token_ids = self.tokenizer(x)
        rows = token_ids if isinstance(token_ids, list) else [token_ids]
        start = 1 if self.add_start_token else 0
        return start + max((len(row) for row in rows), default=0)

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
