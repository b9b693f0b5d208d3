"""A line for the head of a table: the command, when and where it ran."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

import keras

ROOT = Path(__file__).resolve().parent.parent


def device():
    """What this process computes on."""
    if keras.config.backend() == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def conditions():
    script = Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix()
    # What is resumed is what the whole command would have given, and where the
    # table was written first is no matter of its reader.
    options = [x for x in sys.argv[1:] if x != "--resume"]
    if "--output" in options:
        at = options.index("--output")
        del options[at : at + 2]
    return (
        f"`KERAS_BACKEND={keras.config.backend()} "
        f"{shlex.join(['python', script, *options])}`, "
        f"{datetime.date.today().isoformat()}, Keras {keras.__version__}, "
        f"{device()}."
    )
