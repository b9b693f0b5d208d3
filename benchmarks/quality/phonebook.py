"""Phonebook lookup by small models: Griffin, Hawk, MQA Transformer.

    KERAS_BACKEND=jax python benchmarks/quality/phonebook.py

The paper (section 6.2) asks pre-trained models of 6 and 7 billion parameters;
here there is no such checkpoint, and models of 5 blocks of width 64 learn the
task itself from scratch: small books first, and larger ones when those are
known. Each batch is new. Griffin has one local attention, in block 3; its
window is half of the longest prompt in training, as in the paper. Then books of
up to 256 entries are asked, by greedy decoding after two worked examples.
Writes a table, its numbers and a plot to `benchmarks/results/`; models that are
not asked for keep the numbers that are there.
"""

import json
import time
from pathlib import Path

# It also makes the checkout importable, and so comes first.
import small_models as common
from conditions import conditions
from conditions import device

NAME_LENGTH = 2
NUMBER_LENGTH = 3
# Worked examples: in training more than in the evaluation, as each of them is
# something to learn from.
TRAIN_EXAMPLES = 8
EXAMPLES = 2

# Of the books: in the stages of training, and in the evaluation.
TRAIN_ENTRIES = (4, 8, 16, 32)
ENTRIES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
# Part of the digits that are right, see small_models.py.
ENOUGH = (0.95, 0.95)
STEPS = 2500
TOKENS = 4096  # of a step: smaller books are as many more
LEARNING_RATE = 1e-2
ROWS = 128


def book(entries, examples=EXAMPLES):
    return common.keras_griffin.evaluation.Phonebook(
        entries, min(examples, entries - 1), NAME_LENGTH, NUMBER_LENGTH
    )


def run(name, arguments):
    common.keras.utils.set_random_seed(arguments.seed)
    longest = book(max(arguments.train_entries))
    window = longest.prompt_length // 2
    print(f"{name}, window {window}", flush=True)
    start = time.perf_counter()
    tokens = arguments.tokens or TOKENS
    books = [book(n, TRAIN_EXAMPLES) for n in arguments.train_entries]
    model, curve, passed, steps = common.train(
        lambda window: common.make_model(
            longest.vocabulary_size, window, name, arguments
        ),
        [(b, tokens // b.prompt_length, window) for b in books],
        ENOUGH,
        arguments,
    )
    seconds = time.perf_counter() - start
    common.keep_weights(model, arguments.weights, f"phonebook-{name}")
    by_entries = {}
    for entries in arguments.entries:
        by_entries[entries] = common.accuracy(
            model, book(entries), arguments.rows
        )
        print(f"  {entries} entries: {by_entries[entries]:.3f}", flush=True)
    return {
        "name": name,
        "parameters": model.count_params(),
        "train_entries": list(arguments.train_entries),
        "longest_prompt": longest.prompt_length,
        "window": window,
        "passed": passed,
        "steps": steps,
        "tokens": tokens,
        "rows": arguments.rows,
        "device": device(),
        "seconds": seconds,
        "curve": curve,
        "by_entries": by_entries,
    }


def table(results):
    first = results[0]
    line = NAME_LENGTH + NUMBER_LENGTH + 2
    entries = list(first["by_entries"])
    sizes = ", ".join(map(str, first["train_entries"]))
    lines = [
        "# Phonebook lookup",
        "",
        conditions(),
        "",
        "**Not the paper's setting:** there models of 6 and 7 billion "
        "parameters, pre-trained on text, are asked without",
        "fine-tuning; here small models learn this task alone, from scratch:",
        f"books of {sizes} entries of {line} characters (`KX:407`), the next "
        f"size when {common.percent(ENOUGH[0])} % of the digits of "
        f"{common.EVERY} steps are right,",
        f"the end at {common.percent(ENOUGH[1])} % or after {STEPS:,} steps; "
        f"{first['tokens']:,} tokens a step, up to {TRAIN_EXAMPLES} worked "
        "examples, loss of all numbers asked for.",
        "",
        f"Answers without an error, per cent of {first['rows']} rows, by "
        f"entries of the book, after {EXAMPLES} worked examples. Training",
        f"had up to {max(first['train_entries'])} entries, "
        f"{first['longest_prompt']} tokens; Griffin's window is "
        f"{first['window']} tokens, {first['window'] // line} lines.",
        "",
        "| model | parameters | sizes learnt | steps | on | training [min] | "
        "digits right at the end of training [%] | "
        + " | ".join(entries)
        + " |",
        "| --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(entries),
    ]
    for r in results:
        cells = [common.percent(r["by_entries"].get(n)) for n in entries]
        learnt = ", ".join(map(str, r["train_entries"][: r["passed"]]))
        lines.append(
            f"| {r['name']} | {r['parameters']:,} | {learnt or 'none'} | "
            f"{r['steps']:,} | {r['device']} | {r['seconds'] / 60:.1f} | "
            f"{common.percent(r['curve'][-1]['accuracy'])} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join([*lines, ""])


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    by_step, by_entries = figure.subplots(1, 2)
    for r in results:
        color = f"C{list(common.MODELS).index(r['name'])}"
        by_step.plot(
            [p["step"] for p in r["curve"]],
            [p["accuracy"] for p in r["curve"]],
            color=color,
            label=r["name"],
        )
        common.mark_stages(by_step, r["curve"], color)
        by_entries.plot(
            [int(n) for n in r["by_entries"]],
            list(r["by_entries"].values()),
            "o-",
            color=color,
        )
    by_step.set_title("training")
    by_step.set_xlabel("step (dots: larger books from here on)")
    by_step.set_ylabel("accuracy, digits")
    by_entries.set_title("evaluation")
    by_entries.set_xscale("log", base=2)
    entries = [int(n) for n in results[0]["by_entries"]]
    ticks = entries[:: 1 + len(entries) // 8]
    by_entries.set_xticks(ticks, ticks)
    by_entries.minorticks_off()
    by_entries.set_xlabel("entries of the book")
    by_entries.set_ylabel("accuracy, whole numbers")
    line = NAME_LENGTH + NUMBER_LENGTH + 2
    for place, label in (
        (results[0]["window"] / line, "Griffin's window"),
        (max(results[0]["train_entries"]), "longest in training"),
    ):
        by_entries.axvline(place, color="grey", linestyle=":")
        by_entries.text(place, 0.09, label, rotation=90, ha="right")
    for axes in (by_step, by_entries):
        axes.set_ylim(-0.03, 1.03)
    by_step.legend()
    figure.savefig(path)


def main():
    arguments = common.parse_arguments(
        __doc__.splitlines()[0],
        STEPS,
        ROWS,
        LEARNING_RATE,
        train_entries=(int, TRAIN_ENTRIES),
        entries=(int, ENTRIES),
    )
    path = arguments.output / f"{Path(__file__).stem}.json"
    results = common.results_so_far(path)
    for name in arguments.models:
        result = json.loads(json.dumps(run(name, arguments)))
        results = [*(r for r in results if r["name"] != name), result]
        results.sort(key=lambda r: list(common.MODELS).index(r["name"]))
        common.write(results, arguments.output, path.stem, table, plot)


if __name__ == "__main__":
    main()
