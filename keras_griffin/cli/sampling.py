"""How the next token is chosen: the options of commands that make text."""

import argparse

from keras_griffin.cli import common
from keras_griffin.cli import loading

LOOKUP = "prompt_lookup"
TOP_P = 0.9
# Settings of `SamplingSettings` that are options beside those below: what
# changes nothing, and what another value does.
PENALTIES = {
    "repetition_penalty": (
        1.0,
        "above 1 makes tokens of the prompt and the text less likely",
    ),
    "presence_penalty": (
        0.0,
        "above 0 makes tokens that the new text has less likely",
    ),
    "frequency_penalty": (
        0.0,
        "the same, more for each time that the text has them",
    ),
}


def add_arguments(parser):
    add_length_argument(parser)
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=common.number_from_0,
        default=1.0,
        help="below 1 is safer, above 1 more surprising; 0 takes the likeliest "
        "token each time (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        metavar="K",
        type=common.positive_int,
        help="draw from the K likeliest tokens (default: from all)",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=common.probability,
        default=TOP_P,
        help="draw from the likeliest tokens that together have probability P "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--min-p",
        metavar="P",
        type=common.probability,
        default=0.0,
        help="leave out tokens less likely than P times the likeliest "
        "(default: %(default)s)",
    )
    _add_penalties(parser)
    parser.add_argument(
        "--logit-bias",
        metavar="ID=X",
        type=_bias,
        action="append",
        help="add X to the logit of a token; can be repeated",
    )
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end before this text; can be repeated. $'\\n' is the end of a "
        "line in bash and zsh",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=common.seed,
        help="makes the draw repeatable (default: another one each time)",
    )


def add_length_argument(parser, default=300):
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=common.positive_int,
        default=default,
        help="end after N new tokens (default: %(default)s)",
    )


def _add_penalties(parser):
    for name, (neutral, what) in PENALTIES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="X",
            type=float,
            default=neutral,
            help=f"{what} (default: %(default)s, none)",
        )


def add_draft_argument(parser):
    parser.add_argument(
        "--draft",
        metavar="PRESET",
        help="a smaller model of the same vocabulary that proposes tokens, or "
        f"{LOOKUP}: the same text, and often sooner",
    )


def draft(arguments):
    """The setting of `--draft`, if it was given."""
    if arguments.draft in (None, LOOKUP):
        return {} if arguments.draft is None else {"draft": LOOKUP}
    model = loading.load_model(
        argparse.Namespace(**{**vars(arguments), "preset": arguments.draft})
    )
    return {"draft": model}


def settings(arguments):
    """The settings of the options, by the names of `SamplingSettings`."""
    names = ("temperature", "top_k", "top_p", "min_p", *PENALTIES)
    chosen = {name: getattr(arguments, name) for name in names}
    if arguments.logit_bias is not None:
        chosen["logit_bias"] = dict(arguments.logit_bias)
    return {**chosen, "stop": tuple(arguments.stop)}


def _bias(text):
    id, _, value = text.partition("=")
    return int(id), float(value)
