# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How the Pallas kernel works, and how to write one
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Build a TPU kernel for a linear recurrence step by step, check it, differentiate it, compile it for a TPU.<br>
# **Accelerator:** none needed; a TPU (v5e-1, v6e-1) runs the kernels for real<br>
# **Takes:** 16 s of CPU time and 1.4 GiB of memory on 2 cores; never run on a TPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/write_a_pallas_kernel.ipynb)
#
# The heart of a Griffin is a recurrence, and on a TPU a kernel written in Pallas computes it. This guide builds a small kernel from nothing, checks every step against a loop, gives it a gradient, and compiles it for a TPU that is not there. Then it shows what the package's own kernel adds.
#
# On a CPU kernels are interpreted, and the TPU's compiler needs no TPU (Linux). On a TPU set `INTERPRET = False` and install `jax[tpu]`.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "libtpu" "matplotlib"

# %%
import os

os.environ["KERAS_BACKEND"] = "jax"
INTERPRET = True

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# %% [markdown]
# ## What is computed
#
# ```
# y[t] = a[t] * y[t-1] + x[t]
# ```
#
# for each row of a batch and each channel separately. A plain loop in float64 says what is right.


# %%
def reference(x, a):
    y = np.zeros(x.shape, "float64")
    state = np.zeros((x.shape[0], x.shape[2]), "float64")
    for t in range(x.shape[1]):
        state = a[:, t].astype("float64") * state + x[:, t]
        y[:, t] = state
    return y


rng = np.random.default_rng(0)
BATCH, TIME, WIDTH = 2, 64, 256
x = rng.normal(size=(BATCH, TIME, WIDTH)).astype("float32")
a = rng.uniform(0.5, 1.0, size=x.shape).astype("float32")
expected = reference(x, a)


def check(y, expected):
    error = np.abs(y - expected).max() / np.abs(expected).max()
    print(f"largest error, relative to the largest value: {error:.1e}")
    np.testing.assert_array_less(error, 1e-6)


# %% [markdown]
# ## Step 1: a kernel that sees everything
#
# A kernel is a function of *refs*, which are places in the fast memory of a core (VMEM on a TPU, some ten to a hundred MiB). `ref[...]` reads, `ref[...] = value` writes. `pallas_call` copies arrays from the slow memory (HBM) to there and back.


# %%
def whole_kernel(x_ref, a_ref, y_ref):
    def step(t, state):
        state = a_ref[:, t] * state + x_ref[:, t]
        y_ref[:, t] = state
        return state

    batch, time, width = x_ref.shape
    jax.lax.fori_loop(0, time, step, jnp.zeros((batch, width)))


y = pl.pallas_call(
    whole_kernel,
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    interpret=INTERPRET,
)(x, a)
check(y, expected)

# %% [markdown]
# The result is right, but a batch of real size does not fit into VMEM.
#
# ## Step 2: blocks
#
# A *grid* runs the kernel many times, each time on one block. A `BlockSpec` has the shape of a block and a function from a place in the grid to the index of its block. While the kernel computes one block, Pallas fetches the next.
#
# Rows and channels do not depend on each other, so we may divide them freely. Time is different: block `i` needs the state at the end of block `i - 1`. The last axis of the grid runs in order, and *scratch* memory keeps its values from one run to the next. So we make time the last axis and keep the state in scratch.
#
# Why 128 channels? A TPU computes on registers of 8 x 128 numbers, and the last axis of an array lies along the 128.

# %%
BLOCK_TIME, BLOCK_WIDTH = 16, 128


def block_kernel(x_ref, a_ref, y_ref, state_ref):
    @pl.when(pl.program_id(2) == 0)  # the first block of a text
    def _():
        state_ref[...] = jnp.zeros_like(state_ref)

    def step(t, state):
        now = pl.ds(t, 1)
        state = a_ref[0, now] * state + x_ref[0, now]
        y_ref[0, now] = state
        return state

    state_ref[...] = jax.lax.fori_loop(0, BLOCK_TIME, step, state_ref[...])


