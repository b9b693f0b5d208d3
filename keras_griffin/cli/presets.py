"""`keras-griffin presets`: every model that has a name."""

import json

from keras_griffin.checkpoints import preset_index

SUMMARY = "list the models that have a name"
DESCRIPTION = """\
Lists the models that have a name, those with weights first.
`keras-griffin info NAME` tells more about one; so does --json about all."""


def add_arguments(parser):
    parser.add_argument(
        "--json", action="store_true", help="print all that is known, as JSON"
    )


def run(arguments):
    entries = [
        preset_index.preset_entry(name) for name in preset_index.preset_names()
    ]
    entries.sort(
        key=lambda entry: (
            entry["weights"] is None,
            entry["name"].partition("_")[0],
            entry["parameters"],
        )
    )
    if arguments.json:
        print(json.dumps(entries, indent=2))
        return
    rows = [("NAME", "PARAMETERS", "WEIGHTS")] + [
        (
            entry["name"],
            _short_count(entry["parameters"]),
            ", ".join(entry["weights"] or ("none",)),
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, parameters, weights in rows:
        print(f"{name:{widths[0]}}  {parameters:>{widths[1]}}  {weights}")


def _short_count(number):
    if number >= 1e9:
        return f"{number / 1e9:.2f}B"
    return f"{number / 1e6:.2f}M"
