"""Who speaks: a history play, or a comedy or tragedy?

    KERAS_BACKEND=jax python benchmarks/quality/text_classifier.py

Fine-tunes a `GriffinTextClassifier` on the shipped preset, and a logistic
regression on vectors of the `GriffinTextEmbedder`, beside one on counts of
words. Writes `benchmarks/results/text_classifier.md`, after two and a half
minutes of CPU time.
"""

import re
import time

import keras
import numpy as np

# It also makes the checkout importable, and so comes first.
import tiny_shakespeare as common
from conditions import conditions

import keras_griffin

PRESET = "griffin_shakespeare_en"
# Richard II and III, Henry VI; and the speakers of other plays.
HISTORIES = (
    "GLOUCESTER", "KING RICHARD III", "KING EDWARD IV", "QUEEN ELIZABETH",
    "KING RICHARD II", "WARWICK", "HENRY BOLINGBROKE", "BUCKINGHAM",
    "QUEEN MARGARET", "DUCHESS OF YORK", "KING HENRY VI",
)  # fmt: skip
OTHERS = (
    "DUKE VINCENTIO", "MENENIUS", "ROMEO", "PETRUCHIO", "CORIOLANUS",
    "ISABELLA", "JULIET", "LEONTES",
)  # fmt: skip
SPEECHES, TEST_FRACTION = 1600, 0.25
LENGTH = 32  # tokens of a speech that are read
EPOCHS, BATCH, RATE = 2, 16, 3e-4


def speeches():
    """Shuffled texts without their speakers, and 1 for the histories."""
    texts, labels = [], []
    for part in common.DATA.read_text(encoding="utf-8").split("\n\n"):
        speaker, _, text = part.partition(":\n")
        if speaker in HISTORIES + OTHERS and text:
            texts.append(text.replace("\n", " "))
            labels.append(int(speaker in HISTORIES))
    order = np.random.default_rng(0).permutation(len(texts))[:SPEECHES]
    return np.array(texts)[order], np.array(labels)[order]


def logistic_regression(x, y, x_test, y_test):
    """Accuracy on the test set, the best of three strengths of decay."""
    found = []
    for decay in (1e-1, 1e-2, 1e-3):
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                keras.layers.Dense(
                    2, kernel_regularizer=keras.regularizers.L2(decay)
                ),
            ]
        )
        model.compile(
            keras.optimizers.Adam(1e-2),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(x, y, epochs=60, batch_size=64, verbose=0)
        found.append(model.evaluate(x_test, y_test, verbose=0)[1])
    return max(found)


def word_counts(texts, words=None):
    split = [re.findall(r"[a-z']+", text.lower()) for text in texts]
    if words is None:
        names, counts = np.unique(sum(split, []), return_counts=True)
        words = {w: i for i, w in enumerate(names[counts >= 3])}
    counts = np.zeros((len(texts), len(words)), "float32")
    for row, found in zip(counts, split, strict=True):
        for word in found:
            if word in words:
                row[words[word]] += 1
    return np.log1p(counts), words


def main():
    keras.utils.set_random_seed(0)
    texts, y = speeches()
    cut = int(len(texts) * TEST_FRACTION)
    test, y_test, train, y_train = texts[:cut], y[:cut], texts[cut:], y[cut:]
    rows = {
        "always the larger class": max(np.mean(y_test), 1 - np.mean(y_test))
    }
    counts, words = word_counts(train)
    rows["logistic regression, counts of words"] = logistic_regression(
        counts, y_train, word_counts(test, words)[0], y_test
    )
    for mode in ("last", "mean"):
        embedder = keras_griffin.GriffinTextEmbedder.from_preset(
            PRESET, pooling_mode=mode, normalize=False
        )
        embedder.preprocessor.sequence_length = LENGTH
        vectors, test_vectors = (
            embedder.encode_text(list(each), verbose=0)
            for each in (train, test)
        )
        scale = vectors.mean(axis=0), vectors.std(axis=0)
        rows[f"logistic regression, embeddings, {mode}"] = logistic_regression(
            (vectors - scale[0]) / scale[1],
            y_train,
            (test_vectors - scale[0]) / scale[1],
            y_test,
        )
    seconds = fine_tune(train, y_train, test, y_test, rows)
    write(rows, seconds, len(texts), len(test))


def fine_tune(train, y_train, test, y_test, rows):
    """Adds a row for each pooling mode; returns the seconds of training."""
    seconds = {}
    for mode in ("last", "mean"):
        model = keras_griffin.GriffinTextClassifier.from_preset(
            PRESET, num_classes=2, pooling_mode=mode, dropout=0.1
        )
        model.preprocessor.sequence_length = LENGTH
        model.compile(keras.optimizers.Adam(RATE))
        start = time.time()
        model.fit(train, y_train, epochs=EPOCHS, batch_size=BATCH, verbose=2)
        seconds[mode] = time.time() - start
        _, accuracy = model.evaluate(test, y_test, batch_size=64, verbose=0)
        rows[f"`GriffinTextClassifier`, {mode}"] = accuracy
    return seconds


def write(rows, seconds, num_texts, num_test):
    table = "\n".join(f"| {n} | {100 * v:.1f} % |" for n, v in rows.items())
    text = f"""# A text classifier

{conditions()}

{num_texts} speeches of Tiny Shakespeare without their speakers, {num_test} of
them for the test: is it a history ({len(HISTORIES)} speakers of Richard II and
III and Henry VI) or not ({len(OTHERS)} speakers of other plays)? `{PRESET}`
(3.3 M parameters) has read nine tenths of these plays, the speeches of the test
too, but was never told what a play is. The first {LENGTH} tokens of a speech
are read; {EPOCHS} epochs of batches of {BATCH}, Adam at {RATE}, all weights,
{seconds["last"]:.0f} and {seconds["mean"]:.0f} seconds.

| model | accuracy on the test |
|---|---|
{table}

The regressions show the best of three strengths of decay by the test itself,
which favours them.
"""
    (common.RESULTS / "text_classifier.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
