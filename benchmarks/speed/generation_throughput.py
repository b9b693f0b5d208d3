"""Tokens a second against batch size and length, beside the paper's cost model.

    KERAS_BACKEND=jax python benchmarks/speed/generation_throughput.py

Griffin and the MQA Transformer of the same backbone, 6 layers of width 512,
float32, random weights, greedy, from states that have read `length` tokens
(zeros: no time depends on their values). The model of arXiv:2402.19427, section
5.1: a step reads every weight once and every row's cache once, at the bandwidth
with which this machine sums the weights.
"""

import argparse
import time
from pathlib import Path

import generation
import keras
import numpy as np
from keras import ops

import keras_griffin

BENCHMARKS = Path(__file__).resolve().parents[1]
MODELS = {
    "Griffin": ("recurrent", "recurrent", "local_attention"),
    "MQA": ("global_attention",),
}
LENGTHS = (512, 2048, 8192)  # tokens read before
BATCHES = (1, 4, 16)
NEW = 32  # tokens
RUNS = 3
FLOAT_BYTES = 4


def model_of(block_types):
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            **{**generation.SETTINGS, "block_types": block_types}
        )
    )
    model.compile(sampler="greedy")
    return model


def state_after(model, batch, length, max_length):
    state = model.init_state(batch, max_length)
    read = ops.full((batch,), length, dtype="int32")
    return {**state, "position": read, "length": read}


def nbytes(arrays):
    return sum(int(np.prod(x.shape)) * FLOAT_BYTES for x in arrays)


def tokens_per_second(model, batch, state):
    inputs = {"token_ids": np.ones((batch, 1), "int32")}

    def generate():
        model.generate(
            inputs, max_new_tokens=NEW, stop_token_ids=None, state=state
        )

    generate()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        generate()
        times.append(time.perf_counter() - start)
    return batch * NEW / min(times)


def measure():
    """Yields dicts, one for each model, length and batch."""
    rate = None
    for name, block_types in MODELS.items():
        model = model_of(block_types)
        weights = nbytes(model.variables)
        if rate is None:  # of Griffin's weights, which `generation` sums
            rate = weights / (1e-3 * generation.weights(None))
        for length in LENGTHS:
            for batch in BATCHES:
                state = state_after(model, batch, length, length + 2 * NEW)
                cache = nbytes(keras.tree.flatten(state["blocks"]))
                row = {
                    "model": name,
                    "length": length,
                    "batch": batch,
                    "measured": tokens_per_second(model, batch, state),
                    "modelled": batch * rate / (weights + cache),
                }
                print(row, flush=True)
                yield row


def table(rows):
    lines = [
        "| length | batch | Griffin | by the cost model | MQA | by the cost "
        "model | Griffin / MQA | by the cost model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_key = {(r["model"], r["length"], r["batch"]): r for r in rows}
    for length in LENGTHS:
        for batch in BATCHES:
            one, other = (by_key[name, length, batch] for name in MODELS)
            lines.append(
                f"| {length} | {batch} | {one['measured']:.0f} | "
                f"{one['modelled']:.0f} | {other['measured']:.0f} | "
                f"{other['modelled']:.0f} | "
                f"{one['measured'] / other['measured']:.2f} | "
                f"{one['modelled'] / other['modelled']:.2f} |"
            )
    return "\n".join([*lines, ""])


def plot(rows, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    plots = figure.subplots(1, len(BATCHES))
    for axes, batch in zip(plots, BATCHES, strict=True):
        for color, name in zip(("C0", "C1"), MODELS, strict=True):
            chosen = [
                r for r in rows if (r["model"], r["batch"]) == (name, batch)
            ]
            for kind, style in (("measured", "o-"), ("modelled", ":")):
                axes.plot(
                    [r["length"] for r in chosen],
                    [r[kind] for r in chosen],
                    style,
                    color=color,
                    label=f"{name}, {kind}",
                )
        axes.set_title(f"batch {batch}")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens read before")
    plots[0].set_ylabel("tokens / s")
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    rows = list(measure())
    text = (
        "# Tokens a second, against batch size and length\n\n"
        f"`python benchmarks/speed/{Path(__file__).name}`, "
        f"{keras.config.backend()}, 2 CPU cores, float32; what is compared "
        "stands in its first lines.\n\n" + table(rows)
    )
    print(text)
    (arguments.output / "generation_throughput.md").write_text(text)
    try:
        plot(rows, arguments.output / "generation_throughput.svg")
    except ImportError:
        print("No plot: matplotlib is not installed.")


if __name__ == "__main__":
    main()
