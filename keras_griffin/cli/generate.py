"""`keras-griffin generate`: continues a prompt."""

import sys

from keras_griffin.cli import common

SUMMARY = "continue a prompt"
DESCRIPTION = """\
Continues a prompt and prints the text as it is made.

  keras-griffin generate "ROMEO:"
  keras-griffin generate "ROMEO:" --sampler greedy --max-length 100
  keras-griffin generate "ROMEO:" --temperature 0.8 --seed 1 --backend torch
  echo "To be" | keras-griffin generate
  keras-griffin generate "The sky is blue because" \\
      --preset recurrent_gemma_2b_en

Without a prompt, standard input is read if it is piped in; otherwise the
model starts from nothing. The same seed and backend give the same text."""


def add_arguments(parser):
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the text to continue"
    )
    parser.add_argument(
        "--max-length",
        metavar="N",
        type=common.positive_int,
        default=300,
        help="stop at N tokens, the prompt's included (default: %(default)s)",
    )
    common.add_model_arguments(parser)


def run(arguments):
    model = common.load_for_sampling(arguments)
    prompt = arguments.prompt
    if prompt is None:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    print(prompt, end="", flush=True)
    try:
        pieces = model.generate_stream(prompt, max_length=arguments.max_length)
        for piece in pieces:
            print(piece, end="", flush=True)
    except ValueError as error:
        print()
        raise common.CommandError(str(error)) from error
    print()
