"""The `keras-griffin` command: generate text, convert and describe presets.

Keras is imported where a model is loaded, after the backend is chosen.
"""

import argparse
import collections
import json
import os
import shutil
import sys
from pathlib import Path

from keras_griffin import start_up
from keras_griffin.checkpoints import preset_index
from keras_griffin.version import __version__

BACKENDS = ("jax", "torch", "tensorflow")  # the order of preference
SAMPLERS = ("greedy", "top_k", "top_p", "random")
TOP_K = 40  # tokens
TOP_P = 0.9  # probability
DTYPES = {"float32": 4, "bfloat16": 2}  # bytes a number
# Weights, gradients and AdamW's two moments.
TRAINING_COPIES = 4
FORMS = ("keras", "transformers", "deepmind")
FRAMEWORKS = ("flax", "torch")
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

DESCRIPTION = """\
Griffin, Hawk and RecurrentGemma on Keras 3.

  keras-griffin generate "ROMEO:"            text from the shipped model
  keras-griffin chat                         talk to a model
  keras-griffin convert SOURCE TARGET --to transformers
  keras-griffin presets                      every model, with its size
  keras-griffin info recurrent_gemma_2b_en   sizes and memory of one model
  keras-griffin plan recurrent_gemma_2b_en   memory of training on a TPU slice
  keras-griffin evaluate recurrent_gemma_2b_en   MMLU, HellaSwag and others

keras-griffin COMMAND --help tells more about each."""

GENERATE = """\
Continues a prompt and prints the text as it is made.

  keras-griffin generate "ROMEO:"
  keras-griffin generate "ROMEO:" --sampler greedy --max-length 100
  keras-griffin generate "ROMEO:" --temperature 0.8 --seed 1 --backend torch
  echo "To be" | keras-griffin generate
  keras-griffin generate "The sky is blue because" \\
      --preset recurrent_gemma_2b_en

Without a prompt, standard input is read if it is piped in; otherwise the
model starts from nothing. The same seed and backend give the same text."""

CHAT = """\
Reads a line, prints the reply as it is made, and keeps the conversation.

  keras-griffin chat --preset recurrent_gemma_instruct_2b_en
  keras-griffin chat --session talk.npz      goes on where it ended

Ctrl-C stops a reply; at an empty line it ends the chat, as Ctrl-D does. A model
that is not made for instructions continues what it is told."""

CONVERT = """\
Writes a model in another form, for KerasHub, transformers or DeepMind's code.

  keras-griffin convert hf://google/recurrentgemma-2b ./rg --to keras
  keras-griffin convert ./my_griffin ./for_hf --to transformers
  keras-griffin convert ./my_griffin ./for_dm --to deepmind --framework torch

The source may have any form that can be loaded. The weights keep their dtype.
The target appears only when it was loaded again and gave the same logits; what
its form cannot express is refused."""

INFO = """\
Prints the configuration, the exact number of parameters and the memory that a
model needs. Nothing is built or downloaded.

  keras-griffin info griffin_7b
  keras-griffin info ./my_model        a folder of `save_to_preset`, or one in
                                       Hugging Face's or DeepMind's format"""


PLAN = """\
Compiles a step of training for a TPU slice, without a TPU and without weights,
and prints what it needs: memory of a chip, matrix products, collectives, and
whether it fits. It takes the TPU's own compiler (pip install libtpu), minutes
of CPU and some GiB of memory for a large model.

  keras-griffin plan griffin_100m --slice v5e-1 --batch-size 8
  keras-griffin plan recurrent_gemma_2b_en --slice v5e-1 --batch-size 4 \\
      --lora 16 --remat --dtype bfloat16
  keras-griffin plan recurrent_gemma_9b_en --slice v6e-16 \\
      --mesh batch=8,model=2 --remat

--mesh is that of keras_griffin.distribution.GriffinParallel: weights, gradients
and optimizer are divided over both axes."""


