# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretrain a Griffin on your own text
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Train a tokenizer, pack documents into rows, train a model, generate, save.<br>
# **Accelerator:** CPU for this size; GPU (T4, L4) or TPU (v5e-1, v6e-1) for more<br>
# **Takes:** 90 s of CPU time and 1.7 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/pretrain_from_scratch.ipynb)
#
# This guide goes from a folder of text to a model that others can load.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "sentencepiece" "matplotlib"

# %% tags=["parameters"]
MAX_CHARACTERS = 1_000_000  # of a document
VOCABULARY = 1024
ROW = 256  # tokens
BATCH = 4  # rows
WIDTH = 160
STEPS = 480
EPOCHS = 12  # points on the curve
VALIDATION_STEPS = 16
NEW_TOKENS = 160

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import io
import pathlib

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import sentencepiece

import keras_griffin

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Text
#
# `documents` is a list of strings: put yours here. This guide downloads nothing. It takes text that every machine with Python has, the modules of the standard library.

# %%
folder = pathlib.Path(os.__file__).parent
files = sorted(folder.glob("*.py"))
documents = [file.read_text("utf-8", errors="replace") for file in files]
documents = [text for text in documents if len(text) <= MAX_CHARACTERS]
np.random.default_rng(0).shuffle(documents)
num_held_out = len(documents) // 10
held_out, train = documents[:num_held_out], documents[num_held_out:]
print(
    f"{len(train)} documents, {sum(map(len, train)):,} characters to train on"
)
print(f"{len(held_out)} documents, {sum(map(len, held_out)):,} characters not")

# %% [markdown]
# ## Tokenizer
#
# A SentencePiece model with the names and ids of the Griffin family. `byte_fallback` and the five settings after it make tokens reversible: any text comes back as it was, line breaks and runs of spaces included.

# %%
proto = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(
        line
        for text in train
        for line in text.splitlines(keepends=True)
        if len(line) < 1000
    ),
    model_writer=proto,
    vocab_size=VOCABULARY,
    input_sentence_size=20_000,  # lines drawn from the text
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    user_defined_symbols=["\n"],
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    unk_piece="<unk>",
    num_threads=1,  # its result depends on the number
    minloglevel=2,
)
tokenizer = keras_griffin.GriffinTokenizer(proto.getvalue())

line = "    def __init__(self, name=None):\n"
ids = tokenizer(line)
print([tokenizer.detokenize([int(i)]) for i in ids])
print(tokenizer.detokenize(ids) == line)

# %% [markdown]
# ## Packing
#
# Documents have many lengths, rows have one. `GriffinPacker` puts short documents side by side and cuts long ones. It numbers the documents in `padding_mask`, and no document sees another: each has the loss that it would have alone.

# %%
packer = keras_griffin.GriffinPacker(sequence_length=ROW)


def rows(documents):
    return packer(
        [
            [tokenizer.start_token_id, *ids, tokenizer.end_token_id]
            for ids in tokenizer(documents)
        ]
    )


x, y, sample_weight = rows(train)
x_val, y_val, weight_val = rows(held_out)
in_use = (x["padding_mask"] > 0).mean()
print(f"{len(y):,} rows of {ROW} tokens, {in_use:.1%} in use")

# %%
shown = np.argsort(-x["padding_mask"].max(axis=1))[:8]
plt.figure(figsize=(8, 2))
plt.imshow(
    np.ma.masked_equal(x["padding_mask"][shown], 0),
    aspect="auto",
    cmap="tab10",
    interpolation="nearest",
)
plt.xlabel("token")
plt.ylabel("row")
plt.title(
    "The rows with most documents: one colour a document, white is padding"
)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Model
#
# Every size is an argument. `block_types` repeats: two recurrent blocks and one of local attention make a Griffin, `("recurrent",)` makes a Hawk, `("global_attention",)` a Transformer. The paper's sizes are presets: `from_preset("griffin_100m", load_weights=False)`.

