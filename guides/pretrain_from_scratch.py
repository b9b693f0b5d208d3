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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/pretrain_from_scratch.ipynb)
#
# From a folder of text to a model that others can load: train a tokenizer, pack documents into rows, train, look at the loss, generate, save.
#
# **Runtime:** any; a GPU or TPU for more than a toy. **Run on:** 2 CPU cores, JAX; never on Colab. **Takes:** 90 s of CPU time and 1.7 GiB of memory.
#
# On a CPU runtime write `jax` in place of `jax[cuda12]`, on a TPU runtime `jax[tpu]`.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "keras==3.15.1" "keras-nlp==0.32.0" "jax[cuda12]==0.10.2" "sentencepiece==0.2.3" "matplotlib==3.11.2"

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# The tests of this package run the guides at a small scale.
SMALL = os.environ.get("KERAS_GRIFFIN_GUIDES") == "small"

import io
import pathlib
import time

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
# `documents` is a list of strings: put yours here. As this guide downloads nothing, it takes what is on every machine that runs it: the modules of Python's standard library.

# %%
folder = pathlib.Path(os.__file__).parent
files = sorted(folder.glob("*.py"))
documents = [file.read_text("utf-8", errors="replace") for file in files]
if SMALL:
    documents = sorted(documents, key=len)[20:40]
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
# A SentencePiece model with the names and ids that the Griffin family uses. With `byte_fallback`, and the next five settings, any text comes back from its tokens as it was, line breaks and runs of spaces included.

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
    vocab_size=512 if SMALL else 1024,
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
# Documents have all lengths, rows have one. `GriffinPacker` puts short documents side by side and cuts long ones; the numbers in `padding_mask` see to it that no document sees another, so that each gives the loss that it would give alone.

# %%
ROW, BATCH = (64, 4) if SMALL else (256, 4)
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
# All sizes are arguments. `block_types` repeats: two recurrent blocks and one of local attention are a Griffin, `("recurrent",)` is a Hawk, `("global_attention",)` a Transformer. The paper's own sizes are presets: `from_preset("griffin_100m", load_weights=False)`.

# %%
backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=tokenizer.vocabulary_size(),
    num_layers=3,
    hidden_dim=64 if SMALL else 160,
    intermediate_dim=128 if SMALL else 448,
    num_query_heads=4,
    num_gate_blocks=4,
    block_types=("recurrent", "recurrent", "local_attention"),
    attention_window_size=32 if SMALL else 128,
)
preprocessor = keras_griffin.GriffinCausalLMPreprocessor(
    tokenizer, sequence_length=ROW
)
model = keras_griffin.GriffinCausalLM(backbone)  # rows are tokens already
print(f"{backbone.count_params():,} parameters")

# %% [markdown]
# ## Training
#
# `GriffinAdamW` warms up, falls on a cosine, clips, and pulls on matrices alone, not on the recurrence. `loss="auto"` is the cross-entropy, which never holds the logits of a whole batch.

# %%
STEPS = 6 if SMALL else 480
EPOCHS = 2 if SMALL else 12  # points on the curve


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
start = time.monotonic()
history = model.fit(
    batches(),
    steps_per_epoch=STEPS // EPOCHS,
    epochs=EPOCHS,
    validation_data=(x_val, y_val, weight_val),
    validation_batch_size=BATCH,
    validation_steps=2 if SMALL else 16,
    shuffle=False,  # it is, by the generator
    verbose=0,
).history
print(f"{STEPS} steps in {time.monotonic() - start:.0f} s, with compiling")

# %% [markdown]
# A model that knows nothing has a loss of log(vocabulary size); one that knows how often each token comes has the entropy of that. What lies below is what it learned of the order.

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
# Some hundred steps are enough for what looks like Python from afar. More steps, more text and more parameters make the rest.

# %%
model.preprocessor = preprocessor
print(
    model.generate(
        "    def close(self):\n",
        max_new_tokens=16 if SMALL else 160,
        sampler=keras_hub.samplers.TopPSampler(p=0.8),
        seed=4,
    )
)

# %% [markdown]
# ## Save
#
# Weights, tokenizer and settings go into one folder, which `from_preset` reads, here or after [publishing](add_and_publish_a_preset.ipynb).

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
# - **Killed in the middle?** `keras_griffin.training.resumable_fit` is `fit` with backups, and goes on to the same weights, bit for bit.
# - **Documents longer than a row:** [long_contexts_and_state](long_contexts_and_state.ipynb) trains on them whole.
# - **More than one chip:** [many_tpu_chips_jax](many_tpu_chips_jax.ipynb).
# - **How big can it be?** `keras-griffin info griffin_1b`, `keras-griffin plan griffin_1b --slice v5e-8`.
