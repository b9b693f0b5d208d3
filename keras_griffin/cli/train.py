"""`keras-griffin train`: a model of one's own text."""

import hashlib
import json
import os
import sys
from pathlib import Path

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import common

BYTES = "bytes"
VOCABULARY_SIZE = 1024
# Of the shipped preset, at its width; a wider model takes less.
LEARNING_RATE, WIDTH = 3e-3, 208
# In the folder, beside the preset.
RECORD, PLOT = "training.json", "loss.svg"

SUMMARY = "train a model on your own text"
DESCRIPTION = """\
Trains a model on text files and writes a folder that the other commands load.

  keras-griffin train data.txt
  keras-griffin train a.txt b.txt --output plays --steps 3000
  keras-griffin train data.txt --size griffin_100m --tokenizer bytes
  keras-griffin generate --preset data-griffin

Each file is a document. The last tenth of the rows is for validation. After
every --report-every steps it prints the losses, in nats a token, and a sample,
and writes a backup. After Ctrl-C or a crash the same command goes on where the
last backup was written. At the end loss.svg shows the losses (it needs
matplotlib)."""


def add_arguments(parser):
    parser.add_argument(
        "texts", metavar="TEXT", nargs="+", type=Path, help="a UTF-8 file"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="a new folder (default: the first text's name and -griffin)",
    )
    parser.add_argument(
        "--size",
        metavar="NAME",
        default="griffin_shakespeare_en",
        help="make the model as large as this one of `keras-griffin presets` "
        "(default: %(default)s, 3.3 million parameters)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="N_OR_PRESET",
        default=str(VOCABULARY_SIZE),
        help="learn N pieces from the text, take those of a preset, or "
        f"{BYTES} (default: %(default)s)",
    )
    for name, default, what in (
        ("steps", 1000, "number of batches"),
        ("batch-size", 16, "rows in a batch"),
        ("row-length", 128, "tokens in a row"),
        ("report-every", 100, "steps between two reports"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=common.positive_int,
            default=default,
            help=f"{what} (default: %(default)s)",
        )
    parser.add_argument(
        "--learning-rate",
        metavar="X",
        type=common.positive_float,
        help="the highest; it falls along a cosine (default: "
        f"{LEARNING_RATE:g} times {WIDTH} / width)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=common.seed,
        default=0,
        help="for the first weights and the order of the rows (default: "
        "%(default)s)",
    )
    common.add_backend_argument(parser)


def run(arguments):
    sizes = _sizes(arguments.size)
    steps, every = arguments.steps, arguments.report_every
    every = min(steps, every)
    if steps % every:
        raise common.CommandError(
            "--steps must be a multiple of --report-every. Received: "
            f"{steps} and {every}. Take {steps - steps % every} steps."
        )
    texts = [_read(file) for file in arguments.texts]
    folder = arguments.output
    if folder is None:
        folder = Path(f"{arguments.texts[0].stem}-griffin")
    _check_folder(folder)
    if not common.is_installed("orbax.checkpoint"):
        raise common.CommandError(
            "Training writes backups with Orbax, which is not installed: "
            "pip install 'keras-griffin[convert]'"
        )
    with common.importing_keras(arguments.backend):
        from keras_griffin.cli import train_on_text
    record = Record(folder / RECORD, _settings(arguments, texts))
    arguments.report_every = every
    if arguments.learning_rate is None:
        arguments.learning_rate = LEARNING_RATE * WIDTH / sizes["hidden_dim"]
    common.print_any_text()
    if record.reports:
        print(f"Going on with the training in {folder}.", flush=True)
    try:
        train_on_text.train(arguments, sizes, texts, record, folder)
        record.plot(folder / PLOT)
    except KeyboardInterrupt:
        print(
            f"\nStopped. The same command goes on after step "
            f"{record.last_step()}.",
            file=sys.stderr,
        )
        raise
    except (ImportError, ValueError) as error:
        raise common.CommandError(str(error)) from error
    print(f"Trained. Try it: keras-griffin generate --preset {folder}")


# === What is found wrong before Keras is there ===


def _sizes(name):
    try:
        return preset_index.preset_entry(name)["backbone"]
    except ValueError as error:
        raise common.CommandError(str(error)) from error


def _read(file):
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise common.CommandError(f"{file}: {error}") from error


def _check_folder(folder):
    """Makes the folder; raises if it is not for this training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise common.CommandError(str(error)) from error
    if (folder / "config.json").exists():
        raise common.CommandError(
            f"{folder} holds a model already. Give another --output."
        )
    if any(folder.iterdir()) and not (folder / RECORD).exists():
        raise common.CommandError(
            f"{folder} holds files that are not of a training. Give another "
            "--output."
        )
    common.check_writable(folder / RECORD)


def _settings(arguments, texts):
    """What a training goes on with: all that decides its weights."""
    settings = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("texts", "output", "run", "command")
    }
    text = "\0".join(texts).encode()
    digest = hashlib.sha256(text).hexdigest()
    backend = os.environ["KERAS_BACKEND"]
    return {**settings, "backend": backend, "texts": digest}


class Record:
    """The settings of a training and its losses so far, in a file.

    Args:
        file: path. If it is there, the training goes on.
        settings: dict, those of this call.

    Raises:
        CommandError: if the training began with other settings.
    """

    def __init__(self, file, settings):
        self._file, self._settings = file, settings
        self.reports = []
        if not file.exists():
            self._write()
            return
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            began, self.reports = content["settings"], content["reports"]
        except (ValueError, KeyError, TypeError) as error:
            raise common.CommandError(
                f"{file} is not of `keras-griffin train`. Give another --output"
            ) from error
        for name, value in settings.items():
            if began.get(name) != value:
                raise common.CommandError(
                    f"A training goes on with what it began with. Received: "
                    f"{name} {value}; {file.parent} began with "
                    f"{began.get(name)}. Give another --output."
                )

    def add(self, step, losses):
        """Adds a report; those of steps that were trained anew go."""
        self.reports = [x for x in self.reports if x["step"] < step]
        self.reports.append({"step": step, **losses})
        self._write()

    def last_step(self):
        return self.reports[-1]["step"] if self.reports else 0

    def _write(self):
        from keras_griffin.files.whole import whole_file

        content = {"settings": self._settings, "reports": self.reports}
        with whole_file(self._file) as file:
            file.write_text(json.dumps(content, indent=1) + "\n")

    def plot(self, file):
        if not common.is_installed("matplotlib"):
            print("No plot: matplotlib is not installed.")
            return
        from matplotlib.figure import Figure

        axes = (figure := Figure(figsize=(6, 4))).add_subplot()
        steps = [report["step"] for report in self.reports]
        for name in ("training", "validation"):
            losses = [report[name] for report in self.reports]
            axes.plot(steps, losses, ".-", label=name)
        axes.set(xlabel="step", ylabel="loss [nats a token]")
        axes.legend()
        figure.savefig(file, bbox_inches="tight")
        print(f"Losses: {file}")
