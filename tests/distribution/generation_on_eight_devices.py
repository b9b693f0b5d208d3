"""What 8 CPU devices generate, beside one. Run by test_eight_devices.py.

In a process of its own, as the number of devices is set before JAX starts.
Writes a JSON of names to numbers to the file that is its argument.
"""

import json
import sys

import keras
import numpy as np

import keras_griffin
from distribution.eight_devices import error
from distribution.eight_devices import make_model
from distribution.eight_devices import parallel
from support.checks import to_numpy
from support.models import scatter
from support.models import tokens

MESHES = ["batch 8", "batch 2, model 4", "batch 2, model 2, sequence 2"]
# Rows; the meshes divide 8 of them, and neither 3 nor 1.
LENGTHS = {
    "8 rows": (3, 20, 9, 1, 14, 5, 30, 11),
    "3 rows": (3, 20, 9),
    "1 row": (9,),
}
NEW = 10  # tokens
PROMPT = "ROMEO: Why, "


def ragged(lengths):
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    ids, mask = scatter(rows, max(lengths), where="right")
    return {"token_ids": ids, "padding_mask": mask}


def generate(model, rows):
    """Everything that generation gives, as a dict of arrays."""
    inputs = ragged(LENGTHS[rows])
    options = {"max_new_tokens": NEW, "stop_token_ids": None}
    greedy, state = model.generate(inputs, return_state=True, **options)
    again = {"token_ids": greedy["token_ids"][:, -1:]}
    found = {
        "greedy": greedy["token_ids"],
        "stopped": model.generate(
            inputs, max_new_tokens=NEW, stop_token_ids=range(0, 64, 5)
        )["token_ids"],
        "goes on": model.generate(again, state=state, **options)["token_ids"],
        "random": model.generate(inputs, sampler="random", seed=1, **options)[
            "token_ids"
        ],
        "score": model.score(inputs),
    }
    for path, leaf in keras.tree.flatten_with_path(state):
        found[".".join(map(str, ("state", *path)))] = to_numpy(leaf)
    return found, state


def main():
    results = {}
    model = make_model()
    expected = {rows: generate(model, rows)[0] for rows in LENGTHS}
    for mesh in MESHES:
        with parallel(mesh):
            model = make_model()
            for rows, wanted in expected.items():
                found, state = generate(model, rows)
                for name, array in found.items():
                    key = f"{mesh}: {rows}: {name}"
                    assert array.shape == wanted[name].shape
                    results[key] = error(array, wanted[name])
                if rows == "8 rows":
                    results[f"{mesh}: whole on a device"] = [
                        ".".join(map(str, path))
                        for path, leaf in keras.tree.flatten_with_path(state)
                        if len(leaf.shape) > 1
                        and leaf.sharding.is_fully_replicated
                    ]
    results["stream"] = stream(MESHES[1])
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)


def stream(mesh):
    """The text as it is made, on one device and on a mesh."""

    def text():
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en"
        )
        return list(
            model.generate_stream(PROMPT, max_new_tokens=12, sampler="greedy")
        )

    expected = text()
    with parallel(mesh):
        return [expected, text()]


if __name__ == "__main__":
    main()
