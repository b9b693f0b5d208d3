"""Selective copying and induction heads: Griffin, Hawk, MQA Transformer.

    KERAS_BACKEND=jax python benchmarks/quality/synthetic_tasks.py

Figure 6 of the Griffin paper with its configuration: 16 ids, rows of 1,024 and
256 tokens, 5 blocks of width 64, one local attention in Griffin's block 3 with
a window of half a row. Each batch is new. Training starts with short rows, and
few tokens to copy, and goes on to longer ones when a stage is solved
(`--lengths 1024` leaves that out); the last stage is the paper's. Then rows up
to 64 times as long are answered by greedy decoding. Writes a table, its numbers
and a plot to `benchmarks/results/`; models and tasks that are not asked for
keep the numbers that are there.
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
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
# So that it runs from a checkout, and finds `conditions`.
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import keras  # noqa: E402
from conditions import conditions  # noqa: E402
from conditions import device  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.evaluation import InductionHeads  # noqa: E402
from keras_griffin.evaluation import SelectiveCopying  # noqa: E402
from keras_griffin.evaluation import exact_match  # noqa: E402
from keras_griffin.training import StopOnNaN  # noqa: E402

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
# Stages of training: arguments of the task, which are tokens of a row and, of
# them, to be copied; and Griffin's window. The last one is the paper's. The
# window stays at half a row, so that attention alone cannot do the copying.
STAGES = {
    "selective copying": (
        ((64, 2), 32),
        ((64, 4), 32),
        ((64, 8), 32),
        ((64, 16), 32),
        ((128, 16), 64),
        ((256, 16), 128),
        ((512, 16), 256),
        ((1024, 16), 512),
    ),
    "induction heads": (
        ((32,), 128),
        ((64,), 128),
        ((128,), 128),
        ((256,), 128),
    ),
}
# Part of the answers' tokens, over `EVERY` steps, at which the next stage
# comes, and at which the last one ends.
ENOUGH = {"selective copying": (0.8, 0.99), "induction heads": (0.95, 0.95)}

# Of a step: shorter rows are as many more.
TOKENS = {"selective copying": 8192, "induction heads": 4096}
MAX_STEPS = 3000
# Steps over which accuracy is reported; all of their rows are new.
EVERY = 25
# Part of the answers' tokens at which a task counts as solved.
SOLVED = 0.95

LEARNING_RATE = 1e-2
# Of the rate: in the first epochs of `EVERY` steps, and, of what it is then, in
# the last ones, when a model is done.
WARM_UP = (0.1, 0.3, 0.6, 1.0)
COOL_DOWN = (0.5, 0.25, 0.1, 0.03)
# In the last stage the rate is halved after so many epochs of no progress.
PATIENCE, PROGRESS = 5, 0.005
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
        arguments.learning_rate,
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

    def __init__(self, curve, stage, enough):
        super().__init__()
        self.curve, self.stage, self.enough = curve, stage, enough
        self.is_done = False

    def on_epoch_end(self, epoch, logs=None):
        step = self.curve[-1]["step"] if self.curve else 0
        self.curve.append(
            {
                "step": step + EVERY,
                "stage": self.stage,
                "accuracy": float(logs["accuracy"]),
                "loss": float(logs["loss"]),
            }
        )
        print(
            f"  stage {self.stage}, step {step + EVERY}: accuracy "
            f"{logs['accuracy']:.3f}, loss {logs['loss']:.3f}",
            flush=True,
        )
        if logs["accuracy"] >= self.enough:
            self.is_done = self.model.stop_training = True


def train(make, stages, enough, arguments):
    """Trains on one stage after the other.

    Args:
        make: callable from a window to a model.
        stages: list of triples: a task, rows of a step, and the window.
        enough: accuracies that end an early stage, and the last one.
        arguments: of the command.

    Returns:
        The model, the curve, how many stages ended so, and in how many steps.
    """
    curve, passed = [], 0
    steps = itertools.count()  # no batch comes twice
    model, last_window = None, None

    def fit(stage, epochs, enough, callbacks):
        task, rows, _ = stages[stage]
        progress = Curve(curve, stage, enough)
        model.fit(
            (task.sample(rows, (arguments.seed, step)) for step in steps),
            steps_per_epoch=EVERY,
            shuffle=False,
            epochs=epochs,
            callbacks=[progress, StopOnNaN(), *callbacks],
            verbose=0,
        )
        return progress.is_done

    for stage, (_, _, window) in enumerate(stages):
        if window != last_window:
            model, last_window = made_from(model, make(window)), window
        is_last = stage == len(stages) - 1
        callbacks = [] if curve else [rates(model, WARM_UP)]
        if is_last:
            callbacks.append(less_without_progress())
        if not fit(
            stage,
            max(0, arguments.steps // EVERY - len(curve)),
            enough[is_last],
            callbacks,
        ):
            break
        passed += 1
    steps_taken = EVERY * len(curve)
    fit(stage, len(COOL_DOWN), math.inf, [rates(model, COOL_DOWN)])
    return model, curve, passed, steps_taken


def made_from(model, new):
    """`new` with the weights of `model`, and its optimizer's state."""
    new.optimizer.build(new.trainable_variables)
    if model is not None:
        new.set_weights(model.get_weights())
        for variable, value in zip(
            new.optimizer.variables, model.optimizer.variables, strict=True
        ):
            variable.assign(value)
    return new


def rates(model, factors):
    """Sets the learning rate in the first epochs, as parts of that of now."""
    now = float(model.optimizer.learning_rate)
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: (
            now * factors[epoch] if epoch < len(factors) else rate
        )
    )


