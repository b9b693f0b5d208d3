"""Griffin, Hawk and a Transformer on nanoGPT's CPU task, on equal terms.

    KERAS_BACKEND=jax python benchmarks/quality/against_nanogpt.py

The task is the one that nanoGPT's README gives for a CPU: Tiny Shakespeare as
characters, at most 0.81 M parameters, 2,000 steps of 12 rows of 64 characters.
Loss: nats a character on the last 10 % of the text, cut into rows of 64 that
know nothing of each other, every character counted once. Time: `fit` from its
call to its return, compilation included. Writes a table and a plot to
`benchmarks/results/`. Needs TensorFlow for `tf.data`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import tiny_shakespeare as task
from conditions import conditions

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


def nanogpt_estimate(model, ids, seed):
    """nanoGPT's `estimate_loss`: few random blocks, so with some noise."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(len(ids) - BLOCK, size=ESTIMATE_BATCHES * BATCH_SIZE)
    losses = task.row_losses(model, ids[starts[:, None] + np.arange(BLOCK + 1)])
    return losses.mean(), losses.std() / len(losses) ** 0.5


def run(name, train_ids, validation_ids, vocabulary_size, steps, seed):
    model = task.make_model(name, vocabulary_size, seed)
    parameters = model.count_params()
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"A model must have at most {MAX_PARAMETERS:,} parameters. "
            f"Received: {name} with {parameters:,}. Change MODELS."
        )
    print(f"{name}: {parameters:,} parameters", flush=True)
    seen = task.train(model, train_ids, steps, BATCH_SIZE, BLOCK, seed)
    result = {
        "name": name,
        "loss": float(task.validation_loss(model, validation_ids, BLOCK)),
        "estimate": [
            float(x) for x in nanogpt_estimate(model, validation_ids, seed)
        ],
        **seen,
    }
    print(
        f"{name}: {result['loss']:.4f} nats a character, "
        f"{result['seconds']:.0f} s",
        flush=True,
    )
    return result


def table(results, steps):
    lines = [
        "# Against nanoGPT, on its CPU task",
        "",
        conditions(),
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
        f"with a peak of {task.PEAK_LEARNING_RATE} trains the",
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
    parser.add_argument("--models", nargs="+", default=list(task.MODELS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=task.RESULTS)
    arguments = parser.parse_args()

    data = task.read_splits()
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
