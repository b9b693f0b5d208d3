"""Random load on `keras-griffin serve`, and whether its memory stays flat.

Starts the server on this machine, lets clients of all kinds at it (streams,
whole answers, prompts of all lengths, bad requests, clients that go away,
broken HTTP) and prints the server's memory as it goes. In the first half the
prefix cache fills and the allocator's arenas grow to what the load needs; flat
is what does not grow by more than `FLAT` in the second.

    python benchmarks/speed/serving_soak.py --minutes 10
"""

import argparse
import asyncio
import collections
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openai

MODEL = "griffin_shakespeare_en"
CLIENTS = 24
WORDS = "ROMEO: JULIET: my lord, what is the night to thee ?\n".split(" ")
SAMPLES, LINES = 100, 10
FLAT = 1.0  # MiB a minute


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "keras_griffin", "serve", MODEL]
        + ["--port", str(arguments.port), "--max-queue", "16"]
        + ["--prefix-cache-mib", "16", "--max-seconds", "60"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while "Serving" not in server.stdout.readline():
            continue
        asyncio.run(soak(arguments, server.pid))
    finally:
        server.terminate()
        print(f"exit code {server.wait(120)}")


async def soak(arguments, pid):
    base = f"http://127.0.0.1:{arguments.port}/v1"
    client = openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0)
    counts = collections.Counter()
    end = time.monotonic() + 60 * arguments.minutes
    async with client:
        clients = [
            asyncio.create_task(one_client(client, arguments, end, counts))
            for _ in range(CLIENTS)
        ]
        sizes = []
        for i in range(SAMPLES):
            await asyncio.sleep(60 * arguments.minutes / SAMPLES)
            sizes.append(memory(pid))
            if i % (SAMPLES // LINES) == 0:
                print(f"{sizes[-1]:8.1f} MiB  {dict(counts)}", flush=True)
        await asyncio.gather(*clients)
    print(f"{sizes[-1]:8.1f} MiB  {dict(counts)}")
    print(summary(sizes[SAMPLES // 2 :], arguments.minutes / 2))


def summary(sizes, minutes):
    """Says whether memory is flat."""
    growth = np.polyfit(np.linspace(0, minutes, len(sizes)), sizes, 1)[0]
    is_flat = "flat" if growth < FLAT else "NOT FLAT"
    return (
        f"second half: {min(sizes):.1f} to {max(sizes):.1f} MiB, "
        f"{growth:+.2f} MiB a minute: {is_flat}"
    )


async def one_client(client, arguments, end, counts):
    kinds = (whole, whole, stream, stream, leave, wrong, broken)
    while time.monotonic() < end:
        kind = random.choice(kinds)
        try:
            await kind(client, arguments)
            counts[kind.__name__] += 1
        except openai.APIError as error:
            # In a stream there is no status.
            counts[getattr(error, "status_code", error.code)] += 1
            await asyncio.sleep(random.random())


def settings():
    words = random.choices(WORDS, k=random.choice((1, 10, 100, 800)))
    return {
        "model": MODEL,
        "prompt": " ".join(words),
        "max_tokens": random.choice((1, 8, 64, 300)),
        "temperature": random.choice((0, 0.7, 1)),
        "top_p": random.choice((1, 0.9)),
        "n": random.choice((1, 1, 2)),
        "logprobs": random.choice((None, 3)),
        "stop": random.choice((None, ["\n\n"])),
    }


async def whole(client, arguments):
    await client.completions.create(**settings())


async def stream(client, arguments):
    async for _ in await client.completions.create(stream=True, **settings()):
        pass


async def leave(client, arguments):
    """Goes away in the middle of a stream."""
    chosen = {**settings(), "max_tokens": 2000}
    answer = await client.completions.create(stream=True, **chosen)
    async for _ in answer:
        if random.random() < 0.3:
            break
    await answer.close()


async def wrong(client, arguments):
    await client.completions.create(**settings(), extra_body={"top_q": 1})


async def broken(client, arguments):
    """Sends what is no HTTP, or a part of a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", arguments.port)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    writer.write(random.choice((b"\x00" * 99, head, head + b"x" * 200_000)))
    await asyncio.sleep(0.1 * random.random())
    writer.close()


def memory(pid):
    """Of a process [MiB]."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
    main()
