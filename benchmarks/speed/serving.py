"""Many users on one model: the engine beside static batches.

    KERAS_BACKEND=jax python benchmarks/speed/serving.py
    KERAS_BACKEND=jax python benchmarks/speed/serving.py --requests 24
    KERAS_BACKEND=jax python benchmarks/speed/serving.py --resume

Requests arrive as a Poisson process. Their prompts and texts are of mixed
lengths, drawn evenly from the logarithms of 16 to 2000 and of 16 to 500
tokens. The model is Griffin of 6 layers of width 384, float32, random weights,
and the MQA Transformer of the same backbone. Static batches take requests in
the order in which they came: when one batch has ended, the next takes up to
`--rows` that wait, pads their prompts to the longest and goes on until the
last one has its tokens. Tokens that nobody asked for do not count. Hugging
Face's `RecurrentGemmaForCausalLM` has the same weights, on PyTorch.

Each way runs in a process of its own. What is known is written after each of
them, and `--resume` measures what is missing.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import generation
import numpy as np
from tqdm import tqdm

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS))
from conditions import conditions  # noqa: E402

SETTINGS = {
    **generation.SETTINGS,
    "hidden_dim": 384,
    "intermediate_dim": 1152,
    "num_query_heads": 3,
    "recurrent_dim": 384,
    "num_gate_blocks": 3,  # Hugging Face: one a head
}
PROMPTS, TEXTS = (16, 2000), (16, 500)  # tokens
MAX_LENGTH = 2560  # tokens
STATIC_WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PERCENTILES = range(101)


def requests(count, rate, seed=0):
    """`(arrival [s], prompt, new tokens)` of each request."""
    rng = np.random.default_rng(seed)

    def lengths(low, high):
        return np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)

    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    prompts = [
        rng.integers(1, SETTINGS["vocabulary_size"], size).astype("int32")
        for size in lengths(*PROMPTS)
    ]
    return list(zip(arrivals, prompts, lengths(*TEXTS).tolist(), strict=True))


# === Models ===


def write_griffin(folder):
    """Writes the weights that all but the MQA Transformer read."""
    import keras

    import keras_griffin

    keras.utils.set_random_seed(0)
    backbone = keras_griffin.GriffinBackbone(**SETTINGS)
    keras_griffin.GriffinCausalLM(backbone).export_to_transformers(folder)


def griffin(folder):
    import keras_griffin

    model = keras_griffin.GriffinCausalLM.from_preset(folder, preprocessor=None)
    model.compile(sampler="greedy")
    return model


def mqa_transformer():
    import keras_griffin

    settings = {**SETTINGS, "block_types": ("global_attention",)}
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**settings)
    )
    model.compile(sampler="greedy")
    return model


# === Ways ===


def with_engine(model, wanted, rows):
    """Runs the requests.

    Returns:
        `(times, cpu_seconds)`: for each request when its tokens came after it
        arrived [s], and the time of this process on all cores.
    """
    from keras_griffin import serving

    bar = tqdm(total=len(wanted))

    async def ask(engine, start, arrival, prompt, count):
        await asyncio.sleep(start + arrival - time.perf_counter())
        request = engine.submit(
            prompt, max_new_tokens=count, temperature=0, stop_token_ids=None
        )
        times = []
        async for piece in request:
            now = time.perf_counter() - start - arrival
            times += [now] * len(piece.token_ids)
        bar.update()
        return times

    async def ask_all(engine):
        cpu, start = time.process_time(), time.perf_counter()
        times = await asyncio.gather(
            *(ask(engine, start, *request) for request in wanted)
        )
        return times, time.process_time() - cpu

    with serving.Engine(
        model, max_rows=rows, max_length=MAX_LENGTH, prefix_cache_bytes=0
    ) as engine:
        return asyncio.run(ask_all(engine))


def with_static_batches(generate, wanted, rows):
    """As `with_engine`; `generate(prompts, count)` makes a batch's tokens."""
    times, waiting = [], list(wanted)
    bar = tqdm(total=len(wanted))
    cpu, start = time.process_time(), time.perf_counter()
    while waiting:
        now = time.perf_counter() - start
        batch = [request for request in waiting[:rows] if request[0] <= now]
        if not batch:
            time.sleep(waiting[0][0] - now)
            continue
        waiting = waiting[len(batch) :]
        prompts = [prompt for _, prompt, _ in batch]
        generate(prompts, max(count for *_, count in batch))
        end = time.perf_counter() - start
        times += [[end - arrival] * count for arrival, _, count in batch]
        bar.update(len(batch))
    return times, time.process_time() - cpu


def our_batches(model, rows):
    """`generate` of static batches; each has all rows, so that few compile."""

    def generate(prompts, count):
        # Rows without a request read one token.
        prompts = prompts + [np.ones(1, "int32")] * (rows - len(prompts))
        token_ids, mask = padded(prompts, is_left=False)
        model.generate(
            {"token_ids": token_ids, "padding_mask": mask},
            max_new_tokens=count,
            stop_token_ids=None,
        )

    for width in STATIC_WIDTHS:  # compiles
        generate([np.ones(width, "int32")], 1)
    return generate


