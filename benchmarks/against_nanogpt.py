"""Griffin, Hawk and a Transformer on nanoGPT's CPU task, on equal terms.

    KERAS_BACKEND=jax python benchmarks/against_nanogpt.py

The task is the one that nanoGPT's README gives for a CPU: Tiny Shakespeare as
characters, at most 0.81 M parameters, 2,000 steps of 12 rows of 64 characters.
Loss: nats a character on the last 10 % of the text, cut into rows of 64 that
know nothing of each other, every character counted once. Time: `fit` from its
call to its return, compilation included. Writes a table and a plot to
`benchmarks/results/`. Needs TensorFlow for `tf.data`.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs from a checkout.

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_griffin  # noqa: E402

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "tinyshakespeare.txt"
TRAIN_FRACTION = 0.9  # nanoGPT, data/shakespeare_char/prepare.py

# nanoGPT's CPU recipe, from its README.
STEPS = 2000
BATCH_SIZE = 12
BLOCK = 64
MAX_PARAMETERS = 810_000
ESTIMATE_BATCHES = 20  # of nanoGPT's own estimator, in its CPU recipe

# What others reached with these steps on this machine, unloaded: figures that
# this script does not measure. Name, million parameters, loss, seconds.
OTHERS = (
    ("nanoGPT (PyTorch)", 0.80, 1.911, 102),
    ("DeepMind's Griffin (JAX)", 0.71, 1.584, 159),
    ("DeepMind's Hawk (JAX)", 0.73, 1.575, None),
    ("DeepMind's attention (JAX)", 0.65, 1.632, None),
)

COMMON = {
    "num_layers": 3,
    "num_query_heads": 4,
    "attention_window_size": BLOCK,
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


def training_rows(ids, rows, rng):
    """Blocks that tile the text, in random order; each pass anew."""
    starts = []
    while sum(map(len, starts)) < rows:
        tiles = np.arange(rng.integers(BLOCK), len(ids) - BLOCK, BLOCK)
        starts.append(rng.permutation(tiles))
    starts = np.concatenate(starts)[:rows, None]
    return ids[starts + np.arange(BLOCK + 1)]


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


def validation_loss(model, ids):
    """Over blocks that tile the text: each character is predicted once."""
    starts = np.arange(0, len(ids) - BLOCK, BLOCK)[:, None]
    return row_losses(model, ids[starts + np.arange(BLOCK + 1)]).mean()


def nanogpt_estimate(model, ids, seed):
    """nanoGPT's `estimate_loss`: few random blocks, so with some noise."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(len(ids) - BLOCK, size=ESTIMATE_BATCHES * BATCH_SIZE)
    losses = row_losses(model, ids[starts[:, None] + np.arange(BLOCK + 1)])
    return losses.mean(), losses.std() / len(losses) ** 0.5


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
        if step % 500 == 0:
            print(f"  step {step}: {self.losses[-1]:.3f}", flush=True)


def make_optimizer(model, steps):
    # Muon for the matrices, AdamW for everything else.
    optimizer = keras.optimizers.Muon(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=steps - WARMUP_STEPS,
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


def run(name, train_ids, validation_ids, vocabulary_size, steps, seed):
    keras.utils.set_random_seed(seed)
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(vocabulary_size, **COMMON, **MODELS[name])
    )
    parameters = model.count_params()
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"A model must have at most {MAX_PARAMETERS:,} parameters. "
            f"Received: {name} with {parameters:,}. Change MODELS."
        )
    print(f"{name}: {parameters:,} parameters", flush=True)
    rng = np.random.default_rng(seed)
    x, y = inputs_and_labels(training_rows(train_ids, steps * BATCH_SIZE, rng))
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
        batch_size=BATCH_SIZE,
        shuffle=False,  # done above
        callbacks=[losses],
        verbose=0,
    )
    seconds = time.perf_counter() - started
    result = {
        "name": name,
        "parameters": parameters,
        "loss": float(validation_loss(model, validation_ids)),
        "estimate": [
            float(x) for x in nanogpt_estimate(model, validation_ids, seed)
        ],
        "seconds": seconds,
        "cpu_seconds": time.process_time() - used,
        "load_before": load,
        "steps": losses.steps,
        "training_losses": losses.losses,
    }
    print(
        f"{name}: {result['loss']:.4f} nats a character, {seconds:.0f} s",
        flush=True,
    )
    return result


def table(results, steps):
    lines = [
        "# Against nanoGPT, on its CPU task",
        "",
        f"`KERAS_BACKEND={keras.config.backend()} python "
        f"benchmarks/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, Keras {keras.__version__}, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}).",
        "",
        f"Tiny Shakespeare as characters, {steps:,} steps of {BATCH_SIZE} "
        f"rows of {BLOCK} characters. Loss: nats a character over the whole",
        f"validation text in rows of {BLOCK} that know nothing of each other. "
        "In brackets nanoGPT's own estimator, on few random rows.",
        "Time: training with its compilation, without imports.",
        "",
        "| model | parameters | validation loss | time [s] | CPU time [s] |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in results:
        mean, error = r["estimate"]
        lines.append(
            f"| {r['name']} (keras_griffin) | {r['parameters']:,} | "
            f"**{r['loss']:.4f}** ({mean:.3f} ± {error:.3f}) | "
            f"{r['seconds']:.0f} | {r['cpu_seconds']:.0f} |"
        )
    for name, millions, loss, seconds in OTHERS:
        lines.append(
            f"| {name} | {millions:.2f} M | {loss} | {seconds or ''} | |"
        )
    load = max(r["load_before"] for r in results)
    lines += [
        "",
        "Most of the distance to nanoGPT is the recipe, not the architecture: "
        "nanoGPT trains by AdamW with",
        "a peak learning rate of 1e-3 on blocks drawn at random; here Muon "
        f"with a peak of {PEAK_LEARNING_RATE} trains the",
        "matrices, and the blocks tile the text. The Transformer of the table "
        "has the same recipe, code and",
        "number of parameters as Griffin and Hawk. DeepMind's models had "
        "AdamW, peak 3e-3.",
        "",
        f"Load average before the runs: at most {load:.1f}.",
        "",
    ]
    return "\n".join(lines)


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for r in results:
        axes.plot(r["steps"], r["training_losses"], label=r["name"])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss [nats a character]")
    axes.set_ylim(1.2, 2.6)
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    data = read_splits()
    results = [
        run(name, *data, arguments.steps, arguments.seed)
        for name in arguments.models
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = table(results, arguments.steps)
    print(text)
    (arguments.output / "against_nanogpt.md").write_text(text)
    (arguments.output / "against_nanogpt.json").write_text(
        json.dumps(results, indent=1) + "\n"
    )
    try:
        plot(results, arguments.output / "against_nanogpt.svg")
    except ImportError:
        print("No plot: matplotlib is not installed.")


if __name__ == "__main__":
    main()
