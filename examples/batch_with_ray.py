"""Continues a folder of prompts with several engines, by Ray Data.

    pip install 'keras-griffin[jax,ray]'
    python examples/batch_with_ray.py prompts/ texts.jsonl
    python examples/batch_with_ray.py prompts/ texts.jsonl --workers 8

Each line of `prompts/*.jsonl` is an object with an `"id"` of its own and a
`"prompt"`. Ray gives blocks of lines to the workers, each of which is a process
with an engine, on this machine or on any of a Ray cluster
(`ray.init(address="auto")` finds one that runs). What comes back is appended to
the output, with the line's fields, as it comes: the same command after a crash
or Ctrl-C goes on with the ids that the output does not have. Ray and a bar of
finished lines show how far it is.

On one machine `keras-griffin generate --input` does the same with one engine.
"""

import argparse
import json
import os
from pathlib import Path

from tqdm import tqdm

# Lines of a block: so many are made again after a crash, for each worker.
BLOCK = 32


class Worker:
    """A process with an engine.

    Args:
        preset: str. What `GriffinCausalLM.from_preset` takes.
        rows: int. Texts that it makes at the same time.
        settings: dict. See `Engine.submit`.
    """

    def __init__(self, preset, rows, settings):
        import keras_griffin
        from keras_griffin import serving

        model = keras_griffin.GriffinCausalLM.from_preset(preset)
        self._engine = serving.Engine(model, max_rows=rows)
        self._settings = settings

    def __call__(self, block):
        lines = [json.loads(line) for line in block["line"]]
        requests = [
            self._engine.submit(line["prompt"], **self._settings)
            for line in lines
        ]
        for line, request in zip(lines, requests, strict=True):
            (made,) = request.result()
            line["text"] = made.text
            line["finish_reason"] = made.finish_reason
        return {"line": [json.dumps(line) for line in lines]}


def read_lines(folder):
    """The lines of a folder of .jsonl files, by their ids."""
    lines = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                lines[json.loads(line)["id"]] = line
    return lines


def finished_ids(file):
    """Ids of the lines that the output has; one that was cut off is removed."""
    if not file.exists():
        return set()
    with open(file, "r+b") as opened:
        whole, newline, _ = opened.read().rpartition(b"\n")
        opened.truncate(len(whole + newline))
    return {json.loads(line)["id"] for line in whole.splitlines()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path, help="folder of .jsonl files")
    parser.add_argument("output", type=Path, help=".jsonl file")
    parser.add_argument("--preset", default="griffin_shakespeare_en")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of a worker")
    parser.add_argument("--rows", type=int, default=8, help="of a worker")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    import ray

    lines = read_lines(arguments.input)
    finished = finished_ids(arguments.output)
    rest = [{"line": line} for id, line in lines.items() if id not in finished]
    settings = {"max_new_tokens": arguments.max_new_tokens, "temperature": 0}
    made = ray.data.from_items(rest).map_batches(
        Worker,
        fn_constructor_args=(arguments.preset, arguments.rows, settings),
        batch_size=BLOCK,
        compute=ray.data.ActorPoolStrategy(
            size=arguments.workers,
            max_tasks_in_flight_per_actor=1,  # None waits for another's.
        ),
        num_gpus=arguments.gpus,
    )
    with (
        open(arguments.output, "a", encoding="utf-8") as output,
        tqdm(total=len(lines), initial=len(finished), unit="line") as bar,
    ):
        for row in made.iter_rows() if rest else ():
            output.write(row["line"] + "\n")
            output.flush()
            bar.update()


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")  # of the workers, too
    main()
