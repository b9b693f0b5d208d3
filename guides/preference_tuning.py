# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Preference tuning with DPO
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/30<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Of two replies, which is better? Train on such pairs, and count what changed.<br>
# **Accelerator:** none needed for the small model; L4, v5e-1 or v6e-1, with JAX, for RecurrentGemma 2B<br>
# **Takes:** 100 s of CPU time and 2.1 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/preference_tuning.ipynb)
#
# Often you can't write the perfect answer, but you can say which of two is better. Direct preference optimization (DPO, [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)) trains a model on such pairs. In this toy example our taste is simple: we like exclamation marks! You can see at once whether the model learned it.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
TAKES = 6  # replies of each speaker
NEW_TOKENS = 40
EPOCHS = 3

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import re

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)
model = keras_griffin.GriffinCausalLM.from_preset(PRESET)
model.preprocessor.sequence_length = 64

# %% [markdown]
# ## Pairs
#
# The model writes replies. Beside each stands the same reply in a more excited form, which is the one we choose. In real work a person or a rule compares two samples of the model. Four speakers stay out of training.

# %%
speakers = """ROMEO JULIET GLOUCESTER LEONTES CAMILLO PAULINA BUCKINGHAM ANGELO
ISABELLA LUCIO MENENIUS CORIOLANUS VOLUMNIA PROSPERO PETRUCHIO GREMIO""".split()
train, held_out = speakers[4:], speakers[:4]


def replies(speakers, seed):
    return model.generate(
        [f"{speaker}:\n" for speaker in speakers],
        max_new_tokens=NEW_TOKENS,
        seed=seed,
        strip_prompt=True,
    )


def excited(reply):
    return re.sub(r"[.;:]|,$", "!", reply, flags=re.MULTILINE)


def make_pairs(speakers, seed):
    pairs = {"prompts": [], "chosen": [], "rejected": []}
    for speaker, reply in zip(speakers, replies(speakers, seed), strict=True):
        reply = reply.split("\n\n")[0]
        if excited(reply) != reply:
            pairs["prompts"].append(f"{speaker}:\n")
            pairs["chosen"].append(excited(reply))
            pairs["rejected"].append(reply)
    return pairs


pairs = make_pairs(train * TAKES, seed=0)
held_out_pairs = make_pairs(held_out * TAKES, seed=1)
print(len(pairs["prompts"]), "pairs to train on. The first:")
for name, texts in pairs.items():
    print(f"{name + ':':10}{texts[0]!r}")

# %% [markdown]
# How often does the model exclaim today? And how likely does it find a text of Shakespeare's? That should not get worse.

# %%
TEXT = """KING RICHARD II:
What must the king do now? must he submit?
The king shall do it: must he be deposed?
The king shall be contented: must he lose
The name of king? o' God's name, let it go"""


MARKS = {"!": "exclamation", ".": "period", ",": "comma", ";": "semicolon"}


def marks_per_reply(texts):
    return {m: np.mean([t.count(m) for t in texts]) for m in MARKS}


before = replies(held_out * TAKES, seed=2)
score_before = model.score(TEXT).mean()
print(f"exclamation marks a reply: {marks_per_reply(before)['!']:.2f}")

# %% [markdown]
# ## Train
#
# `GriffinDPO` trains the adapters of LoRA. Its reference is the model without them, so no second copy of the weights is needed. `beta` says how much it costs to move away from the reference.
#
# A pair's *reward* compares the reply's probability now with that under the reference. `reward_accuracy` is the share of pairs whose chosen reply has the larger reward.

# %%
model.enable_lora(rank=8)
trainer = keras_griffin.GriffinDPO(model, beta=0.1)
trainer.compile(keras.optimizers.Adam(1e-3))
history = trainer.fit(
    trainer.rows(pairs),
    validation_data=held_out_pairs,
    batch_size=16,
    epochs=EPOCHS,
    verbose=2,
).history

# %% [markdown]
# ## Look
#
# The same speakers and seed as before, none of them seen in training:

# %%
after = replies(held_out * TAKES, seed=2)
for speaker, old, new in zip(held_out[:3], before, after):
    print(f"--- {speaker}, before:\n{old}\n--- after:\n{new}\n")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for i, (name, texts) in enumerate((("before", before), ("after", after))):
    heights = list(marks_per_reply(texts).values())
    left.bar(np.arange(len(MARKS)) + 0.4 * i, heights, width=0.4, label=name)
left.set_xticks(np.arange(len(MARKS)) + 0.2, MARKS.values())
left.set_ylabel("marks a reply")
left.legend()
for name, label in (("", "training"), ("val_", "speakers kept out")):
    right.plot(
        range(1, EPOCHS + 1),
        history[f"{name}reward_margin"],
        "o-",
        label=label,
    )
right.set(xlabel="epoch", ylabel="reward: chosen - rejected", ylim=(0, None))
right.set_xticks(range(1, EPOCHS + 1))
right.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# The rest of its knowledge is still there: the model finds Shakespeare's own text about as likely as before.

# %%
print(f"log-probability a token, before: {score_before:.3f}")
print(f"log-probability a token, after:  {model.score(TEXT).mean():.3f}")

# %% [markdown]
# ## Keep
#
# Save the adapters, or merge them and save the model.

# %%
model.save_lora_weights("excited.lora.h5")
model.merge_lora()
model.save_to_preset("excited")

# %% [markdown]
# ## Go on
#
# - **Your own pairs:** `fit` takes a dict of `prompts`, `chosen` and `rejected`. With an instruction-tuned preset they are written in its turns.
# - **Too little happens:** more epochs, or a smaller `beta`. **Texts fall apart:** a larger `beta`, fewer epochs. Compare the score of a neutral text, as above.
# - **Another reference:** `GriffinDPO(model, reference=other)`, also to train all weights.
# - **First teach, then prefer:** [finetune_with_lora](finetune_with_lora.ipynb); merge those adapters before.
