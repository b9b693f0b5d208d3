# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Long contexts and state
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/24<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Flat cost per token, prompt caching, chat, training across chunks, and how long a channel remembers.<br>
# **Accelerator:** none needed<br>
# **Takes:** 61 s of CPU time and 2.0 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/long_contexts_and_state.ipynb)
#
# A Griffin keeps all it has read in its *state*, a few arrays of fixed size. A token after a million others costs what the first one did. A long prompt fits into a small file, a chat never reads its history again, and training can go through texts longer than memory. This guide shows each of these. Then it looks inside: how long does a channel remember?

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
LENGTHS = [128, 512, 2048, 8192, 32768]  # texts to time a token after
ROUNDS = 200  # of this timing
STANZAS = 12  # of the long prompt
NEW_TOKENS = 40
DOCUMENTS = 128
EPOCHS = 12

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import time

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

keras.utils.set_random_seed(0)
model = keras_griffin.GriffinCausalLM.from_preset(PRESET)
tokenizer = model.preprocessor.tokenizer

# %% [markdown]
# ## The state
#
# `prefill` reads tokens and returns the logits of the next one and the state. `decode_step` reads one more token. Both return a new state and leave the old one as it was.

# %%
TEXT = """ROMEO:
If I profane with my unworthiest hand
This holy shrine, the gentle fine is this:
My lips, two blushing pilgrims, ready stand
To smooth that rough touch with a tender kiss.

JULIET:
Good pilgrim, you do wrong your hand too much,
Which mannerly devotion shows in this;
For saints have hands that pilgrims' hands do touch,
And palm to palm is holy palmers' kiss.

"""
ids = [tokenizer.start_token_id, *tokenizer(TEXT)]
logits, state = model.prefill({"token_ids": np.array([ids])})


def size(state):
    return sum(np.asarray(array).nbytes for array in keras.tree.flatten(state))


print(f"{len(ids)} tokens read, state of {size(state):,} bytes")
for i, block in enumerate(state["blocks"]):
    print(i, {name: tuple(array.shape) for name, array in block.items()})

# %% [markdown]
# A recurrent block keeps its recurrent state and the last three inputs of its convolution. A block of local attention keeps the keys and values of its window.
#
# ## Flat cost
#
# How long does a token take, and how large is the state, after longer and longer texts? For comparison: the state of a Transformer of the same width and depth, whose keys and values grow with the text. It is the same class with other `block_types`.

# %%
config = model.backbone.get_config()
transformer = keras_griffin.GriffinBackbone.from_config(
    {**config, "block_types": ("global_attention",)}
)
many_ids = np.resize(ids, max(LENGTHS))[None]

states, state, read = [], None, 0
for length in LENGTHS:
    _, state = model.prefill({"token_ids": many_ids[:, read:length]}, state)
    states.append(state)
    read = length
griffin_bytes = [size(state) for state in states]
transformer_bytes = [size(transformer.init_state(1, n)) for n in LENGTHS]


def step(state):
    start = time.perf_counter()
    logits, _ = model.decode_step([5], state)
    np.asarray(logits)  # waits for it
    return time.perf_counter() - start


# In turn, and the least of all rounds: other programs also run here.
rounds = [[step(state) for state in states] for _ in range(ROUNDS)]
milliseconds = 1000 * np.min(rounds, axis=0)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.semilogx(LENGTHS, milliseconds, "o-", base=2)
left.set(xlabel="tokens read", ylabel="time of a token [ms]")
left.set_ylim(0, 2 * milliseconds.max())
right.loglog(LENGTHS, griffin_bytes, "o-", base=2, label="Griffin")
right.loglog(LENGTHS, transformer_bytes, "o-", base=2, label="Transformer")
right.set(xlabel="tokens read", ylabel="state [bytes]")
right.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Prompt caching
#
# To ask many questions about one long text, read it once. One state serves a whole batch of prompts.

# %%
long_text = TEXT * STANZAS
prompt = model.preprocessor.generate_preprocess(
    [long_text], sequence_length=4096
)
_, state = model.prefill(prompt)
questions = ["ROMEO:", "JULIET:", "Nurse:"]


def ask(cached):
    start = time.perf_counter()
    if cached:
        texts = model.generate(
            questions, max_new_tokens=24, sampler="greedy", state=state
        )
    else:
        texts = model.generate(
            [long_text + question for question in questions],
            max_new_tokens=24,
            sampler="greedy",
            strip_prompt=True,
        )
    return texts, time.perf_counter() - start


for cached in (False, True):
    ask(cached)  # compiles
    texts, seconds = ask(cached)
    print(f"{seconds:.2f} s, cached: {cached}")
for text in texts:
    print("---")
    print(text)

# %% [markdown]
# A state can be saved to a file. Its size does not depend on how much was read.

# %%
model.save_state(state, "text.npz")
print(
    f"{os.path.getsize('text.npz'):,} bytes for {len(long_text):,} characters"
)
state = model.load_state("text.npz")
again = model.generate(
    questions, max_new_tokens=24, sampler="greedy", state=state
)
print(again == texts)

# %% [markdown]
# ## Streaming, and chat
#
# With `return_state=True` a stream yields the state after each piece, so you can stop a text and continue it later. A chat session does this for you: each turn reads only the new message. This model continues a play; `recurrent_gemma_instruct_2b_en` is one that answers.