# %%
backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=tokenizer.vocabulary_size(),
    num_layers=3,
    hidden_dim=WIDTH,
    intermediate_dim=448,
    num_query_heads=4,
    num_gate_blocks=4,
    block_types=("recurrent", "recurrent", "local_attention"),
    attention_window_size=ROW // 2,
)
preprocessor = keras_griffin.GriffinCausalLMPreprocessor(
    tokenizer, sequence_length=ROW
)
model = keras_griffin.GriffinCausalLM(backbone)  # rows are tokens already
print(f"{backbone.count_params():,} parameters")

# %% [markdown]
# ## Training
#
# `GriffinAdamW` is AdamW with warm-up, a cosine schedule and clipping; its weight decay acts on matrices and leaves the recurrence alone. `loss="auto"` is the cross-entropy, computed for some tokens at a time, so that the logits of a whole batch are never in memory.


# %%
def batches():
    while True:
        order = np.random.permutation(len(y))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[i : i + BATCH]
            inputs = {name: array[rows] for name, array in x.items()}
            yield inputs, y[rows], sample_weight[rows]


model.compile(
    optimizer=keras_griffin.GriffinAdamW(4e-3, num_steps=STEPS), loss="auto"
)
history = model.fit(
    batches(),
    steps_per_epoch=STEPS // EPOCHS,
    epochs=EPOCHS,
    validation_data=(x_val, y_val, weight_val),
    validation_batch_size=BATCH,
    validation_steps=VALIDATION_STEPS,
    shuffle=False,  # it is, by the generator
    verbose=2,
).history

# %% [markdown]
# The dotted line is the loss of a model that knows nothing, log(vocabulary size). The dashed one is that of a model that knows how often each token occurs. Below it the model has learned their order.

# %%
counts = np.bincount(y[sample_weight > 0], minlength=backbone.vocabulary_size)
shares = counts[counts > 0] / counts.sum()
entropy = -(shares * np.log(shares)).sum()

steps = np.arange(1, EPOCHS + 1) * (STEPS // EPOCHS)
plt.figure(figsize=(7, 3))
plt.plot(steps, history["loss"], "o-", label="training")
plt.plot(steps, history["val_loss"], "o-", label="documents kept out")
plt.axhline(
    np.log(backbone.vocabulary_size), color="0.6", ls=":", label="knows nothing"
)
plt.axhline(entropy, color="0.6", ls="--", label="knows what is frequent")
plt.xlabel("step")
plt.ylabel("loss [nats a token]")
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Generate
#
# After a few hundred steps the text looks like Python from afar. More steps, more text and more parameters do the rest.

# %%
model.preprocessor = preprocessor
print(
    model.generate(
        "    def close(self):\n",
        max_new_tokens=NEW_TOKENS,
        sampler=keras_hub.samplers.TopPSampler(p=0.8),
        seed=4,
    )
)

# %% [markdown]
# ## Save
#
# Weights, tokenizer and settings go into one folder. `from_preset` reads it, here or after [publishing](add_and_publish_a_preset.ipynb).

# %%
model.save_to_preset("my_griffin")
for file in sorted(pathlib.Path("my_griffin").rglob("*")):
    if file.is_file():
        print(f"{file.stat().st_size:>12,}  {file.relative_to('my_griffin')}")

# %%
again = keras_griffin.GriffinCausalLM.from_preset("my_griffin")
code = "import os\n\n\ndef main():\n"
print(np.abs(again.score(code) - model.score(code)).max())

# %% [markdown]
# ## Go on
#
# - **Killed in the middle?** `keras_griffin.training.resumable_fit` is `fit` with backups. It continues to the same weights, bit for bit.
# - **Documents longer than a row:** [long_contexts_and_state](long_contexts_and_state.ipynb) hands the state from row to row.
# - **More than one chip:** [many_tpu_chips_jax](many_tpu_chips_jax.ipynb).
# - **How big can it be?** `keras-griffin info griffin_1b`, `keras-griffin plan griffin_1b --slice v5e-8`.
