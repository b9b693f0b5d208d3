"""Makes the shipped preset `griffin_shakespeare_en` anew, in one command.

    KERAS_BACKEND=jax python benchmarks/quality/train_shakespeare_preset.py

It trains a SentencePiece tokenizer and a Griffin on the first 90 % of Tiny
Shakespeare, writes `presets/griffin_shakespeare_en/` (float16 weights,
tokenizer, model card), loads that again by `from_preset` and measures its loss
on the whole last 10 %, in nats a character. Needs TensorFlow for `tf.data`.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # So that it runs from a checkout.

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.checkpoints.preset_index import parameter_count  # noqa: E402
from keras_griffin.training import vocabulary  # noqa: E402

NAME = "griffin_shakespeare_en"
DATA = Path(__file__).resolve().parents[1] / "data" / "tinyshakespeare.txt"
SCRIPT = "benchmarks/quality/train_shakespeare_preset.py"
TRAIN_FRACTION = 0.9  # nanoGPT, data/shakespeare_char/prepare.py

# Validation losses in nanoGPT's README, nats a character, on random blocks of
# the same 10 %.
NANOGPT = (
    ("nanoGPT, 10.65 M parameters, trained on a GPU", 1.4697),
    ("nanoGPT, 0.80 M parameters, trained on a CPU", 1.88),
)

VOCABULARY_SIZE = 1024  # of which 256 bytes and 4 special tokens
BACKBONE = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": 6,
    "hidden_dim": 208,
    "intermediate_dim": 560,
    "num_query_heads": 4,
    "head_dim": 52,
    "recurrent_dim": 256,
    "block_types": ["recurrent", "recurrent", "local_attention"],
    "attention_window_size": 128,
    "num_gate_blocks": 4,
    "conv_kernel_size": 4,
    "recurrence": "real",
    "decay_initializer": "paper",
    "scale_embeddings": False,
    "final_logit_soft_cap": None,
    "rope_max_wavelength": 10_000.0,
    "rope_fraction": 0.5,
    "layer_norm_epsilon": 1e-6,
    "dropout": 0.0,
}

# RecurrentGemma's form, which every format has: see `in_every_form`.
FORM = {"scale_embeddings": True, "final_logit_soft_cap": 10_000.0}

STEPS = 900
BATCH_SIZE = 16
ROW_LENGTH = 128  # tokens, some 270 characters
PEAK_LEARNING_RATE = 3e-3
FINAL_LEARNING_RATE = 0.02  # of the peak
WARMUP = 0.03  # of all steps
WEIGHT_DECAY = 0.1
REPORTS = 3

# Validation: rows of 512 tokens of which the last 256 count, so that every
# token (but the text's first 256) is predicted from at least 256 others.
WINDOW = 512
STRIDE = 256
# About as many characters as a block of nanoGPT's validation has (256).
NANOGPT_BLOCK = 120


def read_splits():
    text = DATA.read_text(encoding="utf-8")
    split = int(TRAIN_FRACTION * len(text))
    return text[:split], text[split:]


def training_batches(ids, start_id, seed):
    """Yields `(x, y)` for `fit`; each pass has other rows in another order."""
    rng = np.random.default_rng(seed)
    while True:
        starts = np.arange(
            rng.integers(ROW_LENGTH), len(ids) - ROW_LENGTH, ROW_LENGTH
        )
        rng.shuffle(starts)
        for i in range(len(starts) // BATCH_SIZE):
            batch = starts[i * BATCH_SIZE : (i + 1) * BATCH_SIZE, None]
            y = ids[batch + np.arange(ROW_LENGTH)]
            yield model_inputs(y, start_id), y


def model_inputs(y, start_id):
    """What predicts `y`: the start token and all of `y` but its last."""
    start = np.full((len(y), 1), start_id, "int32")
    token_ids = np.concatenate([start, y[:, :-1]], axis=1)
    return {
        "token_ids": token_ids,
        "padding_mask": np.ones_like(token_ids),
    }


def total_nats(model, ids, start_id, window, stride, batch_size=16):
    """Summed negative log likelihood of `ids`, each of them counted once.

    Rows are `window` long and `stride` apart; in each but the first only the
    last `stride` count, so that these have `window - stride` tokens of context
    at least. Where `stride == window` a row knows nothing of those before it.
    """
    starts = np.arange(0, max(len(ids) - window + stride, 1), stride)
    padded = np.concatenate([ids, np.zeros(window, "int32")])
    y = padded[starts[:, None] + np.arange(window)]
    positions = starts[:, None] + np.arange(window)
    counts = (positions < len(ids)) & (
        (np.arange(window) >= window - stride) | (starts[:, None] == 0)
    )
    if counts.sum() != len(ids):
        raise RuntimeError(f"{counts.sum()} of {len(ids)} tokens counted.")
    total = 0.0
    for i in range(0, len(y), batch_size):
        rows = y[i : i + batch_size]
        full = np.resize(rows, (batch_size, window))  # one compiled shape
        logits = model.predict_on_batch(model_inputs(full, start_id))
        logits = np.asarray(logits, "float64")[: len(rows)]
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, rows[..., None], axis=-1)[..., 0]
        nats = np.log(np.exp(logits).sum(axis=-1)) - chosen
        total += nats[counts[i : i + batch_size]].sum()
    return total


def nats_per_character(model, tokenizer, text, window=WINDOW, stride=STRIDE):
    ids = np.asarray(tokenizer(text), "int32")
    nats = total_nats(model, ids, tokenizer.start_token_id, window, stride)
    return nats / len(text)


class Report(keras.callbacks.Callback):
    """Prints the validation loss after each report's share of the steps."""

    def __init__(self, tokenizer, text):
        super().__init__()
        self._tokenizer, self._text = tokenizer, text
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        loss = nats_per_character(self.model, self._tokenizer, self._text)
        minutes = (time.perf_counter() - self._started) / 60
        print(
            f"validation: {loss:.4f} nats a character after {minutes:.1f} "
            "minutes",
            flush=True,
        )