# The tasks of arXiv:2402.19427, table 1, by lm-eval's names.
PAPER_TASKS = "mmlu,hellaswag,piqa,winogrande,arc_easy,arc_challenge"
EVALUATE = """\
Measures a model on tasks of EleutherAI's lm-eval (pip install
'keras-griffin[eval]'), which downloads their questions from Hugging Face.

  keras-griffin evaluate recurrent_gemma_2b_en --dtype bfloat16
  keras-griffin evaluate recurrent_gemma_2b_en --tasks mmlu --num-fewshot 5
  keras-griffin evaluate recurrent_gemma_instruct_2b_en --tasks gsm8k \\
      --chat-template
  keras-griffin evaluate ./my_griffin --tasks my_task --include-path ./tasks \\
      --limit 100 --output results.json

No context is cut, however long it is."""


class CommandError(Exception):
    """A mistake in how the command was called, told in one line."""


def main(argv=None):
    """Runs the command line.

    Args:
        argv: list of strings. The arguments after the command's name.
            Defaults to `None`: those of the process.

    Returns:
        The exit code: 0, 2 for a wrong call, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        print(f"keras-griffin: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print()
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        # Python flushes stdout once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


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

    generate = _add_command(
        commands, "generate", _generate, "continue a prompt", GENERATE
    )
    generate.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the text to continue"
    )
    generate.add_argument(
        "--max-length",
        metavar="N",
        type=_positive_int,
        default=300,
        help="stop at N tokens, the prompt's included (default: %(default)s)",
    )
    _add_model_arguments(generate)

    chat = _add_command(commands, "chat", _chat, "talk to a model", CHAT)
    chat.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=_positive_int,
        default=300,
        help="stop a reply after N tokens (default: %(default)s)",
    )
    chat.add_argument(
        "--session",
        metavar="FILE",
        type=Path,
        help="the conversation is read from here, if it exists, and written "
        "here at the end",
    )
    _add_model_arguments(chat)

    convert = _add_command(
        commands, "convert", _convert, "write a model in another form", CONVERT
    )
    convert.add_argument(
        "source",
        metavar="SOURCE",
        help="a name of `keras-griffin presets`, a folder, a .pt file, or an "
        "hf:// or kaggle:// address",
    )
    convert.add_argument(
        "target", metavar="TARGET", type=Path, help="a new or empty folder"
    )
    convert.add_argument(
        "--to", choices=FORMS, required=True, help="the form of the target"
    )
    convert.add_argument(
        "--framework",
        choices=FRAMEWORKS,
        default="flax",
        help="with --to deepmind: orbax's folder, or a .pt file "
        "(default: %(default)s)",
    )
    convert.add_argument(
        "--dtype",
        choices=(*DTYPES, "float16"),
        help="of the written weights (default: that of the source)",
    )
    _add_backend_argument(convert)

    _add_command(
        commands,
        "presets",
        _presets,
        "list the models that have a name",
        "Lists the models that have a name, those with weights first.",
    )
    info = _add_command(
        commands, "info", _info, "sizes and memory of a model", INFO
    )
    info.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, or a folder",
    )
    _add_evaluate_command(commands)
    plan = _add_command(
        commands, "plan", _plan, "memory of training on a TPU slice", PLAN
    )
    plan.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, or a folder",
    )
    plan.add_argument(
        "--slice",
        default="v5e-8",
        help="generation and size, in Google's names: v5p counts two cores a "
        "chip (default: %(default)s)",
    )
    plan.add_argument(
        "--mesh",
        type=_mesh,
        default={},
        help="chips along each axis, batch=8,model=1 (default: all along "
        "batch)",
    )
    plan.add_argument(
        "--batch-size",
        metavar="N",
        type=_positive_int,
        default=8,
        help="rows of a batch, on all chips together (default: %(default)s)",
    )
    plan.add_argument(
        "--length",
        metavar="T",
        type=_positive_int,
        default=2048,
        help="tokens of a row (default: %(default)s)",
    )
    plan.add_argument(
        "--lora",
        metavar="RANK",
        type=_positive_int,
        help="train LoRA of this rank (default: all weights)",
    )
    plan.add_argument(
        "--remat",
        action="store_true",
        help="compute each block anew in the gradient (keras.RematScope)",
    )
    plan.add_argument(
        "--dtype",
        choices=("mixed_bfloat16", "bfloat16", "float32"),
        default="mixed_bfloat16",
        help="the policy (default: %(default)s)",
    )
    plan.add_argument(
        "--thorough",
        action="store_true",
        help="compile as training would: several times slower, a little less "
        "memory found",
    )
    return parser


def _add_evaluate_command(commands):
    evaluate = _add_command(
        commands, "evaluate", _evaluate, "scores in lm-eval's tasks", EVALUATE
    )
    evaluate.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address",
    )
    evaluate.add_argument(
        "--tasks",
        metavar="A,B",
        default=PAPER_TASKS,
        help="names of lm-eval's tasks (default: the paper's, %(default)s)",
    )
    evaluate.add_argument(
        "--num-fewshot",
        metavar="N",
        type=int,
        help="examples before each question (default: the task's own number)",
    )
    evaluate.add_argument(
        "--limit",
        metavar="N",
        type=_positive_int,
        help="only the first N questions of each task",
    )
    evaluate.add_argument(
        "--batch-size",
        metavar="N",
        type=_positive_int,
        default=8,
        help="rows that are computed together (default: %(default)s)",
    )
    evaluate.add_argument(
        "--chat-template",
        action="store_true",
        help="put questions into the turns that the model was tuned on",
    )
    evaluate.add_argument(
        "--include-path",
        metavar="FOLDER",
        type=Path,
        help="a folder with tasks of your own, YAML files",
    )
    evaluate.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="also write the results there, as JSON",
    )
    evaluate.add_argument(
        "--dtype",
        choices=(*DTYPES, "float16"),
        help="of weights and computations (default: that of Keras, float32)",
    )
    _add_backend_argument(evaluate)


def _add_model_arguments(command):
    command.add_argument(
        "--preset",
        default="griffin_shakespeare_en",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address (default: %(default)s, which is shipped)",
    )
    command.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="top_p",
        help="how the next token is chosen: greedy takes the likeliest; top_k "
        f"draws from the {TOP_K} likeliest; top_p from the likeliest that "
        f"together have probability {TOP_P}; random from all "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--temperature",
        metavar="T",
        type=_positive_float,
        default=1.0,
        help="below 1 is safer, above 1 more surprising (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        metavar="N",
        type=int,
        help="makes the draw repeatable (default: another one each time)",
    )
    _add_backend_argument(command)


def _add_backend_argument(command):
    command.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what computes (default: KERAS_BACKEND, or the first installed "
        f"of {', '.join(BACKENDS)})",
    )


def _add_command(commands, name, run, summary, description):
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _positive_int(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(
            f"must be at least 1. Received: {number}"
        )
    return number


def _mesh(text):
    try:
        sizes = {
            axis: _positive_int(size)
            for axis, size in (part.split("=") for part in text.split(","))
        }
    except ValueError:
        sizes = {"": 0}
    if not set(sizes) <= {"batch", "model", "sequence"}:
        raise argparse.ArgumentTypeError(
            "must give sizes of the axes batch, model and sequence, as "
            f"batch=4,model=2. Received: {text}"
        )
    return sizes


def _positive_float(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0. Received: {number}")
    return number


def _generate(arguments):
    preset = _checked_preset(arguments.preset)
    _choose_backend(arguments.backend)
    prompt = arguments.prompt
    if prompt is None:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")

    model = _load_model(preset, arguments)
    print(prompt, end="", flush=True)
    try:
        pieces = model.generate_stream(prompt, max_length=arguments.max_length)
        for piece in pieces:
            print(piece, end="", flush=True)
    except ValueError as error:
        print()
        raise CommandError(str(error)) from error
    print()


def _load_model(preset, arguments):
    model = _from_preset(preset, arguments.preset)
    model.compile(sampler=_sampler(arguments))

    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that lacks a character shows "?" and goes on.
        sys.stdout.reconfigure(errors="replace")
    return model


def _from_preset(preset, name, dtype=None):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    with start_up.quiet_tensorflow():
        from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

        _settle_tensorflow()
    try:
        return GriffinCausalLM.from_preset(preset, dtype=dtype)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(f"{name}: {error}") from error


def _evaluate(arguments):
    preset = _checked_preset(arguments.preset)
    if not start_up.is_installed("lm_eval"):
        raise CommandError(
            "`evaluate` needs lm-eval: pip install 'keras-griffin[eval]'"
        )
    if arguments.output is not None and not arguments.output.parent.is_dir():
        raise CommandError(f"There is no folder {arguments.output.parent}.")
    _choose_backend(arguments.backend)
    model = _from_preset(preset, arguments.preset, arguments.dtype)
    # A process that JAX or TensorFlow runs in must not be forked.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from keras_griffin.evaluation import GriffinLM

    names = arguments.tasks.split(",")
    include_path = arguments.include_path and str(arguments.include_path)
    manager = TaskManager(include_path=include_path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise CommandError(
            f"lm-eval knows no task {', '.join(unknown)}. `lm-eval ls tasks` "
            "lists those that it has; --include-path adds a folder of yours."
        )
    try:
        results = lm_eval.simple_evaluate(
            GriffinLM(model, batch_size=arguments.batch_size),
            tasks=names,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"{arguments.tasks}: {error}") from error
    results["config"]["model_args"] = {
        "preset": arguments.preset,
        "dtype": arguments.dtype or "float32",
        "batch_size": arguments.batch_size,
    }
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if arguments.output is not None:
        text = json.dumps(results, indent=2, default=str)
        arguments.output.write_text(text + "\n", encoding="utf-8")


def _convert(arguments):
    source = _checked_preset(arguments.source)
    _choose_backend(arguments.backend)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    with start_up.quiet_tensorflow():
        from keras_griffin.cli.conversion import convert

        _settle_tensorflow()
    try:
        report = convert(
            source,
            arguments.target,
            arguments.to,
            arguments.framework,
            arguments.dtype,
        )
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(f"{arguments.source}: {error}") from error
    tokenizer = "with" if report["tokenizer"] else "without"
    print(
        f"{arguments.target}: {report['parameters']:,} parameters in "
        f"{report['dtype']}, {tokenizer} tokenizer. Loaded again, it gives the "
        "same logits."
    )


def _chat(arguments):
    preset = _checked_preset(arguments.preset)
    _choose_backend(arguments.backend)
    model = _load_model(preset, arguments)
    session = model.chat(max_new_tokens=arguments.max_new_tokens)
    file = arguments.session
    try:
        if file is not None and file.exists():
            session.load(file)
        _converse(session)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if file is not None and session.state is not None:
        session.save(file)


def _converse(session):
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


def _checked_preset(preset):
    """Finds what can be found wrong before anything heavy is imported."""
    if "://" in preset or Path(preset).exists():
        return preset
    if _looks_like_a_path(preset):
        raise CommandError(f"There is no folder {preset}.")
    if _entry(preset)["weights"] is None:
        raise CommandError(
            f"{preset} is an architecture without weights: none were released. "
            f'GriffinCausalLM.from_preset("{preset}", load_weights=False) '
            "builds it to be trained."
        )
    return preset


def _looks_like_a_path(preset):
    return preset.startswith((".", "~")) or "/" in preset or os.sep in preset


def _entry(preset):
    try:
        return preset_index.preset_entry(preset)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _choose_backend(requested):
    """Sets KERAS_BACKEND, which Keras reads when it is imported."""
    installed = [b for b in BACKENDS if start_up.is_installed(b)]
    name = requested or os.environ.get("KERAS_BACKEND")
    if not name:
        if not installed:
            raise CommandError(
                "No backend is installed. For JAX: "
                "pip install 'keras-griffin[jax]'"
            )
        name = installed[0]
    elif name not in BACKENDS:
        raise CommandError(
            f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. "
            f"Received: {name!r}."
        )
    elif name not in installed:
        raise CommandError(
            f"{name} is not installed: pip install 'keras-griffin[{name}]'"
            + (f", or --backend {installed[0]}" if installed else "")
        )
    os.environ["KERAS_BACKEND"] = name
    keras = sys.modules.get("keras")
    if keras is not None and keras.config.backend() != name:
        raise CommandError(
            f"Keras already runs on {keras.config.backend()} in this process, "
            f"so --backend {name} needs a new one."
        )


def _settle_tensorflow():
    """Lets TensorFlow look for GPUs now, and keeps it off another's memory.

    KerasHub's tokenizer uses TensorFlow, where it is installed, under every
    backend. At its first use it would take all memory of all GPUs.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        tensorflow.config.list_physical_devices()
        return
    try:
        tensorflow.config.set_visible_devices([], "GPU")
    except RuntimeError:  # in use already, in a process that is not ours
        return


