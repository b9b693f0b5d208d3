"""What 8 CPU devices compute, beside one. Run by test_eight_devices.py.

In a process of its own, as the number of devices is set before JAX starts.
Writes a JSON of names to numbers to the file that is its argument.
"""

import collections
import contextlib
import json
import re
import sys

import jax
import keras
import numpy as np

import keras_griffin
from keras_griffin.distribution import GriffinParallel
from keras_griffin.training import chunked_cross_entropy
from support.checks import to_numpy
from support.models import randomize
from support.models import steady_adam_w

STEPS = 5
BATCH, TIME = 8, 32
# Each axis of the meshes divides what it shards. A recurrent block and one of
# local attention, whose window is shorter than the rows.
ARGUMENTS = {
    "vocabulary_size": 64,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_query_heads": 8,
    "head_dim": 4,
    "recurrent_dim": 32,
    "num_gate_blocks": 8,
    "block_types": ("recurrent", "local_attention"),
    "attention_window_size": 6,
}
MESHES = {
    "batch 8": {},
    "batch 2, model 4": {"model": 4},
    "batch 2, model 4, weights replicated": {
        "model": 4,
        "fully_sharded": False,
    },
    "model 8": {"model": 8},
    "batch 2, model 2, sequence 2": {"model": 2, "sequence": 2},
}
# What else is on, and on which meshes.
VARIANTS = {
    "plain": ["batch 8", "batch 2, model 4", "model 8"],
    "packed, remat": ["batch 2, model 2, sequence 2"],
    "lora": ["batch 2, model 4, weights replicated"],
}


def make_data(packed):
    rng = np.random.default_rng(0)
    shape = (STEPS * BATCH, TIME)
    token_ids = rng.integers(1, 64, shape).astype("int32")
    x = {"token_ids": token_ids, "padding_mask": np.ones(shape, "int32")}
    if packed:
        # Documents of any length, some rows with pads at their end or inside.
        x["padding_mask"] += np.cumsum(rng.random(shape) < 0.2, axis=1)
        x["padding_mask"][::3, 20:25] = 0
        x["padding_mask"][1::3, 27:] = 0
    sample_weight = (x["padding_mask"] > 0).astype("float32")
    return x, np.roll(token_ids, -1, 1), sample_weight


