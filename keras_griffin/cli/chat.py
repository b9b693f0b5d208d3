"""`keras-griffin chat`: a conversation in the terminal."""

import importlib
import random
import sys
import time
from pathlib import Path

from keras_griffin.cli import common
from keras_griffin.cli import loading
from keras_griffin.cli import sampling
from keras_griffin.near_names import did_you_mean

SUMMARY = "talk to a model"
DESCRIPTION = """\
Reads a message, prints the reply as it is made, and keeps the conversation.

  keras-griffin chat --preset recurrent_gemma_instruct_2b_en
  keras-griffin chat --session talk.npz      goes on where it ended
  keras-griffin chat --system "Answer in one sentence."

Ctrl-C stops a reply; at an empty line it ends the chat, as Ctrl-D does. /help
lists what else can be typed. A model that is not made for instructions
continues what it is told."""
HELP = '''\
/retry                  answer the last message anew
/clear                  forget the conversation
/save FILE              keep it; --session FILE goes on with it
/set                    show the settings
/set NAME VALUE         change one: /set temperature 0.5
/help                   this
/quit                   end, as Ctrl-D does
"""                     begins and ends a message of several lines
A message that begins with / is written with //.'''
BLOCK = '"""'  # around a message of several lines


def add_arguments(parser):
    sampling.add_arguments(parser)
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="what the model is told before the first message",
    )
    parser.add_argument(
        "--session",
        metavar="FILE",
        type=Path,
        help="the conversation is read from here, if it exists, and written "
        "here after every reply",
    )
    loading.add_arguments(parser, is_option=True)


def run(arguments):
    file = arguments.session
    if file is not None:
        common.check_writable(file)  # before anybody has said a word
    model = loading.load_model(arguments)
    common.print_any_text()
    if arguments.seed is not None:
        random.seed(arguments.seed)  # where replies take their seeds from
    try:
        session = model.chat(
            max_new_tokens=arguments.max_new_tokens,
            **sampling.settings(arguments),
        )
        if file is not None and file.exists():
            session.load(file)
        chat = Chat(session, file, arguments.system)
        chat.greet(arguments.preset)
        chat.converse()
    except (OSError, ValueError) as error:
        raise common.CommandError(str(error)) from error


class Chat:
    """A conversation at a terminal, or of lines from a pipe.

    Args:
        session: `ChatSession`.
        file: path that it is kept in. Defaults to `None`: it is not kept.
        system: str, read before the first message. Defaults to `None`.
    """

    def __init__(self, session, file=None, system=None):
        self._session = session
        self._file = file
        self._system = system
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._commands = {
            "/retry": self._retry,
            "/clear": self._clear,
            "/save": self._save_as,
            "/set": self._set,
            "/help": lambda argument: print(HELP),
        }

    def greet(self, name):
        """Prepares a terminal: editing, history, a banner."""
        if not self._is_terminal:
            return
        if common.is_installed("readline"):
            importlib.import_module("readline")  # `input` takes it
        about = "/help for commands, Ctrl-C stops a reply, Ctrl-D ends"
        print(f"{name}\n{about}")
        if self._session.state is not None:
            print(f"Going on with {self._file}.")

    def converse(self):
        """Reads and answers until there is no more."""
        while (message := self._read()) is not None:
            if message.startswith("/") and not message.startswith("//"):
                name, _, argument = message.partition(" ")
                if name == "/quit":
                    return
                self._command(name, argument.strip())
            elif message:
                message = message.removeprefix("/")
                self._reply(self._session.send(self._with_system(message)))

    def _read(self):
        """A message, or `None` at the end."""
        try:
            line = input("> ")
            if not line.startswith(BLOCK):
                return line
            lines = [line.removeprefix(BLOCK)]
            while not lines[-1].endswith(BLOCK):
                lines.append(input(". "))
        except (EOFError, KeyboardInterrupt):
            print()
            return None
        return "\n".join(lines).removesuffix(BLOCK)

    def _with_system(self, message):
        if self._system is None or self._session.state is not None:
            return message
        return f"{self._system}\n\n{message}"

    def _reply(self, pieces):
        start, text = time.perf_counter(), ""
        try:
            for piece in pieces:
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:  # ends the reply, not the conversation
            pass
        print()
        self._tell_speed(text, time.perf_counter() - start)
        if self._file is not None and self._session.state is not None:
            self._save(self._file)

    def _tell_speed(self, text, seconds):
        if self._is_terminal and text:
            tokenizer = self._session.model.preprocessor.tokenizer
            count = len(tokenizer(text))
            print(f"({count} tokens, {count / seconds:.1f} a second)")

    def _save(self, file):
        try:
            self._session.save(file)
        except OSError as error:  # the next reply may find room
            print(f"keras-griffin: not saved: {error}", file=sys.stderr)

    # === Commands ===

    def _command(self, name, argument):
        if name not in self._commands:
            known = [*self._commands, "/quit"]
            print(
                f"There is no {name}. {did_you_mean(name, known)}/help lists "
                "all. A message that begins with / is written with //.",
                file=sys.stderr,
            )
            return
        try:
            self._commands[name](argument)
        except (OSError, ValueError) as error:
            print(f"keras-griffin: {error}", file=sys.stderr)

    def _retry(self, argument):
        self._reply(self._session.regenerate())

    def _clear(self, argument):
        self._session.state, self._session.turns = None, []

    def _save_as(self, argument):
        if not argument:
            raise ValueError("/save needs a file: /save talk.npz")
        self._session.save(argument)

    def _set(self, argument):
        from keras_griffin.generation.sampling_settings import SamplingSettings

        session = self._session
        now = {
            "max_new_tokens": session.max_new_tokens,
            "temperature": session.temperature,
            **session.settings,
        }
        if not argument:
            for name, value in now.items():
                print(f"{name:20}  {value}")
            return
        name, _, value = argument.partition(" ")
        name = name.replace("-", "_")
        if name not in now:
            raise ValueError(
                f"There is no setting {name}. {did_you_mean(name, now)}There "
                f"are {', '.join(now)}."
            )
        value = _value(name, value)
        SamplingSettings(**{**now, name: value})  # checks it
        if name in session.settings:
            session.settings = {**session.settings, name: value}
        else:
            setattr(session, name, value)


def _value(name, text):
    """A setting's value as it is typed."""
    text = text.strip()
    if name == "stop":
        return (text,) if text else ()
    if name == "top_k" and text.lower() == "none":
        return None
    return int(text) if name in ("max_new_tokens", "top_k") else float(text)
