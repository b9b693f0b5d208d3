from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.kernels import dispatch
from keras_griffin.layers.torch_module import TorchModule


@keras.saving.register_keras_serializable(package="keras_griffin")
class ReversibleEmbedding(TorchModule, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` that passes gradients when quantized.

    `E[x]` of token ids, and in reverse `x E^T`: the logits of hidden states.

    It has the name of Keras' layer because files of weights name an embedding
    after its class.

    Quantized, Keras' layer (3.15.1) rounds the hidden states to int8 and
    differentiates the rounding, which gives 0 almost everywhere: what reaches
    the layers below has nothing to do with the loss, and adapters on an int8
    model do not learn. Here the gradient is that of `x E^T` with the
    dequantized `E`, as if nothing had been rounded. `keras.layers.Dense` does
    the same. The outputs are those of Keras' layer.

    Args:
        input_dim: int. Number of token ids.
        output_dim: int. Width of an embedding.
        **kwargs: see `keras.layers.ReversibleEmbedding`.

    Call arguments:
        inputs: `(..., )` int ids, or in reverse `(..., output_dim)` floats.
        reverse: bool. Defaults to `False`.

    Returns:
        `(..., output_dim)`, or in reverse `(..., input_dim)`.

    Example:
    ```python
    embedding = keras_griffin.layers.ReversibleEmbedding(29, 8)
    x = embedding(np.array([[1, 2, 3]]))  # (1, 3, 8)
    embedding.quantize("int8")
    logits = embedding(x, reverse=True)  # (1, 3, 29)
    ```

    Source:
        Straight-through estimator, arXiv:1308.3432.
    """

    def __init__(self, input_dim: int, output_dim: int, **kwargs: Any) -> None:
        super().__init__(input_dim, output_dim, **kwargs)
        # Its shape is known, and an optimizer of PyTorch wants to have it.
        self.build()

    # Needless when Keras' `ReversibleEmbedding` has a gradient of its own.
    def quantized_call(self, inputs: Any, reverse: bool = False) -> Any:
        call = super().quantized_call
        if not reverse:
            is_plain = (
                self.quantization_mode == "int8" and not self.lora_enabled
            )
            if dispatch.is_converting and is_plain:
                return self._int8_rows(inputs)
            return call(inputs)
        if self._is_for_int8(inputs):
            return self._int8_logits(inputs)

        # The gradient is computed outside of the scope of the forward pass, in
        # which weights may have other values than their own.
        @ops.custom_gradient
        def logits(hidden, *values):
            def gradient(*args, upstream=None):
                if upstream is None:  # PyTorch gives it by name
                    (upstream,) = args
                mapping = zip(self.variables, values, strict=True)
                with keras.StatelessScope(list(mapping)):
                    matrix = call(ops.arange(self.input_dim))
                nothing = [None] * len(values)
                return (ops.matmul(upstream, matrix), *nothing)

            return call(hidden, reverse=True), gradient

        return logits(inputs, *map(ops.convert_to_tensor, self.variables))

    def _is_for_int8(self, hidden):
        if keras.config.backend() != "torch" or not self.tie_weights:
            return False
        from keras_griffin.layers import linear_torch

        return (
            self.quantization_mode == "int8"
            and self.inputs_quantizer is not None
            and self.logit_soft_cap is None
            and linear_torch.takes_int8(hidden)
        )

    def _int8_logits(self, hidden):
        from keras_griffin.layers import linear_torch

        return linear_torch.Int8Linear.apply(
            ops.cast(hidden, self.compute_dtype),
            ops.transpose(self.embeddings),
            ops.convert_to_tensor(self.embeddings_scale),
            self.inputs_quantizer,
        )

    def _int8_rows(self, token_ids):
        # As Keras; but the scales are a matrix, as PyTorch's ONNX wants them.
        scales = ops.expand_dims(self.embeddings_scale, -1)
        rows = ops.take(self.embeddings, token_ids, axis=0)
        rows = ops.cast(rows, self.compute_dtype)
        return rows / ops.take(scales, token_ids, axis=0)

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: Any = None,
    ) -> None:
        # Keras checks for its own class, lest a subclass has other weights.
        return super().quantize(mode, type_check=False, config=config)
