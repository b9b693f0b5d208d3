"""Tiny Shakespeare as characters: the text, small models, and their recipe.

What several benchmarks share; it measures nothing by itself.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
# So that it runs from a checkout, and finds `conditions`.
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_griffin  # noqa: E402

RESULTS = BENCHMARKS / "results"
DATA = BENCHMARKS / "data" / "tinyshakespeare.txt"
TRAIN_FRACTION = 0.9  # nanoGPT, data/shakespeare_char/prepare.py

# Smaller differences of losses are left undecided: two seeds of one model
# differ by 0.015 nats in `benchmarks/results/recurrence_ablation.md`.
NOISE = 0.02  # nats

# Three models of 0.8 M parameters.
COMMON = {
    "num_layers": 3,
    "num_query_heads": 4,
    "attention_window_size": 64,
    "num_gate_blocks": 4,
    "decay_initializer": "reference",
    "scale_embeddings": True,
}
MODELS = {
    "Griffin": {
        "hidden_dim": 144,
        "intermediate_dim": 408,
        "recurrent_dim": 192,
        "block_types": ("recurrent", "recurrent", "local_attention"),
    },
    "Hawk": {
        "hidden_dim": 144,
        "intermediate_dim": 384,
        "recurrent_dim": 176,
        "block_types": ("recurrent",),
    },
    "MQA Transformer": {
        "hidden_dim": 144,
        "intermediate_dim": 488,
        "block_types": ("global_attention",),
    },
}

PEAK_LEARNING_RATE = 5e-3
FINAL_LEARNING_RATE = 0.05  # of the peak
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
# Of Muon's iteration. Its default, 5, takes more time than the model itself.
NEWTON_SCHULZ_STEPS = 3


def read_splits():
    """Returns the ids of the training and of the validation characters."""
    text = DATA.read_text(encoding="utf-8")
    characters = np.array(sorted(set(text)))
    ids = np.searchsorted(characters, np.array(list(text))).astype("int32")
    split = int(TRAIN_FRACTION * len(ids))
    return ids[:split], ids[split:], len(characters)


def make_model(name, vocabulary_size, seed, **changes):
    """One of `MODELS`, with changed arguments of the backbone."""
    keras.utils.set_random_seed(seed)
    settings = {**COMMON, **MODELS[name], **changes}
    return keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(vocabulary_size, **settings)
    )


def training_rows(ids, rows, length, rng):
    """Blocks that tile the text, in random order; each pass anew."""
    starts = []
    while sum(map(len, starts)) < rows:
        tiles = np.arange(rng.integers(length), len(ids) - length, length)
        starts.append(rng.permutation(tiles))
    starts = np.concatenate(starts)[:rows, None]
    return ids[starts + np.arange(length + 1)]


def inputs_and_labels(rows):
    x = {
        "token_ids": rows[:, :-1],
        "padding_mask": np.ones_like(rows[:, :-1]),
    }
    return x, rows[:, 1:]


def row_losses(model, rows):
    """Mean nats a character of each row."""
    x, y = inputs_and_labels(rows)
    logits = np.asarray(model.predict(x, batch_size=128, verbose=0), "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    nats = np.log(np.exp(logits).sum(axis=-1)) - chosen
    return nats.mean(axis=-1)


def validation_loss(model, ids, length):
    """Over blocks that tile the text: each character is predicted once."""
    starts = np.arange(0, len(ids) - length, length)[:, None]
    return row_losses(model, ids[starts + np.arange(length + 1)]).mean()


class Losses(keras.callbacks.Callback):
    """Keeps the training loss as Keras reports it: a running mean."""

    def __init__(self, every=50):
        super().__init__()
        self.every, self.steps, self.losses = every, [], []
        self._last = 0.0

    def on_train_batch_end(self, batch, logs=None):
        step = batch + 1
        if step % self.every:
            return
        # The mean since the last look, from the mean since the start.
        total = float(logs["loss"]) * step
        self.steps.append(step)
        self.losses.append((total - self._last) / self.every)
        self._last = total
        if step % 250 == 0:
            print(f"  step {step}: {self.losses[-1]:.3f}", flush=True)


def make_optimizer(model, steps):
    # Muon for the matrices, AdamW for everything else.
    optimizer = keras.optimizers.Muon(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(steps - WARMUP_STEPS, 1),
            alpha=FINAL_LEARNING_RATE,
            warmup_target=PEAK_LEARNING_RATE,
            warmup_steps=WARMUP_STEPS,
        ),
        weight_decay=WEIGHT_DECAY,
        adam_weight_decay=WEIGHT_DECAY,
        adam_beta_2=0.99,
        exclude_layers=["conv"],
        ns_steps=NEWTON_SCHULZ_STEPS,
        global_clipnorm=1.0,
    )
    optimizer.exclude_from_weight_decay(
        var_list=[
            v
            for v in model.trainable_variables
            if len(v.shape) < 2 or "rglru" in v.path or "conv" in v.path
        ]
    )
    return optimizer


def train(model, ids, steps, batch_size, length, seed):
    """Trains, and returns what was seen on the way.

    Args:
        model: of `make_model`.
        ids: the training characters.
        steps: int.
        batch_size: int. Rows of a step.
        length: int. Characters of a row.
        seed: int. Of the order of the rows.

    Returns:
        dict of `"parameters"`, `"seconds"`, `"cpu_seconds"`, `"load_before"`,
        `"steps"` and `"training_losses"`.
    """
    rng = np.random.default_rng(seed)
    rows = training_rows(ids, steps * batch_size, length, rng)
    x, y = inputs_and_labels(rows)
    model.compile(
        optimizer=make_optimizer(model, steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    losses = Losses()
    load = os.getloadavg()[0]
    started, used = time.perf_counter(), time.process_time()
    model.fit(
        x,
        y,
        batch_size=batch_size,
        shuffle=False,  # done above
        callbacks=[losses],
        verbose=0,
    )
    return {
        "parameters": model.count_params(),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "load_before": load,
        "steps": losses.steps,
        "training_losses": losses.losses,
    }


def measure_all(name, runs, measure, table, plot, settings, a):
    """Measures each run, and writes all that is known after each of them.

    Args:
        name: str. Of the files in `a.output`.
        runs: list of dicts, which say what is measured.
        measure: callable of a run; returns a dict to be kept with it.
        table: callable of the results; returns the text of the .md file.
        plot: callable `(results, path)`.
        settings: dict of what all runs have in common.
        a: the command's arguments: `output`, and `resume`, to measure only
            what the .json file does not have.
    """
    a.output.mkdir(parents=True, exist_ok=True)
    path = a.output / f"{name}.json"
    results = []
    if a.resume:
        known = json.loads(path.read_text())
        if known["settings"] != settings:
            raise ValueError(
                "Only a run with the same settings can be resumed. Received: "
                f"{settings}; {path} has {known['settings']}. Leave out "
                "--resume, or choose another --output."
            )
        results = [r for r in known["results"] if r["run"] in runs]

    def write():
        results.sort(key=lambda r: runs.index(r["run"]))
        kept = {"settings": settings, "results": results}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(results))
        try:
            plot(results, path.with_suffix(".svg"))
        except ImportError:
            print("No plot: matplotlib is not installed.")

    for i, run in enumerate(runs):
        if run not in [r["run"] for r in results]:
            print(f"{i + 1} of {len(runs)}: {run}", flush=True)
            results.append({"run": run, **measure(run)})
            print(f"  {results[-1]['loss']:.4f} nats", flush=True)
            write()
    write()  # also where nothing was missing
    print(table(results))


def verdict(gain, noise=NOISE):
    """Whether a claim holds that says that `gain` is above 0 [nats]."""
    if abs(gain) < noise:
        return "undecided"
    return "agrees" if gain > 0 else "**differs**"
