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
# # Fine-tune a model with LoRA
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Teach Shakespeare's characters to talk like pirates, with adapters of 0.8 MB.<br>
# **Accelerator:** none needed for the small model; L4, v5e-1 or v6e-1 for RecurrentGemma 2B<br>
# **Takes:** 122 s of CPU time and 1.6 GiB of memory on 2 cores, with the small model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/finetune_with_lora.ipynb)
#
# LoRA freezes a model and trains two thin matrices beside each of its own. The optimizer needs little memory, and the file that you keep is small. This guide teaches a model a style that you can see at once: it makes Shakespeare's characters talk like pirates.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% [markdown]
# ## Which model
#
# `griffin_shakespeare_en` comes with the package. It needs no account and runs on a CPU.
#
# For RecurrentGemma set `PRESET = "recurrent_gemma_2b_en"` and `DTYPE = "bfloat16"`. Its weights are gated: you accept Google's licence once.
#
# 1. Open <https://huggingface.co/google/recurrentgemma-2b>, log in, and accept.
# 2. Make a read token at <https://huggingface.co/settings/tokens>. In Colab store it as the secret `HF_TOKEN` (the key at the left); elsewhere set it as an environment variable.
#
# From Kaggle: accept at <https://www.kaggle.com/models/google/recurrentgemma>, set `KAGGLE_USERNAME` and `KAGGLE_KEY`, and use `PRESET = "kaggle://google/recurrentgemma/flax/2b"`.
#
# | runtime | memory | RecurrentGemma 2B with LoRA |
# |---|---|---|
# | L4 | 24 GB | choose this GPU |
# | T4 | 16 GB | has no bfloat16 units: keep to the small model |
# | v5e-1 | 16 GB | needs 7.8 GiB, says the TPU's compiler ([how](https://github.com/_owner_/keras_griffin/blob/main/benchmarks/results/plan.md)) |
# | v6e-1 | 32 GB | room for larger batches |
#
# Only the small model was run for this guide.

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
DTYPE = None  # "bfloat16" for RecurrentGemma
RATE = 2e-3  # 1e-4 for RecurrentGemma
TAKES = 4  # speeches of each speaker
NEW_TOKENS = 48
EPOCHS = 3

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

try:  # in Colab: the secrets
    from google.colab import userdata
except ImportError:
    userdata = None
for name in ("HF_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
    if userdata is not None and PRESET != "griffin_shakespeare_en":
        try:
            os.environ[name] = userdata.get(name)
        except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
            pass  # one of the two hubs is enough

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)

# %% [markdown]
# Frozen weights can be bfloat16. In a `RematScope` each block is computed again in the backward pass, so that its activations need no memory. The small model can do without.

# %%
blocks = [f"block_{i}" for i in range(100)] if DTYPE else []
with keras.RematScope(mode="list_of_layers", layer_names=blocks):
    model = keras_griffin.GriffinCausalLM.from_preset(PRESET, dtype=DTYPE)
model.preprocessor.sequence_length = 80

# %% [markdown]
# ## Data
#
# Training data are dicts of `prompts` and `responses`. The loss is on the responses only. Yours may come from anywhere. Here the model writes speeches itself, and `as_pirate` rewrites them. Eight speakers stay out of training.

# %%
names = """ROMEO JULIET HAMLET OTHELLO CASSIO ANTONIO GREMIO LUCENTIO TRANIO
BIANCA BAPTISTA HORTENSIO PETRUCHIO KATHARINA GRUMIO WARWICK CLIFFORD RICHARD
EDWARD MARGARET GLOUCESTER CLARENCE STANLEY HASTINGS BUCKINGHAM ELIZABETH
NORFOLK AUMERLE YORK GAUNT BOLINGBROKE PERCY ANGELO ISABELLA LUCIO CLAUDIO
POMPEY ESCALUS PROSPERO MIRANDA ARIEL GONZALO LEONTES CAMILLO PAULINA
POLIXENES FLORIZEL PERDITA""".split()
np.random.default_rng(0).shuffle(names)
train, held_out = names[8:], names[:8]


def speeches(names, seed):
    texts = model.generate(
        [f"{name}:\n" for name in names],
        max_new_tokens=NEW_TOKENS,
        temperature=0.8,
        seed=seed,
        strip_prompt=True,
    )
    return [text.split("\n\n")[0] for text in texts]


def as_pirate(speech):
    lines = [line.rstrip(" .,;:!?-") for line in speech.split("\n")[:2]]
    return "\n".join(f"Arr, {line}, matey!" for line in lines)


