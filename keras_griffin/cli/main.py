"""The `keras-griffin` command: its parser and its exit codes."""

import argparse
import os
import sys

from keras_griffin.cli import chat
from keras_griffin.cli import completion
from keras_griffin.cli import convert
from keras_griffin.cli import evaluate
from keras_griffin.cli import generate
from keras_griffin.cli import info
from keras_griffin.cli import plan
from keras_griffin.cli import presets
from keras_griffin.cli import serve
from keras_griffin.cli import train
from keras_griffin.cli.common import CommandError
from keras_griffin.cli.common import Failure
from keras_griffin.version import __version__

USAGE_ERROR = CommandError.code
FAILURE = Failure.code
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# Each has SUMMARY, DESCRIPTION, `add_arguments(parser)`, `run(arguments)`.
COMMANDS = {
    "generate": generate,
    "chat": chat,
    "train": train,
    "serve": serve,
    "convert": convert,
    "presets": presets,
    "info": info,
    "plan": plan,
    "evaluate": evaluate,
    "completion": completion,
}

DESCRIPTION = """\
Griffin, Hawk and RecurrentGemma on Keras 3.

  keras-griffin generate "ROMEO:"            text from the shipped model
  keras-griffin chat                         talk to a model
  keras-griffin train data.txt               train a model on your own text
  keras-griffin serve                        OpenAI's HTTP API, for many users
  keras-griffin convert SOURCE TARGET --to transformers
  keras-griffin presets                      every model, with its size
  keras-griffin info recurrent_gemma_2b_en   size and memory of one model
  keras-griffin plan recurrent_gemma_2b_en   memory of training on a TPU slice
  keras-griffin evaluate recurrent_gemma_2b_en   MMLU, HellaSwag and others

keras-griffin COMMAND --help tells more about each."""


def main(argv=None):
    """Runs the command line.

    Args:
        argv: list of strings. The arguments after the command's name.
            Defaults to `None`: those of the process.

    Returns:
        The exit code: 0, 1 if a file or the output cannot be written or a
        hub cannot be reached, 2 for a wrong call, 130 after Ctrl-C.
    """
    _replace_closed_streams()
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        print(f"keras-griffin: error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _drop_output()
    except OSError as error:  # a full disk behind `> file`
        _drop_output()
        print(f"keras-griffin: error: {error}", file=sys.stderr)
        return FAILURE
    return 0


def _replace_closed_streams():
    """Reads and writes nothing where the caller has closed a stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _drop_output():
    """Python flushes stdout once more at exit: into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-griffin",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"keras-griffin {__version__}"
    )
    commands = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True
    )
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser
