"""`fit` under a strategy of tf.distribute. Run by test_tensorflow.py.

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
from support.models import tiny_model  # noqa: E402
from support.models import tokens  # noqa: E402

STEPS, BATCH = 4, 8


def main():
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = tiny_model(
            num_layers=2, block_types=("recurrent", "local_attention")
        )
        model.compile(
            optimizer=keras.optimizers.AdamW(1e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )
    token_ids = tokens(STEPS * BATCH, 9)
    x = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    dataset = tf.data.Dataset.from_tensor_slices((x, np.roll(token_ids, -1, 1)))
    # A step has a known shape, which TPUs need.
    dataset = dataset.batch(BATCH, drop_remainder=True)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    model.fit(dataset, verbose=0, callbacks=[record])
    weights = {
        f"weight {i}": to_numpy(w.value) for i, w in enumerate(model.weights)
    }
    traces = 0
    if model.distribute_strategy.num_replicas_in_sync > 1:
        traces = model._replica_call.experimental_get_tracing_count()
    np.savez(path, losses=losses, traces=traces, **weights)


if __name__ == "__main__":
    main()