def prompt(name):
    return f"{name}, a pirate:\n"


def examples(names, takes):
    data = {"prompts": [], "responses": []}
    for seed in takes:
        for name, speech in zip(names, speeches(names, seed), strict=True):
            data["prompts"].append(prompt(name))
            data["responses"].append(as_pirate(speech))
    return data


train_data = examples(train, range(TAKES))
held_out_data = examples(held_out, [TAKES])
print(len(train_data["prompts"]), "speeches to train on. The first:")
print(train_data["prompts"][0] + train_data["responses"][0])

# %% [markdown]
# Before training the model does not know what a pirate is:


# %%
def answers(seed=0):
    return model.generate(
        [prompt(name) for name in held_out],
        max_new_tokens=NEW_TOKENS,
        temperature=0.8,
        seed=seed,
        strip_prompt=True,
    )


def share_of_pirates(texts):
    lines = [line for t in texts for line in t.split("\n\n")[0].split("\n")]
    return np.mean([line.startswith("Arr, ") for line in lines])


before = answers()
print(prompt(held_out[0]) + before[0])
print(f"\nlines that begin as a pirate's: {share_of_pirates(before):.0%}")

# %% [markdown]
# ## Train
#
# `enable_lora` puts adapters on all matrices of the recurrent blocks, of attention and of the MLP. `target_layer_names=` chooses fewer. Compile after it.

# %%
all_weights = model.backbone.count_params()
model.backbone.enable_lora(rank=8)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} numbers are trained beside {all_weights:,} frozen ones")

# %% [markdown]
# `model.fit(train_data)` works, and tokenizes the data in the order they come in. Tokenize first, and every epoch gets a new order.


# %%
def batches(data):
    return keras_griffin.training.ResumableData.from_arrays(
        *model.preprocessor(data), batch_size=8
    )


model.compile(
    optimizer=keras_griffin.GriffinAdamW(RATE, weight_decay=0.0), loss="auto"
)
untrained = model.evaluate(batches(held_out_data), verbose=0)[0]
history = model.fit(
    batches(train_data),
    validation_data=batches(held_out_data),
    epochs=EPOCHS,
    shuffle=False,  # the data are, by themselves
    verbose=2,
).history

# %%
plt.figure(figsize=(7, 3))
plt.plot(range(1, EPOCHS + 1), history["loss"], "o-", label="training")
plt.plot(
    range(EPOCHS + 1),
    [untrained, *history["val_loss"]],
    "o-",
    label="speakers kept out",
)
plt.xticks(range(EPOCHS + 1))
plt.xlabel("epoch")
plt.ylabel("loss of the responses [nats a token]")
plt.ylim(bottom=0)
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Look
#
# Here are speakers that training never saw:

# %%
after = answers()
for name, text in list(zip(held_out, after, strict=True))[:4]:
    print(prompt(name) + text + "\n")
print(f"lines that begin as a pirate's: {share_of_pirates(after):.0%}")

# %% [markdown]
# ## Keep
#
# The adapters alone make a small file. Merged into the weights they cost nothing at run time, and you save the model like any other.

# %%
model.backbone.save_lora_weights("pirate.lora.h5")
text = prompt(held_out[0]) + after[0]
score = model.score(text)
model.backbone.merge_lora()
print(f"adapters: {os.path.getsize('pirate.lora.h5') / 1e6:.1f} MB")
change = np.abs(model.score(text) - score).max()
print(f"largest change of a score by merging: {change:.1e}")
model.save_to_preset("pirate")

# %%
again = keras_griffin.GriffinCausalLM.from_preset("pirate")
print(
    again.generate(
        prompt("MACBETH"), max_new_tokens=NEW_TOKENS, temperature=0.8, seed=1
    )
)

# %% [markdown]
# ## Go on
#
# - **Less memory:** `model.quantize("int8")` before `enable_lora` is QLoRA. `save_lora_weights` keeps what was learned. To merge, load the float model, then the adapters.
# - **Instruction-tuned models:** with `recurrent_gemma_instruct_2b_en`, `fit` takes lists of messages, and `generate` answers one.
# - **Does it fit?** `keras-griffin plan recurrent_gemma_2b_en --slice v5e-1 --batch-size 4 --lora 16 --remat --dtype bfloat16` compiles the step for a TPU that you do not have, and prints its memory.
# - **Which of two answers is better?** [preference_tuning](preference_tuning.ipynb).
# - **Other libraries:** `model.export_to_transformers(folder)`, `model.export_to_deepmind(folder)`.
