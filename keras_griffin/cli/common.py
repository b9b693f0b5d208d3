"""What the commands share: arguments, the backend, models.

Keras is imported when a command needs it, after the backend is chosen.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from keras_griffin.checkpoints import preset_index
from keras_griffin.files.whole import check_place

BACKENDS = ("jax", "torch", "tensorflow")  # the order of preference
CACHE = "JAX_COMPILATION_CACHE_DIR"
CACHE_SETTINGS = {
    # Bytes. The oldest programs go; those of the shipped preset take 1 MB.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
    # Seconds. JAX's own limit, 1, leaves out most of a small model's.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
DTYPES = ("float32", "bfloat16", "float16")


class CommandError(Exception):
    """A mistake in how the command was called, told in one line."""

    code = 2  # of the process


class Failure(CommandError):
    """What is wrong elsewhere: the network is gone, a disk is full."""

    code = 1


def add_backend_argument(parser):
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="the framework that computes (default: KERAS_BACKEND, or the "
        f"first installed of {', '.join(BACKENDS)})",
    )


def positive_int(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"must be at least 1. Received: {number}"
        )
    return number


def whole_number(text):
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(
            f"must be at least 0. Received: {number}"
        )
    return number


def positive_float(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0. Received: {number}")
    return number


def number_from_0(text):
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be at least 0. Received: {number}"
        )
    return number


def probability(text):
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(
            f"must be in [0, 1]. Received: {number}"
        )
    return number


def seed(text):
    number = int(text)
    if not 0 <= number < 2**31:  # as `generate` has it
        raise argparse.ArgumentTypeError(
            f"must be in [0, 2**31 - 1]. Received: {number}"
        )
    return number


def index_entry(preset):
    """What the index of presets says of a name; `None` for a folder.

    Raises:
        CommandError: if there is neither such a folder nor such a name.
    """
    if Path(preset).is_dir():
        return None
    name = preset_index.name_of(preset) or preset
    if name.startswith((".", "~")) or "/" in name or os.sep in name:
        near = preset_index.near_presets(name)
        raise CommandError(f"There is no folder {preset}. {near}".strip())
    try:
        return preset_index.preset_entry(name)
    except ValueError as error:
        raise CommandError(str(error)) from error


def check_has_weights(preset):
    """Finds what can be found wrong before anything heavy is imported."""
    if "://" in preset or Path(preset).exists():
        return
    if index_entry(preset)["weights"] is None:
        raise CommandError(
            f"{preset} is an architecture without weights: none were released. "
            f'GriffinCausalLM.from_preset("{preset}", load_weights=False) '
            "builds it to be trained."
        )


def check_writable(file):
    """Raises unless a file can be written, before there is what to write."""
    try:
        check_place(file)
    except OSError as error:
        raise CommandError(str(error)) from error


@contextlib.contextmanager
def importing_keras(backend=None):
    """Around imports of Keras: chooses the backend, settles TensorFlow."""
    choose_backend(backend)
    if os.environ["KERAS_BACKEND"] == "jax" and "jax" not in sys.modules:
        keep_programs(os.environ)
    # Errors only. A few lines come before TensorFlow (2.21) reads it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    yield
    _settle_tensorflow()


def keep_programs(environment):
    """Has JAX keep what it compiles, unless it was told what to do.

    Args:
        environment: dict, of the process. JAX reads it when it is imported.
    """
    if CACHE in environment:
        return
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "keras_griffin" / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(
            "keras-griffin: compiled programs are not kept, so that each "
            f"start takes longer: {error}. Set {CACHE} to a folder that can "
            "be written.",
            file=sys.stderr,
        )
        return
    environment[CACHE] = str(folder)
    for name, value in CACHE_SETTINGS.items():
        environment.setdefault(name, value)


def is_installed(package):
    """True if a package can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # kept away by an import hook
        return False


def choose_backend(requested):
    """Sets KERAS_BACKEND, which Keras reads when it is imported."""
    installed = [b for b in BACKENDS if is_installed(b)]
    name = requested or os.environ.get("KERAS_BACKEND")
    if not name:
        if not installed:
            raise CommandError(
                "No backend is installed. For JAX: "
                "pip install 'keras-griffin[jax]'"
            )
        name = installed[0]
    elif name not in BACKENDS:
        raise CommandError(
            f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. "
            f"Received: {name!r}."
        )
    elif name not in installed:
        raise CommandError(
            f"{name} is not installed: pip install 'keras-griffin[{name}]'"
            + (f", or --backend {installed[0]}" if installed else "")
        )
    os.environ["KERAS_BACKEND"] = name
    keras = sys.modules.get("keras")
    if keras is not None and keras.config.backend() != name:
        raise CommandError(
            f"Keras already runs on {keras.config.backend()} in this process, "
            f"so --backend {name} needs a new one."
        )


def _settle_tensorflow():
    """Lets TensorFlow look for GPUs now, and keeps it off another's memory.

    KerasHub's tokenizer uses TensorFlow, where it is installed, under every
    backend. At its first use it would take all memory of all GPUs.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        tensorflow.config.list_physical_devices()
        return
    try:
        tensorflow.config.set_visible_devices([], "GPU")
    except RuntimeError:  # in use already, in a process that is not ours
        return


def print_any_text():
    """Lets a terminal that lacks a character show "?" and go on."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
