"""`keras-griffin evaluate`: scores in the tasks of lm-eval."""

import json
import os
from pathlib import Path

from keras_griffin.cli import common
from keras_griffin.cli import loading
from keras_griffin.files.whole import whole_file

SUMMARY = "measure a model on lm-eval's tasks"
# The tasks of arXiv:2402.19427, table 1, by lm-eval's names.
PAPER_TASKS = "mmlu,hellaswag,piqa,winogrande,arc_easy,arc_challenge"
DESCRIPTION = """\
Measures a model on tasks of EleutherAI's lm-eval (pip install
'keras-griffin[eval]'), which downloads their questions from Hugging Face.

  keras-griffin evaluate recurrent_gemma_2b_en --dtype bfloat16
  keras-griffin evaluate recurrent_gemma_2b_en --tasks mmlu --num-fewshot 5
  keras-griffin evaluate recurrent_gemma_instruct_2b_en --tasks gsm8k \\
      --chat-template
  keras-griffin evaluate ./my_griffin --tasks my_task --include-path ./tasks \\
      --limit 100 --output results.json

No context is cut, however long it is."""


def add_arguments(parser):
    parser.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address",
    )
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        default=PAPER_TASKS,
        help="names of lm-eval's tasks (default: the paper's, %(default)s)",
    )
    parser.add_argument(
        "--num-fewshot",
        metavar="N",
        type=int,
        help="examples before each question (default: the task's own number)",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=common.positive_int,
        help="only the first N questions of each task",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=common.positive_int,
        default=8,
        help="rows that are computed together (default: %(default)s)",
    )
    parser.add_argument(
        "--chat-template",
        action="store_true",
        help="put questions into the turns that the model was tuned on",
    )
    parser.add_argument(
        "--include-path",
        metavar="FOLDER",
        type=Path,
        help="a folder with tasks of your own, YAML files",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="also write the results there, as JSON",
    )
    loading.add_dtype_arguments(parser)
    common.add_backend_argument(parser)


def run(arguments):
    common.check_has_weights(arguments.preset)
    if not common.is_installed("lm_eval"):
        raise common.CommandError(
            "`evaluate` needs lm-eval: pip install 'keras-griffin[eval]'"
        )
    if arguments.output is not None:
        common.check_writable(arguments.output)
    model = loading.load_model(arguments)
    results = _measured(model, arguments)
    results["config"]["model_args"] = {
        "preset": arguments.preset,
        "dtype": str(model.backbone.dtype_policy.name),
        "quantize": arguments.quantize,
        "batch_size": arguments.batch_size,
    }
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if arguments.output is not None:
        text = json.dumps(results, indent=2, default=str)
        try:
            with whole_file(arguments.output) as file:
                file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise common.CommandError(str(error)) from error


def _measured(model, arguments):
    """The results of lm-eval."""
    # A process that JAX or TensorFlow runs in must not be forked.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from keras_griffin.evaluation import GriffinLM

    names = arguments.tasks.split(",")
    include_path = arguments.include_path and str(arguments.include_path)
    manager = TaskManager(include_path=include_path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise common.CommandError(
            f"lm-eval knows no task {', '.join(unknown)}. `lm-eval ls tasks` "
            "lists those that it has; --include-path adds a folder of yours."
        )
    try:
        return lm_eval.simple_evaluate(
            GriffinLM(model, batch_size=arguments.batch_size),
            tasks=names,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        raise common.CommandError(f"{arguments.tasks}: {error}") from error