def _sampler(arguments):
    from keras_hub import samplers

    options = {"temperature": arguments.temperature, "seed": arguments.seed}
    if arguments.sampler == "greedy":
        return samplers.GreedySampler()
    if arguments.sampler == "top_k":
        return samplers.TopKSampler(k=TOP_K, **options)
    if arguments.sampler == "top_p":
        return samplers.TopPSampler(p=TOP_P, **options)
    return samplers.RandomSampler(**options)


def _presets(arguments):
    entries = [
        preset_index.preset_entry(name) for name in preset_index.preset_names()
    ]
    entries.sort(
        key=lambda entry: (
            entry["weights"] is None,
            entry["name"].partition("_")[0],
            entry["parameters"],
        )
    )
    rows = [("NAME", "PARAMETERS", "WEIGHTS", "DESCRIPTION")] + [
        (
            entry["name"],
            _short_count(entry["parameters"]),
            ", ".join(entry["weights"] or ("none",)),
            entry["description"].partition(". ")[0],
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, parameters, weights, description in rows:
        _print_line(
            f"{name:{widths[0]}}  {parameters:>{widths[1]}}  "
            f"{weights:{widths[2]}}  {description}"
        )


def _short_count(number):
    if number >= 1e9:
        return f"{number / 1e9:.2f}B"
    return f"{number / 1e6:.2f}M"


def _print_line(line):
    """Prints a line, cut at a terminal's edge; whole into a file or pipe."""
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        if len(line) > columns:
            line = line[: columns - 3] + "..."
    print(line)


def _info(arguments):
    if Path(arguments.preset).is_dir():
        backbone = _folder_config(Path(arguments.preset))
        print(arguments.preset)
    elif _looks_like_a_path(arguments.preset):
        raise CommandError(f"There is no folder {arguments.preset}.")
    else:
        entry = _entry(arguments.preset)
        backbone = entry["backbone"]
        print(f"{entry['name']}\n{entry['description']}")
        weights = " or ".join((entry["weights"] or {}).values()) or "none"
        print(f"Weights: {weights}\nSource: {entry['source']}")

    parameters = preset_index.parameter_count(backbone)
    embedding = backbone["vocabulary_size"] * backbone["hidden_dim"]
    print(
        f"\nParameters: {parameters:,} "
        f"({parameters - embedding:,} without the embedding)"
    )
    blocks = collections.Counter(preset_index.block_sequence(backbone))
    counts = ", ".join(f"{count} {name}" for name, count in blocks.items())
    print(f"Blocks: {backbone['num_layers']} ({counts})")
    _print_memory(backbone, parameters, blocks)
    print("\nConfiguration:")
    for name, value in backbone.items():
        if isinstance(value, list):
            value = ", ".join(value)
        print(f"  {name:21}  {value}")


def _plan(arguments):
    preset = arguments.preset
    if not Path(preset).is_dir():
        if _looks_like_a_path(preset):
            raise CommandError(f"There is no folder {preset}.")
        _entry(preset)
    if not start_up.is_installed("libtpu"):
        raise CommandError(
            "`plan` needs the TPU's compiler: pip install libtpu"
        )
    _choose_backend("jax")
    # A TPU on this machine stays free.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with start_up.quiet_tensorflow():
        from keras_griffin.plan.train_step_jax import plan
    try:
        result = plan(
            preset,
            arguments.slice,
            batch_size=arguments.batch_size,
            length=arguments.length,
            lora_rank=arguments.lora,
            remat=arguments.remat,
            dtype=arguments.dtype,
            thorough=arguments.thorough,
            **arguments.mesh,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    print(result)


def _print_memory(backbone, parameters, blocks):
    print("\nMemory:" + " " * 25 + "".join(f"{dtype:>12}" for dtype in DTYPES))
    rows = {
        "weights": [parameters * size for size in DTYPES.values()],
        "training with AdamW, at least": [
            TRAINING_COPIES * parameters * size for size in DTYPES.values()
        ],
        "state of a sequence": [
            _state_bytes(backbone, blocks, size) for size in DTYPES.values()
        ],
    }
    if blocks["global_attention"]:
        rows["and for each of its tokens"] = [
            blocks["global_attention"] * 2 * backbone["head_dim"] * size
            for size in DTYPES.values()
        ]
    for name, sizes in rows.items():
        print(f"  {name:30}" + "".join(f"{_bytes(n):>12}" for n in sizes))


def _state_bytes(backbone, blocks, size):
    """Bytes of a row's state, whatever its length: DESIGN of the state."""
    recurrent = backbone["recurrent_dim"]
    kept_inputs = (backbone["conv_kernel_size"] - 1) * recurrent
    ring = (backbone["attention_window_size"] + 1) * backbone["head_dim"]
    return (
        blocks["recurrent"] * (DTYPES["float32"] * recurrent)
        + blocks["recurrent"] * (size * kept_inputs)
        + blocks["local_attention"] * (size * 2 * ring)
    )


def _bytes(number):
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _folder_config(folder):
    """The arguments of `GriffinBackbone` that a folder's config.json gives."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _archive_config(folder)
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        config = {}
    if config.get("registered_name") == "keras_griffin>GriffinBackbone":
        # What is left out says nothing about the architecture.
        return {
            name: value
            for name, value in config["config"].items()
            if name not in ("name", "trainable", "dtype")
        }
    if config.get("model_type") == "recurrent_gemma":
        _choose_backend(None)
        with start_up.quiet_tensorflow():
            from keras_griffin.checkpoints import huggingface
        try:
            return huggingface.backbone_config(config)
        except ValueError as error:
            raise CommandError(f"{file}: {error}") from error
    raise CommandError(
        f"{file} describes no model of this package. It must be a folder "
        "of `save_to_preset`, or have model_type recurrent_gemma."
    )


def _archive_config(folder):
    """The same for a folder without config.json: an archive of DeepMind's."""
    _choose_backend(None)
    with start_up.quiet_tensorflow():
        from keras_griffin.checkpoints import deepmind_archive
    try:
        archive = deepmind_archive.find(folder)
        if archive is not None:
            return deepmind_archive.backbone_config(archive)
    except (ImportError, ValueError) as error:
        raise CommandError(f"{folder}: {error}") from error
    raise CommandError(
        f"There is no config.json in {folder}, and no checkpoint of DeepMind's."
    )
