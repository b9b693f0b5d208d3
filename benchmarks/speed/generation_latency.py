"""Time to decode, from an empty prompt and after a long one; throughput.

    KERAS_BACKEND=jax python benchmarks/speed/generation_latency.py

Figures 4 and 1b of arXiv:2402.19427: seconds until N tokens of every row are
there, and tokens a second from an empty prompt with the best of several batch
sizes. Griffin, Hawk and the MQA Transformer of the same backbone, 6 layers of
width 512, float32, random weights, greedy. The prompt's state is zeros, as no
time depends on its values, and reading it is not part of the time. For an
accelerator: `--size 1b --batches 16 64 256` takes the presets of that size, in
bfloat16.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import generation_throughput
import numpy as np

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS))

from conditions import conditions  # noqa: E402

import keras_griffin  # noqa: E402

MODELS = {**generation_throughput.MODELS, "Hawk": ("recurrent",)}
WARM_UP = 64  # tokens: two calls of the device


def model_of(name, size):
    if size is None:
        return generation_throughput.model_of(MODELS[name])
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone.from_preset(
            f"{name.lower()}_{size}", load_weights=False, dtype="bfloat16"
        )
    )
    model.compile(sampler="greedy")
    return model


def latencies(model, batch, prompt, lengths):
    """Seconds until each of `lengths` tokens are there, in one go."""
    room = prompt + 1 + lengths[-1] + WARM_UP
    state = generation_throughput.state_after(
        model, batch, prompt, max_length=room
    )

    def generate(token_ids, state, tokens):
        outputs, state = model.generate(
            {"token_ids": token_ids},
            max_new_tokens=tokens,
            stop_token_ids=None,
            state=state,
            return_state=True,
        )
        return np.asarray(outputs["token_ids"])[:, -1:], state

    first = np.ones((batch, 1), "int32")
    generate(first, state, WARM_UP)
    last, seconds, done = first, [], 0
    started = time.perf_counter()
    for length in lengths:
        last, state = generate(last, state, length - done)
        done = length
        seconds.append(time.perf_counter() - started)
    return seconds


def measure(a):
    rows = []
    for name in MODELS:
        model = model_of(name, a.size)
        for prompt in a.prompts:
            batches = {a.latency_batch}
            if prompt == 0:
                batches |= set(a.batches)
            for batch in sorted(batches):
                runs = [
                    latencies(model, batch, prompt, a.lengths)
                    for _ in range(a.runs)
                ]
                row = {
                    "model": name,
                    "parameters": model.count_params(),
                    "prompt": prompt,
                    "batch": batch,
                    "seconds": np.min(runs, axis=0).tolist(),
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def model_in_words(size):
    if size is None:
        settings = generation_throughput.generation.SETTINGS
        return (
            f"{settings['num_layers']} layers of width "
            f"{settings['hidden_dim']}, window "
            f"{settings['attention_window_size']}, float32"
        )
    return f"presets griffin_{size}, hawk_{size}, mqa_{size}, bfloat16"


def latency_rows(rows, a, prompt):
    return [
        r
        for r in rows
        if r["prompt"] == prompt and r["batch"] == a.latency_batch
    ]


def throughputs(rows, a, name):
    """The best of all batch sizes and that size, for each length."""
    chosen = [
        r
        for r in rows
        if r["model"] == name and r["prompt"] == 0 and r["batch"] in a.batches
    ]
    return [
        max((r["batch"] * n / r["seconds"][i], r["batch"]) for r in chosen)
        for i, n in enumerate(a.lengths)
    ]


def table(rows, a):
    lines = [
        "# Time to decode",
        "",
        conditions(),
        "",
        "Seconds until so many tokens of every row are there, after a prompt "
        "that is not part of the time; the best of",
        f"{'1 run' if a.runs == 1 else f'{a.runs} runs'}; batch "
        f"{a.latency_batch}; {model_in_words(a.size)}.",
        "",
        "| prompt | tokens | " + " | ".join(MODELS) + " | MQA / Griffin |",
        "|---" * (3 + len(MODELS)) + "|",
    ]
    for prompt in a.prompts:
        seconds = {
            r["model"]: r["seconds"] for r in latency_rows(rows, a, prompt)
        }
        for i, length in enumerate(a.lengths):
            each = [seconds[name][i] for name in MODELS]
            ratio = seconds["MQA"][i] / seconds["Griffin"][i]
            lines.append(
                f"| {prompt or 'empty'} | {length} | "
                + " | ".join(f"{s:.2f}" for s in each)
                + f" | {ratio:.2f} |"
            )
    if 0 in a.prompts:
        lines += [
            "",
            "Tokens a second from an empty prompt, the best batch size of "
            f"{', '.join(map(str, a.batches))} in brackets:",
            "",
            "| tokens | " + " | ".join(MODELS) + " | Griffin / MQA |",
            "|---" * (2 + len(MODELS)) + "|",
        ]
        best = {name: throughputs(rows, a, name) for name in MODELS}
        for i, length in enumerate(a.lengths):
            each = [best[name][i] for name in MODELS]
            ratio = best["Griffin"][i][0] / best["MQA"][i][0]
            lines.append(
                f"| {length} | "
                + " | ".join(f"{rate:.0f} ({batch})" for rate, batch in each)
                + f" | {ratio:.2f} |"
            )
    lines += [
        "",
        "The paper (1B parameters, TPU-v4): Hawk and Griffin decode faster "
        "than MQA where much is read or written, Hawk",
        "and Griffin much alike (figure 4), and reach several times its "
        "throughput (figure 1b). Here the cache of global",
        "attention has its final size from the first token on, so that the "
        "MQA Transformer pays for it early too.",
        "",
    ]
    return "\n".join(lines)


def plot(rows, a, path):
    from matplotlib.figure import Figure

    count = len(a.prompts) + (0 in a.prompts)
    figure = Figure(figsize=(3.2 * count + 0.6, 3.4), layout="constrained")
    plots = figure.subplots(1, count, squeeze=False)[0]
    for axes, prompt in zip(plots, a.prompts, strict=False):
        for r in latency_rows(rows, a, prompt):
            axes.plot(a.lengths, r["seconds"], "o-", label=r["model"])
        axes.set_title(f"prompt of {prompt}, batch {a.latency_batch}")
        axes.set_ylabel("seconds")
    if 0 in a.prompts:
        axes = plots[-1]
        for name in MODELS:
            rates = [rate for rate, _ in throughputs(rows, a, name)]
            axes.plot(a.lengths, rates, "o-", label=name)
        axes.set_title("empty prompt, best batch")
        axes.set_ylabel("tokens / s")
    for axes in plots:
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens decoded")
    plots[0].legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[0, 4096])
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[128, 512, 1024, 2048, 4096],
        help="tokens to decode, the fewest first",
    )
    parser.add_argument("--latency-batch", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--size", help="of the presets, as in griffin_1b")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    a = parser.parse_args()
    rows = measure(a)
    text = table(rows, a)
    print(text)
    a.output.mkdir(parents=True, exist_ok=True)
    stem = "generation_latency" + (f"_{a.size}" if a.size else "")
    path = a.output / f"{stem}.md"
    path.write_text(text)
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    try:
        plot(rows, a, path.with_suffix(".svg"))
    except ImportError:
        print("No plot: matplotlib is not installed.")


if __name__ == "__main__":
    main()
