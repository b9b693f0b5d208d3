"""Data parallel training on PyTorch, as Keras' guide has it.

Run by test_torch_processes.py. Arguments: the file for the weights, the
number of processes, and for several the index of this one and a port.
"""

import sys

import keras
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from support.checks import to_numpy
from support.models import tiny_model
from support.models import tokens

STEPS, BATCH = 4, 8


def main(path, processes, index=0, port=None):
    torch.set_num_threads(1)
    keras.utils.set_random_seed(0)
    model = tiny_model()
    module = model
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            world_size=processes,
            rank=index,
        )
        module = DistributedDataParallel(model)
    # As support.models.steady_adam_w.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=3e-3)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = []
    for step in range(STEPS):
        token_ids = tokens(BATCH, 9, seed=step)[index::processes]
        inputs = {
            "token_ids": torch.from_numpy(token_ids),
            "padding_mask": torch.ones(token_ids.shape, dtype=torch.int32),
        }
        labels = torch.from_numpy(np.roll(token_ids, -1, 1))
        optimizer.zero_grad()
        loss = loss_of(labels, module(inputs))
        loss.backward()  # the gradients are averaged over the processes
        optimizer.step()
        losses.append(float(loss))
    weights = {
        f"weight {i}": to_numpy(w.value) for i, w in enumerate(model.weights)
    }
    np.savez(path, losses=losses, **weights)
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
