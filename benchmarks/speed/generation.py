"""Times a generated token here, beside DeepMind's and Hugging Face's models.

    python benchmarks/speed/generation.py
    python benchmarks/speed/generation.py --dtypes
    KERAS_BACKEND=jax python benchmarks/speed/generation.py --long 200000
    KERAS_BACKEND=jax python benchmarks/speed/generation.py --prefill 100000

Griffin of 6 layers of width 512, float32, batch 2, random weights, greedy. Each
row runs in a process of its own, one after the other; times are the medians of
several runs.

`--dtypes` times our model in float32, bfloat16, int8 and int4 instead.
`--long N` generates N tokens with a small model, and `--prefill N` reads
prompts up to N tokens; both report resident memory and time on the way.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "vocabulary_size": 512,
    "num_layers": 6,
    "hidden_dim": 512,
    "intermediate_dim": 1536,
    "num_query_heads": 4,
    "head_dim": 128,
    "recurrent_dim": 512,
    "block_types": ("recurrent", "recurrent", "local_attention"),
    "attention_window_size": 256,
    "num_gate_blocks": 4,
    "scale_embeddings": True,
    "final_logit_soft_cap": 30.0,
}
BATCH = 2
PROMPTS = (16, 4096)  # tokens
NEW = 32  # tokens
RUNS = 3
REPORTS = 10  # lines of a long run
# Small, so that a long run takes minutes.
SMALL = {
    **SETTINGS,
    "num_layers": 3,
    "hidden_dim": 64,
    "intermediate_dim": 192,
    "head_dim": 16,
    "recurrent_dim": 64,
}
DTYPES = ("float32", "bfloat16", "int8", "int4")
BACKENDS = ("jax", "tensorflow", "torch")
WHO = ("jax", "tensorflow", "torch", "deepmind", "huggingface", "weights")


def median_ms(run, count):
    """Milliseconds of one of the `count` tokens that `run` makes."""
    run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)) / count


def our_model(settings=SETTINGS, dtype="float32"):
    import keras_griffin

    is_quantized = dtype in ("int8", "int4")
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            **settings, dtype="float32" if is_quantized else dtype
        )
    )
    if is_quantized:
        model.quantize(dtype)
    model.compile(sampler="greedy")
    return model


def ours(token_ids, dtype="float32"):
    model = our_model(dtype=dtype)
    _, state = model.prefill({"token_ids": token_ids[:, :-1]})
    last = {"token_ids": token_ids[:, -1:]}

    def generate():
        model.generate(
            last, max_new_tokens=NEW, stop_token_ids=None, state=state
        )

    return median_ms(generate, NEW)


def deepmind(token_ids, dtype="float32"):
    import jax

    from support.peers import DeepMindGriffin

    peer = DeepMindGriffin(SETTINGS, dtype=dtype)
    apply = jax.jit(peer.model.apply)
    params = jax.tree.map(lambda x: x.astype(dtype), {"params": peer.params})
    time = token_ids.shape[1]
    positions = np.tile(np.arange(time, dtype="int32"), (BATCH, 1))
    logits, cache = apply(params, token_ids, positions, None)
    first = np.asarray(logits[:, -1:].argmax(-1), "int32")

    def generate():
        token, state = jax.numpy.asarray(first), cache
        for t in range(time, time + NEW):
            here = jax.numpy.full((BATCH, 1), t, "int32")
            logits, state = apply(params, token, here, state)
            token = logits[:, -1:].argmax(-1).astype("int32")
        token.block_until_ready()

    return median_ms(generate, NEW)


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def huggingface_model():
    """Hugging Face's model of the same `SETTINGS`, in float32."""
    from transformers import RecurrentGemmaConfig
    from transformers import RecurrentGemmaForCausalLM

    config = RecurrentGemmaConfig(
        vocab_size=SETTINGS["vocabulary_size"],
        num_hidden_layers=SETTINGS["num_layers"],
        hidden_size=SETTINGS["hidden_dim"],
        # Hugging Face gives the width of both branches of the MLP.
        intermediate_size=2 * SETTINGS["intermediate_dim"],
        num_attention_heads=SETTINGS["num_query_heads"],
        num_key_value_heads=1,
        lru_width=SETTINGS["recurrent_dim"],
        attention_window_size=SETTINGS["attention_window_size"],
    )
    return RecurrentGemmaForCausalLM(config).to(torch_device())


