"""Small models that learn a task in stages: Griffin, Hawk, MQA Transformer.

What `synthetic_tasks.py` and `phonebook.py` share: models of 5 blocks of width
64, training on one stage after the other, arguments, and what is written.
"""

import argparse
import itertools
import json
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
# So that it runs from a checkout, and finds `conditions`.
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import keras  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.evaluation import exact_match  # noqa: E402
from keras_griffin.training import StopOnNaN  # noqa: E402

# The paper, section 6.2: 5 blocks of width 64, about 250,000 parameters. It
# names no heads for it: 4, which divide 64.
NUM_LAYERS = 5
HIDDEN_DIM = 64
NUM_QUERY_HEADS = 4
NUM_GATE_BLOCKS = 16
RECURRENT = "recurrent"
MODELS = {
    "Griffin": (RECURRENT, RECURRENT, "local_attention", RECURRENT, RECURRENT),
    "Hawk": (RECURRENT,),
    "MQA Transformer": ("global_attention",),
}
# Steps over which accuracy is reported; all of their rows are new.
EVERY = 25

# Of the rate: in the first epochs of `EVERY` steps, and, of what it is then, in
# the last ones, when a model is done.
WARM_UP = (0.1, 0.3, 0.6, 1.0)
COOL_DOWN = (0.5, 0.25, 0.1, 0.03)
# In the last stage the rate is halved after so many epochs of no progress.
PATIENCE, PROGRESS = 5, 0.005
WEIGHT_DECAY = 0.01
NEWTON_SCHULZ_STEPS = 3  # as in against_nanogpt.py

# Global attention holds 2,048 of them by all of the row, 4 heads, in float32.
TOKENS_AT_ONCE = 16384
EVALUATION_SEED = 2**31  # apart from the seeds of training


def make_model(vocabulary_size, window, name, arguments):
    width = arguments.hidden_dim
    model = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            vocabulary_size,
            num_layers=arguments.num_layers,
            hidden_dim=width,
            intermediate_dim=3 * width,
            # 4/3 of the width, as near as the blocks of the gates allow.
            recurrent_dim=NUM_GATE_BLOCKS
            * round(4 / 3 * width / NUM_GATE_BLOCKS),
            num_gate_blocks=NUM_GATE_BLOCKS,
            num_query_heads=NUM_QUERY_HEADS,
            attention_window_size=window,
            block_types=MODELS[name],
            scale_embeddings=True,
        )
    )
    # Muon for the matrices, AdamW for everything else.
    optimizer = keras.optimizers.Muon(
        arguments.learning_rate,
        weight_decay=WEIGHT_DECAY,
        adam_weight_decay=WEIGHT_DECAY,
        adam_beta_2=0.99,
        exclude_layers=["conv"],
        ns_steps=NEWTON_SCHULZ_STEPS,
        global_clipnorm=1.0,
    )
    optimizer.exclude_from_weight_decay(
        var_list=[
            v
            for v in model.trainable_variables
            if len(v.shape) < 2 or "rglru" in v.path or "conv" in v.path
        ]
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=["accuracy"],
    )
    return model


class Curve(keras.callbacks.Callback):
    """Keeps the accuracy of each epoch, and stops when there is enough."""

    def __init__(self, curve, stage, enough):
        super().__init__()
        self.curve, self.stage, self.enough = curve, stage, enough
        self.is_done = False

    def on_epoch_end(self, epoch, logs=None):
        step = self.curve[-1]["step"] if self.curve else 0
        self.curve.append(
            {
                "step": step + EVERY,
                "stage": self.stage,
                "accuracy": float(logs["accuracy"]),
                "loss": float(logs["loss"]),
            }
        )
        print(
            f"  stage {self.stage}, step {step + EVERY}: accuracy "
            f"{logs['accuracy']:.3f}, loss {logs['loss']:.3f}",
            flush=True,
        )
        if logs["accuracy"] >= self.enough:
            self.is_done = self.model.stop_training = True


