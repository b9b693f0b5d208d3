"""Windows of attention, at two training lengths.

    KERAS_BACKEND=jax python benchmarks/quality/window_ablation.py

Griffin with several windows, Transformers with local attention alone, and one
with global attention: equal size, equally many characters of Tiny Shakespeare
(appendix E of arXiv:2402.19427). Loss: nats a character on the last 10 % of the
text, in rows of the training length that know nothing of each other. Writes
table and plot after each model. For a larger machine: `--steps 5000 --tokens
16384 --lengths 256 512 1024 --windows 32 128 512`.
"""

import argparse
from pathlib import Path

import tiny_shakespeare as task
from conditions import conditions

GRIFFIN, TRANSFORMER = "Griffin", "MQA Transformer"


def runs_of(a):
    """What is trained; a window as long as the rows stands for all tokens."""
    runs = []
    for length in a.lengths:
        griffin = sorted({min(w, length) for w in a.windows})
        local = [w for w in a.local_windows if w < length]
        runs += [(GRIFFIN, length, w) for w in griffin]
        runs += [(TRANSFORMER, length, w) for w in [*local, length]]
    names = ("model", "length", "window")
    return [dict(zip(names, run, strict=True)) for run in runs]


def measure(run, splits, a):
    train_ids, validation_ids, vocabulary_size = splits
    length, window = run["length"], run["window"]
    changes = {"attention_window_size": window}
    if run["model"] == TRANSFORMER and window < length:
        changes["block_types"] = ("local_attention",)
    model = task.make_model(run["model"], vocabulary_size, a.seed, **changes)
    seen = task.train(
        model, train_ids, a.steps, a.tokens // length, length, a.seed
    )
    loss = task.validation_loss(model, validation_ids, length)
    return {**seen, "loss": float(loss)}


def findings(results, a):
    loss = {tuple(r["run"].values()): r["loss"] for r in results}
    lines = []

    def add(claim, seen, gain):
        lines.append(f"| {claim} | {seen} | {task.verdict(gain)} |")

    def gap(length, window):
        """Global Transformer's loss above Griffin's, `None` if not run."""
        mqa = loss.get((TRANSFORMER, length, length))
        griffin = loss.get((GRIFFIN, length, window))
        return None if None in (mqa, griffin) else mqa - griffin

    for window in a.windows:
        gaps = {n: gap(n, window) for n in a.lengths}
        gaps = {n: g for n, g in gaps.items() if g is not None}
        if len(gaps) < 2:
            continue
        seen = ", ".join(f"{g:+.3f} at {n}" for n, g in gaps.items())
        add(
            f"Griffin with window {window} is better than global MQA at each "
            "length",
            f"by {seen}",
            min(gaps.values()),
        )
        shortest, longest = min(gaps), max(gaps)
        add(
            f"and this gap gets smaller with length (window {window})",
            f"{gaps[longest] - gaps[shortest]:+.3f} from {shortest} to "
            f"{longest}",
            gaps[shortest] - gaps[longest],
        )
    for (name, length, window), value in loss.items():
        others = [
            loss.get((TRANSFORMER, length, length)),
            loss.get((GRIFFIN, length, window)),
        ]
        if name == TRANSFORMER and window < length and None not in others:
            add(
                f"Local-only MQA (window {window}, length {length}) is worse "
                "than global MQA and than Griffin with this window",
                f"by {value - others[0]:+.3f} and {value - others[1]:+.3f}",
                value - max(others),
            )
    return lines


def table(results, a):
    lines = [
        "# Windows of attention",
        "",
        conditions(),
        "",
        f"Tiny Shakespeare as characters, {a.steps:,} steps of {a.tokens:,} "
        f"characters for each model, seed {a.seed}. Loss: nats a character "
        "in rows of the",
        "training length that know nothing of each other, so that only models "
        "of one length are to be compared.",
        "",
        "| training length | model | window | parameters | validation loss |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        name, length, window = r["run"].values()
        window = window if window < length else "all"
        lines.append(
            f"| {length} | {name} | {window} | "
            f"{r['parameters']:,} | {r['loss']:.4f} |"
        )
    lines += [
        "",
        "![Loss by window](window_ablation.svg)",
        "",
        "| the paper (appendix E) | here, nats | |",
        "|---|---|---|",
        *findings(results, a),
        "",
        f"One seed: differences below {task.NOISE} nats are left undecided.",
        "",
    ]
    return "\n".join(lines)


def plot(results, a, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, length in zip(
        figure.subplots(1, len(a.lengths), squeeze=False)[0],
        a.lengths,
        strict=True,
    ):
        here = [r for r in results if r["run"]["length"] == length]
        for name, style in ((GRIFFIN, "C0o-"), (TRANSFORMER, "C2s-")):
            chosen = [r for r in here if r["run"]["model"] == name]
            axes.plot(
                [r["run"]["window"] for r in chosen],
                [r["loss"] for r in chosen],
                style,
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_title(f"trained in rows of {length}")
        axes.set_xlabel(f"window; {length}: all")
        axes.set_ylabel("validation loss [nats a character]")
        axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument(
        "--local-windows",
        type=int,
        nargs="+",
        default=[64],
        help="of the Transformers with local attention alone",
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=task.RESULTS)
    parser.add_argument("--resume", action="store_true")
    a = parser.parse_args()

    splits = task.read_splits()
    task.measure_all(
        "window_ablation",
        runs_of(a),
        lambda run: measure(run, splits, a),
        lambda results: table(results, a),
        lambda results, path: plot(results, a, path),
        {name: getattr(a, name) for name in ("steps", "tokens", "seed")},
        a,
    )


if __name__ == "__main__":
    main()
