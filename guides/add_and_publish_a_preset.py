# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add a preset and publish it
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Make a preset, convert it from and to Hugging Face's and DeepMind's formats, publish it.<br>
# **Accelerator:** none needed<br>
# **Takes:** 38 s of CPU time and 1.3 GiB of memory on 2 cores. No upload was ever made: no hub could be reached
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/add_and_publish_a_preset.ipynb)
#
# A preset is a model that `from_preset` loads: sizes, weights, tokenizer. This guide makes a preset, writes it in Hugging Face's and DeepMind's formats, reads it back from both, and shows how to put it on Kaggle or Hugging Face.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax,convert] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import json
import pathlib

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A model of your own
#
# Choose any sizes. Here is a small RecurrentGemma. It borrows the tokenizer of the shipped preset; [pretrain_from_scratch](pretrain_from_scratch.ipynb) trains one.

# %%
preprocessor = keras_griffin.GriffinCausalLMPreprocessor.from_preset(
    "griffin_shakespeare_en", sequence_length=128
)
backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=preprocessor.tokenizer.vocabulary_size(),
    num_layers=3,
    hidden_dim=64,
    intermediate_dim=192,
    num_query_heads=4,
    num_gate_blocks=4,  # as many as heads, which other libraries want
    attention_window_size=64,
    scale_embeddings=True,
    final_logit_soft_cap=30.0,
    name="griffin_tiny",
)
model = keras_griffin.GriffinCausalLM(backbone, preprocessor)
print(f"{backbone.count_params():,} parameters")

# %% [markdown]
# You would train it now. We leave its weights random.
#
# ## Save and load
#
# `save_to_preset` writes a folder. It divides large weights among files of at most `max_shard_size` GB. README.md is a model card with what the files tell. Add the licence, the data and the training yourself.

# %%
model.save_to_preset("griffin_tiny")


def show(folder):
    for file in sorted(pathlib.Path(folder).rglob("*")):
        if file.is_file():
            print(f"{file.stat().st_size:>10,}  {file}")


show("griffin_tiny")

# %%
TEXT = "To be, or not to be: that is the question."
scores = model.score(TEXT)


def compare(folder):
    loaded = keras_griffin.GriffinCausalLM.from_preset(folder)
    same = np.array_equal(loaded.score(TEXT), scores)
    print(f"{folder}: the same scores, bit for bit: {same}")


compare("griffin_tiny")

# %%
card = pathlib.Path("griffin_tiny/README.md").read_text()
print(card[: card.index("| ---")])

# %% [markdown]
# ## From Hugging Face, and to it
#
# `from_preset` takes a folder with `config.json` and safetensors in the form of transformers' `RecurrentGemmaForCausalLM`, local or as `"hf://account/model"`. `export_to_transformers` writes such a folder, and we read it back:

# %%
model.export_to_transformers("for_transformers")
show("for_transformers")
compare("for_transformers")

# %% [markdown]
# transformers counts the token itself as part of its window, so its number is one larger than ours. `from_preset` knows this.

# %%
config = json.loads(pathlib.Path("for_transformers/config.json").read_text())
print(config["model_type"], config["attention_window_size"])

# %% [markdown]
# ## From DeepMind, and to it
#
# DeepMind's archives on Kaggle have an orbax folder (or a `.pt` file, here `framework="torch"`) beside `tokenizer.model`.

# %%
model.export_to_deepmind("for_deepmind", framework="flax")
compare("for_deepmind")

# %% [markdown]
# In a terminal it is one command. It loads its result again and compares the logits before it says that it is done:

# %% language="bash"
# keras-griffin convert for_transformers converted --to keras 2>/dev/null

# %%
compare("converted")

# %% [markdown]
# The size of each format:

# %%
folders = ["griffin_tiny", "for_transformers", "for_deepmind", "converted"]
megabytes = [
    sum(f.stat().st_size for f in pathlib.Path(folder).rglob("*")) / 1e6
    for folder in folders
]
plt.figure(figsize=(7, 2))
plt.barh(folders, megabytes)
plt.axvline(
    4 * backbone.count_params() / 1e6, color="k", ls=":", label="weights alone"
)
plt.gca().invert_yaxis()
plt.xlabel("MB")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Publish
#
# KerasHub uploads a folder as it is. You need an account and its token as environment variables or Colab secrets: `KAGGLE_USERNAME` and `KAGGLE_KEY` for Kaggle, `HF_TOKEN` with the right to write for Hugging Face. Then set `HANDLE`.
#
# KerasHub's upload to Hugging Face replaces README.md if the repository has no model card yet. Keep a copy, or upload with `huggingface_hub.upload_folder`.

# %%
HANDLE = None  # "kaggle://account/griffin/keras/tiny" or "hf://account/tiny"

if HANDLE is not None:
    keras_hub.upload_preset(HANDLE, "griffin_tiny")
    compare(HANDLE)

# %% [markdown]
# Then everybody with this package can load it:
#
# ```python
# keras_griffin.GriffinCausalLM.from_preset("hf://account/tiny")
# ```
#
# KerasHub's own classes load it too, once `keras_griffin` is imported:

# %%
loaded = keras_hub.models.CausalLM.from_preset("griffin_tiny")
print(type(loaded).__name__)

# %% [markdown]
# ## A name in the package
#
# To give a preset a name of the package, add one JSON file to `presets/` and send a pull request. [CONTRIBUTING](https://github.com/_owner_/keras_griffin/blob/main/CONTRIBUTING.md) has the recipe, `pytest tests/checkpoints/test_preset_index.py` checks it. This is the entry:

# %%
arguments = backbone.get_config()
for name in ("name", "trainable", "dtype", "implementation"):
    del arguments[name]
entry = {
    "name": "griffin_tiny",
    "description": "What it is, and what it was trained on.",
    "parameters": backbone.count_params(),
    "source": "Who made it, and where that is described.",
    "weights": {"hf": "hf://account/tiny"},
    "backbone": arguments,
}
print(json.dumps(entry, indent=2))
