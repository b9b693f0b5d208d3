"""What the commands share: arguments, the backend, models.

Keras is imported when a command needs it, after the backend is chosen.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
from pathlib import Path

from keras_griffin.checkpoints import preset_index
from keras_griffin.files.whole import check_place

BACKENDS = ("jax", "torch", "tensorflow")  # the order of preference
DTYPES = ("float32", "bfloat16", "float16")
SAMPLERS = ("greedy", "top_k", "top_p", "random")
TOP_K = 40  # tokens
TOP_P = 0.9  # probability


class CommandError(Exception):
    """A mistake in how the command was called, told in one line."""


def add_model_arguments(parser):
    parser.add_argument(
        "--preset",
        default="griffin_shakespeare_en",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address (default: %(default)s, which is shipped)",
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="top_p",
        help="how the next token is chosen: greedy takes the likeliest; top_k "
        f"draws from the {TOP_K} likeliest; top_p from the likeliest that "
        f"together have probability {TOP_P}; random from all "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=positive_float,
        default=1.0,
        help="below 1 is safer, above 1 more surprising (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=seed,
        help="makes the draw repeatable (default: another one each time)",
    )
    add_backend_argument(parser)


def add_backend_argument(parser):
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what computes (default: KERAS_BACKEND, or the first installed "
        f"of {', '.join(BACKENDS)})",
    )


def positive_int(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"must be at least 1. Received: {number}"
        )
    return number


def positive_float(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0. Received: {number}")
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
    if preset.startswith((".", "~")) or "/" in preset or os.sep in preset:
        raise CommandError(f"There is no folder {preset}.")
    try:
        return preset_index.preset_entry(preset)
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
    # Errors only. A few lines come before TensorFlow (2.21) reads it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    yield
    _settle_tensorflow()


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


def load_model(preset, backend, dtype=None):
    """Returns the `GriffinCausalLM` of a preset."""
    check_has_weights(preset)
    with importing_keras(backend):
        from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
    try:
        return GriffinCausalLM.from_preset(preset, dtype=dtype)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(f"{preset}: {error}") from error


def load_for_sampling(arguments):
    """Returns the model of `add_model_arguments`, ready to print text."""
    model = load_model(arguments.preset, arguments.backend)
    model.compile(sampler=_sampler(arguments))
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that lacks a character shows "?" and goes on.
        sys.stdout.reconfigure(errors="replace")
    return model


def _sampler(arguments):
    from keras_hub import samplers

    options = {"temperature": arguments.temperature, "seed": arguments.seed}
    if arguments.sampler == "greedy":
        return samplers.GreedySampler()
    if arguments.sampler == "top_k":
        return samplers.TopKSampler(k=TOP_K, **options)
    if arguments.sampler == "top_p":
        return samplers.TopPSampler(p=TOP_P, **options)
    return samplers.RandomSampler(**options)
