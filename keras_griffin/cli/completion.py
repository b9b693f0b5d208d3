"""`keras-griffin completion`: what the Tab key knows."""

from keras_griffin.checkpoints import preset_index

SUMMARY = "print Tab completion for bash and zsh"
DESCRIPTION = """\
Prints a script that completes commands, options, their values and presets.

  source <(keras-griffin completion bash)      in ~/.bashrc
  source <(keras-griffin completion zsh)       in ~/.zshrc, after compinit"""

# zsh runs the function of bash.
ZSH_HEAD = "autoload -Uz bashcompinit && bashcompinit\n"
SCRIPT = """\
_keras_griffin() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    local before=${{COMP_WORDS[COMP_CWORD-1]}}
    local words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}} $before" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _keras_griffin keras-griffin
"""


def add_arguments(parser):
    parser.add_argument("shell", choices=("bash", "zsh"))


class Recorder:
    """Notes the arguments of a command, in place of a parser.

    Attributes:
        arguments: list of `(names, options)` of `add_argument`.
    """

    def __init__(self):
        self.arguments = [(("--help",), {"action": "help"})]

    def add_argument(self, *names, **options):
        self.arguments.append((names, options))


def run(arguments):
    from keras_griffin.cli.main import COMMANDS

    values, words = [], []
    for name, command in COMMANDS.items():
        recorder = Recorder()
        command.add_arguments(recorder)
        values += [
            _case(f'"{name} {option}"', _values(option, options))
            for names, options in recorder.arguments
            for option in names
            if option.startswith("-") and "action" not in options
        ]
        words.append(_case(f'"{name} "*', _words(recorder.arguments)))
    # Options' values come first: a shell takes the first case that fits.
    script = SCRIPT.format(
        commands=" ".join(COMMANDS), cases="\n".join(values + words)
    )
    head = ZSH_HEAD if arguments.shell == "zsh" else ""
    print(head + script, end="")


def _case(pattern, words):
    return f'            {pattern}) words="{" ".join(words)}" ;;'


def _values(name, options):
    """What may follow an option or stand alone; files the shell knows."""
    if name in ("preset", "--preset", "--size"):
        return preset_index.preset_names()
    return options.get("choices", ())


def _words(arguments):
    """A command's options, and what can stand without one."""
    words = []
    for (name, *others), options in arguments:
        is_option = name.startswith("-")
        words += [name, *others] if is_option else _values(name, options)
    return words
