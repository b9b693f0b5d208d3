"""Speculation by prompt lookup beside plain `generate`, one row, greedy.

    KERAS_BACKEND=jax python benchmarks/speed/speculation.py

What it brings is tokens a pass, which are the text's, over what a pass costs,
in single tokens, which is the model's. Two models:

- the shipped one, on texts that it knows how to write: its width of 256 is so
  small that a pass costs what the calls cost, not the weights;
- one of 6 layers of width 1024 with random weights, where the weights do. Its
  greedy text soon repeats itself, which lookup finds easy: take its cost of a
  pass, and not its tokens a pass, for what to expect.

One core, CPU time of this process, the two ways by turns: other programs on the
machine change little.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from unittest import mock

# Before a backend counts the cores.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import generation  # noqa: E402
import numpy as np  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.generation import speculative  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS))
from conditions import conditions  # noqa: E402

LARGE = {
    **generation.SETTINGS,
    "hidden_dim": 1024,
    "intermediate_dim": 3072,
    "num_query_heads": 8,
    "recurrent_dim": 1024,
    "num_gate_blocks": 8,
}
DRAFT_TOKENS = (2, 4, 8)
NEW = 64  # tokens
PROMPT = 400  # characters of the shipped model's prompts
RUNS = 3


def cases():
    """Yields `(name, model, prompt)`."""
    shipped = keras_griffin.GriffinCausalLM.from_preset(
        "griffin_shakespeare_en"
    )
    shipped.compile(sampler="greedy")
    text = (BENCHMARKS / "data" / "tinyshakespeare.txt").read_text()
    # The last tenth, which it was not trained on.
    passage = text[-len(text) // 10 :][:PROMPT]
    yield "shipped, goes on with a scene", shipped, passage
    yield (
        "shipped, a scene for the second time",
        shipped,
        2 * passage + passage[:99],
    )
    backbone = keras_griffin.GriffinBackbone(**LARGE)
    large = keras_griffin.GriffinCausalLM(backbone)
    large.compile(sampler="greedy")
    rng = np.random.default_rng(0)
    ids = rng.integers(1, LARGE["vocabulary_size"], (1, 64)).astype("int32")
    yield "width 1024, random weights", large, {"token_ids": ids}


def cpu_seconds(model, prompt, **options):
    """Of all tokens after the first one, so without the prompt."""
    times = []
    for count in (1, NEW):
        start = time.process_time()
        model.generate(
            prompt, max_new_tokens=count, stop_token_ids=None, **options
        )
        times.append(time.process_time() - start)
    return times[1] - times[0]


def passes(model, prompt, **options):
    """That `cpu_seconds` times."""
    counted = mock.patch.object(
        speculative.Speculation,
        "next_tokens",
        autospec=True,
        side_effect=speculative.Speculation.next_tokens,
    )
    with counted as next_tokens:
        cpu_seconds(model, prompt, **options)
    return next_tokens.call_count - 2  # two first tokens


def measure(name, model, prompt, size):
    options = {"draft": "prompt_lookup", "draft_tokens": size}
    count = passes(model, prompt, **options)  # and compiles
    cpu_seconds(model, prompt)
    plain, drafted = [], []
    for _ in range(RUNS):
        plain.append(cpu_seconds(model, prompt))
        drafted.append(cpu_seconds(model, prompt, **options))
    plain, drafted = float(np.median(plain)), float(np.median(drafted))
    return {
        "name": name,
        "size": size,
        "tokens_per_pass": (NEW - 1) / count,
        "token_ms": 1e3 * plain / (NEW - 1),
        "pass_ms": 1e3 * drafted / count,
        "speed": plain / drafted,
    }


def table(rows):
    lines = [
        "| model and text | proposals | tokens a pass | a token [ms] | "
        "a pass [ms] | a pass in tokens | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['size']} | {row['tokens_per_pass']:.2f} | "
            f"{row['token_ms']:.1f} | {row['pass_ms']:.1f} | "
            f"{row['pass_ms'] / row['token_ms']:.2f} | {row['speed']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    rows = []
    for case in cases():
        for size in DRAFT_TOKENS:
            rows.append(measure(*case, size))
            print(rows[-1], flush=True)
    text = (
        "# Several tokens in one pass\n\n"
        f"{conditions()} One core, CPU time; what is compared stands in the "
        f"script's first lines. Speed: 1 is plain `generate`.\n\n"
        f"{table(rows)}"
    )
    print(text)
    (arguments.output / "speculation.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
