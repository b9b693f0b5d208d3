"""`keras-griffin generate --input`: a file of prompts, many at a time."""

import collections
import json

from keras_griffin.cli import common
from keras_griffin.cli import loading
from keras_griffin.cli import sampling

# Submitted for each row, so that none waits while a line is written.
AHEAD = 4
# Fields that this command writes into a line of the output.
RESULTS = ("text", "finish_reason")


def run(arguments):
    if arguments.input is None or arguments.output is None:
        raise common.CommandError("--input and --output go together.")
    if arguments.prompt is not None:
        raise common.CommandError(
            f"A prompt or --input, not both. Received: {arguments.prompt!r:.80}"
        )
    if arguments.draft is not None:
        raise common.CommandError(
            "--draft is for one prompt, not for --input, where many prompts "
            f"share the device. Received: {arguments.draft!r}. Leave it out."
        )
    try:
        lines = _read_input(arguments.input)
        done = _take_up(arguments.output, lines)
    except OSError as error:
        raise common.CommandError(str(error)) from error
    if done < len(lines):
        model = loading.load_model(arguments)
        _continue_lines(model, arguments, lines, done)
    print(f"{arguments.output}: {len(lines)} lines")


def _read_input(file):
    """The lines as dicts, all of them checked."""
    lines = []
    with open(file, encoding="utf-8") as opened:
        for number, text in enumerate(opened, start=1):
            if text.strip():
                lines.append(_parse(text, f"{file}, line {number}"))
    return lines


def _parse(text, place):
    try:
        line = json.loads(text)
    except ValueError as error:
        raise common.CommandError(f"{place}: {error}") from error
    line = {"prompt": line} if isinstance(line, str) else line
    if not isinstance(line, dict) or (
        isinstance(line.get("prompt"), str)
        == isinstance(line.get("messages"), list)
    ):
        raise common.CommandError(
            f'{place} must be a string, or an object with "prompt" or '
            f'"messages". Received: {text.strip():.80}'
        )
    for name in RESULTS:
        if name in line:
            raise common.CommandError(
                f"{place} has the field {name!r}, which the output has of its "
                "own. Rename it."
            )
    return line


def _take_up(file, lines):
    """The number of lines that the output has already.

    A line that was cut off is taken away.
    """
    common.check_writable(file)
    if not file.exists():
        return 0
    with open(file, "r+b") as opened:
        whole, _, _ = opened.read().rpartition(b"\n")
        opened.truncate(len(whole) + 1 if whole else 0)
    made = whole.decode("utf-8", errors="replace").split("\n") if whole else []
    for number, text in enumerate(made):
        if number >= len(lines) or not _is_of(text, lines[number]):
            raise common.CommandError(
                f"{file}, line {number + 1}, is not of this input. Give "
                "another --output, or remove the file."
            )
    return len(made)


def _is_of(text, line):
    try:
        made = json.loads(text)
    except ValueError:
        return False
    if not isinstance(made, dict):
        return False
    return {k: v for k, v in made.items() if k not in RESULTS} == line


def _continue_lines(model, arguments, lines, done):
    from tqdm import tqdm

    from keras_griffin.serving.engine import Engine

    waiting = collections.deque()
    with (
        open(arguments.output, "a", encoding="utf-8") as output,
        Engine(
            model,
            max_rows=arguments.max_rows,
            max_length=_max_length(model, arguments, lines[done:]),
        ) as engine,
        tqdm(total=len(lines), initial=done, disable=None) as bar,
    ):
        for number in range(done, len(lines)):
            waiting.append(
                (lines[number], _submit(engine, arguments, lines, number))
            )
            if len(waiting) == AHEAD * arguments.max_rows:
                _write(output, *waiting.popleft())
                bar.update()
        while waiting:
            _write(output, *waiting.popleft())
            bar.update()


def _max_length(model, arguments, lines):
    """Most tokens of a text, for those who have a slot for each."""
    if "global_attention" not in model.backbone.block_types:
        return None
    prompts = model.preprocessor.prompt_rows([_prompt(x) for x in lines])
    return max(map(len, prompts)) + arguments.max_new_tokens


def _prompt(line):
    return line.get("messages", line.get("prompt"))


def _submit(engine, arguments, lines, number):
    line = lines[number]
    seed = arguments.seed
    if seed is not None:  # the same after a restart
        seed = (seed + number) % 2**31
    try:
        return engine.submit(
            _prompt(line),
            max_new_tokens=arguments.max_new_tokens,
            seed=seed,
            **sampling.settings(arguments),
        )
    except ValueError as error:
        raise common.CommandError(
            f"{arguments.input}, prompt {number + 1}: {error}"
        ) from error


def _write(output, line, request):
    (completion,) = request.result()
    made = {
        **line,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }
    output.write(json.dumps(made, ensure_ascii=False) + "\n")
    output.flush()
