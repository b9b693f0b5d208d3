"""Selective copying and induction heads: Griffin, Hawk, MQA Transformer.

    KERAS_BACKEND=jax python benchmarks/synthetic_tasks.py

Figure 6 of the Griffin paper with its configuration: 16 ids, rows of 1,024 and
256 tokens, 5 blocks of width 64, one local attention in Griffin's block 3 with
a window of half a row. Each batch is new. Training starts with short rows and
goes on to longer ones when a length is solved (`--lengths 1024` leaves that
out); the last ones are the paper's. Then rows up to 64 times as long are
answered by greedy decoding. Writes a table, its numbers and a plot to
`benchmarks/results/`; models and tasks that are not asked for keep the numbers
that are there.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs from a checkout.

import keras  # noqa: E402
from conditions import conditions  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.evaluation import InductionHeads  # noqa: E402
from keras_griffin.evaluation import SelectiveCopying  # noqa: E402
from keras_griffin.evaluation import exact_match  # noqa: E402
from keras_griffin.training import StopOnNaN  # noqa: E402

HERE = Path(__file__).resolve().parent

# The paper, section 6.2: 5 blocks of width 64, about 250,000 parameters. It
# names no heads for it: 4, which divide 64.
NUM_LAYERS = 5
HIDDEN_DIM = 64
NUM_QUERY_HEADS = 4
NUM_GATE_BLOCKS = 16
RECURRENT = "recurrent"
MODELS = {
    "Griffin": (RECURRENT, RECURRENT, "local_attention", RECURRENT, RECURRENT),
    "Hawk": (RECURRENT,),
    "MQA Transformer": ("global_attention",),
}
TASKS = {
    "selective copying": SelectiveCopying,
    "induction heads": InductionHeads,
}
# Of the rows, in training: the last one is the paper's.
LENGTHS = {
    "selective copying": (64, 128, 256, 512, 1024),
    "induction heads": (32, 64, 128, 256),
}
# Griffin's window, as part of the paper's rows: 512 of 1024, 128 of 256.
WINDOW = 0.5

# Rows of a step.
BATCH_SIZE = {"selective copying": 8, "induction heads": 16}
MAX_STEPS = 8000
# Steps over which accuracy is reported; all of their rows are new.
EVERY = 25
# Part of the answers' tokens, over so many steps, at which a length is solved.
SOLVED = 0.95

LEARNING_RATE = 1e-2
# Of the rate: in the first epochs of `EVERY` steps, and in the last ones, when
# a model is done.
WARM_UP = (0.1, 0.3, 0.6)
COOL_DOWN = (0.5, 0.25, 0.1, 0.03)
WEIGHT_DECAY = 0.01
NEWTON_SCHULZ_STEPS = 3  # as in against_nanogpt.py

# Rows of a length that are answered, and lengths in lengths of training.
ROWS = 64
FACTORS = {
    "selective copying": (0.25, 0.5, 1, 2, 4, 16),
    "induction heads": (0.25, 0.5, 1, 2, 4, 16, 64),
}
SHORTEST = 32  # has room for 16 data tokens and their copy
# Longer rows would take global attention hours.
LONGEST_OF_ATTENTION = 4096
# Global attention holds 2,048 of them by all of the row, 4 heads, in float32.
TOKENS_AT_ONCE = 16384
EVALUATION_SEED = 2**31  # apart from the seeds of training


def make_model(vocabulary_size, window, name, arguments):
    width = arguments.hidden_dim
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            vocabulary_size,
            num_layers=arguments.num_layers,
            hidden_dim=width,
            intermediate_dim=3 * width,
            # 4/3 of the width, as near as the blocks of the gates allow.
            recurrent_dim=NUM_GATE_BLOCKS
            * round(4 / 3 * width / NUM_GATE_BLOCKS),
            num_gate_blocks=NUM_GATE_BLOCKS,
            num_query_heads=NUM_QUERY_HEADS,
            attention_window_size=window,
            block_types=MODELS[name],
            scale_embeddings=True,
        )
    )
    # Muon for the matrices, AdamW for everything else.
    optimizer = keras.optimizers.Muon(
        LEARNING_RATE,
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
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=["accuracy"],
    )
    return model


class Curve(keras.callbacks.Callback):
    """Keeps the accuracy of each epoch, and stops when there is enough."""

    def __init__(self, curve, size, enough):
        super().__init__()
        self.curve, self.size, self.enough = curve, size, enough
        self.is_done = False

    def on_epoch_end(self, epoch, logs=None):
        step = self.curve[-1]["step"] if self.curve else 0
        self.curve.append(
            {
                "step": step + EVERY,
                "size": self.size,
                "accuracy": float(logs["accuracy"]),
                "loss": float(logs["loss"]),
            }
        )
        print(
            f"  size {self.size}, step {step + EVERY}: accuracy "
            f"{logs['accuracy']:.3f}, loss {logs['loss']:.3f}",
            flush=True,
        )
        if logs["accuracy"] >= self.enough:
            self.is_done = self.model.stop_training = True


def train(model, task_of_size, sizes, batch_size, max_steps, seed):
    """Trains on one size after the other. Returns the curve and its result."""
    curve, solved = [], []
    steps = itertools.count()  # no batch comes twice

    def fit(size, epochs, enough, factors):
        task = task_of_size(size)
        progress = Curve(curve, size, enough)
        model.fit(
            (task.sample(batch_size, (seed, step)) for step in steps),
            steps_per_epoch=EVERY,
            shuffle=False,
            epochs=epochs,
            callbacks=[
                progress,
                StopOnNaN(),
                keras.callbacks.LearningRateScheduler(
                    lambda epoch, _: (
                        LEARNING_RATE * dict(enumerate(factors)).get(epoch, 1.0)
                    )
                ),
            ],
            verbose=0,
        )
        return progress.is_done

    for size in sizes:
        if fit(
            size,
            max(0, max_steps // EVERY - len(curve)),
            SOLVED,
            () if curve else WARM_UP,
        ):
            solved.append(size)
        else:
            break
    steps_taken = EVERY * len(curve)
    fit(size, len(COOL_DOWN), math.inf, COOL_DOWN)
    return curve, solved, steps_taken


def accuracy(model, task, rows):
    """Part of `rows` answers that are right in each token."""
    prompts, answers = task.questions(rows, EVALUATION_SEED)
    at_once = max(1, min(rows, TOKENS_AT_ONCE // prompts.shape[1]))
    return float(exact_match(model, prompts, answers, at_once).mean())


def keep_weights(model, folder, name):
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_weights(folder / f"{name}.weights.h5")


def run(task_name, name, arguments):
    keras.utils.set_random_seed(arguments.seed)
    task_class = TASKS[task_name]
    lengths = arguments.lengths or LENGTHS[task_name]
    longest = lengths[-1]
    batch_size = arguments.batch_size or BATCH_SIZE[task_name]
    model = make_model(
        task_class().vocabulary_size, int(WINDOW * longest), name, arguments
    )
    parameters = model.count_params()
    print(f"{task_name}, {name}: {parameters:,} parameters", flush=True)
    used = time.process_time()
    curve, solved, steps = train(
        model,
        task_class,
        lengths,
        batch_size,
        arguments.steps,
        arguments.seed,
    )
    used = time.process_time() - used
    keep_weights(model, arguments.weights, f"{task_name}-{name}")
    by_length = {}
    for factor in FACTORS[task_name]:
        length = int(factor * longest)
        if length < SHORTEST:
            continue
        if name.startswith("MQA") and length > LONGEST_OF_ATTENTION:
            continue
        by_length[length] = accuracy(model, task_class(length), arguments.rows)
        print(f"  {length} tokens: {by_length[length]:.3f}", flush=True)
    return {
        "task": task_name,
        "name": name,
        "parameters": parameters,
        "lengths": list(lengths),
        "solved": solved,
        "steps": steps,
        "batch_size": batch_size,
        "rows": arguments.rows,
        "cpu_seconds": used,
        "curve": curve,
        "by_length": by_length,
    }


def in_order(results):
    """By task and by model, as they are listed above."""
    names = [(task, name) for task in TASKS for name in MODELS]
    return sorted(results, key=lambda r: names.index((r["task"], r["name"])))


def minutes(seconds):
    return "not kept" if seconds is None else f"{seconds / 60:.1f}"


def percent(value):
    return "" if value is None else f"{100 * value:.0f}"


def table(results):
    lines = [
        "# Selective copying and induction heads",
        "",
        conditions(),
        "",
        "Figure 6 of the Griffin paper: 16 ids, 5 blocks of width 64. All "
        "rows of all steps are new.",
        "Training starts with short rows. A length is *solved* when "
        f"{100 * SOLVED:.0f} % of the answers' tokens",
        f"in {EVERY} steps are right; then come rows of twice that length. "
        f"{len(COOL_DOWN) * EVERY} steps at a falling learning rate end it.",
        "",
        "| task | model | parameters | rows of a step | steps to solve, by "
        "length of rows | CPU time [min] |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        steps = {
            size: max(
                p["step"]
                for p in r["curve"]
                if p["size"] == size and p["step"] <= r["steps"]
            )
            for size in r["solved"]
        }
        text = ", ".join(f"{size}: {step:,}" for size, step in steps.items())
        if r["solved"] != r["lengths"]:
            size = r["lengths"][len(r["solved"])]
            best = max(p["accuracy"] for p in r["curve"] if p["size"] == size)
            text = ", ".join(
                filter(
                    None,
                    [
                        text,
                        f"{size}: not in {r['steps']:,} (at best "
                        f"{percent(best)} % of the tokens)",
                    ],
                )
            )
        lines.append(
            f"| {r['task']} | {r['name']} | {r['parameters']:,} | "
            f"{r['batch_size']} | {text} | "
            f"{minutes(r['cpu_seconds'])} |"
        )
    lines += ["", "## Answers without an error, by length of the row"]
    for task in TASKS:
        chosen = [r for r in results if r["task"] == task]
        if not chosen:
            continue
        lengths = evaluated(chosen)
        lines += [
            "",
            f"{task.capitalize()}, per cent of {chosen[0]['rows']} rows by "
            f"greedy decoding. The last rows of training: "
            f"{chosen[0]['lengths'][-1]:,} tokens; the paper's: "
            f"{LENGTHS[task][-1]:,}.",
            "",
            "| model | " + " | ".join(f"{n:,}" for n in lengths) + " |",
            "| --- |" + " --- |" * len(lengths),
        ]
        for r in chosen:
            cells = [percent(r["by_length"].get(str(n))) for n in lengths]
            lines.append(f"| {r['name']} | " + " | ".join(cells) + " |")
    lines += ["", *against_the_paper(results)]
    return "\n".join([*lines, ""])


def evaluated(results):
    """All lengths, the shortest first."""
    return sorted({int(n) for r in results for n in r["by_length"]})


def against_the_paper(results):
    """What the paper says, and what these results say on the same."""
    lines = [
        "## Against the paper",
        "",
        "- The paper trains on rows of one length, up to 100,000 steps; its "
        "learning rate, optimizer and batch are not given. Here",
        "  short rows come first, so that few steps are enough: steps compare "
        "the models with each other, not with figure 6a.",
        "- RoPE turns half of each head, as in the reference code.",
    ]
    found = {(r["task"], r["name"]): r for r in results}
    for task, name, says in (
        ("selective copying", "Hawk", "all models solve it, Hawk last"),
        ("induction heads", "Hawk", "Hawk stays perfect on far longer rows"),
        ("induction heads", "Griffin", "Griffin extrapolates very well"),
        (
            "induction heads",
            "MQA Transformer",
            "the Transformer fails on rows longer than in training",
        ),
    ):
        r = found.get((task, name))
        if r is None:
            lines.append(f"- {task}, the paper: {says}. {name} was not run.")
            continue
        steps = f"{r['steps']:,} steps"
        was = "solved after" if r["solved"] == r["lengths"] else "unsolved in"
        beyond = ", ".join(
            f"{percent(right)} % at {int(n):,}"
            for n, right in r["by_length"].items()
            if int(n) > r["lengths"][-1]
        )
        lines.append(
            f"- {task}, the paper: {says}. Here {name}: {was} {steps}; beyond "
            f"{r['lengths'][-1]:,} tokens {beyond}."
        )
    return lines


def plot(results, path):
    from matplotlib.figure import Figure

    tasks = [t for t in TASKS if any(r["task"] == t for r in results)]
    figure = Figure(figsize=(9, 3.5 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (by_step, by_length) in zip(tasks, grid, strict=True):
        for r in results:
            if r["task"] != task:
                continue
            color = f"C{list(MODELS).index(r['name'])}"
            curve = r["curve"]
            by_step.plot(
                [p["step"] for p in curve],
                [p["accuracy"] for p in curve],
                color=color,
                label=r["name"],
            )
            # Where the rows become longer.
            for before, after in zip(curve, curve[1:], strict=False):
                if before["size"] != after["size"]:
                    by_step.plot(
                        before["step"], before["accuracy"], "o", color=color
                    )
            by_length.plot(
                [int(n) for n in r["by_length"]],
                list(r["by_length"].values()),
                "o-",
                color=color,
            )
        by_step.set_title(f"{task}: training")
        by_step.set_xlabel("step (dots: longer rows from here on)")
        by_step.set_ylabel("accuracy, tokens of the answer")
        by_length.set_title(f"{task}: evaluation")
        by_length.set_xscale("log", base=2)
        chosen = [r for r in results if r["task"] == task]
        lengths = evaluated(chosen)
        by_length.set_xticks(lengths, [f"{n:,}" for n in lengths])
        by_length.set_xlabel("length of the row [tokens]")
        by_length.set_ylabel("accuracy, whole answers")
        by_length.axvline(
            chosen[0]["lengths"][-1],
            color="grey",
            linestyle=":",
            label="training",
        )
        for axes in (by_step, by_length):
            axes.set_ylim(-0.03, 1.03)
            axes.legend()
    figure.savefig(path)


def write(results, folder, stem, table, plot):
    """Writes the table, the numbers and the plot."""
    text = table(results)
    print(text)
    (folder / f"{stem}.md").write_text(text)
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    try:
        plot(results, folder / f"{stem}.svg")
    except ImportError:
        print("No plot: matplotlib is not installed.")


def parse_arguments(description, batch_size, steps, rows, **lists):
    parser = argparse.ArgumentParser(description=description)
    for name, (type, default) in lists.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            nargs="+",
            type=type,
            default=default,
        )
    parser.add_argument("--num-layers", type=int, default=NUM_LAYERS)
    parser.add_argument("--hidden-dim", type=int, default=HIDDEN_DIM)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="folder to keep trained weights in"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def results_so_far(path):
    return json.loads(path.read_text()) if path.exists() else []


def main():
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        None,
        MAX_STEPS,
        ROWS,
        tasks=(str, list(TASKS)),
        lengths=(int, None),
    )
    path = arguments.output / f"{Path(__file__).stem}.json"
    results = results_so_far(path)
    for task in arguments.tasks:
        for name in arguments.models:
            # By way of JSON: what is written and read again looks the same.
            result = json.loads(json.dumps(run(task, name, arguments)))
            others = (
                r for r in results if (r["task"], r["name"]) != (task, name)
            )
            results = in_order([*others, result])
            write(results, arguments.output, path.stem, table, plot)


if __name__ == "__main__":
    main()
