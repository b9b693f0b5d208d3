# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate a model
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/30<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Loss on unseen text, what context is worth, multiple choice, and whether int8 is as good.<br>
# **Accelerator:** none needed<br>
# **Takes:** 111 s of CPU time and 2.3 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/evaluate_a_model.ipynb)
#
# A model in int8 takes a quarter of the memory. Is it as good? This guide answers with numbers: the loss on text that training never saw, the use of context, and questions of multiple choice. The same steps compare any two models.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "matplotlib"

# %% tags=["parameters"]
PRESET = "griffin_shakespeare_en"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
CHARACTERS = 40_000
LENGTH = 512  # tokens
QUESTIONS = 40

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import urllib.request

import matplotlib.pyplot as plt
import numpy as np

import keras_griffin

# %% [markdown]
# ## Two models, one text
#
# The shipped model was trained on the first nine tenths of Tiny Shakespeare. We take the text from the last tenth.

# %%
models = {}
for name in ("float32", "int8"):
    models[name] = keras_griffin.GriffinCausalLM.from_preset(PRESET)
models["int8"].quantize("int8")
tokenizer = models["float32"].preprocessor.tokenizer

with urllib.request.urlopen(SHAKESPEARE) as page:
    whole_text = page.read().decode()
unseen = whole_text[-len(whole_text) // 10 :]
text = unseen[:CHARACTERS]
token_ids = np.array(tokenizer(text))
print(f"{len(text):,} characters, {len(token_ids):,} tokens")

# %% [markdown]
# ## Loss
#
# `score` returns the log-probability of each token. The state goes from piece to piece, so a text may be longer than memory. Divide the sum by the number of *characters* to compare models with different tokenizers.

# %%
scores = {name: model.score(text) for name, model in models.items()}
for name, values in scores.items():
    print(f"{name:8} {-values.sum() / len(text):.4f} nats a character")

# %% [markdown]
# Is the difference real, or chance? Both models read the same tokens, so compare them token by token. The standard error of the mean difference is far smaller than that of each loss. (Neighbouring tokens are not quite independent; blocks of 100 tokens nearly are.)

# %%
difference = scores["float32"] - scores["int8"]
blocks = difference[: len(difference) // 100 * 100].reshape(-1, 100).mean(1)
error = blocks.std(ddof=1) / np.sqrt(len(blocks))
print(f"int8 loses {difference.mean():.5f} +- {error:.5f} nats a token")
print(f"of a loss of {-scores['float32'].mean():.2f} nats a token")

# %% [markdown]
# ## What is context worth?
#
# `loss_by_position` cuts the text into rows and averages the loss at each position. A model that uses what it has read gets better along a row. This one was trained on rows of 128 tokens; the plot goes on beyond them.

# %%
WINDOW = 16  # positions that are averaged
plt.figure(figsize=(7, 3))
for name, style in (("float32", "-"), ("int8", "--")):
    losses = keras_griffin.evaluation.loss_by_position(
        models[name], token_ids, length=LENGTH + 1, stride=LENGTH // 4
    )
    smooth = losses.reshape(-1, WINDOW).mean(axis=1)
    positions = WINDOW * (np.arange(len(smooth)) + 0.5)
    plt.plot(positions, smooth, style, label=name)
plt.xlabel("tokens read before")
plt.ylabel("loss [nats a token]")
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Multiple choice
#
# Which line comes next? One answer is the true line, three are lines from elsewhere. The model chooses the answer with the largest log-probability a character. Chance is 25 %.

# %%
rng = np.random.default_rng(0)
lines = [line + "\n" for line in unseen.split("\n") if len(line) > 20]
starts = rng.choice(len(lines) - 4, QUESTIONS, replace=False)
questions = []
for start in starts:
    wrong = rng.choice(len(lines), 3, replace=False)
    answers = [lines[start + 3], *(lines[i] for i in wrong)]
    questions.append(("".join(lines[start : start + 3]), answers))
print(questions[0][0] + "?")
for answer in questions[0][1]:
    print("  -", answer.strip())


# %%
def accuracy(model):
    texts = [context + a for context, answers in questions for a in answers]
    rows = model.score(texts)
    right = 0
    for i, (context, answers) in enumerate(questions):
        known = len(tokenizer(context))  # tokens of the question
        values = [
            row[known:].sum() / len(answer)
            for row, answer in zip(
                rows[4 * i : 4 * i + 4], answers, strict=True
            )
        ]
        right += int(np.argmax(values) == 0)
    return right / len(questions)


for name, model in models.items():
    share = accuracy(model)
    error = np.sqrt(share * (1 - share) / QUESTIONS)
    print(f"{name:8} {share:.0%} +- {error:.0%} right")

# %% [markdown]
# The answer to our question: int8 costs a thousandth of a nat a token and answers as many questions, in a quarter of the memory. (Neither does much better than chance here: a model of three million parameters knows how lines sound, not what they mean.)
#
# ## Public benchmarks
#
# EleutherAI's lm-eval has hundreds of tasks. The command runs those of the Griffin paper's table 1 on any preset, and needs `pip install 'keras-griffin[eval]'` and a network:
#
# ```bash
# keras-griffin evaluate recurrent_gemma_2b_en --dtype bfloat16
# keras-griffin evaluate recurrent_gemma_2b_en --tasks hellaswag --output results.json
# ```
#
# In Python it is `keras_griffin.evaluation.GriffinLM(model)`, which `lm_eval.simple_evaluate` takes. [Evaluation](https://github.com/_owner_/keras_griffin/blob/main/keras_griffin/evaluation/README.md) has the published numbers to compare with.
#
# ## Go on
#
# - **Can it copy and look up?** `keras_griffin.evaluation.SelectiveCopying`, `InductionHeads` and `Phonebook` make such tasks, and `exact_match` counts the right answers.
# - **Other dtypes:** [what quantization costs](https://github.com/_owner_/keras_griffin/blob/main/benchmarks/results/quantization.md), on the whole held-out text.