def make_model(variant="plain"):
    keras.utils.set_random_seed(0)
    remat = contextlib.nullcontext()
    if "remat" in variant:
        names = [f"block_{i}" for i in range(ARGUMENTS["num_layers"])]
        remat = keras.RematScope(mode="list_of_layers", layer_names=names)
    with remat:
        backbone = keras_griffin.GriffinBackbone(**ARGUMENTS)
        if variant == "lora":
            backbone.enable_lora(2)
        randomize(backbone)
        model = keras_griffin.GriffinCausalLM(backbone)
    model.compile(
        optimizer=steady_adam_w(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    return model


def train(variant):
    model = make_model(variant)
    x, y, sample_weight = make_data("packed" in variant)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[record],
    )
    weights = {w.path: to_numpy(w.value) for w in model.weights}
    return np.array(losses), weights, model


@contextlib.contextmanager
def parallel(mesh):
    distribution = GriffinParallel(**MESHES[mesh])
    with distribution.scope():
        yield distribution


def error(found, expected):
    """Largest difference, as a fraction of the largest magnitude."""
    scale = np.abs(expected).max()
    return float(np.abs(found - expected).max() / scale)


def compare_training(results):
    prompts = {
        "token_ids": np.pad(
            make_data(False)[0]["token_ids"][:3], [(0, 0), (0, 8)]
        ),
        "padding_mask": np.pad(np.ones((3, TIME), "int32"), [(0, 0), (0, 8)]),
    }
    for variant, meshes in VARIANTS.items():
        losses, weights, model = train(variant)
        before = make_model(variant).weights
        moved = [
            np.abs(to_numpy(w.value) - weights[w.path]).max() for w in before
        ]
        results[f"{variant}: trained"] = int(sum(m > 1e-3 for m in moved))
        if variant == "plain":
            tokens = model.generate(prompts, stop_token_ids=None)["token_ids"]
        for mesh in meshes:
            with parallel(mesh):
                found_losses, found, model = train(variant)
                name = f"{variant}, {mesh}"
                results[f"{name}: losses"] = error(found_losses, losses)
                for path, weight in weights.items():
                    key = f"{name}: weights"
                    results[key] = max(
                        results.get(key, 0.0), error(found[path], weight)
                    )
                results[f"{name}: whole on a device"] = whole_weights(model)
                if name == "plain, batch 2, model 4":
                    # 3 rows, which the mesh does not divide.
                    same = model.generate(prompts, stop_token_ids=None)
                    results[f"{name}: other tokens"] = int(
                        (same["token_ids"] != tokens).sum()
                    )


def whole_weights(model):
    """Matrices, moments included, of which each device holds all."""
    return sorted(
        v.path
        for v in model.weights + model.optimizer.variables
        if len(v.shape) > 1 and v.value.sharding.is_fully_replicated
    )


def compiled_step(mesh):
    """The program of a train step."""
    with parallel(mesh) as distribution:
        model = make_model()
        data = jax.tree.map(
            lambda a: jax.device_put(
                a[:BATCH], distribution.get_data_layout(a.shape).backend_layout
            ),
            make_data(packed=False),
        )
        model._symbolic_build(data_batch=data)
        state = model._get_jax_state(
            trainable_variables=True,
            non_trainable_variables=True,
            optimizer_variables=True,
            metrics_variables=True,
        )
        step = jax.jit(
            model.train_step,
            out_shardings=(None, model._get_state_sharding_spec()),
        )
        return step.lower(state, data).compile().as_text()


def collectives(text):
    """Collectives of a program: (where, what, elements)."""
    found = collections.Counter()
    computation = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = (
                line.split()[1] if "ENTRY" in line else line.split()[0]
            )
            is_entry = line.startswith("ENTRY")
        match = re.search(
            r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|"
            r"collective-permute)(-start)?\(",
            line,
        )
        if match is None:
            continue
        where = "entry" if is_entry else computation
        for shape in re.findall(r"\w+\[([\d,]*)\]", match.group(1)):
            found[f"{where} {match.group(2)} {shape}"] += 1
    return found


# Tokens of a piece on each of the devices that divide time: three pieces, of
# which the last one is filled up.
CUT_MESH, CUT_ROWS, CUT_COLUMNS = "batch 2, model 2, sequence 2", BATCH // 2, 6


def loss_step():
    """Logs and change of the weights of one step of gradient descent."""
    model = make_model()
    model.compile(
        # So large that what is left of the weights rounds away nothing.
        keras.optimizers.SGD(1024.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["sparse_categorical_accuracy"],
    )
    before = {v.path: to_numpy(v.value) for v in model.weights}
    x, y, sample_weight = (
        jax.tree.map(lambda a: a[:BATCH], part) for part in make_data(True)
    )
    logs = model.train_on_batch(x, y, sample_weight, return_dict=True)
    change = {v.path: to_numpy(v.value) - before[v.path] for v in model.weights}
    return logs, change


def compare_cut_losses(results):
    logs, change = loss_step()
    all_at_once = chunked_cross_entropy.MAX_LOGITS
    chunked_cross_entropy.MAX_LOGITS = (
        ARGUMENTS["vocabulary_size"] * CUT_ROWS * CUT_COLUMNS
    )
    try:
        with parallel(CUT_MESH):
            found_logs, found = loss_step()
        text = compiled_step(CUT_MESH)
    finally:
        chunked_cross_entropy.MAX_LOGITS = all_at_once
    for name, value in logs.items():
        results[f"cut: {name}"] = error(found_logs[name], value)
    results["cut: weights"] = max(
        error(found[path], value) for path, value in change.items()
    )
    # Loops over pieces of a device's own rows and columns, and what they send.
    stack = f"f32[3,{CUT_ROWS},1,{CUT_COLUMNS},{ARGUMENTS['hidden_dim']}]"
    loops = [line for line in text.splitlines() if " while(" in line]
    results["cut: loops"] = sum(
        stack in line and '"known_trip_count":{"n":"3"}' in line
        for line in loops
    )
    results["cut: largest sent"] = max(
        int(np.prod([int(n) for n in key.split()[2].split(",")]))
        for key in collectives(text)
        if not key.startswith("entry") and len(key.split()) == 3
    )


def compare_stateful(results):
    """`StatefulTrainer` over three pieces of each row."""
    x, y, sample_weight = jax.tree.map(
        lambda a: a[: 3 * BATCH], make_data(packed=True)
    )

    def run():
        trainer = keras_griffin.StatefulTrainer(make_model(), BATCH)
        trainer.compile(keras.optimizers.SGD(0.1))
        history = trainer.fit(
            x, y, sample_weight=sample_weight, epochs=1, verbose=0
        ).history
        values = {w.path: to_numpy(w.value) for w in trainer.weights}
        return np.array(history["loss"]), values, trainer

    losses, values, _ = run()
    with parallel("batch 2, model 4"):
        found_losses, found, trainer = run()
        results["stateful: losses"] = error(found_losses, losses)
        results["stateful: values"] = max(
            error(a, b)
            for a, b in zip(found.values(), values.values(), strict=True)
        )
        try:
            keras_griffin.StatefulTrainer(trainer.causal_lm, BATCH + 1)
        except ValueError as refusal:
            results["stateful: refusal"] = str(refusal)
        results["stateful: layouts"] = {
            v.name: list(v.value.sharding.spec)
            for v in trainer._state_variables
        }


def main():
    results = {}
    compare_training(results)
    compare_cut_losses(results)
    compare_stateful(results)
    for mesh in ("batch 8", "model 8"):
        results[f"collectives, {mesh}"] = collectives(compiled_step(mesh))
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
