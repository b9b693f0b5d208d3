"""What 8 CPU devices generate, beside one. Run by test_eight_devices.py.

In a process of its own, as the number of devices is set before JAX starts.
Writes a JSON of names to numbers to the file that is its argument.
"""

import json
import sys

import keras
import numpy as np
from distribution.eight_devices import error
from distribution.eight_devices import make_model
from distribution.eight_devices import parallel

import keras_griffin
from support.checks import to_numpy
from support.models import scatter
from support.models import tokens

# Rows on each mesh: neither divides 3 of them.
LENGTHS = {"8 rows": (3, 20, 9, 1, 14, 5, 30, 11), "3 rows": (3, 20, 9)}
RUNS = [
    ("batch 2, model 4", "8 rows"),
    ("batch 2, model 4", "3 rows"),
    ("batch 8", "8 rows"),
]
NEW = 10  # tokens
PROMPT = "ROMEO: Why, "


def ragged(lengths):
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    ids, mask = scatter(rows, max(lengths), where="right")
    return {"token_ids": ids, "padding_mask": mask}


def generate(model, rows):
    """What generation gives, as a dict of arrays, and the state."""
    inputs = ragged(LENGTHS[rows])
    options = {"max_new_tokens": NEW, "stop_token_ids": None}
    greedy, state = model.generate(inputs, return_state=True, **options)
    again = {"token_ids": greedy["token_ids"][:, -1:]}
    found = {
        "greedy": greedy["token_ids"],
        "goes on": model.generate(again, state=state, **options)["token_ids"],
        "score": model.score(inputs),
    }
    for path, leaf in keras.tree.flatten_with_path(state):
        found[".".join(map(str, ("state", *path)))] = to_numpy(leaf)
    return found, state


def difference(found, expected):
    same = np.array_equal(found, expected)
    return 0.0 if same else error(found, expected)


def main():
    results = {}
    model = make_model()
    expected = {rows: generate(model, rows)[0] for rows in LENGTHS}
    for mesh, rows in RUNS:
        with parallel(mesh):
            found, state = generate(make_model(), rows)
        name = f"{mesh}: {rows}"
        for part, array in found.items():
            assert array.shape == expected[rows][part].shape
            results[f"{name}: {part}"] = difference(array, expected[rows][part])
        results[f"{name}: whole on a device"] = [
            ".".join(map(str, path))
            for path, leaf in keras.tree.flatten_with_path(state)
            if len(leaf.shape) > 1 and leaf.sharding.is_fully_replicated
        ]
    results["streams"] = streams("batch 2, model 4")
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)


def streams(mesh):
    """The pieces of a text, on one device and on a mesh."""

    def pieces():
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en"
        )
        return list(
            model.generate_stream(PROMPT, max_new_tokens=12, sampler="greedy")
        )

    expected = pieces()
    with parallel(mesh):
        return [expected, pieces()]


if __name__ == "__main__":
    main()
