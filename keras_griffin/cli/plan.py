"""`keras-griffin plan`: memory of training on a TPU slice that is not here."""

import argparse
import dataclasses
import json
import os

from keras_griffin.cli import common

SUMMARY = "find the memory of training on a TPU slice"
DESCRIPTION = """\
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


def add_arguments(parser):
    parser.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, or a folder",
    )
    parser.add_argument(
        "--slice",
        default="v5e-8",
        help="generation and size, in Google's names: v5p counts two cores a "
        "chip (default: %(default)s)",
    )
    parser.add_argument(
        "--mesh",
        type=_mesh,
        default={},
        help="chips along each axis, batch=8,model=1 (default: all along "
        "batch)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=common.positive_int,
        default=8,
        help="rows of a batch, on all chips together (default: %(default)s)",
    )
    parser.add_argument(
        "--length",
        metavar="T",
        type=common.positive_int,
        default=2048,
        help="tokens of a row (default: %(default)s)",
    )
    parser.add_argument(
        "--lora",
        metavar="RANK",
        type=common.positive_int,
        help="train LoRA of this rank (default: all weights)",
    )
    parser.add_argument(
        "--remat",
        action="store_true",
        help="compute each block anew in the gradient (keras.RematScope)",
    )
    parser.add_argument(
        "--dtype",
        choices=("mixed_bfloat16", "bfloat16", "float32"),
        default="mixed_bfloat16",
        help="the policy (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="compile as training would: several times slower, a little less "
        "memory found",
    )


def _mesh(text):
    try:
        sizes = {
            axis: common.positive_int(size)
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


def run(arguments):
    common.index_entry(arguments.preset)  # says what is wrong with it
    if not common.is_installed("libtpu"):
        raise common.CommandError(
            "`plan` needs the TPU's compiler: pip install libtpu"
        )
    # A TPU on this machine stays free.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with common.importing_keras("jax"):
        from keras_griffin.plan.train_step_jax import plan
    try:
        result = plan(
            arguments.preset,
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
        raise common.CommandError(str(error)) from error
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result), indent=2))
        return
    print(result)
