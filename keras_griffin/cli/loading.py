"""The model of a command: its options, and how it is loaded."""

import contextlib
import os
import threading

from keras_griffin.cli import common

DTYPES = common.DTYPES
MODES = ("int8", "int4")
# A line of the SentencePiece in tensorflow_text (2.21), which has no setting
# that keeps it quiet: of a tokenizer that changes no character.
TOKENIZER_LINE = b"normalizer.cc("


def add_arguments(parser, is_option=False):
    """Adds the preset and what it is loaded as.

    Args:
        parser: of a command.
        is_option: bool. Whether the preset is an option, `--preset`, since
            another argument has the first place. Defaults to `False`.
    """
    place = {"metavar": "PRESET_OR_FOLDER", "nargs": "?"}
    parser.add_argument(
        "--preset" if is_option else "preset",
        **({} if is_option else place),
        default="griffin_shakespeare_en",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address (default: %(default)s, which is shipped)",
    )
    add_dtype_arguments(parser)
    common.add_backend_argument(parser)


def add_dtype_arguments(parser):
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of weights and computations (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--quantize",
        choices=MODES,
        help="round the matrices as they are loaded: int8 takes a quarter of "
        "float32's memory",
    )


def load_model(arguments):
    """Returns the `GriffinCausalLM` of the options of `add_arguments`."""
    preset = arguments.preset
    common.check_has_weights(preset)
    with common.importing_keras(arguments.backend):
        from keras_griffin.checkpoints import preset_loading
        from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
    try:
        # Downloads, before the output is watched: it may show a bar.
        source = preset_loading.find_preset(preset)
        dtype, mode = _dtype(arguments, source), arguments.quantize
        if _is_rounded_on_the_way(source, dtype, mode):
            dtype, mode = f"int8_from_{dtype}", None
        with without_tokenizer_line():
            model = GriffinCausalLM.from_preset(preset, dtype=dtype)
        if mode is not None:
            model.quantize(mode)
    except ConnectionError as error:
        raise common.Failure(f"{preset}: {error}") from error
    except (ImportError, OSError, ValueError) as error:
        raise common.CommandError(f"{preset}: {error}") from error
    return model


def _dtype(arguments, source):
    from keras_griffin.checkpoints import preset_loading

    if arguments.dtype is not None:
        return arguments.dtype
    try:
        return preset_loading.stored_dtype(source)
    except ValueError:
        # Quantized, and loaded as that; or damaged, which loading explains.
        return None


def _is_rounded_on_the_way(source, dtype, mode):
    """Whether matrices become int8 as they are read; the whole is not there."""
    from keras_griffin.checkpoints import preset_loading

    if mode != "int8" or dtype is None:
        return False
    is_ours = preset_loading.is_mapped(source, True, dtype)
    return is_ours or source.kind != "keras"


@contextlib.contextmanager
def without_tokenizer_line():
    """Hands on what the process writes to its errors, but for that line."""
    errors = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    thread = threading.Thread(target=_hand_on, args=(read, errors))
    thread.start()
    try:
        yield
    finally:
        os.dup2(errors, 2)  # closes the pipe's last end
        thread.join()
        os.close(read)
        os.close(errors)


def _hand_on(read, errors):
    rest = b""
    while part := os.read(read, 65536):
        *lines, rest = (rest + part).splitlines(keepends=True)
        if rest.endswith((b"\n", b"\r")) or not _may_be_it(rest):
            lines, rest = [*lines, rest], b""
        kept = b"".join(x for x in lines if not x.startswith(TOKENIZER_LINE))
        os.write(errors, kept)
    os.write(errors, rest)


def _may_be_it(beginning):
    size = len(TOKENIZER_LINE)
    return TOKENIZER_LINE.startswith(beginning[:size])
