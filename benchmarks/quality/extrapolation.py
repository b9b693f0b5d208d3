"""Griffin, Hawk and Transformers, up to 32 times their training length.

    KERAS_BACKEND=jax python benchmarks/quality/extrapolation.py

Models of equal size see equally many characters of Tiny Shakespeare, in rows
of `--length`; two more see as many in rows four times as long, with a quarter
of the rows a step. Measured on the last 10 % of the text: the loss in rows of
the training length, and the loss by position in rows of `--up-to` (figure 5 of
arXiv:2402.19427). Writes table and plot after each model. For a larger machine:
`--steps 5000 --tokens 16384 --length 512 --window 256 --up-to 16384`.
"""

import argparse
from pathlib import Path

import numpy as np
import tiny_shakespeare as task
from conditions import conditions

from keras_griffin import evaluation

LONGER = 4  # times the training length; 2k and 8k tokens in the paper
# Name: model, changes, and times the training length.
RUNS = {
    "Griffin": ("Griffin", {}, 1),
    "Hawk": ("Hawk", {}, 1),
    "MQA": ("MQA Transformer", {}, 1),
    "Griffin, long rows": ("Griffin", {}, LONGER),
    "MQA, no RoPE": ("MQA Transformer", {"rope_fraction": 0.0}, 1),
    "Hawk, long rows": ("Hawk", {}, LONGER),
}
FIRST_EDGE = 16  # end of the first bin of positions, each twice the last
NEAR = 4  # times the training length; see `by_position`
# A rise of the loss with the position that is taken for one: bins differ in the
# characters that they are about.
NOTABLE = 0.02  # nats


def edges_up_to(length):
    edges = [1]
    while edges[-1] < length:
        edges.append(min(max(2 * edges[-1], FIRST_EDGE), length))
    return edges


def by_position(model, ids, a):
    """Many short rows for early positions, a few long ones for the others.

    So that bins of positions are about the same characters, nearly all.
    """
    near = min(NEAR * a.length, a.up_to)
    losses = evaluation.loss_by_position(
        model, ids, a.up_to, a.up_to // 2, a.batch_size
    )
    losses[: near - 1] = evaluation.loss_by_position(
        model, ids, near, a.length, 4 * a.batch_size
    )
    return losses


def measure(run, splits, a):
    base, changes, times = RUNS[run]
    train_ids, validation_ids, vocabulary_size = splits
    length = a.length * times
    model = task.make_model(
        base,
        vocabulary_size,
        a.seed,
        attention_window_size=a.window,
        **changes,
    )
    seen = task.train(
        model, train_ids, a.steps, a.tokens // length, length, a.seed
    )
    loss = task.validation_loss(model, validation_ids, a.length)
    losses = by_position(model, validation_ids, a)
    edges = edges_up_to(a.up_to)
    return {
        "length": length,
        **seen,
        "loss": float(loss),
        "edges": edges,
        "by_position": [
            float(losses[i - 1 : j - 1].mean())
            for i, j in zip(edges, edges[1:], strict=False)
        ],
    }


def in_bin(result, end):
    """Loss in the bin of positions that ends at `end`, or before it."""
    ends = result["edges"][1:]
    return result["by_position"][max(i for i, e in enumerate(ends) if e <= end)]


def findings(results, a):
    """What the paper says, what was seen, and whether it is the same."""
    by_name = {r["run"]: r for r in results}
    found = [
        *at_equal_size(by_name),
        *beyond_training(by_name, a),
        *from_longer_rows(by_name, a),
    ]
    return [
        f"| {claim} | {seen} | {task.verdict(*gain)} |"
        for claim, seen, *gain in found
    ]


def at_equal_size(by_name):
    if not {"Griffin", "Hawk", "MQA"} <= by_name.keys():
        return
    griffin, hawk, mqa = (
        by_name[n]["loss"] for n in ("Griffin", "Hawk", "MQA")
    )
    yield (
        "Griffin has a lower loss than the MQA Transformer (3.2)",
        f"{griffin:.3f}, {mqa:.3f}",
        mqa - griffin,
    )
    yield (
        "Hawk's loss is slightly higher than MQA's in small trainings (3.2)",
        f"{hawk:.3f}, {mqa:.3f}",
        hawk - mqa,
    )


