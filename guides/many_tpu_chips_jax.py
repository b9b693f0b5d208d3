# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on many TPU chips with JAX
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/many_tpu_chips_jax.ipynb)
#
# One call says on how many devices a model lives and along what it is divided; `fit` and `generate` stay as they are. The same lines run on eight chips of a TPU, on a pod, and here on a CPU that pretends to be eight devices.
#
# **Runtime:** a machine with several TPU chips (v5e-8, v6e-8 on Google Cloud or Kaggle; Colab's TPU runtime has one chip, which works too and divides nothing). **Run on:** 2 CPU cores as 8 devices, JAX; never on a TPU, never on Colab. **Takes:** 60 s of CPU time and 2.0 GiB of memory.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "keras==3.15.1" "keras-nlp==0.32.0" "jax[tpu]==0.10.2" "matplotlib==3.11.2"

# %% [markdown]
# ## Devices
#
# Without a TPU, XLA divides the CPU into eight devices. It is not faster; it computes what eight chips would, with the same communication between them.

# %%
import os

os.environ["KERAS_BACKEND"] = "jax"
# The tests of this package run the guides at a small scale.
SMALL = os.environ.get("KERAS_GRIFFIN_GUIDES") == "small"
# Used by the CPU alone, and read when JAX starts.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)
print(jax.device_count(), jax.devices()[0].platform)

# %% [markdown]
# ## One call
#
# | axis | what it divides |
# |---|---|
# | `batch` | the rows of a batch; and, unless `fully_sharded=False`, weights, gradients and the optimizer's moments (ZeRO) |
# | `model` | heads, channels, gate blocks, the MLP and the vocabulary (Megatron's tensor parallel) |
# | `sequence` | the tokens of a row, for long documents |
#
# `batch` is what remains if it is left out. Make the distribution before the model.

# %%
distribution = keras_griffin.distribution.GriffinParallel(
    model=2 if jax.device_count() % 2 == 0 else 1
)
keras.distribution.set_distribution(distribution)
print(distribution.device_mesh)

# %%
if SMALL:
    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=1024,
        num_layers=2,
        hidden_dim=64,
        intermediate_dim=128,
        num_query_heads=4,
        num_gate_blocks=4,
        block_types=("recurrent", "local_attention"),
        attention_window_size=32,
    )
    preprocessor = keras_griffin.GriffinCausalLMPreprocessor.from_preset(
        "griffin_shakespeare_en"
    )
    model = keras_griffin.GriffinCausalLM(backbone, preprocessor)
else:
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")

# %% [markdown]
# ## What lies where
#
# Two weights of a recurrent block, each drawn as the matrix that it is. A number is the device that holds that part; where there are several, each has a copy.


# %%
def draw(axis, weight):
    array = weight.value
    height, width = array.shape[-2:]
    parts = {}
    for device, index in array.sharding.devices_indices_map(
        array.shape
    ).items():
        rows, columns = index[-2:]
        corner = (rows.start or 0, columns.start or 0)
        size = (
            (rows.stop or height) - corner[0],
            (columns.stop or width) - corner[1],
        )
        parts.setdefault((corner, size), []).append(device.id)
    for (corner, size), devices in parts.items():
        color = f"C{devices[0] % 10}"
        axis.add_patch(
            plt.Rectangle(corner[::-1], *size[::-1], fc=color, ec="w", lw=2)
        )
        axis.text(
            corner[1] + size[1] / 2,
            corner[0] + size[0] / 2,
            ", ".join(map(str, devices)),
            ha="center",
            va="center",
            color="w",
        )
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axis.set_title(weight.path.split("block_0/")[-1], fontsize=9)
    axis.set_xlabel("column")
    axis.set_ylabel("row")


weights = {weight.path: weight for weight in model.weights}
ends = ("block_0/recurrent_block/linear_x/kernel", "block_0/mlp/down/kernel")
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for axis, end in zip(axes, ends, strict=True):
    (path,) = [path for path in weights if path.endswith(end)]
    draw(axis, weights[path])
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Train
#
# Nothing changes in `fit`. A batch must have rows for every device along `batch`. Here the model goes through the beginning of Hamlet's monologue, cut into rows that overlap.

# %%
TEXT = """To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles
And by opposing end them. To die: to sleep,
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to: 'tis a consummation
Devoutly to be wish'd."""
tokens = np.array(model.preprocessor.tokenizer(TEXT))
ROW = 32
starts = np.arange(64) % (len(tokens) - ROW)
rows = tokens[starts[:, None] + np.arange(ROW + 1)]
x = {"token_ids": rows[:, :-1], "padding_mask": np.ones_like(rows[:, :-1])}
data = keras_griffin.training.ResumableData.from_arrays(
    x, rows[:, 1:], batch_size=16
)

model.compile(optimizer=keras_griffin.GriffinAdamW(1e-3), loss="auto")
history = model.fit(
    data, epochs=2 if SMALL else 10, shuffle=False, verbose=0
).history

# %%
plt.figure(figsize=(7, 2.5))
plt.plot(np.arange(1, len(history["loss"]) + 1), history["loss"], "o-")
plt.xlabel("epoch")
plt.ylabel("loss [nats a token]")
plt.ylim(bottom=0)
plt.tight_layout()
plt.show()

# %%
print(
    model.generate(
        "To be, or not", max_new_tokens=8 if SMALL else 40, sampler="greedy"
    )
)

# %% [markdown]
# ## Before you rent
#
# `keras-griffin plan` compiles the training step for a TPU slice that you do not have, by the TPU's own compiler (`pip install libtpu`, Linux), and prints what a chip needs. A model as small as this one needs next to nothing; large ones take the compiler minutes, and stand in a [table](https://github.com/_owner_/keras_griffin/blob/main/benchmarks/results/plan.md).

# %%
model.save_to_preset("planned")

# %% language="bash"
# keras-griffin plan planned 2>/dev/null --slice v5e-8 --mesh batch=4,model=2 --batch-size 16 --length 128

# %% [markdown]
# ## A pod: many hosts
#
# Each host runs the same program, which begins with one more line, before anything else of JAX:
#
# ```python
# keras.distribution.initialize()
# ```
#
# On Google Cloud:
#
# ```bash
# gcloud compute tpus tpu-vm ssh my-pod --worker=all \
#     --command="KERAS_BACKEND=jax python train.py"
# ```
#
# A whole `train.py`, in which each host reads its own rows, is in [keras_griffin/distribution](https://github.com/_owner_/keras_griffin/blob/main/keras_griffin/distribution/README.md). Give it `keras_griffin.training.resumable_fit` in place of `fit`: a pod that is taken away and comes back goes on behind the last backup.
#
# ## Go on
#
# - **Long rows:** `GriffinParallel(sequence=4)` divides time among devices.
# - **RecurrentGemma 2B** has 10 heads and 10 gate blocks: `model` may be 2, 5 or 10.
# - **Remat:** make the model in `keras.RematScope`, as in [finetune_with_lora](finetune_with_lora.ipynb).
# - **tf.distribute:** [many_tpu_chips_tensorflow](many_tpu_chips_tensorflow.ipynb).
