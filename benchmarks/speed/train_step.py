"""Times a training step here, beside DeepMind's and Hugging Face's models.

    python benchmarks/speed/train_step.py

Griffin of 6 layers of width 512, float32, batch 2 x 1024, AdamW, random
weights. Each row runs in a process of its own, one after the other, with its
library's own number of threads (`--threads` for another): the first step, with
compilation and without imports, the fastest of the later ones, and the CPU
time of that one, all threads together. "products" is the time of the model's
matrix products alone, forward and backward.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from generation import SETTINGS
from generation import huggingface_model
from generation import torch_device

ROOT = Path(__file__).resolve().parents[2]
BATCH = 2
LENGTH = 1024  # tokens
STEPS = 8  # the fastest counts
LEARNING_RATE = 1e-4


def ours(token_ids, dtype="float32"):
    import keras

    import keras_griffin

    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(**SETTINGS, dtype=dtype)
    )
    model.compile(
        optimizer=keras_griffin.GriffinAdamW(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    x = {
        "token_ids": token_ids[:, :-1],
        "padding_mask": np.ones_like(token_ids[:, :-1]),
    }
    y = token_ids[:, 1:]
    return lambda: float(np.asarray(model.train_on_batch(x, y)))


def deepmind(token_ids, dtype="float32", scan_type="LINEAR_NATIVE"):
    import jax
    import optax

    from support.peers import DeepMindGriffin

    peer = DeepMindGriffin(SETTINGS, dtype=dtype, scan_type=scan_type)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE)
    )
    x, y, positions = map(
        jax.numpy.asarray,
        (
            token_ids[:, :-1],
            token_ids[:, 1:],
            np.tile(np.arange(LENGTH, dtype="int32"), (BATCH, 1)),
        ),
    )

    def loss(params):
        logits, _ = peer.model.apply({"params": params}, x, positions)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype("float32"), y
        ).mean()

    @jax.jit
    def update(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    now = [peer.params, optimizer.init(peer.params)]

    def step():
        *now[:], value = update(*now)
        return float(value)

    return step


def huggingface(token_ids, dtype="float32"):
    import torch

    model = huggingface_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    device = torch_device()
    ids = torch.from_numpy(token_ids.astype("int64")).to(device)
    precision = torch.autocast(
        device, torch.bfloat16, enabled=dtype == "mixed_bfloat16"
    )

    def step():
        optimizer.zero_grad()
        with precision:
            logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def shapes_of_products():
    """`(inputs, outputs, count)` of the matrices, each on every token."""
    d, f, r, h = (
        SETTINGS[k]
        for k in ("hidden_dim", "intermediate_dim", "recurrent_dim", "head_dim")
    )
    heads = SETTINGS["num_query_heads"] * h
    gate = r // SETTINGS["num_gate_blocks"]
    keys = SETTINGS["attention_window_size"] + 1
    return [
        (d, f, 12),
        (f, d, 6),
        (d, r, 8),
        (r, d, 4),
        (gate, r, 2 * 4),  # block-diagonal: as many products
        (d, heads, 2),
        (d, h, 4),
        (heads, d, 2),
        (h, keys * SETTINGS["num_query_heads"], 2),
        (keys * SETTINGS["num_query_heads"], h, 2),
        (d, SETTINGS["vocabulary_size"], 1),
    ]


def products(token_ids, matmul, normal, wait):
    tokens = token_ids[:, 1:].size
    work = [
        (normal(tokens, i), normal(i, o), normal(tokens, o), count)
        for i, o, count in shapes_of_products()
    ]

    def step():
        for x, w, dy, count in work:
            for _ in range(count):
                y = matmul(x, w), matmul(dy, w.T), matmul(x.T, dy)
        wait(y)
        return 0.0

    return step


def products_jax(token_ids):
    import jax

    rng = np.random.default_rng(0)

    def normal(*shape):
        return jax.numpy.asarray(rng.normal(size=shape), "float32")

    def matmul(x, w):
        y = jitted(x, w)
        y.block_until_ready()  # one after the other, as in a model
        return y

    jitted = jax.jit(jax.numpy.matmul)
    return products(token_ids, matmul, normal, lambda y: None)


def products_torch(token_ids):
    import torch

    return products(
        token_ids,
        torch.matmul,
        lambda *shape: torch.randn(shape),
        lambda y: None,
    )


# Name: function, backend of Keras.
WHO = {
    "jax": (ours, "jax"),
    "tensorflow": (ours, "tensorflow"),
    "torch": (ours, "torch"),
    "deepmind": (deepmind, "jax"),
    "huggingface": (huggingface, "torch"),
    "products-jax": (products_jax, "jax"),
    "products-torch": (products_torch, "torch"),
}


def measure(who, threads):
    function, backend = WHO[who]
    if threads and backend == "torch":
        import torch

        torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    token_ids = rng.integers(
        3, SETTINGS["vocabulary_size"], (BATCH, LENGTH + 1)
    )
    step = function(token_ids.astype("int32"))
    seconds = []
    for _ in range(1 + STEPS):
        start, used = time.perf_counter(), time.process_time()
        loss = step()
        seconds.append(
            (time.perf_counter() - start, time.process_time() - used)
        )
    if not np.isfinite(loss):
        raise RuntimeError(f"The loss of {who} is {loss}.")
    first, (step, cpu) = seconds[0][0], min(seconds[1:])
    print(f"{first:.1f} | {step:.2f} | {cpu:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=WHO)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--measure", choices=WHO, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.threads)
        return
    print("| | first step [s] | step [s] | CPU time of it [s] |")
    print("|---|---|---|---|")
    options = []
    if arguments.threads:
        options = ["--threads", str(arguments.threads)]
        os.sched_setaffinity(0, set(range(arguments.threads)))
    for who in arguments.who:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", who, *options],
            env={
                **os.environ,
                "KERAS_BACKEND": WHO[who][1],
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(f"| {who} | {done.stdout.splitlines()[-1]} |", flush=True)
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
