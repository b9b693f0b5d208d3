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

import json
import time
from pathlib import Path

# It also makes the checkout importable, and so comes first.
import small_models as common
from conditions import conditions
from conditions import device
from small_models import percent

from keras_griffin.evaluation import InductionHeads
from keras_griffin.evaluation import SelectiveCopying

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
# Part of the answers' tokens, over `common.EVERY` steps, at which the next
# stage comes, and at which the last one ends.
ENOUGH = {"selective copying": (0.8, 0.99), "induction heads": (0.95, 0.95)}

# Of a step: shorter rows are as many more.
TOKENS = {"selective copying": 8192, "induction heads": 4096}
MAX_STEPS = 3000
# Part of the answers' tokens at which a task counts as solved.
SOLVED = 0.95

LEARNING_RATE = 1e-2

# Rows of a length that are answered, and lengths in lengths of training.
ROWS = 64
FACTORS = {
    "selective copying": (0.25, 0.5, 1, 2, 4, 16),
    "induction heads": (0.25, 0.5, 1, 2, 4, 16, 64),
}
SHORTEST = 32  # has room for 16 data tokens and their copy
# Longer rows would take global attention hours.
LONGEST_OF_ATTENTION = 4096


def run(task_name, name, arguments):
    common.keras.utils.set_random_seed(arguments.seed)
    task_class = TASKS[task_name]
    stages = STAGES[task_name]
    if arguments.lengths:
        stages = [((length,), length // 2) for length in arguments.lengths]
    tokens = arguments.tokens or TOKENS[task_name]
    longest = stages[-1][0][0]
    print(f"{task_name}, {name}", flush=True)
    start = time.perf_counter()
    model, curve, passed, steps = common.train(
        lambda window: common.make_model(
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
    common.keep_weights(model, arguments.weights, f"{task_name}-{name}")
    by_length = {}
    for factor in FACTORS[task_name]:
        length = int(factor * longest)
        if length < SHORTEST:
            continue
        if name.startswith("MQA") and length > LONGEST_OF_ATTENTION:
            continue
        by_length[length] = common.accuracy(
            model, task_class(length), arguments.rows
        )
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
    names = [(task, name) for task in TASKS for name in common.MODELS]
    return sorted(results, key=lambda r: names.index((r["task"], r["name"])))


def table(results):
    lines = [
        "# Selective copying and induction heads",
        "",
        conditions(),
        "",
        "Figure 6 of the Griffin paper: 16 ids, 5 blocks of width 64. All "
        "rows of all steps are new.",
        "Training starts with short rows, and few tokens to copy. The next "
        f"stage comes when enough tokens of {common.EVERY} steps' answers",
        "are right: "
        + "; ".join(
            f"{task} {percent(early)} %, in the last stage {percent(last)} %"
            for task, (early, last) in ENOUGH.items()
        )
        + ". In the last stage the learning rate",
        "is halved when nothing improves, and "
        f"{len(common.COOL_DOWN) * common.EVERY} steps at a falling rate end "
        "it.",
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


def plot(results, path):
    from matplotlib.figure import Figure

    tasks = [t for t in TASKS if any(r["task"] == t for r in results)]
    figure = Figure(figsize=(9, 3.5 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (by_step, by_length) in zip(tasks, grid, strict=True):
        for r in results:
            if r["task"] != task:
                continue
            color = f"C{list(common.MODELS).index(r['name'])}"
            curve = r["curve"]
            by_step.plot(
                [p["step"] for p in curve],
                [p["accuracy"] for p in curve],
                color=color,
                label=r["name"],
            )
            common.mark_stages(by_step, curve, color)
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


def main():
    arguments = common.parse_arguments(
        __doc__.splitlines()[0],
        MAX_STEPS,
        ROWS,
        LEARNING_RATE,
        tasks=(str, list(TASKS)),
        lengths=(int, None),
    )
    path = arguments.output / f"{Path(__file__).stem}.json"
    results = common.results_so_far(path)
    for task in arguments.tasks:
        for name in arguments.models:
            # By way of JSON: what is written and read again looks the same.
            result = json.loads(json.dumps(run(task, name, arguments)))
            others = (
                r for r in results if (r["task"], r["name"]) != (task, name)
            )
            results = in_order([*others, result])
            common.write(results, arguments.output, path.stem, table, plot)


if __name__ == "__main__":
    main()