# %%
chat = model.chat(max_new_tokens=NEW_TOKENS, temperature=0.7)
for message in ("JULIET:\nWho is there?\n", "JULIET:\nWhat is thy name?\n"):
    print(message, end="")
    for piece in chat.send(message):
        print(piece, end="", flush=True)
    print()
chat.save("chat.npz")

# %%
later = model.chat(max_new_tokens=NEW_TOKENS, temperature=0.7)
later.load("chat.npz")
print("".join(later.send("JULIET:\nFarewell.\n")))

# %% [markdown]
# ## Training on texts longer than memory
#
# `GriffinPacker.stateful_rows` cuts long documents so that each row continues in the next batch. `StatefulTrainer` hands the state on. This is truncated backpropagation through time, in `fit`.
#
# Does it help? Here is a task that needs it. A document begins with token 2 or 3. Later a question (token 10) comes up now and then, and its answer is that first token. Training sees 32 tokens at a time, so after the first 32 only the state knows the answer.

# %%
CHUNK, ROWS = 32, 16
QUESTION = 10
rng = np.random.default_rng(0)


def document():
    tokens = rng.integers(4, 10, size=4 * CHUNK)
    tokens[0] = rng.integers(2, 4)
    for i in range(20, len(tokens), CHUNK):
        tokens[i : i + 2] = QUESTION, tokens[0]
    return tokens


documents = [document() for _ in range(DOCUMENTS)]
packer = keras_griffin.GriffinPacker(sequence_length=CHUNK)


def small_model():
    keras.utils.set_random_seed(0)
    return keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            vocabulary_size=16,
            num_layers=2,
            hidden_dim=32,
            intermediate_dim=64,
            num_query_heads=2,
            num_gate_blocks=2,
            block_types=("recurrent",),
        )
    )


def answers_only(x, sample_weight):
    return sample_weight * (x["token_ids"] == QUESTION)


curves = {}

x, y, sample_weight = packer(documents)  # pieces know nothing of each other
without = small_model()
without.compile(keras_griffin.GriffinAdamW(3e-3), loss="auto")
curves["pieces alone"] = without.fit(
    x,
    y,
    sample_weight=answers_only(x, sample_weight),
    batch_size=ROWS,
    epochs=EPOCHS,
    verbose=0,
).history["loss"]

x, y, sample_weight = packer.stateful_rows(documents, batch_size=ROWS)
trainer = keras_griffin.StatefulTrainer(small_model(), batch_size=ROWS)
trainer.compile(keras_griffin.GriffinAdamW(3e-3))
curves["with the state handed on"] = trainer.fit(
    x,
    y,
    sample_weight=answers_only(x, sample_weight),
    epochs=EPOCHS,
    verbose=0,
).history["loss"]

# %%
questions_in_all = 4 * len(documents)
per_answer = sample_weight.size / questions_in_all
plt.figure(figsize=(7, 3))
for name, losses in curves.items():
    plt.plot(
        np.arange(1, EPOCHS + 1),
        per_answer * np.array(losses),
        "o-",
        label=name,
    )
plt.axhline(
    0.75 * np.log(2),
    color="0.6",
    ls="--",
    label="guessing where the answer is not in the piece",
)
plt.xlabel("epoch")
plt.ylabel("loss [nats an answer]")
plt.ylim(bottom=0)
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## How long a channel remembers
#
# At each step a channel keeps a fraction `a[t]` of its state. What was written has decayed to 1/e after `-1 / log(a)` tokens. `intermediates` returns the gates, decays and states of every recurrent block. The plot takes the average of `log(a[t])` over the text above, for each channel of the trained model.

# %%
inputs = {
    "token_ids": np.array([ids]),
    "padding_mask": np.ones((1, len(ids)), "int32"),
}
intermediates = model.backbone.intermediates(inputs)

plt.figure(figsize=(7, 3.2))
for name, values in intermediates.items():
    # (time, channels); at the first token there is nothing to keep.
    decay = keras.ops.convert_to_numpy(values["decay"])[0, 1:]
    remembers = -1 / np.log(np.clip(decay, 1e-6, 1 - 1e-6)).mean(axis=0)
    plt.semilogy(np.sort(remembers), label=name.replace("_", " "))
plt.axhline(
    model.backbone.attention_window_size,
    color="0.6",
    ls="--",
    label="window of attention",
)
plt.xlabel("channels, in the order of their memory")
plt.ylabel("memory [tokens]")
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# In each block half of the channels remember about thirty tokens, one in six more than the window of attention holds, and a few remember a thousand.
#
# The gate `r[t]` changes this from token to token. At 1 a channel forgets as fast as it can; at 0 it keeps its state. The plot shows the channels of one block whose gates move most, over the first tokens of the text.

# %%
name = list(intermediates)[-1]
gate = intermediates[name]["recurrence_gate"]
gate = keras.ops.convert_to_numpy(gate)[0, 1:49]
order = np.argsort(gate.std(axis=0))[::-1][:40]
pieces = [tokenizer.detokenize([int(i)]) for i in ids[1:49]]
plt.figure(figsize=(9, 3.6))
plt.imshow(gate[:, order].T, aspect="auto", cmap="magma", vmin=0, vmax=1)
plt.xticks(
    range(len(pieces)),
    [piece.replace("\n", "\\n").strip() or "_" for piece in pieces],
    rotation=90,
    fontsize=7,
)
plt.ylabel("channel")
plt.colorbar(label="recurrence gate")
plt.title(f"{name.replace('_', ' ')}: the channels whose gate moves most")
plt.tight_layout()
plt.show()
