"""RG-LRU against CG-LRU, and the two initial decays, in Hawk.

    KERAS_BACKEND=jax python benchmarks/quality/recurrence_ablation.py

Hawks of equal size see equally many characters of Tiny Shakespeare, with
several seeds: the real unit with the decays that the paper draws and with those
of its reference code, and the complex unit (arXiv:2402.19427, section 2.4 and
appendix B). Loss: nats a character on the last 10 % of the text, in rows of the
training length that know nothing of each other. Writes table and plot after
each model. For a larger machine: `--steps 5000 --tokens 16384 --length 1024
--seeds 0 1 2 3 4`.
"""

import argparse
from pathlib import Path

import numpy as np
import tiny_shakespeare as task
from conditions import conditions

REFERENCE = "RG-LRU, reference code's decays"
PAPER = "RG-LRU, paper's decays"
COMPLEX = "CG-LRU, reference code's decays"
RECURRENCES = {
    REFERENCE: {"decay_initializer": "reference"},
    PAPER: {"decay_initializer": "paper"},
    COMPLEX: {
        "decay_initializer": "reference",
        "recurrence": "complex",
        # Its gates are half as wide: a wider MLP has their parameters.
        "intermediate_dim": 402,
    },
}


def measure(run, splits, a):
    train_ids, validation_ids, vocabulary_size = splits
    seed = run["seed"]
    changes = RECURRENCES[run["recurrence"]]
    model = task.make_model("Hawk", vocabulary_size, seed, **changes)
    seen = task.train(
        model, train_ids, a.steps, a.tokens // a.length, a.length, seed
    )
    loss = task.validation_loss(model, validation_ids, a.length)
    return {**seen, "loss": float(loss)}


def of_recurrence(results, name):
    return [r for r in results if r["run"]["recurrence"] == name]


def losses_of(results, name):
    chosen = of_recurrence(results, name)
    return {r["run"]["seed"]: r["loss"] for r in chosen}


def comparison(results, name, other):
    """Mean difference over the seeds that both have, or `None`."""
    one, two = losses_of(results, name), losses_of(results, other)
    seeds = sorted(one.keys() & two.keys())
    differences = [one[s] - two[s] for s in seeds]
    if not differences:
        return None
    each = ", ".join(f"{d:+.4f}" for d in differences)
    return f"{np.mean(differences):+.4f} nats (by seed {each})", differences


def findings(results):
    lines = []
    compared = comparison(results, COMPLEX, REFERENCE)
    if compared:
        seen, differences = compared
        lines.append(
            "| A complex recurrence does not help language models (2.4; no "
            f"numbers) | CG-LRU: {seen} | "
            f"{task.verdict(np.mean(differences))} |"
        )
    compared = comparison(results, PAPER, REFERENCE)
    if compared:
        lines.append(
            "| does not compare initial decays; its text and its code differ "
            f"| the paper's: {compared[0]} | |"
        )
    return lines


def table(results, a):
    lines = [
        "# Recurrences and initial decays",
        "",
        conditions(),
        "",
        f"Hawk on Tiny Shakespeare as characters, {a.steps:,} steps of "
        f"{a.tokens:,} characters in rows of {a.length}. Loss: nats a "
        "character in rows of",
        f"{a.length} that know nothing of each other.",
        "",
        "| recurrence | parameters | seeds | validation loss | mean |",
        "|---|---|---|---|---|",
    ]
    for name in RECURRENCES:
        losses = losses_of(results, name)
        if not losses:
            continue
        chosen = of_recurrence(results, name)
        parameters = chosen[0]["parameters"]
        each = ", ".join(f"{x:.4f}" for x in losses.values())
        seeds = ", ".join(map(str, losses))
        lines.append(
            f"| {name} | {parameters:,} | {seeds} | {each} | "
            f"{np.mean(list(losses.values())):.4f} |"
        )
    lines += [
        "",
        "![Training loss](recurrence_ablation.svg)",
        "",
        "| the paper | here, against the RG-LRU with the reference code's "
        "decays | |",
        "|---|---|---|",
        *findings(results),
        "",
        "A seed decides on the first weights and the order of the text, for "
        f"all recurrences alike. Differences below {task.NOISE} nats are left "
        "undecided.",
        "",
    ]
    return "\n".join(lines)


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, color in zip(RECURRENCES, ("C1", "C3", "C4"), strict=True):
        for i, r in enumerate(of_recurrence(results, name)):
            axes.plot(
                r["steps"],
                r["training_losses"],
                color=color,
                alpha=0.7,
                label=None if i else name,
            )
    axes.set_xlabel("step")
    axes.set_ylabel("training loss [nats a character]")
    axes.set_ylim(1.2, 2.6)
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--output", type=Path, default=task.RESULTS)
    parser.add_argument("--resume", action="store_true")
    a = parser.parse_args()

    splits = task.read_splits()
    task.measure_all(
        "recurrence_ablation",
        [
            {"recurrence": name, "seed": seed}
            for seed in a.seeds
            for name in RECURRENCES
        ],
        lambda run: measure(run, splits, a),
        lambda results: table(results, a),
        plot,
        {name: getattr(a, name) for name in ("steps", "tokens", "length")},
        a,
    )


if __name__ == "__main__":
    main()
