# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: L4
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune RecurrentGemma with LoRA
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/finetune_with_lora.ipynb)
#
# LoRA freezes a model and trains two thin matrices beside each of its own: the optimizer's memory, and the file that you keep, are hundreds of times smaller. This guide teaches a model to answer in a form that it has never seen.
#
# **Runtime:** a GPU with bfloat16 (L4, A100) or a TPU v5e for RecurrentGemma 2B; CPU for the small model, with which it starts. **Run on:** 2 CPU cores, JAX, with the small model; never on Colab, never with RecurrentGemma's own weights. **Takes:** 51 s of CPU time and 1.6 GiB of memory with the small model. For RecurrentGemma 2B the TPU's compiler counts 7.5 GiB of a chip's memory, with 4 rows of 2048 tokens, LoRA of rank 16 and remat ([how](https://github.com/_owner_/keras_griffin/blob/main/benchmarks/results/plan.md)).
#
# On a TPU runtime write `jax[tpu]` in place of `jax[cuda12]`.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "keras==3.15.1" "keras-nlp==0.32.0" "jax[cuda12]==0.10.2" "matplotlib==3.11.2"

# %% [markdown]
# ## Which model
#
# `griffin_shakespeare_en` came with the package and needs no account. **RecurrentGemma's weights are gated**: Google wants you to accept a licence first, once.
#
# 1. Open <https://huggingface.co/google/recurrentgemma-2b>, log in, accept.
# 2. Make a token for reading under <https://huggingface.co/settings/tokens>, and put it into Colab's secrets (the key at the left) as `HF_TOKEN`.
# 3. Set `PRESET = "recurrent_gemma_2b_en"` below. The weights are 5.4 GB.
#
# From Kaggle: accept at <https://www.kaggle.com/models/google/recurrentgemma>, set the secrets `KAGGLE_USERNAME` and `KAGGLE_KEY`, and take `PRESET = "kaggle://google/recurrentgemma/flax/2b"`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# The tests of this package run the guides at a small scale.
SMALL = os.environ.get("KERAS_GRIFFIN_GUIDES") == "small"
PRESET = "griffin_shakespeare_en"
GATED = PRESET != "griffin_shakespeare_en"

if GATED:
    from google.colab import userdata

    for name in ("HF_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        try:
            os.environ[name] = userdata.get(name)
        except userdata.SecretNotFoundError:
            pass  # one of the two hubs is enough

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)

# %% [markdown]
# Weights that stay frozen can be bfloat16. In `RematScope` a block is computed anew in the backward pass, so that its activations need not be kept; the small model does not need it.

# %%
blocks = [f"block_{i}" for i in range(100)] if GATED else []
with keras.RematScope(mode="list_of_layers", layer_names=blocks):
    model = keras_griffin.GriffinCausalLM.from_preset(
        PRESET, dtype="bfloat16" if GATED else None
    )
model.preprocessor.sequence_length = 64

# %% [markdown]
# ## Data
#
# Instructions are dicts of `prompts` and `responses`, and the loss is on the responses alone. Yours may come from anywhere. Here: letters, to people of the plays. Eight of them are kept out of training.

# %%
names = """ROMEO JULIET HAMLET OTHELLO CASSIO ANTONIO GREMIO LUCENTIO TRANIO
BIANCA BAPTISTA HORTENSIO PETRUCHIO KATHARINA GRUMIO WARWICK CLIFFORD RICHARD
EDWARD MARGARET GLOUCESTER CLARENCE STANLEY HASTINGS BUCKINGHAM ELIZABETH
NORFOLK AUMERLE YORK GAUNT BOLINGBROKE PERCY ANGELO ISABELLA LUCIO CLAUDIO
POMPEY ESCALUS PROSPERO MIRANDA ARIEL GONZALO LEONTES CAMILLO PAULINA
POLIXENES FLORIZEL PERDITA""".split()
np.random.default_rng(0).shuffle(names)


def letters(names):
    return {
        "prompts": [f"A letter to {name}:\n" for name in names],
        "responses": [
            f"Dear {name.title()},\nI hope that all is well.\nYours, a friend."
            for name in names
        ],
    }


train, held_out = names[8:], names[:8]
print(letters(held_out)["prompts"][0] + letters(held_out)["responses"][0])

# %% [markdown]
# Before training the model answers as Shakespeare would, or as nobody would:


# %%
def answer(name):
    return model.generate(
        f"A letter to {name}:\n", max_new_tokens=40, sampler="greedy"
    )


print(answer(held_out[0]))

# %% [markdown]
# ## Train
#
# `enable_lora` puts adapters on all matrices of the recurrent blocks, of attention and of the MLP; `target_layer_names=` takes fewer. Compile after it.

# %%
all_weights = model.backbone.count_params()
model.backbone.enable_lora(rank=8)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} numbers are trained beside {all_weights:,} frozen ones")

# %% [markdown]
# `model.fit(letters(train))` would do: it tokenizes on its way, in the order in which the data come. Tokenized before, they can be shuffled anew in every epoch.


# %%
def batches(names):
    return keras_griffin.training.ResumableData.from_arrays(
        *model.preprocessor(letters(names)), batch_size=8
    )


model.compile(
    optimizer=keras_griffin.GriffinAdamW(
        1e-4 if GATED else 5e-3, weight_decay=0.0
    ),
    loss="auto",
)
history = model.fit(
    batches(train),
    validation_data=batches(held_out),
    epochs=1 if SMALL else 8,
    shuffle=False,  # it is, by the data
    verbose=0,
).history

# %%
epochs = np.arange(1, len(history["loss"]) + 1)
plt.figure(figsize=(7, 3))
plt.plot(epochs, history["loss"], "o-", label="training")
plt.plot(epochs, history["val_loss"], "o-", label="people never written to")
plt.xlabel("epoch")
plt.ylabel("loss of the responses [nats a token]")
plt.ylim(bottom=0)
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Look
#
# The form is learned at once. Whom to greet is right for a name that was there in training; to copy one that was not, forty letters are too few for three million weights. That is what the distance between the curves is.

# %%
for name in (train[0], held_out[0], held_out[1]):
    print(answer(name))
    print("---")

# %% [markdown]
# ## Keep
#
# The adapters alone are a small file. Merged into the weights they cost nothing when the model runs, and the model is saved as any other.

# %%
model.backbone.save_lora_weights("letters.lora.h5")
before = model.score(answer(held_out[0]))
model.backbone.merge_lora()
after = model.score(answer(held_out[0]))
print(f"adapters: {os.path.getsize('letters.lora.h5') / 1e6:.1f} MB")
print("largest change of a score by merging:", np.abs(before - after).max())
model.save_to_preset("letter_writer")

# %%
again = keras_griffin.GriffinCausalLM.from_preset("letter_writer")
print(
    again.generate(
        f"A letter to {held_out[-1]}:\n", max_new_tokens=40, sampler="greedy"
    )
)

# %% [markdown]
# ## Go on
#
# - **Less memory:** `model.quantize("int8")` before `enable_lora` is QLoRA. `save_lora_weights` then keeps what was learned; load the float model, then the adapters, to merge them.
# - **Instruction-tuned models:** with `recurrent_gemma_instruct_2b_en`, `fit` takes lists of messages, and `generate` answers one.
# - **Does it fit?** `keras-griffin plan recurrent_gemma_2b_en --slice v5e-1 --batch-size 4 --lora 16 --remat --dtype bfloat16` compiles the step for a TPU that you do not have, and prints its memory.
# - **Other libraries:** `model.export_to_transformers(folder)`, `model.export_to_deepmind(folder)`.
