from __future__ import annotations

import os
import sys
from typing import Any
from typing import Self

import keras
import numpy as np
from keras_hub.tokenizers import SentencePieceTokenizer

from keras_griffin import keras_compat
from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.checkpoints.preset_loading import loading
from keras_griffin.checkpoints.preset_loading import tokenizer_path
from keras_griffin.files import inside
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.near_names import check_arguments_of

# Above it KerasHub takes a string for an encoded model [characters].
LONGEST_PATH = 2048


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinTokenizer(SentencePieceTokenizer):
    """Text to token ids and back, by SentencePiece.

    `detokenize(tokenize(text)) == text` for the tokenizers of all presets:
    newlines, tabs, runs of spaces and any Unicode survive, characters out of
    the vocabulary as their UTF-8 bytes. The one exception is SentencePiece's
    own sign for a space, U+2581, which comes back as a space.

    Args:
        proto: str or bytes. Path of a SentencePiece model, or its bytes. It
            must have the pieces `<bos>`, `<eos>` and `<pad>`, as Gemma's and
            RecurrentGemma's have.
        **kwargs: see `keras_hub.tokenizers.SentencePieceTokenizer`.

    Call arguments:
        inputs: str, list of str, or array or `tf.Tensor` of strings.

    Returns:
        Token ids: for one string an int32 array `(tokens,)`, for a list a
        list of lists (in `tf.data` a ragged tensor).

    Raises:
        ValueError: for a vocabulary without the special tokens, for inputs
            that are not text, and in `detokenize` for ids that are not
            integers or lie outside of the vocabulary.

    Example:
    ```python
    tokenizer = keras_griffin.GriffinTokenizer.from_preset(
        "griffin_shakespeare_en"
    )
    ids = tokenizer("To be, or not to be")
    tokenizer.detokenize(ids)  # "To be, or not to be"
    ```

    Source:
        SentencePiece, arXiv:1808.06226; special tokens as in RecurrentGemma,
        arXiv:2404.07839 (pad 0, end 1, start 2).
    """

    backbone_cls = GriffinBackbone
    presets = GriffinBackbone.presets

    def __init__(self, proto: str | bytes | None = None, **kwargs: Any) -> None:
        check_arguments_of(type(self), kwargs)
        keras_compat.add_special_token(self, "<bos>", "start_token")
        keras_compat.add_special_token(self, "<eos>", "end_token")
        keras_compat.add_special_token(self, "<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)

    @classmethod
    def from_preset(cls, preset: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads the tokenizer of a preset. See `GriffinCausalLM.from_preset`.

        Args:
            preset: str. A name, a folder or a handle. Of a name or folder
                only the tokenizer is read or downloaded.
            **kwargs: further arguments of the constructor.

        Returns:
            A `GriffinTokenizer`.

        Raises:
            ValueError: for a preset without a tokenizer, and as
                `GriffinCausalLM.from_preset`.
        """
        check_arguments_of(cls, kwargs)
        source = find_preset(preset, load_weights=False)
        if source.kind == "keras":
            with loading(source, weights=False):
                return super().from_preset(source.path, **kwargs)
        path = tokenizer_path(source)
        with open(path, "rb") as file:
            return cls(file.read(), **kwargs)

    def export_to_transformers(self, path: str | os.PathLike[str]) -> None:
        """Writes what transformers reads a tokenizer from.

        Args:
            path: str or path. A folder; other files in it stay.
        """
        exporting.export_tokenizer(path, self)

    def save_to_preset(self, preset_dir: str | os.PathLike[str]) -> None:
        """Saves the tokenizer as KerasHub does, whole or not at all.

        Args:
            preset_dir: str or path. A folder; other files in it stay.
        """
        exporting.save_part_of_preset(super().save_to_preset, preset_dir)

    def load_assets(self, dir_path: str | os.PathLike[str]) -> None:
        # KerasHub's own method leaves the file open.
        name = self.file_assets[0]
        path = inside.file_inside(dir_path, name, inside.TOKENIZER_LIMIT)
        self.set_proto(path.read_bytes())

    def set_proto(self, proto: str | bytes | None) -> None:
        """Takes a SentencePiece model: see the class."""
        if isinstance(proto, str) and len(proto) <= LONGEST_PATH:
            inside.regular_file(proto, inside.TOKENIZER_LIMIT)
        tf = sys.modules.get("tensorflow")
        damage = (
            RuntimeError if tf is None else (RuntimeError, tf.errors.OpError)
        )
        try:
            super().set_proto(proto)
        except damage as error:
            size = len(proto or "")
            received = (
                f"{size} bytes" if size > LONGEST_PATH else (f"{proto!r:.80}")
            )
            raise ValueError(
                "A tokenizer must be a SentencePiece model. Received: "
                f"{received}, which is none ({error}). Take the file "
                "`tokenizer.model` or `vocabulary.spm` of the checkpoint anew."
            ) from error

    def tokenize(self, inputs: Any) -> Any:
        """Returns the token ids of text. See the class."""
        check_text(inputs)
        self._restore_for_pipeline()
        return super().tokenize(inputs)

    def detokenize(self, inputs: Any) -> Any:
        """Returns the text of token ids; bytes that are no UTF-8 as U+FFFD.

        Args:
            inputs: int, list of ints, list of such lists, or an integer array
                or tensor of rank 1 or 2.

        Returns:
            A string, or a list of them.
        """
        self._check_ids(inputs)
        self._restore_for_pipeline()
        return super().detokenize(inputs)

    def _restore_for_pipeline(self):
        """Makes TensorFlow's tokenizer anew if it is gone, for a pipeline.

        `keras.utils.set_random_seed` clears TensorFlow's caches and with them
        the model that `tensorflow_text` holds there, so that without this
        `fit` on text fails after it (KerasHub 0.32, tensorflow-text 2.21).
        """
        tf = sys.modules.get("tensorflow")
        if tf is None or tf.executing_eagerly():
            return
        held = keras_compat.tensorflow_tokenizer(self)
        if held is None:
            return
        with tf.init_scope():
            try:
                held.vocab_size()
            except tf.errors.NotFoundError:
                self.set_proto(self.proto)

    def _check_ids(self, inputs):
        if type(inputs).__module__.startswith("tensorflow"):
            if not inputs.dtype.is_integer:
                _refuse_ids(f"dtype {inputs.dtype.name}")
            if type(inputs).__name__ != "EagerTensor":
                return  # Of a pipeline, or ragged: no values to look at.
        if keras.ops.is_tensor(inputs):
            inputs = keras.ops.convert_to_numpy(inputs)
        for row in _rows(inputs):
            if row.size == 0:
                continue
            if not np.issubdtype(row.dtype, np.integer):
                _refuse_ids(f"{row.dtype} {row.ravel()[:3].tolist()}")
            low, high = int(row.min()), int(row.max())
            size = self.vocabulary_size()
            if low < 0 or high >= size:
                raise ValueError(
                    f"Token ids must lie in [0, {size - 1}], the vocabulary. "
                    f"Received: ids from {low} to {high}. Is the tokenizer "
                    "the one of the model that made them?"
                )


def check_text(inputs):
    """Raises a `ValueError` unless `inputs` are strings.

    Args:
        inputs: what should be a string, a list or tuple of strings, or an
            array or tensor of strings.
    """
    if isinstance(inputs, (list, tuple)):
        for element in inputs:
            if not _is_text(element):
                kind = type(inputs).__name__
                _refuse_text(element, f"a {kind} with {_describe(element)}")
    elif not _is_text(inputs):
        _refuse_text(inputs, _describe(inputs))
    elif isinstance(inputs, np.ndarray) and inputs.ndim > 1:
        _refuse_text(inputs.tolist(), f"an array of shape {inputs.shape}")


def _is_text(x):
    if isinstance(x, (str, bytes)):
        _check_utf8(x)
        return True
    dtype = getattr(x, "dtype", None)
    if isinstance(dtype, np.dtype):
        if dtype.kind == "O":
            return all(isinstance(e, (str, bytes)) for e in x.ravel())
        return dtype.kind in "SUT"
    # `tf.string` and Keras' "string".
    return getattr(dtype, "name", dtype) == "string"


def _check_utf8(text):
    try:
        # Sentencepiece's own error does not say more than "utf-8".
        text.decode() if isinstance(text, bytes) else text.encode()
    except UnicodeError as error:
        raise ValueError(
            "Text must be Unicode that UTF-8 can encode. Received: "
            f"{text!r:.50} ({error}). Read files with `errors='replace'`."
        ) from error


def _refuse_text(x, received):
    if isinstance(x, dict):
        advice = (
            "Token ids need no preprocessor: build the model with "
            "`preprocessor=None`."
        )
    elif isinstance(x, (list, tuple)):
        advice = "Flatten it into one list of strings."
    else:
        advice = (
            "`detokenize` turns ids into text; a model that is given ids "
            "takes `preprocessor=None`."
        )
    raise ValueError(
        "Text must be a string, or a list, array or tensor of strings. "
        f"Received: {received}. {advice}"
    )


def _refuse_ids(received):
    raise ValueError(
        f"Token ids must be integers. Received: {received}. `tokenize` turns "
        "text into ids."
    )


def _describe(x):
    if isinstance(x, dict):
        return f"a dict with {sorted(map(str, x))}"
    dtype = getattr(x, "dtype", None)
    if dtype is not None:
        return f"{type(x).__name__} of dtype {getattr(dtype, 'name', dtype)}"
    return f"{type(x).__name__} {x!r:.50}"


def _rows(inputs):
    """The rows of a list of (lists of) ids as arrays."""
    nested = isinstance(inputs, (list, tuple)) and any(
        np.ndim(row) for row in inputs
    )
    return [np.asarray(row) for row in (inputs if nested else [inputs])]
