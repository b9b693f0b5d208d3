"""The training of `keras-griffin train`, once Keras is there."""

import functools
import shutil
import sys
import time

import keras
import numpy as np

from keras_griffin.cli import loading
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.models.griffin_tokenizer import GriffinTokenizer
from keras_griffin.training import vocabulary
from keras_griffin.training.griffin_adam_w import GriffinAdamW
from keras_griffin.training.griffin_packer import GriffinPacker
from keras_griffin.training.resumable_data import ResumableData
from keras_griffin.training.resumable_fit import resumable_fit

# A vocabulary is learned from so much of the text [characters].
LEARNED = 10_000_000
VALIDATION_PART, VALIDATION_ROWS = 0.1, 256
SAMPLE_TOKENS = 64
BACKUP = "backup"  # in the folder, until the end


def train(arguments, sizes, texts, record, folder):
    """Trains a model, reports, and saves it as a preset.

    Args:
        arguments: of the command, with a learning rate.
        sizes: dict. Arguments of `GriffinBackbone`.
        texts: list of str.
        record: `keras_griffin.cli.train.Record`.
        folder: path, of the preset and the backups.

    Raises:
        ValueError: for a text that is too short, or a vocabulary that does
            not fit it.
    """
    keras.utils.set_random_seed(arguments.seed)
    with loading.without_tokenizer_line():
        tokenizer = _tokenizer(arguments.tokenizer, texts)
    rows = _rows(tokenizer, texts, arguments.row_length)
    data, validation = _split(rows, arguments)
    size = tokenizer.vocabulary_size()
    model = GriffinCausalLM(
        GriffinBackbone(**{**sizes, "vocabulary_size": size}),
        GriffinCausalLMPreprocessor(tokenizer),
    )
    model.compile(
        optimizer=GriffinAdamW(
            arguments.learning_rate, num_steps=arguments.steps
        ),
        weighted_metrics=[],
    )
    print(f"{model.count_params():,} parameters", flush=True)
    resumable_fit(
        model,
        data,
        folder / BACKUP,
        epochs=arguments.steps // arguments.report_every,
        save_freq=arguments.report_every,
        callbacks=[Report(record, arguments)],
        validation_data=validation,
        verbose=0,
    )
    model.save_to_preset(folder)
    shutil.rmtree(folder / BACKUP)


def _tokenizer(name, texts):
    """The tokenizer of `--tokenizer`."""
    if name.isdecimal():
        text = "".join(texts)[:LEARNED]
        proto = vocabulary.learn(text, int(name))
    elif name == "bytes":
        proto = vocabulary.of_bytes()
    else:
        return GriffinTokenizer.from_preset(name)
    return GriffinTokenizer(proto)


def _rows(tokenizer, texts, length):
    """Packed rows `(x, y, sample_weight)`, in the order of the texts."""
    documents, tokens = [], 0
    for ids in tokenizer(texts):
        ids = [*ids, tokenizer.end_token_id]
        tokens += len(ids)
        # Each piece begins as a prompt does.
        documents += [
            [tokenizer.start_token_id, *ids[start : start + length - 1]]
            for start in range(0, len(ids), length - 1)
        ]
    rows = GriffinPacker(length)(documents)
    if len(rows[1]) < 2:
        raise ValueError(
            "Texts must fill 2 rows at least, one of them for validation. "
            f"Received: {tokens} tokens for rows of {length}. Give more text, "
            "or a smaller --row-length."
        )
    print(
        f"{tokens:,} tokens of {sum(map(len, texts)) / tokens:.2f} characters, "
        f"in {len(rows[1]):,} rows"
    )
    return rows


def _split(rows, arguments):
    """What is trained on, without an end, and what for validation."""
    held_out = min(VALIDATION_ROWS, int(VALIDATION_PART * len(rows[1])))
    held_out = max(1, held_out)
    count, size = len(rows[1]) - held_out, arguments.batch_size

    def part(where):
        return keras.tree.map_structure(lambda array: array[where], rows)

    @functools.lru_cache(maxsize=2)  # a batch may end one pass
    def order(number):
        rng = np.random.default_rng((arguments.seed, number))
        return rng.permutation(count)

    def batch(epoch, index):
        first = (epoch * arguments.report_every + index) * size
        places = [divmod(i, count) for i in range(first, first + size)]
        return part([order(number)[i] for number, i in places])

    return (
        ResumableData(batch, arguments.report_every),
        ResumableData.from_arrays(*part(slice(count, None)), size, False),
    )


class Report(keras.callbacks.Callback):
    """Prints losses and a sample after each epoch, the part of a report.

    Args:
        record: `keras_griffin.cli.train.Record`.
        arguments: of the command.
    """

    def __init__(self, record, arguments):
        super().__init__()
        self._record = record
        self._steps = arguments.steps
        self._every = arguments.report_every
        self._tokens = arguments.batch_size * arguments.row_length
        self._is_terminal = sys.stdout.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self._done = self._every * epoch
        self._trained, self._started = 0, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._trained += 1
        if self._is_terminal:
            loss = float(logs["loss"])
            step = self._done + batch + 1
            print(f"\rstep {step}: loss {loss:.4f}  ", end="", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self._started
        step = self._done + self._every
        losses = {
            "training": float(logs["loss"]),
            "validation": float(logs["val_loss"]),
        }
        print(
            f"{self._is_terminal * chr(13)}step {step} of {self._steps}: "
            f"loss {losses['training']:.4f}, validation "
            f"{losses['validation']:.4f}, "
            f"{self._trained * self._tokens / seconds:,.0f} tokens a second"
        )
        text = self.model.generate("", max_new_tokens=SAMPLE_TOKENS, seed=0)
        print("  | " + text.replace("\n", "\n  | "), flush=True)
        # Last: the backup follows, and Ctrl-C in a sample comes before it.
        self._record.add(step, losses)
