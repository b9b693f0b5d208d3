"""`fit` under a strategy of tf.distribute. Run by
test_tensorflow_strategies.py.

Arguments: `one`, `mirrored`, or the index of this of two workers and their
two ports; then the file for losses and weights.
"""

import json
import os
import sys

strategy_name, *ports, path = sys.argv[1:]
if ports:
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": int(strategy_name)},
        }
    )

import tensorflow as tf  # noqa: E402

if strategy_name == "mirrored":
    (cpu,) = tf.config.list_physical_devices("CPU")
    configuration = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [configuration] * 2)
    strategy = tf.distribute.MirroredStrategy(
        tf.config.list_logical_devices("CPU"),
        cross_device_ops=tf.distribute.HierarchicalCopyAllReduce(),
    )
elif ports:
    # Before anything else of TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from support.checks import to_numpy  # noqa: E402
from support.models import steady_adam_w  # noqa: E402
from support.models import tiny_model  # noqa: E402
from support.models import tokens  # noqa: E402

STEPS, BATCH = 4, 8


def make_model(jit_compile, strategy=strategy, **changes):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        blocks = ("recurrent", "local_attention")
        model = tiny_model(
            **{"num_layers": 2, "block_types": blocks, **changes}
        )
        model.compile(
            optimizer=steady_adam_w(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
    return model


def fit(model, steps=STEPS):
    """Losses of a few steps."""
    token_ids = tokens(steps * BATCH, 9)
    x = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    dataset = tf.data.Dataset.from_tensor_slices((x, np.roll(token_ids, -1, 1)))
    # A step has a known shape, which TPUs need.
    dataset = dataset.batch(BATCH, drop_remainder=True)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    model.fit(dataset, verbose=0, callbacks=[record])
    return losses


def train(jit_compile):
    model = make_model(jit_compile)
    results = {"losses": fit(model), "traces": 0}
    for i, weight in enumerate(model.weights):
        results[f"weight {i}"] = to_numpy(weight.value)
    if model.distribute_strategy.num_replicas_in_sync > 1:
        call = model._replica_call
        results["traces"] = call.experimental_get_tracing_count()
        results["xla"] = bool(call._jit_compile)
    return results


def by_replica(model, strategy=strategy, jit_compile=None, times=1):
    """What each replica makes of the same rows, in training."""
    token_ids = tf.constant(tokens(2, 9))
    inputs = {"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)}

    @tf.function(jit_compile=jit_compile)
    def run():
        outputs = strategy.run(model, args=(inputs,), kwargs={"training": True})
        return strategy.experimental_local_results(outputs)

    return np.array([[to_numpy(x) for x in run()] for _ in range(times)])


def dropped():
    model = make_model(True, num_layers=1, dropout=0.5)
    outputs = by_replica(model, times=2)
    losses = [
        fit(make_model("auto", num_layers=1, dropout=0.5), steps=2)
        for _ in range(2)
    ]
    return {"outputs": outputs, "losses": losses}


def in_a_program():
    """One replica within a program of XLA's, as all are on TPUs."""
    one = tf.distribute.MirroredStrategy(["CPU:0"])
    model = make_model(True, strategy=one)
    plain = make_model("auto", strategy=one)
    return {
        "nested": by_replica(model, one, jit_compile=True),
        "plain": by_replica(plain, one),
    }


def main():
    runs = {"": train(jit_compile=True)}
    if strategy_name == "mirrored":
        runs["without XLA: "] = train(jit_compile="auto")
        runs["dropout: "] = dropped()
        runs["in a program: "] = in_a_program()
    np.savez(
        path,
        **{
            prefix + name: value
            for prefix, results in runs.items()
            for name, value in results.items()
        },
    )


if __name__ == "__main__":
    main()