def block_scan(x, a, interpret=INTERPRET):
    batch, time, width = x.shape
    block = pl.BlockSpec(
        (1, BLOCK_TIME, BLOCK_WIDTH),
        lambda row, channels, i: (row, i, channels),
    )
    return pl.pallas_call(
        block_kernel,
        grid=(batch, width // BLOCK_WIDTH, time // BLOCK_TIME),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((1, BLOCK_WIDTH), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            # Only the last axis must keep its order.
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(x, a)


check(block_scan(x, a), expected)

# %% [markdown]
# The plot numbers the blocks in the order in which they run. An arrow is the state, passed on in scratch. At the top of each column it starts at zero.

# %%
figure, axes = plt.subplots(1, BATCH, figsize=(9, 3.4), sharey=True)
rows, columns = TIME // BLOCK_TIME, WIDTH // BLOCK_WIDTH
for row, axis in enumerate(axes):
    for column in range(columns):
        for i in range(rows):
            corner = (column * BLOCK_WIDTH, i * BLOCK_TIME)
            axis.add_patch(
                plt.Rectangle(
                    corner,
                    BLOCK_WIDTH,
                    BLOCK_TIME,
                    fc=plt.cm.viridis(0.25 + 0.18 * i),
                    ec="w",
                    lw=3,
                )
            )
            middle = (corner[0] + BLOCK_WIDTH / 2, corner[1] + BLOCK_TIME / 2)
            axis.text(
                *middle,
                (row * columns + column) * rows + i,
                ha="center",
                va="center",
                color="w",
                size=13,
            )
            if i:
                axis.annotate(
                    "",
                    xytext=(corner[0] + 25, corner[1] - 5),
                    xy=(corner[0] + 25, corner[1] + 5),
                    arrowprops={"arrowstyle": "->", "color": "w", "lw": 2},
                )
    axis.set(xlim=(0, WIDTH), ylim=(TIME, 0), title=f"row {row} of the batch")
    axis.set_xticks(range(0, WIDTH + 1, BLOCK_WIDTH))
    axis.set_xlabel("channel")
axes[0].set_yticks(range(0, TIME + 1, BLOCK_TIME))
axes[0].set_ylabel("time")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Step 3: a gradient
#
# JAX can't differentiate a kernel that writes into refs, so we give it the gradient. Let `g[t]` be the gradient of the loss by `y[t]`, through all later steps too. Then
#
# ```
# g[t]  = dy[t] + a[t+1] * g[t+1]
# dx[t] = g[t]
# da[t] = g[t] * y[t-1]
# ```
#
# The first line is the same scan backwards in time, so one kernel does both.


# %%
@jax.custom_vjp
def scan(x, a):
    return block_scan(x, a)


def forward(x, a):
    y = block_scan(x, a)
    return y, (a, y)  # all that the gradient needs


def backward(kept, dy):
    a, y = kept
    a_next = jnp.pad(a[:, 1:], ((0, 0), (0, 1), (0, 0)))
    g = block_scan(dy[:, ::-1], a_next[:, ::-1])[:, ::-1]
    y_before = jnp.pad(y[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return g, g * y_before


scan.defvjp(forward, backward)

weights = rng.normal(size=x.shape).astype("float32")
dx, da = jax.grad(lambda x, a: (weights * scan(x, a)).sum(), (0, 1))(x, a)

# One number of it, by the slope of the reference.
step = 1e-3
moved = a.astype("float64")
moved[1, 30, 7] += step
slope = (weights * (reference(x, moved) - expected)).sum() / step
print(f"da[1, 30, 7] = {da[1, 30, 7]:.4f}, by the loop {slope:.4f}")

# %% [markdown]
# ## Step 4: a TPU's compiler, without a TPU
#
# The interpreter checks the arithmetic. It does not check what a TPU accepts. Lowering turns the kernel into the compiler's language and reports block shapes and operations that a TPU does not have. It takes a tenth of a second, on any machine.

# %%
shape = jax.ShapeDtypeStruct((8, 2048, 2560), jnp.float32)
on_tpu = jax.jit(lambda x, a: block_scan(x, a, interpret=False))
exported = jax.export.export(on_tpu, platforms=["tpu"])(shape, shape)
print("a kernel is in it:", "tpu_custom_call" in exported.mlir_module())

# %% [markdown]
# The compiler itself comes with `pip install libtpu`. It says whether the kernel fits into VMEM, and how much HBM the program needs.

# %%
os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_ACCELERATOR_TYPE="v5litepod-1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_LOG_DIR="disabled",
)
from jax.experimental import topologies

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
chip = jax.sharding.SingleDeviceSharding(topology.devices[0])


def compile_for_tpu(function):
    argument = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=chip)
    return jax.jit(function).lower(argument, argument).compile()


def tell(name, compiled):
    memory = compiled.memory_analysis()
    mebibytes = [
        size / 2**20
        for size in (
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.temp_size_in_bytes,
        )
    ]
    print(
        "{}: {:.0f} MiB in, {:.0f} out, {:.0f} beside".format(name, *mebibytes)
    )


tell("ours", compile_for_tpu(lambda x, a: block_scan(x, a, interpret=False)))

# %% [markdown]
# ## The package's kernel
#
# `keras_griffin.kernels.linear_scan` is the same operation for any time and width, with an initial and a final state, on every backend. Its TPU kernel does three more things:
#
# - **It fills registers.** Our loop takes one step of time, one row of 128 in a register of 8 x 128, and leaves seven eighths empty. The package cuts 128 steps into 8 segments and loads a step of each into one register; it scans each segment from zero, hands the states on, and scans again.
# - **It takes larger blocks,** up to 512 steps of 512 channels, so that a copy from HBM takes longer than what starts it.
# - **It computes the gates too:** `keras_griffin.kernels.rg_lru` has gates, decay, normaliser and scan in one kernel, and none of them goes through HBM.

# %%
from keras_griffin.kernels.linear_scan import linear_scan

y, final_state = linear_scan(x, a)  # "auto": on a CPU, plain operations
check(y, expected)
check(final_state, expected[:, -1])

if INTERPRET:
    with pltpu.force_tpu_interpret_mode():
        y, _ = linear_scan(x, a, implementation="pallas_tpu")
    check(y, expected)

# %% [markdown]
# JAX chooses the platform when it lowers a program. Compiled for a TPU, `"auto"` takes the TPU's kernel, even on this machine without one:

# %%
compiled = compile_for_tpu(lambda x, a: linear_scan(x, a)[0])
print("a kernel is in it:", "tpu_custom_call" in compiled.as_text())
tell("linear_scan", compiled)

# %% [markdown]
# The plot shows the eight segments. Numbers are steps of time, a column is one register. In memory order (left) the eight steps of a register wait for each other. Divided into segments (right), they don't.

# %%
CHUNK, SEGMENTS = 128, 8
times = np.arange(CHUNK).reshape(SEGMENTS, -1)
layouts = {
    "in memory order": np.arange(CHUNK).reshape(-1, SEGMENTS).T,
    "in 8 segments": times,
}
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
for axis, (title, layout) in zip(axes, layouts.items(), strict=True):
    registers = np.tile(np.arange(layout.shape[1]) % 2, (SEGMENTS, 1))
    axis.imshow(registers, cmap="Set3", vmin=0, vmax=8, aspect="auto")
    for place, t in np.ndenumerate(layout):
        axis.text(*place[::-1], t, ha="center", va="center", size=5)
    axis.set(title=title, xlabel="register", ylabel="row of the register")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Go on
#
# - [kernels/linear_scan](https://github.com/_owner_/keras_griffin/blob/main/kernels/linear_scan/README.md) and [kernels/rg_lru](https://github.com/_owner_/keras_griffin/blob/main/kernels/rg_lru/README.md): the details, and what the compiler says of each.
# - [CONTRIBUTING](https://github.com/_owner_/keras_griffin/blob/main/CONTRIBUTING.md) has the recipe for a kernel: files, names, tests.
# - `keras_griffin.kernels.dispatch.set_implementation("ops")` switches kernels off for a process.
