"""The cost of a token in training, for rows of 2,048 to 32,768 tokens.

    python benchmarks/speed/cost_by_length.py            # on this CPU
    python benchmarks/speed/cost_by_length.py --tpu v5p  # by the TPU compiler

Gradient of the loss of small models of equal width on JAX: Griffin, Hawk, and
the MQA Transformer, whose attention is global. A batch has as many tokens at
each length (the Transformer's a single row, for its memory's sake). CPU: the
fastest of several runs, float32, each length in a process of its own. TPU: no
device is used; bfloat16, bytes and FLOPs of the compiled program. Results are
kept in `benchmarks/results/cost_by_length.json`, from which the table and the
plot beside it are made.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
LENGTHS = (2048, 4096, 8192, 16384, 32768)  # tokens
TOKENS = 32768  # of a batch
RUNS = 3
COMMON = {
    "vocabulary_size": 256,
    "num_layers": 3,
    "hidden_dim": 128,
    "intermediate_dim": 384,
    "num_query_heads": 2,
    "head_dim": 64,
    "attention_window_size": 1024,  # the paper's
    "num_gate_blocks": 2,
}
MODELS = {
    "Griffin": ("recurrent", "recurrent", "local_attention"),
    "Hawk": ("recurrent",),
    "MQA Transformer": ("global_attention",),
}
# Longer rows of the Transformer do not fit into this machine's memory.
MAX_LENGTH_ON_A_CPU = {"MQA Transformer": 8192}


def batch_of(name, length):
    return 1 if name == "MQA Transformer" else TOKENS // length


def gradient_function(name, dtype):
    """`function(weights, token_ids)`, and the shapes of the weights."""
    import keras
    from keras import ops

    import keras_griffin

    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            **COMMON, block_types=MODELS[name], dtype=dtype
        )
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    state = [v.value for v in model.non_trainable_variables]

    def value(weights, token_ids):
        x = {
            "token_ids": token_ids,
            "padding_mask": ops.ones_like(token_ids),
        }
        logits, _ = model.stateless_call(weights, state, x)
        return loss(ops.roll(token_ids, -1, axis=1), logits)

    import jax

    return jax.grad(value), [v.value for v in model.trainable_variables]


def on_this_cpu(name, length):
    import jax

    function, weights = gradient_function(name, "float32")
    function = jax.jit(function)
    batch = batch_of(name, length)
    ids = np.random.default_rng(0).integers(1, 256, (batch, length))
    ids = jax.numpy.asarray(ids, "int32")
    jax.block_until_ready(function(weights, ids))
    seconds, cpu = [], []
    for _ in range(RUNS):
        start, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(weights, ids))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    tokens = batch * length
    return {
        "microseconds": 1e6 * min(seconds) / tokens,
        "cpu_microseconds": 1e6 * min(cpu) / tokens,
    }


def on_a_tpu(name, length, target):
    sys.path.insert(0, str(BENCHMARKS / "tpu_compiler"))
    import tpu_schedule

    tpu_schedule.quiet_environment("")
    # Of all of a model, the schedules would be gigabytes.
    os.environ.pop("LIBTPU_INIT_ARGS")
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=tpu_schedule.TOPOLOGY[target]
    )
    place = SingleDeviceSharding(topology.devices[0])

    def spec(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    function, weights = gradient_function(name, "bfloat16")
    weights = [spec(w.shape, w.dtype) for w in weights]
    batch = batch_of(name, length)
    ids = spec((batch, length), jax.numpy.dtype("int32"))
    compiled = jax.jit(function).lower(weights, ids).compile()
    cost = compiled.cost_analysis()
    tokens = batch * length
    return {
        "megaflops": cost["flops"] / tokens / 1e6,
        "kilobytes": cost["bytes accessed"] / tokens / 1e3,
    }


def write_table(results):
    import jax
    import keras

    lines = [
        "# The cost of a token by the length of its row",
        "",
        "`python benchmarks/speed/cost_by_length.py`, and the same with "
        "`--tpu v5p`; "
        f"Keras {keras.__version__},",
        f"jax {jax.__version__}, {os.cpu_count()} CPU cores. Gradient of the "
        "loss; 3 layers of width 128 (MLP 384,",
        "window 1024), a batch of 32,768 tokens (MQA Transformer: one row). "
        "In brackets the ratio to 2,048.",
    ]
    for where, unit, about in (
        ("cpu", "microseconds", "On the CPU, float32: microseconds a token"),
        (
            "cpu",
            "cpu_microseconds",
            "On the CPU, float32: CPU time of all threads, microseconds a "
            "token",
        ),
        (
            "v5p",
            "kilobytes",
            "TPU v5p, bfloat16, from its compiler (no TPU was used): kB a "
            "token that all operations read and write",
        ),
        (
            "v5p",
            "megaflops",
            "TPU v5p, likewise: MFLOP a token, without those inside of the "
            "RG-LRU's kernel",
        ),
    ):
        rows = [r for r in results if r["where"] == where]
        if not rows:
            continue
        lines += ["", f"**{about}**", ""]
        lines.append("| | " + " | ".join(f"{n:,}" for n in LENGTHS) + " |")
        lines.append("|---" * (1 + len(LENGTHS)) + "|")
        for name in MODELS:
            found = {r["length"]: r[unit] for r in rows if r["name"] == name}
            cells = [
                f"{found[n]:.3g} ({found[n] / found[LENGTHS[0]]:.2f})"
                if n in found
                else "-"
                for n in LENGTHS
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    load = max(r["load"] for r in results)
    lines += ["", f"Load average while measuring: at most {load:.1f}.", ""]
    (RESULTS / "cost_by_length.md").write_text("\n".join(lines))


def plot(results):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, where, unit, title in zip(
        panels,
        ("cpu", "v5p"),
        ("microseconds", "kilobytes"),
        ("time on a CPU", "bytes on a TPU v5p, by its compiler"),
        strict=True,
    ):
        # Griffin and Hawk lie on each other: open markers of two sizes.
        for name, marker, size in zip(MODELS, "osD", (5, 10, 6), strict=True):
            found = {
                r["length"]: r[unit]
                for r in results
                if r["where"] == where and r["name"] == name
            }
            if found:
                lengths = sorted(found)
                ratios = [found[n] / found[LENGTHS[0]] for n in lengths]
                axes.plot(
                    lengths,
                    ratios,
                    marker=marker,
                    markersize=size,
                    markerfacecolor="none",
                    label=name,
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.tick_params(labelleft=True)
        axes.set_xlim(LENGTHS[0] / 1.2, LENGTHS[-1] * 1.2)
        axes.set_ylim(0.8, 16)
        axes.set_xlabel("length of a row [tokens]")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("cost of a token, to that at 2k")
    panels[0].legend()
    figure.savefig(RESULTS / "cost_by_length.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tpu", choices=("v5p",))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, length = arguments.measure[0], int(arguments.measure[1])
        if arguments.tpu:
            result = on_a_tpu(name, length, arguments.tpu)
        else:
            result = on_this_cpu(name, length)
        print(json.dumps(result))
        return
    where = arguments.tpu or "cpu"
    path = RESULTS / "cost_by_length.json"
    results = json.loads(path.read_text()) if path.exists() else []
    for name in arguments.models:
        for length in arguments.lengths:
            limit = MAX_LENGTH_ON_A_CPU.get(name, length)
            if where == "cpu" and length > limit:
                continue
            load = os.getloadavg()[0]
            command = [sys.executable, __file__, "--measure", name, str(length)]
            if arguments.tpu:
                command += ["--tpu", arguments.tpu]
            done = subprocess.run(
                command,
                env={
                    **os.environ,
                    "KERAS_BACKEND": "jax",
                    "PYTHONPATH": str(ROOT),
                },
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            key = {"where": where, "name": name, "length": length}
            results = [r for r in results if not key.items() <= r.items()]
            result = json.loads(done.stdout.splitlines()[-1])
            results.append({**key, **result, "load": round(load, 1)})
            print(results[-1], flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    write_table(results)
    plot(results)


if __name__ == "__main__":
    main()
