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
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Load a small Griffin, continue a text, stream it, and measure how likely a text is.<br>
# **Accelerator:** none needed<br>
# **Takes:** 28 s of CPU time and 1.4 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/quickstart.ipynb)
#
# A Griffin is a language model whose memory does not grow with the text. This guide loads the small one that comes with the package: no download, no account. It continues a text, streams one, and scores one.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% [markdown]
# `NEW_TOKENS` is how much text to make. Try other values.

# %% tags=["parameters"]
NEW_TOKENS = 120

# %% [markdown]
# Choose the backend before you import Keras: `"jax"`, `"tensorflow"` or `"torch"`. This guide runs on each of them.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

# %% [markdown]
# ## Load
#
# `griffin_shakespeare_en` has 3.3 million parameters and was trained on Shakespeare's plays. It knows their words and their rhythm. It makes little sense.

# %%
model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
backbone = model.backbone
print(f"{backbone.count_params():,} parameters")
for i in range(backbone.num_layers):
    print(i, backbone.block_types[i % len(backbone.block_types)])

# %% [markdown]
# Griffin repeats three blocks: two recurrent ones, then one with attention over the last 128 tokens.
#
# ## Generate
#
# The first call compiles. Later calls take milliseconds, also with other lengths and settings. With a `seed` you get the same text again.

# %%
print(model.generate("ROMEO:", max_new_tokens=NEW_TOKENS, seed=1))

# %% [markdown]
# A low temperature keeps to likely words, a high one takes risks.

# %%
for temperature in (0.5, 1.5):
    print(f"--- temperature {temperature}")
    print(
        model.generate(
            "JULIET:",
            max_new_tokens=NEW_TOKENS,
            temperature=temperature,
            seed=1,
        )
    )

# %% [markdown]
# One call takes several prompts of any length. Each gets the text that it would get alone.

# %%
prompts = ["First Citizen:\nWe are", "KING RICHARD III:\nA horse"]
for text in model.generate(prompts, max_new_tokens=NEW_TOKENS // 2, seed=2):
    print(text)
    print("---")

# %% [markdown]
# A sampler of KerasHub chooses the next token: `"greedy"`, `"top_k"`, `"top_p"`, `"random"`, `"beam"`, `"contrastive"`, or an object with settings. `model.compile(sampler=...)` sets it for all calls, `sampler=` for one.

# %%
print(
    model.generate(
        "To be, or", max_new_tokens=NEW_TOKENS // 4, sampler="greedy"
    )
)

# %% [markdown]
# ## Stream
#
# `generate_stream` yields each piece of text as soon as it is made.

# %%
for piece in model.generate_stream(
    "HAMLET:", max_new_tokens=NEW_TOKENS, temperature=0.8, seed=3
):
    print(piece, end="", flush=True)

# %% [markdown]
# ## Score
#
# `score` returns the natural logarithm of each token's probability, given the tokens before it. In the plot a high bar is a piece that the model did not expect: Shakespeare never sent an email.

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
# The sum says which text is likelier. Multiple-choice benchmarks work this way.

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
# | [finetune_with_lora](finetune_with_lora.ipynb) | teach a model a new style |
# | [pretrain_from_scratch](pretrain_from_scratch.ipynb) | train a Griffin on your own text |
# | [long_contexts_and_state](long_contexts_and_state.ipynb) | what a memory of fixed size is good for |
#
# In a terminal: `keras-griffin generate "ROMEO:"`, `keras-griffin chat`.
