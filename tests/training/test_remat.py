"""Blocks computed anew in the gradient: the same numbers in less memory."""

import keras
import numpy as np
import pytest

import keras_griffin
from support.checks import assert_close
from support.checks import to_numpy
from support.models import tiny_backbone
from support.models import tokens

ALL_BLOCKS = [f"block_{i}" for i in range(100)]
IDS = tokens(2, 13)
DATA = (
    {"token_ids": IDS[:, :-1], "padding_mask": np.ones((2, 12), "int32")},
    IDS[:, 1:],
)


def make(remat, **changes):
    keras.utils.set_random_seed(0)
    mode = "list_of_layers" if remat else None
    with keras.RematScope(mode=mode, layer_names=ALL_BLOCKS):
        model = keras_griffin.GriffinCausalLM(tiny_backbone(**changes))
    model.compile(keras.optimizers.SGD(1.0), weighted_metrics=[])
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_remat_changes_no_number(dropout):
    weights = []
    for remat in (False, True):
        model = make(remat, dropout=dropout)
        seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
        assert bool(seeds) == bool(dropout)
        model.train_on_batch(*DATA)
        weights.append(
            [to_numpy(v.value) for v in [*model.trainable_variables, *seeds]]
        )
    for new, old in zip(weights[1], weights[0], strict=True):
        assert_close(new, old, kind="gradients")


LONG_IDS = tokens(8, 129)
LONG_DATA = (
    {"token_ids": LONG_IDS[:, :-1], "padding_mask": np.ones((8, 128), "int32")},
    LONG_IDS[:, 1:],
    None,
)


def _kept_jax(model):
    import jax

    # Not what is compiled: XLA for CPUs undoes remat.
    trainable, *others = (
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.metrics_variables,
        )
    )
    optimizer = [v.value for v in model.optimizer.variables]

    def gradient(trainable):
        def loss(trainable):
            return model.compute_loss_and_updates(
                trainable, *others, *LONG_DATA, True, optimizer
            )[0]

        return jax.vjp(loss, trainable)[1]

    kept = jax.tree.leaves(jax.eval_shape(gradient, trainable))
    return sum(array.size * array.dtype.itemsize for array in kept)


def _kept_torch(model):
    import torch

    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train_step(LONG_DATA)
    return sum(sizes)


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow",
    reason="TensorFlow does not say what a tape holds; see the next test.",
)
def test_remat_keeps_less():
    kept = {}
    for remat in (False, True):
        model = make(remat, num_layers=6)
        model._symbolic_build(data_batch=LONG_DATA)
        measure = {"jax": _kept_jax, "torch": _kept_torch}
        kept[remat] = measure[keras.config.backend()](model)
    assert kept[True] < kept[False] / 2


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="JAX traces a function once."
)
def test_a_block_is_computed_again_in_the_gradient(monkeypatch):
    calls = []
    mix = keras_griffin.layers.ResidualBlock.mix

    def count(self, *args, **kwargs):
        calls.append(self.name)
        return mix(self, *args, **kwargs)

    monkeypatch.setattr(keras_griffin.layers.ResidualBlock, "mix", count)
    counts = {}
    for remat in (False, True):
        model = make(remat)
        model._symbolic_build(data_batch=DATA)
        calls.clear()
        model.train_on_batch(*DATA)
        counts[remat] = len(calls)
    assert counts[True] == 2 * counts[False]
