# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The RG-LRU for time series
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/30<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Label every step of noisy series of different lengths, with masks, in both directions, and live.<br>
# **Accelerator:** none needed<br>
# **Takes:** 46 s of CPU time and 1.4 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/time_series.ipynb)
#
# The recurrent layer of a Griffin, the RG-LRU, is a Keras layer like `LSTM` and `GRU`. This guide uses it without any text. A machine switches on and off, and a noisy sensor measures its power. When was it on?

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% tags=["parameters"]
SERIES = 384
LONGEST = 200  # steps
EPOCHS = 4

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_griffin.layers import RGLRU

# %% [markdown]
# ## Data
#
# The machine draws 1 unit of power when it is on and 0 when it is off. It keeps a mode for 15 to 60 steps. The sensor adds noise of standard deviation 1.2, more than the difference that we look for.
#
# Series have different lengths, and a batch has one. So the end of each row is filled with a number that no sensor shows.

# %%
PAD = -100.0


def make_series(number, seed):
    rng = np.random.default_rng(seed)
    x = np.full((number, LONGEST, 1), PAD, "float32")
    is_on = np.zeros((number, LONGEST, 1), "float32")
    for i in range(number):
        modes = (np.arange(LONGEST) + rng.integers(2)) % 2
        mode = np.repeat(modes, rng.integers(15, 61, size=LONGEST))
        length = rng.integers(LONGEST // 4, LONGEST + 1)
        is_on[i, :length, 0] = mode[:length]
        x[i, :length, 0] = mode[:length] + rng.normal(0, 1.2, length)
    return x, is_on


x, is_on = make_series(SERIES, seed=0)
x_test, is_on_test = make_series(SERIES // 4, seed=1)
real = x_test != PAD
print(f"{SERIES} series of {LONGEST // 4} to {LONGEST} steps")
threshold = ((x_test > 0.5) == is_on_test)[real].mean()
print(f"right with a threshold at 0.5: {threshold:.1%}")

# %% [markdown]
# ## Two models
#
# `Masking` marks the padded steps. Each layer passes the mask on, and Keras leaves these steps out of the loss. Add with `keras.layers.Add`: a plain `x + y` would drop the mask.
#
# The first model reads forwards, as a live monitor must. The second reads in both directions: to know whether the machine was on at noon, it also looks at the afternoon.

# %%
WIDTH = 32


def make_model(bidirectional):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 1))
    x = keras.layers.Masking(PAD)(inputs)
    x = keras.layers.Dense(WIDTH)(x)
    for _ in range(2):
        layer = RGLRU(WIDTH, num_gate_blocks=4)
        if bidirectional:
            layer = keras.layers.Bidirectional(layer)
        y = keras.layers.Dense(WIDTH, activation="gelu")(layer(x))
        x = keras.layers.Add()([x, y])
    outputs = keras.layers.Dense(1, activation="sigmoid")(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss="binary_crossentropy",
        weighted_metrics=["accuracy"],
    )
    return model


models = {}
for name in ("forwards", "both directions"):
    model = make_model(bidirectional=name != "forwards")
    print(f"{name}, {model.count_params():,} parameters")
    model.fit(x, is_on, batch_size=32, epochs=EPOCHS, verbose=2)
    models[name] = model

# %% [markdown]
# On JAX the accuracy that `fit` prints counts padded steps too: Keras loses the mask on the way out of the gradient. The loss and `evaluate` leave them out.

# %%
accuracies = {"threshold": threshold}
for name, model in models.items():
    accuracies[name] = model.evaluate(x_test, is_on_test, verbose=0)[1]
for name, accuracy in accuracies.items():
    print(f"{accuracy:6.1%} of the steps right: {name}")

# %% [markdown]
# ## Look
#
# One series of the test: the sensor, and the probability that each model gives. The forward model doubts itself at every outlier. The other one also knows what comes after, and its answer is smooth.

# %%
longest = np.argmax(real[..., 0].sum(axis=1))
steps = real[longest, :, 0].sum()
figure, axes = plt.subplots(2, 1, figsize=(9, 4.5), sharex=True)
axes[0].plot(x_test[longest, :steps, 0], ".-", color="0.6", lw=0.5)
axes[0].set_ylabel("sensor")
axes[1].fill_between(
    np.arange(steps),
    is_on_test[longest, :steps, 0],
    step="mid",
    color="0.85",
    label="on",
)
for name, model in models.items():
    probability = model.predict(x_test[longest : longest + 1], verbose=0)
    axes[1].plot(probability[0, :steps, 0], label=name)
axes[1].set(xlabel="step", ylabel="probability of on")
axes[1].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Padding changes nothing
#
# A series gets the same answer alone and padded in a batch, also with padding in front of it.

# %%
short = np.argmin(real[..., 0].sum(axis=1))
steps = real[short, :, 0].sum()
alone = x_test[short : short + 1, :steps]
padding = np.full((1, LONGEST - steps, 1), PAD, "float32")
behind = np.concatenate([alone, padding], axis=1)
in_front = np.concatenate([padding, alone], axis=1)
for name, model in models.items():
    y = model.predict(alone, verbose=0)
    y_behind = model.predict(behind, verbose=0)[:, :steps]
    y_in_front = model.predict(in_front, verbose=0)[:, -steps:]
    change = max(np.abs(y_behind - y).max(), np.abs(y_in_front - y).max())
    print(f"{name}: largest change {change:.0e}")

# %% [markdown]
# ## Live
#
# A sensor sends one number at a time. Hand the state on, and each step costs the same, however long the machine has been running. `return_state=True` returns the state, `initial_state=` takes it.

# %%
layer = RGLRU(WIDTH, num_gate_blocks=4)
signal = keras.random.normal((1, 50, WIDTH), seed=0)
whole = keras.ops.convert_to_numpy(layer(signal))

state = layer.init_state(batch_size=1)
for t in range(50):
    y, state = layer(
        signal[:, t : t + 1], initial_state=state, return_state=True
    )
print("largest difference at the last step:")
print(np.abs(keras.ops.convert_to_numpy(y)[:, 0] - whole[:, -1]).max())

# %% [markdown]
# ## Go on
#
# - **One answer for a whole series:** `RGLRU(WIDTH, return_sequences=False)` returns the output of each row's last real step.
# - **Oscillations:** `recurrence="complex"` gives the state a phase that turns at every step.
# - **A whole block:** `RecurrentBlock` adds the convolution and the gate of Griffin's blocks.
# - **PyTorch:** with `KERAS_BACKEND=torch` every layer is a `torch.nn.Module`.
# - **What did it remember?** `layer(x, return_intermediates=True)` returns gates, decays and states; see [long_contexts_and_state](long_contexts_and_state.ipynb).
