"""`keras-griffin chat`: a conversation in the terminal."""

import sys
from pathlib import Path

from keras_griffin.cli import common

SUMMARY = "talk to a model"
DESCRIPTION = """\
Reads a line, prints the reply as it is made, and keeps the conversation.

  keras-griffin chat --preset recurrent_gemma_instruct_2b_en
  keras-griffin chat --session talk.npz      goes on where it ended

Ctrl-C stops a reply; at an empty line it ends the chat, as Ctrl-D does. A model
that is not made for instructions continues what it is told."""


def add_arguments(parser):
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=common.positive_int,
        default=300,
        help="stop a reply after N tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--session",
        metavar="FILE",
        type=Path,
        help="the conversation is read from here, if it exists, and written "
        "here after every reply",
    )
    common.add_model_arguments(parser)


def run(arguments):
    file = arguments.session
    if file is not None:
        common.check_writable(file)  # before anybody has said a word
    model = common.load_for_sampling(arguments)
    session = model.chat(max_new_tokens=arguments.max_new_tokens)
    try:
        if file is not None and file.exists():
            session.load(file)
        converse(session, file)
    except (OSError, ValueError) as error:
        raise common.CommandError(str(error)) from error


def converse(session, file=None):
    """Reads and answers until there is no more; keeps it in a file.

    Args:
        session: `ChatSession`.
        file: path. Defaults to `None`: it is not kept.
    """
    while True:
        try:
            message = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not message:
            continue
        try:
            for piece in session.send(message):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:  # ends the reply, not the conversation
            pass
        print()
        if file is not None and session.state is not None:
            try:
                session.save(file)
            except OSError as error:  # the next reply may find room
                print(f"keras-griffin: not saved: {error}", file=sys.stderr)
