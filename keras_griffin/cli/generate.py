"""`keras-griffin generate`: continues a prompt, or a file of prompts."""

import sys
from pathlib import Path

from keras_griffin.cli import batch
from keras_griffin.cli import common
from keras_griffin.cli import loading
from keras_griffin.cli import sampling

SUMMARY = "continue a prompt, or a file of prompts"
DESCRIPTION = """\
Continues a prompt and prints the text as it is made.

  keras-griffin generate "ROMEO:"
  keras-griffin generate "ROMEO:" --temperature 0 --max-new-tokens 100
  keras-griffin generate "ROMEO:" --temperature 0.8 --seed 1 --backend torch
  echo "To be" | keras-griffin generate
  keras-griffin generate "The sky is blue because" \\
      --preset recurrent_gemma_2b_en --quantize int8
  keras-griffin generate --input prompts.jsonl --output texts.jsonl

Without a prompt, standard input is read if it is piped in; otherwise the
model starts from nothing. The same seed and backend give the same text.

A line of the input is a JSON string, or an object with "prompt" or "messages"
whose other fields are kept. Line i of the output has its text and why it
ended. What is in the output already is not made again: the same command goes
on where it stopped."""


def add_arguments(parser):
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the text to continue"
    )
    sampling.add_arguments(parser)
    sampling.add_draft_argument(parser)
    parser.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        help="continue each line of this file, many at a time",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="where the lines go"
    )
    parser.add_argument(
        "--max-rows",
        metavar="N",
        type=common.positive_int,
        default=8,
        help="lines that are continued at the same time (default: %(default)s)",
    )
    loading.add_arguments(parser, is_option=True)


def run(arguments):
    if arguments.input is not None or arguments.output is not None:
        batch.run(arguments)
        return
    model = loading.load_model(arguments)
    common.print_any_text()
    prompt = arguments.prompt
    if prompt is None:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    print(prompt, end="", flush=True)
    try:
        pieces = model.generate_stream(
            prompt,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
            **sampling.settings(arguments),
            **sampling.draft(arguments),
        )
        for piece in pieces:
            print(piece, end="", flush=True)
    except ValueError as error:
        print()
        raise common.CommandError(str(error)) from error
    print()
