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
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Divide a model and its batches among devices with one call, on a pod or on a CPU that pretends to be one.<br>
# **Accelerator:** TPU: v5e-8 or v6e-8 on Google Cloud or Kaggle. Colab's v5e-1 and v6e-1 have one chip, which works and divides nothing<br>
# **Takes:** 60 s of CPU time and 2.0 GiB of memory on 2 cores as 8 devices; never run on a TPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/many_tpu_chips_jax.ipynb)
#
# One call says how many devices a model uses and how to divide it. `fit` and `generate` stay as they are. The same lines run on eight chips of a TPU, on a pod, and here on a CPU that pretends to be eight devices.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "jax[tpu]" "matplotlib"

# %% [markdown]
# ## Devices
#
# Without a TPU, XLA divides the CPU into eight devices. This is no faster. It computes what eight chips would, with the same communication between them.

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
EPOCHS = 10
NEW_TOKENS = 40

# %%
import os

os.environ["KERAS_BACKEND"] = "jax"
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
# Without `batch`, the remaining devices go there. Make the distribution before the model.

# %%
distribution = keras_griffin.distribution.GriffinParallel(
    model=2 if jax.device_count() % 2 == 0 else 1
)
keras.distribution.set_distribution(distribution)
print(distribution.device_mesh)

# %%
model = keras_griffin.GriffinCausalLM.from_preset(PRESET)

# %% [markdown]
# ## What lies where
#
# The plot shows two weight matrices of a recurrent block. A number is the device that holds that part. Where several are named, each has a copy.


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
# `fit` needs no change. A batch must have rows for every device along `batch`. Here the model learns the beginning of Hamlet's monologue, cut into rows that overlap.

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
history = model.fit(data, epochs=EPOCHS, shuffle=False, verbose=0).history

# %%
plt.figure(figsize=(7, 2.5))
plt.plot(np.arange(1, len(history["loss"]) + 1), history["loss"], "o-")
plt.xlabel("epoch")
plt.ylabel("loss [nats a token]")
plt.ylim(bottom=0)
plt.tight_layout()
plt.show()

# %% [markdown]
# The loss is near 0, and the model recites:

# %%
print(
    model.generate("To be, or not", max_new_tokens=NEW_TOKENS, sampler="greedy")
)

# %% [markdown]
# ## Before you rent
#
# `keras-griffin plan` compiles the training step for a TPU slice that you do not have, with the TPU's own compiler (`pip install libtpu`, Linux), and prints what a chip needs. This small model needs next to nothing. Large ones take the compiler minutes; a table has them: [table](https://github.com/_owner_/keras_griffin/blob/main/benchmarks/results/plan.md).

# %%
model.save_to_preset("planned")

# %% language="bash"
# keras-griffin plan planned 2>/dev/null --slice v5e-8 --mesh batch=4,model=2 --batch-size 16 --length 128

# %% [markdown]
# ## A pod: many hosts
#
# Each host runs the same program, with one more line before any other use of JAX:
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
# A complete `train.py`, in which each host reads its own rows, is in [keras_griffin/distribution](https://github.com/_owner_/keras_griffin/blob/main/keras_griffin/distribution/README.md). Use `keras_griffin.training.resumable_fit` in place of `fit`: after a pod was taken away, training continues from the last backup.
#
# ## Go on
#
# - **Long rows:** `GriffinParallel(sequence=4)` divides time among devices.
# - **RecurrentGemma 2B** has 10 heads and 10 gate blocks: `model` may be 2, 5 or 10.
# - **Remat:** make the model in `keras.RematScope`, as in [finetune_with_lora](finetune_with_lora.ipynb).
# - **tf.distribute:** [many_tpu_chips_tensorflow](many_tpu_chips_tensorflow.ipynb).
