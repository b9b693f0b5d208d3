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
# # Train on many devices with tf.distribute
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Train under a TensorFlow strategy, each device with a copy of the model and a part of the batch.<br>
# **Accelerator:** GPUs, or a TPU VM with TensorFlow (Colab's TPU runtimes v5e-1 and v6e-1 have none)<br>
# **Takes:** 70 s of CPU time and 2.3 GiB of memory on 2 cores as 2 devices; never run on a GPU or TPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/many_tpu_chips_tensorflow.ipynb)
#
# This guide is for programs built on TensorFlow. You make the model in the scope of a strategy, and `fit` runs on all of its devices, compiled by XLA. Each device has a copy of the model and a part of each batch. To divide the model itself, and for TPUs in general, use [JAX](many_tpu_chips_jax.ipynb).

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[tensorflow] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% [markdown]
# ## The strategy
#
# Make it before anything else. On a TPU VM install `tensorflow-tpu` and set `TPU = True`. Without GPUs this guide divides the CPU into two devices.

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
TPU = False
EPOCHS = 10
NEW_TOKENS = 40

# %%
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf

tf.get_logger().setLevel("WARNING")
if TPU:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    strategy = tf.distribute.TPUStrategy(resolver)
elif tf.config.list_physical_devices("GPU"):
    strategy = tf.distribute.MirroredStrategy()
else:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(
        tf.config.list_logical_devices("CPU"),
        # What there is by default is NCCL, which needs GPUs.
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
print(strategy.num_replicas_in_sync, "devices")

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The model
#
# Make it and compile it in the strategy's scope. `jit_compile=True` compiles the step once for each device. A TPU compiles everything by itself and needs `"auto"`.

# %%
with strategy.scope():
    model = keras_griffin.GriffinCausalLM.from_preset(PRESET)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3),
        loss="auto",
        jit_compile="auto" if TPU else True,
    )

# %% [markdown]
# ## Data
#
# `fit` takes a `tf.data.Dataset` of texts. The batch is that of all devices together, and the strategy hands each its part. `drop_remainder=True` gives every step the same shape, which compiled programs need.

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
lines = TEXT.splitlines()
texts = ["\n".join(lines[i % 9 : i % 9 + 2]) for i in range(64)]
model.preprocessor.sequence_length = 32
dataset = tf.data.Dataset.from_tensor_slices(texts)
dataset = dataset.shuffle(64, seed=0).batch(16, drop_remainder=True)

# %% [markdown]
# ## Train

# %%
history = model.fit(
    dataset,
    epochs=EPOCHS,
    shuffle=False,  # it is, by the data
    verbose=0,
).history

# %%
plt.figure(figsize=(7, 2.5))
plt.plot(np.arange(1, len(history["loss"]) + 1), history["loss"], "o-")
plt.xlabel("epoch")
plt.ylabel("loss [nats a token]")
plt.ylim(bottom=0)
plt.tight_layout()
plt.show()

# %% [markdown]
# Each device holds the whole model. After each step all copies are equal:

# %%
weight = model.backbone.get_layer("block_0").trainable_weights[0].value
copies = strategy.experimental_local_results(weight)
print(len(copies), "copies of", weight.shape)
print("largest difference:", np.ptp(np.stack(copies), axis=0).max())

# %% [markdown]
# ## Save, and generate
#
# Save the model as ever. It then runs on one device, or under another backend.

# %%
model.save_to_preset("trained")
again = keras_griffin.GriffinCausalLM.from_preset("trained")
print(
    again.generate("To be, or not", max_new_tokens=NEW_TOKENS, sampler="greedy")
)

# %% [markdown]
# ## Several hosts
#
# Use `tf.distribute.MultiWorkerMirroredStrategy()` in place of `MirroredStrategy`, with `TF_CONFIG` in each worker's environment as TensorFlow documents it. All recipes, and what was tested of them, are in [keras_griffin/distribution](https://github.com/_owner_/keras_griffin/blob/main/keras_griffin/distribution/README.md).
