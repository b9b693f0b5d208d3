"""Functions that bring their own gradient, on the three backends.

`keras.ops.custom_gradient` does not do: on PyTorch it takes functions of one
output only, and a scan has two, its outputs and its last state.
"""

import keras


def custom_gradient(function, residuals, backward):
    """Gives `function` the gradient that `backward` computes.

        y = function(*x)
        dx = backward(residuals(x, y), dy)

    Call it once, at module level: each result is a new function to the
    backend, which traces and compiles it anew.

    Args:
        function: callable from tensors, some of which may be `None`, to a
            tuple of tensors.
        residuals: callable `(inputs, outputs)` to the tuple of those inputs
            and outputs that `backward` needs. Nothing else may be kept:
            so second derivatives find where each residual came from.
        backward: callable `(residuals, output_gradients)` to a tuple with a
            gradient for each input, or `None` where there is none.

    Returns:
        A callable like `function`. It can be differentiated twice on JAX and
        PyTorch; on TensorFlow a second derivative raises
        `NotImplementedError`.
    """
    make = {
        "jax": _jax,
        "tensorflow": _tensorflow,
        "torch": _torch,
    }
    return make[keras.config.backend()](function, residuals, backward)


def _jax(function, residuals, backward):
    import jax

    call = jax.custom_vjp(function)

    def forward(*inputs):
        # `call`, not `function`: so the second derivative uses `backward` too.
        outputs = call(*inputs)
        return outputs, residuals(inputs, outputs)

    call.defvjp(forward, backward)
    return call


def _tensorflow(function, residuals, backward):
    import tensorflow as tf

    @tf.custom_gradient
    def refuse_second_derivative(*gradients):
        def gradient(*_):
            raise NotImplementedError(
                "On the TensorFlow backend this operation has a first "
                f"derivative only. Received: a derivative of "
                f"{backward.__qualname__}. Use the JAX or PyTorch backend "
                "for second derivatives."
            )

        return gradients, gradient

    def call(*inputs):
        given = [i for i, value in enumerate(inputs) if value is not None]

        @tf.custom_gradient
        def call_given(*tensors):
            everything = [None] * len(inputs)
            for i, tensor in zip(given, tensors, strict=True):
                everything[i] = tensor
            # Else an eager tape records, and keeps, what is inside.
            unwatched = [
                None if tensor is None else tf.stop_gradient(tensor)
                for tensor in everything
            ]
            outputs = function(*unwatched)
            kept = residuals(everything, outputs)

            def gradient(*output_gradients):
                gradients = backward(kept, output_gradients)
                wanted = [g for g in gradients if g is not None]
                computed = iter(refuse_second_derivative(*wanted))
                return [
                    None if gradients[i] is None else next(computed)
                    for i in given
                ]

            return outputs, gradient

        # A variable would be taken for something that `function` closes over.
        return call_given(*[tf.convert_to_tensor(inputs[i]) for i in given])

    return call


def _torch(function, residuals, backward):
    import torch

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            outputs = function(*inputs)
            ctx.save_for_backward(*residuals(inputs, outputs))
            return outputs

        @staticmethod
        def backward(ctx, *output_gradients):
            return backward(ctx.saved_tensors, output_gradients)

    return Call.apply