def train(model, tokenizer, train_text, validation_text, steps, seed):
    """Trains the model with `fit`, and returns how long that took."""
    ids = np.asarray(tokenizer(train_text), "int32")
    row = tf.TensorSpec((BATCH_SIZE, ROW_LENGTH), "int32")
    data = tf.data.Dataset.from_generator(
        lambda: training_batches(ids, tokenizer.start_token_id, seed),
        output_signature=({"token_ids": row, "padding_mask": row}, row),
    ).prefetch(4)
    model.compile(
        optimizer=keras_griffin.GriffinAdamW(
            PEAK_LEARNING_RATE,
            num_steps=steps,
            warmup_fraction=WARMUP,
            final_fraction=FINAL_LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            beta_2=0.99,
            global_clipnorm=1.0,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    started = time.perf_counter()
    model.fit(
        data,
        epochs=REPORTS,
        steps_per_epoch=steps // REPORTS,
        callbacks=[Report(tokenizer, validation_text)],
        shuffle=False,  # done by the generator
        verbose=2,
    )
    return time.perf_counter() - started


def in_every_form(weights):
    """The same model with scaled embeddings `E` and a soft cap.

        s (E / s) = E,   (s n) (E / s)^T = n E^T,   cap tanh(l / cap) ~ l

    with `s` the scale and `n` the outputs of the final norm, whose `1 + scale`
    takes the `s`. The cap is so high that it changes no logit: one of 20 by
    3e-5.

    Args:
        weights: list of arrays, those of the model: the embedding first, the
            scale of the final norm last.

    Returns:
        Those of a model with `FORM`.
    """
    backbone = keras_griffin.GriffinBackbone(**{**BACKBONE, **FORM})
    scale = backbone.embedding_scale
    first, *others, last = weights
    first, last = first / scale, scale * (1 + last) - 1
    return [first, *others, last]


def save(model, tokenizer, folder):
    """Writes the preset with weights of half the size, rounded to float16."""
    shutil.rmtree(folder, ignore_errors=True)
    half = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**{**BACKBONE, **FORM}, dtype="float16"),
        keras_griffin.GriffinCausalLMPreprocessor(
            tokenizer, sequence_length=256
        ),
    )
    weights = in_every_form(model.get_weights())
    half.set_weights([w.astype("float16") for w in weights])
    half.save_to_preset(str(folder))