def train(make, stages, enough, arguments):
    """Trains on one stage after the other.

    Args:
        make: callable from a window to a model.
        stages: list of triples: a task, rows of a step, and the window.
        enough: accuracies that end an early stage, and the last one.
        arguments: of the command.

    Returns:
        The model, the curve, how many stages ended so, and in how many steps.
    """
    curve, passed = [], 0
    steps = itertools.count()  # no batch comes twice
    model, last_window = None, None

    def fit(stage, epochs, enough, callbacks):
        task, rows, _ = stages[stage]
        progress = Curve(curve, stage, enough)
        model.fit(
            (task.sample(rows, (arguments.seed, step)) for step in steps),
            steps_per_epoch=EVERY,
            shuffle=False,
            epochs=epochs,
            callbacks=[progress, StopOnNaN(), *callbacks],
            verbose=0,
        )
        return progress.is_done

    for stage, (_, _, window) in enumerate(stages):
        if window != last_window:
            model, last_window = made_from(model, make(window)), window
        is_last = stage == len(stages) - 1
        callbacks = [] if curve else [rates(model, WARM_UP)]
        if is_last:
            callbacks.append(less_without_progress())
        if not fit(
            stage,
            max(0, arguments.steps // EVERY - len(curve)),
            enough[is_last],
            callbacks,
        ):
            break
        passed += 1
    steps_taken = EVERY * len(curve)
    fit(stage, len(COOL_DOWN), math.inf, [rates(model, COOL_DOWN)])
    return model, curve, passed, steps_taken


def made_from(model, new):
    """`new` with the weights of `model`, and its optimizer's state."""
    new.optimizer.build(new.trainable_variables)
    if model is not None:
        new.set_weights(model.get_weights())
        for variable, value in zip(
            new.optimizer.variables, model.optimizer.variables, strict=True
        ):
            variable.assign(value)
    return new


def rates(model, factors):
    """Sets the learning rate in the first epochs, as parts of that of now."""
    now = float(model.optimizer.learning_rate)
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: (
            now * factors[epoch] if epoch < len(factors) else rate
        )
    )


def less_without_progress():
    return keras.callbacks.ReduceLROnPlateau(
        "accuracy",
        factor=0.5,
        patience=PATIENCE,
        mode="max",
        min_delta=PROGRESS,
    )


def accuracy(model, task, rows):
    """Part of `rows` answers that are right in each token."""
    prompts, answers = task.questions(rows, EVALUATION_SEED)
    at_once = max(1, min(rows, TOKENS_AT_ONCE // prompts.shape[1]))
    return float(exact_match(model, prompts, answers, at_once).mean())


def keep_weights(model, folder, name):
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_weights(folder / f"{name}.weights.h5")


def percent(value):
    return "" if value is None else f"{100 * value:.0f}"


def mark_stages(axes, curve, color):
    """A dot where a stage ends and the next begins."""
    for before, after in zip(curve, curve[1:], strict=False):
        if before["stage"] != after["stage"]:
            axes.plot(before["step"], before["accuracy"], "o", color=color)


def write(results, folder, stem, table, plot):
    """Writes the table, the numbers and the plot."""
    text = table(results)
    print(text)
    (folder / f"{stem}.md").write_text(text)
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    try:
        plot(results, folder / f"{stem}.svg")
    except ImportError:
        print("No plot: matplotlib is not installed.")


def parse_arguments(description, steps, rows, learning_rate, **lists):
    parser = argparse.ArgumentParser(description=description)
    for name, (type, default) in lists.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            nargs="+",
            type=type,
            default=default,
        )
    parser.add_argument("--num-layers", type=int, default=NUM_LAYERS)
    parser.add_argument("--hidden-dim", type=int, default=HIDDEN_DIM)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tokens", type=int, help="of a step")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="folder to keep trained weights in"
    )
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def results_so_far(path):
    return json.loads(path.read_text()) if path.exists() else []
