"""`keras-griffin presets`: every model that has a name."""

import shutil
import sys

from keras_griffin.checkpoints import preset_index

SUMMARY = "list the models that have a name"
DESCRIPTION = "Lists the models that have a name, those with weights first."


def add_arguments(parser):
    """There are none."""


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
    rows = [("NAME", "PARAMETERS", "WEIGHTS", "DESCRIPTION")] + [
        (
            entry["name"],
            _short_count(entry["parameters"]),
            ", ".join(entry["weights"] or ("none",)),
            entry["description"].partition(". ")[0],
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, parameters, weights, description in rows:
        _print_line(
            f"{name:{widths[0]}}  {parameters:>{widths[1]}}  "
            f"{weights:{widths[2]}}  {description}"
        )


def _short_count(number):
    if number >= 1e9:
        return f"{number / 1e9:.2f}B"
    return f"{number / 1e6:.2f}M"


def _print_line(line):
    """Prints a line, cut at a terminal's edge; whole into a file or pipe."""
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        if len(line) > columns:
            line = line[: columns - 3] + "..."
    print(line)