def model_card(results):
    table = "\n".join(
        f"| {name} | {loss:.4f} |" for name, loss in results["losses"]
    )
    return f"""---
library_name: keras-hub
pipeline_tag: text-generation
license: apache-2.0
language: en
---
# {NAME}

A Griffin of {results["parameters"]:,} parameters that continues text in the
manner of Shakespeare's plays. It came with `keras_griffin`, so that the first
example needs no download:

```python
import keras_griffin

model = keras_griffin.GriffinCausalLM.from_preset("{NAME}")
print(model.generate("ROMEO:", max_length=128))
```

**Data.** The first 90 % of Tiny Shakespeare (1,003,854 characters; public
domain; `benchmarks/data/`). It has seen nothing else: it knows the plays' words
and manner and little sense, and answers no questions.

**Architecture.** Griffin (arXiv:2402.19427): {BACKBONE["num_layers"]} blocks,
two recurrent ones and one of local attention in turn, width
{BACKBONE["hidden_dim"]}; a SentencePiece vocabulary of {VOCABULARY_SIZE} pieces
that falls back to bytes, so that any text has tokens. Weights are float16.

**Every form.** After training, embeddings were scaled and logits given a cap of
10,000, which changes none: RecurrentGemma's form, which transformers reads.

**Training.** {results["steps"]} steps of {BATCH_SIZE} rows of {ROW_LENGTH}
tokens with `model.fit`: AdamW, warm-up and cosine decay from
{PEAK_LEARNING_RATE}, weight decay {WEIGHT_DECAY}, no dropout. The number of
steps was chosen by the validation loss: 1600 steps gave 1.4818.
{results["minutes"]:.0f} minutes on {results["machine"]}, beside other work.

**Loss** on the whole last 10 % (111,540 characters), in nats a character, of
these rounded weights, loaded by `from_preset`. The negative log likelihoods of
all tokens, each counted once, are summed and divided by the number of
characters. A token's likelihood in the best segmentation only bounds that of
its text, so the true loss is no larger.

| | nats a character |
| --- | --- |
{table}

nanoGPT's are its README's, for models of characters, measured on random
blocks of 256 and 64 characters.

**Made** on {results["date"]} by
`KERAS_BACKEND={results["backend"]} python {SCRIPT}`
with Keras {keras.__version__}. The licence of the weights is that of
`keras_griffin`, Apache 2.0.
"""


def index_entry(parameters, loss):
    return {
        "name": NAME,
        "description": (
            "Griffin trained on Tiny Shakespeare, with its weights in the "
            f"package: {loss:.4f} nats a character on the validation text."
        ),
        "parameters": parameters,
        "source": SCRIPT,
        "weights": {"shipped": NAME},
        "backbone": {**BACKBONE, **FORM},
    }


def measured(folder, text):
    """What the model card says of a saved preset and of this machine."""
    model = keras_griffin.GriffinCausalLM.from_preset(str(folder))
    tokenizer = model.preprocessor.tokenizer
    tokens = len(tokenizer(text))
    model = keras_griffin.GriffinCausalLM(model.backbone)  # takes token ids
    loss = nats_per_character(model, tokenizer, text)
    in_blocks = nats_per_character(
        model, tokenizer, text, NANOGPT_BLOCK, NANOGPT_BLOCK
    )
    return {
        "parameters": parameter_count(BACKBONE),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "backend": keras.config.backend(),
        "date": datetime.date.today().isoformat(),
        "losses": [
            (
                f"**this preset**, at least {WINDOW - STRIDE} tokens of "
                "context",
                loss,
            ),
            (
                f"this preset, in separate blocks of {NANOGPT_BLOCK} tokens "
                f"({NANOGPT_BLOCK * len(text) // tokens} characters)",
                in_blocks,
            ),
            *NANOGPT,
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "presets")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(arguments.seed)
    train_text, validation_text = read_splits()
    tokenizer = keras_griffin.GriffinTokenizer(
        vocabulary.learn(train_text, VOCABULARY_SIZE)
    )
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**BACKBONE)
    )
    tokens = len(tokenizer(validation_text))
    print(
        f"{model.count_params():,} parameters, "
        f"{len(validation_text) / tokens:.3f} characters a token",
        flush=True,
    )
    seconds = train(
        model,
        tokenizer,
        train_text,
        validation_text,
        arguments.steps,
        arguments.seed,
    )

    folder = arguments.output / NAME
    save(model, tokenizer, folder)
    results = {
        "steps": arguments.steps,
        "minutes": seconds / 60,
        **measured(folder, validation_text),
    }
    (folder / "README.md").write_text(model_card(results), encoding="utf-8")
    entry = index_entry(results["parameters"], results["losses"][0][1])
    (arguments.output / f"{NAME}.json").write_text(
        json.dumps(entry, indent=2) + "\n", encoding="utf-8"
    )
    for name, nats in results["losses"]:
        print(f"{nats:.4f} nats a character: {name}")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB, {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