def less_without_progress():
    return keras.callbacks.ReduceLROnPlateau(
        "accuracy",
        factor=0.5,
        patience=PATIENCE,
        mode="max",
        min_delta=PROGRESS,
    )


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
    stages = STAGES[task_name]
    if arguments.lengths:
        stages = [((length,), length // 2) for length in arguments.lengths]
    tokens = arguments.tokens or TOKENS[task_name]
    longest = stages[-1][0][0]
    print(f"{task_name}, {name}", flush=True)
    start = time.perf_counter()
    model, curve, passed, steps = train(
        lambda window: make_model(
            task_class().vocabulary_size, window, name, arguments
        ),
        [
            (task_class(*given), tokens // given[0], window)
            for given, window in stages
        ],
        ENOUGH[task_name],
        arguments,
    )
    seconds = time.perf_counter() - start
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
        "parameters": model.count_params(),
        "stages": [given for given, _ in stages],
        "passed": passed,
        "steps": steps,
        "tokens": tokens,
        "rows": arguments.rows,
        "device": device(),
        "seconds": seconds,
        "curve": curve,
        "by_length": by_length,
    }


def in_order(results):
    """By task and by model, as they are listed above."""
    names = [(task, name) for task in TASKS for name in MODELS]
    return sorted(results, key=lambda r: names.index((r["task"], r["name"])))


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
        "Training starts with short rows, and few tokens to copy. The next "
        f"stage comes when enough tokens of {EVERY} steps' answers",
        "are right: "
        + "; ".join(
            f"{task} {percent(early)} %, in the last stage {percent(last)} %"
            for task, (early, last) in ENOUGH.items()
        )
        + ". In the last stage the learning rate",
        "is halved when nothing improves, and "
        f"{len(COOL_DOWN) * EVERY} steps at a falling rate end it.",
        "",
        "| task | model | parameters | tokens of a step | stage (tokens of a "
        "row, to copy): steps so far | tokens right at the end [%] | on | "
        "training [min] |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        ends = {p["stage"]: p["step"] for p in trained(r)}
        stages = "; ".join(
            f"({', '.join(map(str, r['stages'][i]))}): {step:,}"
            for i, step in ends.items()
        )
        lines.append(
            f"| {r['task']} | {r['name']} | {r['parameters']:,} | "
            f"{r['tokens']:,} | {stages} | "
            f"{percent(r['curve'][-1]['accuracy'])} | {r['device']} | "
            f"{r['seconds'] / 60:.1f} |"
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
            f"{chosen[0]['stages'][-1][0]:,} tokens; the paper's: "
            f"{STAGES[task][-1][0][0]:,}.",
            "",
            "| model | " + " | ".join(f"{n:,}" for n in lengths) + " |",
            "| --- |" + " --- |" * len(lengths),
        ]
        for r in chosen:
            cells = [percent(r["by_length"].get(str(n))) for n in lengths]
            lines.append(f"| {r['name']} | " + " | ".join(cells) + " |")
    lines += ["", *against_the_paper(results)]
    return "\n".join([*lines, ""])


def trained(result):
    """The points of the curve before the rate falls at the end."""
    return [p for p in result["curve"] if p["step"] <= result["steps"]]


def solved_in(result):
    """How the steps until the last stage's answers were right are told."""
    stage = len(result["stages"]) - 1
    for point in result["curve"]:
        if point["stage"] == stage and point["accuracy"] >= SOLVED:
            return f"solved after {point['step']:,} steps"
    return f"unsolved in {result['curve'][-1]['step']:,} steps"


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
        ("selective copying", "MQA Transformer", "all models solve it"),
        ("selective copying", "Griffin", "learns as fast as the Transformer"),
        ("selective copying", "Hawk", "learns much more slowly"),
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
        beyond = ", ".join(
            f"{percent(right)} % at {int(n):,}"
            for n, right in r["by_length"].items()
            if int(n) > r["stages"][-1][0]
        )
        lines.append(
            f"- {task}, the paper: {says}. Here {name}: {solved_in(r)} "
            f"({percent(SOLVED)} % of the tokens); beyond "
            f"{r['stages'][-1][0]:,} tokens {beyond}."
        )
    return lines


def mark_stages(axes, curve, color):
    """A dot where a stage ends and the next begins."""
    for before, after in zip(curve, curve[1:], strict=False):
        if before["stage"] != after["stage"]:
            axes.plot(before["step"], before["accuracy"], "o", color=color)


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
            mark_stages(by_step, curve, color)
            by_length.plot(
                [int(n) for n in r["by_length"]],
                list(r["by_length"].values()),
                "o-",
                color=color,
            )
        by_step.set_title(f"{task}: training")
        by_step.set_xlabel("step (dots: the next stage from here on)")
        by_step.set_ylabel("accuracy, tokens of the answer")
        by_length.set_title(f"{task}: evaluation")
        by_length.set_xscale("log", base=2)
        chosen = [r for r in results if r["task"] == task]
        lengths = evaluated(chosen)
        by_length.set_xticks(lengths, [f"{n:,}" for n in lengths])
        by_length.set_xlabel("length of the row [tokens]")
        by_length.set_ylabel("accuracy, whole answers")
        by_length.axvline(
            chosen[0]["stages"][-1][0],
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


def parse_arguments(description, steps, rows, learning_rate, **lists):
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
    parser.add_argument("--tokens", type=int, help="of a step")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="folder to keep trained weights in"
    )
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def results_so_far(path):
    return json.loads(path.read_text()) if path.exists() else []


def main():
    arguments = parse_arguments(
        __doc__.splitlines()[0],
        MAX_STEPS,
        ROWS,
        LEARNING_RATE,
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