def huggingface(token_ids, dtype="float32"):
    import torch

    model = huggingface_model().eval().to(getattr(torch, dtype))
    ids = torch.from_numpy(token_ids.astype("int64")).to(torch_device())

    def seconds(count):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
            ).cpu()
        return time.perf_counter() - start

    seconds(2)
    # The prefill is in both, and in neither the difference.
    return 1e3 * float(
        np.median([(seconds(NEW + 1) - seconds(1)) / NEW for _ in range(RUNS)])
    )


def weights(token_ids):
    """Reading as many bytes as the model has weights, on all cores."""
    import torch

    d, f, h = (
        SETTINGS[k] for k in ("hidden_dim", "intermediate_dim", "head_dim")
    )
    recurrent = 3 * d * d + 2 * d * d // SETTINGS["num_gate_blocks"]
    attention = 2 * d * d + 2 * d * h
    count = 6 * 3 * d * f + 4 * recurrent + 2 * attention
    numbers = torch.ones(count + SETTINGS["vocabulary_size"] * d)
    return median_ms(lambda: numbers.sum().item(), 1)


def measure(who, prompt):
    rng = np.random.default_rng(0)
    shape = (BATCH, prompt)
    token_ids = rng.integers(3, SETTINGS["vocabulary_size"], shape)
    token_ids = token_ids.astype("int32")
    runners = {
        "deepmind": deepmind,
        "huggingface": huggingface,
        "weights": weights,
    }
    if who in DTYPES:
        print(f"{ours(token_ids, who):.2f}")
    else:
        print(f"{runners.get(who, ours)(token_ids):.2f}")


def measure_apart(who, prompt, backend):
    """`measure` in a process of its own: milliseconds, as text."""
    return subprocess.run(
        [sys.executable, __file__, "--measure", who, str(prompt)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()[-1]


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_run(total):
    model = our_model(SMALL)
    inputs = {"token_ids": np.ones((BATCH, 16), "int32")}
    state, made, count = None, 0, 1000  # tokens before the first line
    while made < total:
        start = time.perf_counter()
        _, state = model.generate(
            inputs,
            max_new_tokens=count,
            stop_token_ids=None,
            state=state,
            return_state=True,
        )
        seconds = time.perf_counter() - start
        made += count
        print(
            f"| {made} | {resident_mib():.1f} | {1e3 * seconds / count:.2f} |",
            flush=True,
        )
        count = total // REPORTS


def long_prefill(longest):
    model = our_model(SMALL)
    time_ = 1000
    while time_ <= longest:
        inputs = {"token_ids": np.ones((BATCH, time_), "int32")}
        model.prefill(inputs)
        start = time.perf_counter()
        np.asarray(model.prefill(inputs)[0])
        seconds = time.perf_counter() - start
        print(
            f"| {time_} | {resident_mib():.1f} | "
            f"{1e6 * seconds / (BATCH * time_):.2f} |",
            flush=True,
        )
        time_ *= 10


def print_table(columns, rows):
    """`rows` yields `(name, cells)`."""
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", action="store_true")
    parser.add_argument("--long", type=int)
    parser.add_argument("--prefill", type=int)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.long:
        return long_run(arguments.long)
    if arguments.prefill:
        return long_prefill(arguments.prefill)
    if arguments.measure:
        return measure(arguments.measure[0], int(arguments.measure[1]))
    if arguments.dtypes:
        return print_table(
            DTYPES,
            (
                (
                    backend,
                    [measure_apart(x, PROMPTS[0], backend) for x in DTYPES],
                )
                for backend in BACKENDS
            ),
        )
    return print_table(
        [f"prompt {n}" for n in PROMPTS],
        (
            (
                who,
                [
                    measure_apart(who, n, who if who in BACKENDS else "jax")
                    for n in PROMPTS
                ],
            )
            for who in WHO
        ),
    )


if __name__ == "__main__":
    main()