def huggingface_batches(folder):
    import torch
    from transformers import RecurrentGemmaForCausalLM

    model = RecurrentGemmaForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def generate(prompts, count):
        token_ids, mask = padded(prompts, is_left=True)
        model.generate(
            torch.from_numpy(token_ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    generate([np.ones(16, "int32")], 2)
    return generate


def padded(prompts, is_left):
    width = max(map(len, prompts))
    token_ids = np.zeros((len(prompts), width), "int32")
    mask = np.zeros((len(prompts), width), bool)
    for i, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if is_left else len(prompt)
        place = place if is_left else slice(0, place)
        token_ids[i, place] = prompt
        mask[i, place] = True
    return token_ids, mask


# Backend of each way; `None` for that of the command.
WAYS = {
    "Griffin, engine": None,
    "Griffin, static batches": None,
    "Griffin, static batches of Hugging Face": "torch",
    "MQA Transformer, engine": None,
}


def run(way, folder, wanted, rows):
    """As `with_engine`."""
    if way.endswith("Hugging Face"):
        return with_static_batches(huggingface_batches(folder), wanted, rows)
    model = mqa_transformer() if way.startswith("MQA") else griffin(folder)
    if way.endswith("engine"):
        return with_engine(model, wanted, rows)
    return with_static_batches(our_batches(model, rows), wanted, rows)


# === What users see of it ===


def summary(wanted, times, cpu_seconds):
    ends = [
        arrival + of_request[-1]
        for (arrival, *_), of_request in zip(wanted, times, strict=True)
    ]
    between = np.concatenate([_between(of_request) for of_request in times])
    tokens = sum(map(len, times))
    return {
        "tokens": tokens,
        "seconds": max(ends),
        "cpu_seconds": cpu_seconds,
        "first_token": _percentiles([t[0] for t in times]),
        # All tokens of a static batch come at once.
        "between_tokens": _percentiles(between) if len(between) else None,
        "last_token": _percentiles([t[-1] for t in times]),
    }


def _between(times):
    """Time for each token after the first piece; a piece shares its time."""
    moments, sizes = np.unique(times, return_counts=True)
    return np.repeat(np.diff(moments) / sizes[1:], sizes[1:])


def _percentiles(values):
    return np.percentile(values, PERCENTILES).round(5).tolist()


def table(results):
    lines = [
        "| way | tokens / s | tokens / CPU second | first token p50 [s] | "
        "p99 [s] | between tokens p50 [ms] | p99 [ms] | last token p50 [s] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, found in results.items():
        between = "at once | at once"
        if found["between_tokens"] is not None:
            p50, p99 = (1e3 * found["between_tokens"][p] for p in (50, 99))
            between = f"{p50:.1f} | {p99:.1f}"
        lines.append(
            f"| {way} | {found['tokens'] / found['seconds']:.0f} | "
            f"{found['tokens'] / found['cpu_seconds']:.0f} | "
            f"{found['first_token'][50]:.2f} | "
            f"{found['first_token'][99]:.2f} | {between} | "
            f"{found['last_token'][50]:.2f} |"
        )
    return "\n".join([*lines, ""])


def plot(results, path):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {
        "first_token": "to the first token [s]",
        "between_tokens": "between tokens [ms]",
        "last_token": "to the last token [s]",
    }
    for axes, name in zip(figure.subplots(1, 3), titles, strict=True):
        scale = 1e3 if name == "between_tokens" else 1
        for i, (way, found) in enumerate(results.items()):
            if found[name] is not None:
                rate = found["tokens"] / found["seconds"]
                axes.plot(
                    scale * np.array(found[name]),
                    PERCENTILES,
                    color=f"C{i}",
                    label=f"{way}: {rate:.0f} tokens / s",
                )
        axes.set_xlabel(titles[name])
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("percentile")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.savefig(path)


# === The command ===


def measure(way, folder, a):
    """Measures a way in this process, and prints what it found."""
    if way is None:
        return write_griffin(folder)
    wanted = requests(a.requests, a.rate)
    found = summary(wanted, *run(way, folder, wanted, a.rows))
    print(json.dumps(found))


def measure_apart(way, folder, a):
    """`measure` in a process of its own; returns what it prints."""
    backend = WAYS.get(way) or os.environ.get("KERAS_BACKEND", "jax")
    command = [sys.executable, __file__, "--requests", str(a.requests)]
    command += ["--rate", str(a.rate), "--rows", str(a.rows)]
    command += ["--weights", folder, *([] if way is None else ["--way", way])]
    return subprocess.run(
        command,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def known_results(path, settings):
    """What an earlier run with the same settings found."""
    known = json.loads(path.read_text(encoding="utf-8"))
    if known["settings"] != settings:
        raise ValueError(
            "Only a run with the same settings can be resumed. Received: "
            f"{settings}; {path} has {known['settings']}. Leave out --resume, "
            "or choose another --output."
        )
    return known["results"]


def write(path, settings, results):
    results = {way: results[way] for way in WAYS if way in results}
    kept = {"settings": settings, "results": results}
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    text = (
        "# Many users on one model\n\n"
        f"{conditions()} {settings['requests']} requests, "
        f"{settings['rate']:g} a second, {settings['rows']} rows; what is "
        f"compared stands in the script's first lines.\n\n{table(results)}\n"
        "![Percentiles of times](serving.svg)\n"
    )
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        plot(results, path.with_suffix(".svg"))
    except ImportError:
        print("No plot: matplotlib is not installed.")
    print(text, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rate", type=float, default=8.0, help="[1 / s]")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.weights:
        return measure(a.way, a.weights, a)
    settings = {"requests": a.requests, "rate": a.rate, "rows": a.rows}
    path = a.output / "serving.json"
    results = known_results(path, settings) if a.resume else {}
    missing = [way for way in WAYS if way not in results]
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "griffin")
        if missing:
            measure_apart(None, weights, a)
        for way in missing:
            print(way, flush=True)
            results[way] = json.loads(measure_apart(way, weights, a))
            write(path, settings, results)
    write(path, settings, results)


if __name__ == "__main__":
    main()
