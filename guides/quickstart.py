# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: generate, stream and score text
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/quickstart.ipynb)
#
# A Griffin is a language model whose memory does not grow with the text. This guide loads the small one that comes with the package, so that no download of weights and no account is needed, and does the three things that one does with a language model: it continues a text, it tells the text as it is made, and it says how likely a text is.
#
# **Runtime:** made for any, CPU is enough. **Run on:** 2 CPU cores, JAX; never on Colab. **Takes:** 28 s of CPU time and 1.4 GiB of memory.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "keras==3.15.1" "keras-nlp==0.32.0" "jax==0.10.2" "matplotlib==3.11.2"

# %% [markdown]
# The backend is chosen before Keras is imported: `"jax"`, `"tensorflow"` or `"torch"`. All of this guide runs on each of them.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# The tests of this package run the guides at a small scale.
SMALL = os.environ.get("KERAS_GRIFFIN_GUIDES") == "small"

import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

# %% [markdown]
# ## Load
#
# `griffin_shakespeare_en` has 3.3 million parameters and was trained on Shakespeare's plays alone: it knows their words and their manner, and little sense.

# %%
model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
backbone = model.backbone
print(f"{backbone.count_params():,} parameters")
for i in range(backbone.num_layers):
    print(i, backbone.block_types[i % len(backbone.block_types)])

# %% [markdown]
# Two recurrent blocks, then one with attention over the last 128 tokens, repeated: that is Griffin.
#
# ## Generate
#
# The first call compiles; further ones, with other lengths and settings too, take milliseconds. A `seed` makes a text repeatable.

# %%
LENGTH = 20 if SMALL else 120
print(model.generate("ROMEO:", max_new_tokens=LENGTH, seed=1))

# %% [markdown]
# A lower temperature is safer, a higher one more surprising. Several prompts go in one call, each of its own length; a row gives the same as it would alone.

# %%
for temperature in (0.5, 1.5):
    print(f"--- temperature {temperature}")
    print(
        model.generate(
            "JULIET:", max_new_tokens=LENGTH, temperature=temperature, seed=1
        )
    )

# %%
prompts = ["First Citizen:\nWe are", "KING RICHARD III:\nA horse"]
for text in model.generate(prompts, max_new_tokens=LENGTH // 2, seed=2):
    print(text)
    print("---")

# %% [markdown]
# How the next token is chosen is a sampler of KerasHub: `"greedy"`, `"top_k"`, `"top_p"`, `"random"`, `"beam"`, `"contrastive"`, or an object with settings. `model.compile(sampler=...)` sets it for all calls, `sampler=` for one.

# %%
print(model.generate("To be, or", max_new_tokens=LENGTH // 4, sampler="greedy"))

# %% [markdown]
# ## Stream
#
# `generate_stream` yields pieces of text as soon as they are there.

# %%
for piece in model.generate_stream(
    "HAMLET:", max_new_tokens=LENGTH, temperature=0.8, seed=3
):
    print(piece, end="", flush=True)

# %% [markdown]
# ## Score
#
# `score` gives the natural logarithm of each token's probability, given those before it. What the model did not expect stands out as a high bar: here the words of today, among Shakespeare's.

# %%
text = "What say you to my lord? He sent an email to the queen of England."
surprise = -model.score(text)
tokenizer = model.preprocessor.tokenizer
pieces = [tokenizer.detokenize([int(i)]) for i in tokenizer(text)]

plt.figure(figsize=(9, 2.8))
plt.bar(range(len(pieces)), surprise)
plt.xticks(
    range(len(pieces)), [piece.strip() or "_" for piece in pieces], rotation=60
)
plt.ylabel("surprise [nats]")
plt.title("How unexpected each piece of the text was")
plt.tight_layout()
plt.show()

# %% [markdown]
# The sum tells which of two texts is likelier, which is what tests of multiple choice ask.

# %%
question = "ROMEO:\nGood morrow, my"
answers = [" lord.", " email.", " England."]
scores = [model.score(question + answer).sum() for answer in answers]
for i in np.argsort(scores)[::-1]:
    print(f"{scores[i]:8.2f}  {question!r} + {answers[i]!r}")

# %% [markdown]
# ## Go on
#
# | guide | what |
# |---|---|
# | [finetune_with_lora](finetune_with_lora.ipynb) | teach a model, RecurrentGemma too, something new |
# | [pretrain_from_scratch](pretrain_from_scratch.ipynb) | a Griffin of your own, on your own text |
# | [long_contexts_and_state](long_contexts_and_state.ipynb) | what a memory of fixed size is good for |
#
# In a terminal: `keras-griffin generate "ROMEO:"`, `keras-griffin chat`.
