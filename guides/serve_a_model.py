# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Serve a model
#
# **Author:** the keras_griffin contributors<br>
# **Date created:** 2026/11/30<br>
# **Last modified:** 2026/11/30<br>
# **Description:** Start an OpenAI-compatible server, call it from many clients, and watch the prefix cache.<br>
# **Accelerator:** none needed<br>
# **Takes:** 38 s of CPU time and 1.4 GiB of memory on 2 cores
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/_owner_/keras_griffin/blob/main/guides/serve_a_model.ipynb)
#
# `keras-griffin serve` speaks OpenAI's HTTP API and serves many clients from one model. This guide starts the server with the shipped model, calls it with OpenAI's own Python client, and shows the prefix cache at work: the server reads a long prompt once, however many requests begin with it.

# %%
# !pip show -q keras-griffin 2>/dev/null || pip install -q "keras-griffin[jax,serve] @ git+https://github.com/_owner_/keras_griffin@v0.1.0" "openai"

# %% [markdown]
# ## Start the server
#
# In a terminal this is `keras-griffin serve`. It compiles first, and prints its address when it listens. Port 0 takes a free port. Only programs on this machine can reach it.

# %% tags=["parameters"]
CLIENTS = 16
NEW_TOKENS = 64
STANZAS = 40  # of the long prompt below

# %%
import subprocess
import sys
import time
import urllib.request

server = subprocess.Popen(
    [sys.executable, "-m", "keras_griffin", "serve"]
    + ["--port", "0", "--backend", "jax", "--max-length", "4096"],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
)
for line in server.stdout:
    if line.startswith("Serving"):
        break
address = line.split()[-1]
print(line.rpartition(":")[0])

# %% [markdown]
# ## Ask it
#
# OpenAI's client needs only the address. The server checks the key if it was started with one in `KERAS_GRIFFIN_API_KEY`.

# %%
import openai

client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
(card,) = client.models.list()
answer = client.completions.create(
    model=card.id, prompt="ROMEO:", max_tokens=40, seed=7
)
print(card.id, answer.usage.completion_tokens, "tokens")
print(answer.choices[0].text)

# %% [markdown]
# With `stream=True` the text arrives as it is made. Chat works with any model. An instruction-tuned model gets its turns; this one knows nothing but Shakespeare and continues the message.

# %%
for chunk in client.chat.completions.create(
    model=card.id,
    messages=[{"role": "user", "content": "JULIET: Who is there?"}],
    max_tokens=40,
    seed=1,
    stream=True,
):
    print(chunk.choices[0].delta.content, end="", flush=True)

# %% [markdown]
# A mistake raises the client's own exception, whose message says what to do.

# %%
try:
    client.completions.create(
        model=card.id, prompt="ROMEO:", extra_body={"temprature": 1}
    )
except openai.BadRequestError as error:
    print(error.body["message"][:90])

# %% [markdown]
# ## Many at once
#
# Requests share one batch. They join it and leave it while others go on, and each gets the text that it would get alone.

# %%
from concurrent.futures import ThreadPoolExecutor

speakers = [f"LORD {number}:" for number in range(CLIENTS)]


def complete(prompt):
    answer = client.completions.create(
        model=card.id,
        prompt=prompt,
        max_tokens=NEW_TOKENS,
        temperature=0,
    )
    return answer.choices[0].text


start = time.perf_counter()
alone = [complete(speaker) for speaker in speakers]
one_by_one = time.perf_counter() - start

start = time.perf_counter()
with ThreadPoolExecutor(CLIENTS) as pool:
    together = list(pool.map(complete, speakers))
at_once = time.perf_counter() - start

print("the same texts:", together == alone)
print(f"{CLIENTS} texts one by one: {one_by_one:.1f} s")
print(f"{CLIENTS} texts at once:    {at_once:.1f} s")

# %% [markdown]
# ## The prefix cache
#
# An application often sends the same beginning: instructions, a document, the conversation so far. A Griffin's state after it is a few arrays of fixed size. The server keeps them and continues from there. Here the document is a play, and three questions follow.

# %%
PLAY = (
    """GLOUCESTER:
Now is the winter of our discontent
Made glorious summer by this sun of York;
And all the clouds that lour'd upon our house
In the deep bosom of the ocean buried.

"""
    * STANZAS
)


def ask(question):
    start = time.perf_counter()
    stream = client.completions.create(
        model=card.id,
        prompt=PLAY + question,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    first = None
    for chunk in stream:
        first = first or time.perf_counter() - start
    usage = chunk.usage
    print(
        f"{question:10} {usage.prompt_tokens} tokens, "
        f"{usage.prompt_tokens_details.cached_tokens:4} from the cache, "
        f"first text after {1000 * first:.0f} ms"
    )


for name in ("CLARENCE:", "HASTINGS:", "RICHARD:"):
    ask(name)

# %% [markdown]
# For the first question the server read the whole play and kept a state every 1,024 tokens. The second question continued from the last of these. The server saw where the two prompts part, and kept a state there too. The third question continued from that one.
#
# ## What it did
#
# `/metrics` serves its counters to Prometheus.

# %%
with urllib.request.urlopen(f"{address}/metrics") as page:
    for line in page.read().decode().splitlines():
        if line.startswith(
            (
                "keras_griffin_tokens",
                "keras_griffin_prompt",
                "keras_griffin_prefix",
            )
        ):
            print(line)

# %% [markdown]
# ## End
#
# After SIGTERM the server accepts no new requests, finishes those it has, and ends with exit code 0.

# %%
client.close()
server.terminate()
print("exit code", server.wait(timeout=300))
server.stdout.close()

# %% [markdown]
# More: [every option, and the security notes](https://github.com/_owner_/keras_griffin/blob/main/docs/serving.md). From Python, without HTTP, the same is `keras_griffin.serving.Engine(model)` and its `submit`.
