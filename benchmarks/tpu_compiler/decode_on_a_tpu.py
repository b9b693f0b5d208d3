"""Compiles a token of RecurrentGemma 2B for one TPU that is not there.

    python benchmarks/tpu_compiler/decode_on_a_tpu.py

Prints the bytes that a decode step in bfloat16 moves between HBM and the chip,
according to libtpu's compiler, beside the least possible: every weight and all
of the state read once, and what is new of the state written. Needs jax and
libtpu; no weight is allocated. Some minutes.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import tpu_schedule

BENCHMARKS = Path(__file__).resolve().parents[1]
PRESET = BENCHMARKS.parent / "presets" / "recurrent_gemma_2b_en.json"
BATCHES = (1, 64)
TARGET = "v5e"


def decode_step(batch):
    """The case of `tpu_schedule.measure`: one token for each of the rows."""

    def case(spec):
        import keras

        import keras_griffin

        settings = json.loads(PRESET.read_text())["backbone"]
        with keras.StatelessScope(initialize_variables=False):
            backbone = keras_griffin.GriffinBackbone(
                **settings, dtype="bfloat16"
            )
        variables = backbone.variables
        cap = backbone.final_logit_soft_cap

        def function(weights, token_ids, state):
            # What `GriffinCausalLM` does; making one would allocate weights.
            mapping = list(zip(variables, weights, strict=True))
            with keras.StatelessScope(mapping, initialize_variables=False):
                hidden, state = backbone.call_with_state(
                    token_ids[:, None], state
                )
                logits = backbone.token_embedding(hidden[:, 0], reverse=True)
            logits = keras.ops.cast(logits, "float32")
            return cap * keras.ops.tanh(logits / cap), state

        import jax

        state = jax.eval_shape(lambda: backbone.init_state(batch))
        return function, (
            [spec(v.shape, v.dtype) for v in variables],
            spec((batch,), "int32"),
            jax.tree.map(lambda leaf: spec(leaf.shape, leaf.dtype), state),
        )

    return case


def least_bytes(batch):
    """Weights and state once, and the state's new rows."""
    settings = json.loads(PRESET.read_text())
    backbone = settings["backbone"]
    blocks = [
        backbone["block_types"][i % 3] for i in range(backbone["num_layers"])
    ]
    recurrent = blocks.count("recurrent")
    attention = len(blocks) - recurrent
    width, slots = backbone["recurrent_dim"], backbone["attention_window_size"]
    inputs = 2 * (backbone["conv_kernel_size"] - 1) * width
    row = 2 * 2 * backbone["head_dim"]  # bytes of a key and a value
    state_read = recurrent * (4 * width + inputs) + attention * row * (
        slots + 1
    )
    state_written = recurrent * (4 * width + inputs) + attention * row
    return 2 * settings["parameters"] + batch * (state_read + state_written)


def measure(batch):
    """In a process of its own: the compiler reads its options once."""
    command = [sys.executable, __file__, "--batch", str(batch)]
    output = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    ).stdout
    return json.loads(output.splitlines()[-1])


def table(results):
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("keras", "jax", "libtpu")
    )
    lines = [
        "# A token of RecurrentGemma 2B on a TPU, from its compiler",
        "",
        f"`python benchmarks/tpu_compiler/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, {versions}.",
        "No TPU was used. bfloat16, the whole window of 2048 tokens filled, "
        f"one {TARGET}; the least possible: all weights and all",
        "of the state read once, the state's new rows written. Milliseconds "
        "are lower bounds: for each operation the longer of",
        "its schedule and its bytes at the data sheet's bandwidth.",
        "",
        "| batch | bytes moved | least possible | ratio | bound [ms] | "
        "tokens/s at that bound | peak of HBM [GiB] |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, result in results.items():
        least = least_bytes(batch)
        lines.append(
            f"| {batch} | {result['hbm_bytes'] / 1e9:.2f}e9 | "
            f"{least / 1e9:.2f}e9 | "
            f"**{result['hbm_bytes'] / least:.3f}** | "
            f"{result['bound_ms']:.2f} | "
            f"{math.floor(1e3 * batch / result['bound_ms'])} | "
            f"{result['peak_mib'] / 1024:.1f} |"
        )
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="one of them, as JSON")
    parser.add_argument("--dump", help="keep the compiler's files here")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    if arguments.batch:
        result = tpu_schedule.measure(
            decode_step(arguments.batch),
            TARGET,
            dump=arguments.dump,
            donate=(2,),
        )
        return print(json.dumps(result))
    text = table({batch: measure(batch) for batch in BATCHES})
    print(text)
    (arguments.output / "decode_on_a_tpu.md").write_text(text)


if __name__ == "__main__":
    main()
