"""Times `linear_scan` and `rg_lru` here, beside other ways to scan.

    python benchmarks/speed/scan_on_this_machine.py [jax tensorflow torch]

Each backend runs in a process of its own. Every implementation is first
compared with the float64 loop, values and gradients, and is not timed if it is
wrong; a shape too large for the loop relies on the smaller ones. Times are the
least of several runs, in milliseconds: on a machine that does other work as
well, the least is what comes nearest to the code's own cost.
"""

import argparse
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("jax", "tensorflow", "torch")
# (batch, time, width): a training step of a mid-sized model, of a small model,
# and of a model between them.
SHAPES = ((4, 2048, 512), (12, 64, 128), (2, 1024, 512))
GATE_BLOCKS = 4
ALLOWED_ERROR = 1e-4  # of the largest value; float32 against float64
CHECKED = 2**22  # numbers at most: the float64 loop takes minutes for more
MIN_RUNS, MIN_SECONDS = 5, 1.0


def milliseconds(run):
    run()
    times = []
    while len(times) < MIN_RUNS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def jax_runners(function, arrays, dy):
    """`{mode: (forward, forward and backward)}`; each returns NumPy arrays."""
    import jax

    @jax.jit
    def backward(dy, *tensors):
        y, transpose = jax.vjp(function, *tensors)
        return y, transpose(dy)

    forward = jax.jit(function)
    arrays, dy = jax.device_put((arrays, dy))
    return {
        "jit": (
            lambda: jax.block_until_ready(forward(*arrays)),
            lambda: jax.block_until_ready(backward(dy, *arrays)),
        )
    }


def tensorflow_runners(function, arrays, dy):
    import tensorflow as tf

    def backward(dy, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = function(*tensors)
        return y, tape.gradient(y, tensors, dy)

    arrays, dy = [tf.constant(array) for array in arrays], tf.constant(dy)
    runners = {}
    for mode in ("graph", "XLA"):
        compiled = [
            tf.function(f, jit_compile=mode == "XLA", autograph=False)
            for f in (function, backward)
        ]
        runners[mode] = (
            functools.partial(compiled[0], *arrays),
            functools.partial(compiled[1], dy, *arrays),
        )
    return runners


def torch_runners(function, arrays, dy):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [
        torch.tensor(array, requires_grad=True, device=device)
        for array in arrays
    ]
    dy = torch.tensor(dy, device=device)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            y = function(*tensors)
        wait()
        return y

    def backward():
        y = function(*tensors)
        gradients = torch.autograd.grad(y, tensors, dy)
        wait()
        return y.detach(), gradients

    return {"eager": (forward, backward)}


def scans(backend):
    """`{name: function of x and a}`, ours first."""
    import keras

    from keras_griffin.kernels.linear_scan import linear_scan

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    found = {
        "linear_scan": lambda x, a: linear_scan(x, a)[0],
        "keras.ops.associative_scan": lambda x, a: keras.ops.associative_scan(
            combine, (a, x), axis=1
        )[1],
    }
    if backend == "jax":
        import jax
        import jax.numpy as jnp

        def step(h, ax):
            h = ax[0] * h + ax[1]
            return h, h

        def lax_scan(x, a):
            ax = jnp.moveaxis(a, 1, 0), jnp.moveaxis(x, 1, 0)
            _, y = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), ax)
            return jnp.moveaxis(y, 0, 1)

        found["jax.lax.scan"] = lax_scan
        if importlib.util.find_spec("recurrentgemma"):
            from recurrentgemma import common
            from recurrentgemma.jax import scan

            found["recurrentgemma linear_scan"] = lambda x, a: scan.linear_scan(
                x, a, scan_type=common.ScanType.LINEAR_NATIVE
            )[0]
            found["recurrentgemma associative scan"] = lambda x, a: (
                scan.linear_scan(
                    x, a, scan_type=common.ScanType.ASSOCIATIVE_NATIVE
                )[0]
            )
    if backend == "torch" and importlib.util.find_spec("recurrentgemma"):
        import torch
        from recurrentgemma.torch import layers

        found["recurrentgemma rnn_scan"] = lambda x, a: layers.rnn_scan(
            x, a, torch.zeros(x.shape[:2], dtype=bool, device=x.device), None
        )[0]
    return found


