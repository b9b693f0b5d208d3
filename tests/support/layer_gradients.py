"""Outputs and gradients of a layer's call at once, on each backend."""

import functools

import keras
from keras import ops

BACKEND = keras.config.backend()

# Half the compile time. Only LLVM's optimizations are left out.
XLA_OPTIONS = {"xla_backend_optimization_level": 0}


def compiled(function, **kwargs):
    """`function` as one program on JAX, where eager operations are slow."""
    if BACKEND != "jax":
        return function
    import jax

    return jax.jit(function, compiler_options=XLA_OPTIONS, **kwargs)


def outputs_and_gradients(forward):
    """A function of a `Probe`'s weights and inputs, compiled where it pays.

    Args:
        forward: callable `(weights, floats, others, return_state)` to a dict
            of `"y"` and `"state"`.

    Returns:
        Callable with `cotangents` before `return_state` besides, to the
        outputs and the gradients of `weights` and `floats`.
    """
    makers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    return makers[BACKEND](forward)


def _total(outputs, cotangents):
    """Sum of outputs times cotangents, over the float outputs."""
    pairs = [(outputs["y"], cotangents["y"])]
    for name, cotangent in cotangents.get("state", {}).items():
        pairs.append((outputs["state"][name], cotangent))
    return sum(
        ops.sum(ops.cast(a, "float32") * ops.cast(b, "float32"))
        for a, b in pairs
    )


def _jax(forward):
    import jax

    @functools.partial(
        jax.jit,
        static_argnames="return_state",
        compiler_options=XLA_OPTIONS,
    )
    def run(weights, floats, others, cotangents, return_state):
        def loss(weights, floats):
            outputs = forward(weights, floats, others, return_state)
            return _total(outputs, cotangents), outputs

        gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            weights, floats
        )
        return outputs, gradients

    return run


def _tensorflow(forward):
    import tensorflow as tf

    def run(weights, floats, others, cotangents, return_state):
        sources = (weights, floats)
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = forward(weights, floats, others, return_state)
            total = _total(outputs, cotangents)
        return outputs, tape.gradient(
            total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    graph = tf.function(run, autograph=False)

    def choose(weights, floats, *arguments):
        # Pieces run so often that making a graph pays, whole rows do not.
        is_piece = floats["x"].shape[1] < 6
        return (graph if is_piece else run)(weights, floats, *arguments)

    return choose


def _torch(forward):
    import torch

    def run(weights, floats, others, cotangents, return_state):
        weights, floats = keras.tree.map_structure(
            lambda z: z.detach().clone().requires_grad_(), (weights, floats)
        )
        outputs = forward(weights, floats, others, return_state)
        _total(outputs, cotangents).backward()
        gradients = keras.tree.map_structure(
            lambda z: torch.zeros_like(z) if z.grad is None else z.grad,
            (weights, floats),
        )
        return keras.tree.map_structure(
            lambda z: z.detach(), outputs
        ), gradients

    return run