def beyond_training(by_name, a):
    for name in ("Griffin", "Hawk"):
        if name not in by_name:
            continue
        r = by_name[name]
        here, four, end = (
            in_bin(r, x) for x in (a.length, 4 * a.length, a.up_to)
        )
        yield (
            f"{name} extrapolates at least 4 x (6.1)",
            f"{four - here:+.3f} nats from {a.length} to {4 * a.length}, "
            f"{end - here:+.3f} to {a.up_to}",
            here + NOTABLE - four,
            0.0,
        )
        yield (
            f"{name}'s loss goes on falling beyond it, to some length (6.1)",
            f"{four - here:+.3f} nats from {a.length} to {4 * a.length}",
            here - four,
        )
    for name in ("MQA", "MQA, no RoPE"):
        if name not in by_name:
            continue
        r = by_name[name]
        change = in_bin(r, a.up_to) - in_bin(r, a.length)
        yield (
            f"{name}: a Transformer does not (6.1)",
            f"{change:+.3f} nats from {a.length} to {a.up_to}",
            change - NOTABLE,
            0.0,
        )


def from_longer_rows(by_name, a):
    for name in ("Griffin", "Hawk"):
        long = by_name.get(f"{name}, long rows")
        if long is None or name not in by_name:
            continue
        r = by_name[name]
        late = in_bin(long, a.up_to) - in_bin(r, a.up_to)
        early = in_bin(long, a.length) - in_bin(r, a.length)
        yield (
            f"{name} from {LONGER} x longer rows is better far out (6.1)",
            f"{late:+.3f} nats up to {a.up_to}",
            -late,
        )
        yield (
            f"{name} from short rows is slightly better early (6.1)",
            f"{early:+.3f} nats up to {a.length} for long rows",
            early,
        )


def table(results, a):
    lines = [
        "# Equal size, equal tokens; and beyond the training length",
        "",
        conditions(),
        "",
        f"Tiny Shakespeare as characters, {a.steps:,} steps of "
        f"{a.tokens:,} characters in rows of {a.length} (long rows: "
        f"{LONGER * a.length}), window {a.window},",
        f"seed {a.seed}. Validation loss: nats a character in rows of "
        f"{a.length} that know nothing of each other.",
        "",
        "| model | parameters | validation loss | training [s] | CPU [s] |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r['run']} | {r['parameters']:,} | {r['loss']:.4f} | "
            f"{r['seconds']:.0f} | {r['cpu_seconds']:.0f} |"
        )
    edges = results[0]["edges"]
    lines += [
        "",
        f"By position, in rows of {a.up_to} characters from every "
        f"{a.up_to // 2}th of the validation text, each from a fresh state; "
        f"before {NEAR * a.length} in rows of so",
        f"many from every {a.length}th:",
        "",
        "| position | " + " | ".join(r["run"] for r in results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    for i in range(len(edges) - 1):
        losses = [f"{r['by_position'][i]:.3f}" for r in results]
        lines.append(
            f"| {edges[i]} to {edges[i + 1] - 1} | {' | '.join(losses)} |"
        )
    lines += [
        "",
        "![Loss by position](extrapolation.svg)",
        "",
        "| the paper | here | |\n|---|---|---|\n"
        + "\n".join(findings(results, a)),
        "",
        "Compared are bins of positions, named by their ends; one is taken to "
        f"be worse than another above {NOTABLE} nats. Models that differ by "
        f"less than {task.NOISE}",
        "are left undecided: one seed. Other work ran beside, so times are no "
        "comparison of speed.",
        "",
    ]
    return "\n".join(lines)


def plot(results, a, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    colors = {"Griffin": "C0", "Hawk": "C1", "MQA": "C2"}
    for r in results:
        edges = np.array(r["edges"])
        axes.plot(
            np.sqrt(edges[:-1] * edges[1:]),
            r["by_position"],
            "o-" if r["length"] == a.length else "s--",
            color=colors.get(r["run"].split(",")[0]),
            alpha=0.5 if "no RoPE" in r["run"] else 1.0,
            label=r["run"],
        )
    axes.axvline(a.length, color="gray", linestyle=":")
    axes.text(
        a.length,
        0.98,
        " training length",
        va="top",
        color="gray",
        transform=axes.get_xaxis_transform(),
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position [characters]")
    axes.set_ylabel("loss [nats a character]")
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--up-to", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=task.RESULTS)
    parser.add_argument("--resume", action="store_true")
    a = parser.parse_args()

    splits = task.read_splits()
    names = ("steps", "tokens", "length", "window", "up_to", "seed")
    task.measure_all(
        "extrapolation",
        [name for name in RUNS if name in a.models],
        lambda run: measure(run, splits, a),
        lambda results: table(results, a),
        lambda results, path: plot(results, a, path),
        {name: getattr(a, name) for name in names},
        a,
    )


if __name__ == "__main__":
    main()