def gates(width, rng):
    size = width // GATE_BLOCKS
    for _ in range(2):
        yield rng.normal(size=(GATE_BLOCKS, size, size)) / np.sqrt(size)
        yield rng.normal(size=(GATE_BLOCKS, size))
    yield rng.uniform(-7.0, -2.0, size=width)


def is_right(run, y, gradients):
    import keras

    actual_y, actual_gradients = run()
    return all(
        np.max(np.abs(keras.ops.convert_to_numpy(actual) - exact))
        <= ALLOWED_ERROR * np.max(np.abs(exact))
        for actual, exact in zip(
            (actual_y, *actual_gradients), (y, *gradients), strict=True
        )
    )


def measure(backend):
    """Prints the rows of one backend."""
    from keras_griffin.kernels.linear_scan.reference import (
        linear_scan_gradients,
    )
    from keras_griffin.kernels.linear_scan.reference import (
        linear_scan_reference,
    )
    from keras_griffin.kernels.rg_lru import rg_lru
    from keras_griffin.kernels.rg_lru.reference import rg_lru_gradients
    from keras_griffin.kernels.rg_lru.reference import rg_lru_reference

    make_runners = globals()[f"{backend}_runners"]
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        batch, _, width = shape
        x, dy = rng.normal(size=(2, *shape)).astype("float32")
        a = rng.uniform(0.5, 1.0, size=shape).astype("float32")
        no_state = np.zeros((batch, width))
        exact = np.prod(shape) <= CHECKED and (
            linear_scan_reference(x, a)[0],
            linear_scan_gradients(x, a, None, dy, no_state)[:2],
        )
        ours = {}
        for name, function in scans(backend).items():
            report(name, shape, make_runners(function, (x, a), dy), exact, ours)
        parameters = [p.astype("float32") for p in gates(width, rng)]
        names = (
            "x recurrence_gate_kernel recurrence_gate_bias input_gate_kernel "
            "input_gate_bias recurrence_param"
        ).split()
        inputs = dict(zip(names, (x, *parameters), strict=True))
        if exact:
            by_name = rg_lru_gradients(inputs, dy, no_state)
            exact = (
                rg_lru_reference(**inputs)[0],
                [by_name[name] for name in names],
            )
        runners = make_runners(
            lambda *tensors: rg_lru(*tensors)[0], tuple(inputs.values()), dy
        )
        report("rg_lru", shape, runners, exact, {})


def report(name, shape, runners, exact, ours):
    """Checks and times one implementation; `ours` has the times to compare."""
    for mode, (forward, backward) in runners.items():
        row = f"| {'x'.join(map(str, shape))} | {name} ({mode}) | "
        try:
            right = not exact or is_right(backward, *exact)
            times = right and (milliseconds(forward), milliseconds(backward))
        # What does not run is a result here, whatever the reason.
        except Exception as error:
            print(f"{row}{type(error).__name__} | | | |", flush=True)
            continue
        if not right:
            print(f"{row}wrong, not timed | | | |", flush=True)
            continue
        base = ours.setdefault(mode, times)
        print(
            f"{row}{times[0]:.2f} | {times[0] / base[0]:.1f} | "
            f"{times[1]:.2f} | {times[1] / base[1]:.1f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=BACKENDS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        sys.path.insert(0, str(ROOT))
        measure(arguments.backends[0])
        return
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("keras", *arguments.backends)
        if name != "tensorflow"
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores; {versions}\n")
    for backend in arguments.backends:
        print(f"{backend}: milliseconds, and how many times ours\n")
        print("| shape | implementation | forward | x | with backward | x |")
        print("|---|---|---|---|---|---|", flush=True)
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", backend],
            check=True,
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "JAX_PLATFORMS": "cpu",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )
        print(flush=True)


if __name__ == "__main__":
    main()
