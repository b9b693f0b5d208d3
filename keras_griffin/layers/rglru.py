from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_griffin.kernels.rg_lru import gates_and_decay
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.layers.block_diagonal_dense import BlockDiagonalDense
from keras_griffin.layers.decay_initializer import DecayInitializer
from keras_griffin.layers.temporal_layer import TemporalLayer

# Initial phases of the complex unit are uniform in [0, 0.1 pi]. The paper does
# not say. Source: recurrentgemma `jax/layers.py::RGLRU.a_imag_param_init`.
MAX_PHASE = 0.1 * math.pi

RECURRENCES = ("real", "complex")


@keras.saving.register_keras_serializable(package="keras_griffin")
class RGLRU(TemporalLayer):
    """Real-gated linear recurrent unit, and its complex form CG-LRU.

    ```
    r[t] = sigmoid(W_a x[t] + b_a)                       recurrence gate
    i[t] = sigmoid(W_x x[t] + b_x)                       input gate
    log a[t] = -c softplus(Lambda) * r[t],  c = 8
    h[t] = a[t] * h[t-1] + sqrt(1 - a[t]^2) * (i[t] * x[t])
    y[t] = h[t]
    ```

    At the first token of a document the state is dropped and the input is
    taken whole: `h = i * x`. The complex unit (`recurrence="complex"`) reads
    the first half of `x` as real and the second half as imaginary parts, and
    turns the state by `phase_param * r[t]` in each step.

    Args:
        units: int. Width of input, state and output [channels].
        num_gate_blocks: int. Blocks of the two gates' block-diagonal
            matrices; must divide `units`. Defaults to `16`.
        recurrence: `"real"` or `"complex"`. Defaults to `"real"`.
        decay_initializer: initializer of `Lambda`, or one of `"paper"`,
            `"reference"` (see `DecayInitializer`). Defaults to `"reference"`.
        gate_initializer: initializer of the gates' blocks. Defaults to a
            normal of variance 1 / block width.
        implementation: what computes it: `"auto"`, `"ops"` or the name of a
            kernel; see `keras_griffin.kernels.rg_lru`. Defaults to `"auto"`.
        **kwargs: see `TemporalLayer` and `keras.layers.Layer`.

    Call arguments: see `TemporalLayer`. The state's own part is `"recurrent"`
        `(batch, units)`, always float32.

    Returns:
        `y` `(batch, time, units)`, or `(y, state)`. With
        `return_intermediates=True` also, as the last, a dict of

        - `"recurrence_gate"`: r[t], `(batch, time, units)`;
        - `"input_gate"`: i[t], `(batch, time, units)`;
        - `"decay"`: a[t], `(batch, time, units)`; 0 at the first token of a
          document;
        - `"state"`: h[t], `(batch, time, units)`.

        The complex unit has `units / 2` gates; its decays and states are real
        parts, then imaginary parts. A pad holds r = i = 0, a = 1 and the
        state before it, so that the equation of h holds at every position,
        with `sqrt(1 - |a|^2)` 1 where a document starts.

    Raises:
        ValueError: if a size does not divide, if `x` is not `units` wide, or
            for an unknown `recurrence` or `implementation`.

    Numerics:
        Gates, decay, normalizer and state in float32 in every dtype policy.
        The square root's derivative is bounded at 1000. Intermediates are
        float32, `"state"` has the dtype of `y`. Without
        `return_intermediates` none is ever stored; with it gates and decays
        are computed twice.

    Example:
    ```python
    rglru = keras_griffin.layers.RGLRU(units=64, num_gate_blocks=4)
    x = keras.random.normal((2, 10, 64))
    y, state = rglru(x, return_state=True)
    state["recurrent"].shape  # (2, 64)
    y, found = rglru(x, return_intermediates=True)
    found["decay"].shape  # (2, 10, 64)
    ```

    Source:
        arXiv:2402.19427, equations 1 to 6, appendix B for the complex unit;
        recurrentgemma `jax/layers.py::RGLRU`, whose sign of `Lambda` and
        first token are kept.
    """

    # The weights are there from the start, for an optimizer of PyTorch.
    builds_itself = True

    def __init__(
        self,
        units: int,
        num_gate_blocks: int = 16,
        recurrence: str = "real",
        decay_initializer: Any = "reference",
        gate_initializer: Any = None,
        implementation: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if recurrence not in RECURRENCES:
            raise ValueError(
                f"`recurrence` must be one of {RECURRENCES}. Received: "
                f"{recurrence!r}. The paper's language models use 'real'."
            )
        if recurrence == "complex" and units % 2:
            raise ValueError(
                "A complex recurrence needs an even `units`: half real, half "
                f"imaginary parts. Received: units={units}. Use {units + 1}."
            )
        if isinstance(decay_initializer, str):
            decay_initializer = DecayInitializer(decay_initializer)
        self.units = units
        self.num_gate_blocks = num_gate_blocks
        self.recurrence = recurrence
        self.decay_initializer = keras.initializers.get(decay_initializer)
        self.gate_initializer = keras.initializers.get(gate_initializer)
        self.implementation = implementation
        # Complex numbers: each gate serves a real and an imaginary part.
        self._num_decays = units if recurrence == "real" else units // 2

        def gate(name):
            return BlockDiagonalDense(
                self._num_decays,
                num_blocks=num_gate_blocks,
                kernel_initializer=gate_initializer,
                dtype=self.dtype_policy,
                name=name,
            )

        self.recurrence_gate = gate("recurrence_gate")
        self.input_gate = gate("input_gate")
        if self.builds_itself:
            self.build((None, None, units))

    def build(self, input_shape: Any) -> None:
        self._check_width(input_shape)
        if self.built:
            return
        self.recurrence_gate.build(input_shape)
        self.input_gate.build(input_shape)
        self.recurrence_param = self.add_weight(
            name="recurrence_param",
            shape=(self._num_decays,),
            initializer=self.decay_initializer,
            # softplus(Lambda) near 0.001 would lose its digits in bfloat16.
            autocast=False,
        )
        self.phase_param = None
        if self.recurrence == "complex":
            self.phase_param = self.add_weight(
                name="phase_param",
                shape=(self._num_decays,),
                initializer=keras.initializers.RandomUniform(0.0, MAX_PHASE),
                autocast=False,
            )

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        shape = (batch_size, self.units)
        return {"recurrent": ops.zeros(shape, dtype="float32")}

    def intermediates_spec(self, shape: Any) -> dict[str, Any]:
        gates = (*shape[:-1], self._num_decays)
        return {
            "recurrence_gate": keras.KerasTensor(gates, "float32"),
            "input_gate": keras.KerasTensor(gates, "float32"),
            "decay": keras.KerasTensor(shape, "float32"),
            "state": keras.KerasTensor(shape, self.compute_dtype),
        }

    def _check_call(self, x, *others):
        super()._check_call(x, *others)
        self._check_width(x.shape)

    def _check_width(self, shape):
        if shape[-1] != self.units:
            raise ValueError(
                "The input of an RGLRU must be `units` wide. Received: "
                f"input of width {shape[-1]}, units={self.units}. Project "
                "the input first, as RecurrentBlock does."
            )

    def mix(
        self, x: Any, layout: Any, state: Any, intermediates: Any = None
    ) -> tuple[Any, Any]:
        inputs = {
            "x": x,
            "recurrence_gate_kernel": self.recurrence_gate.kernel,
            "recurrence_gate_bias": self.recurrence_gate.bias,
            "input_gate_kernel": self.input_gate.kernel,
            "input_gate_bias": self.input_gate.bias,
            "recurrence_param": self.recurrence_param,
            "phase_param": self.phase_param,
            "reset": ops.equal(layout.positions, 0),
        }
        initial_state = None if state is None else state["recurrent"]
        y, final_state = rg_lru(
            **inputs,
            # Pads come last, so that without a final state they are harmless.
            padding_mask=None if state is None else layout.mask,
            initial_state=initial_state,
            implementation=self.implementation,
        )
        if not layout.keeps_all:
            # Outputs of tokens past the state, which are no pads.
            y, _ = rg_lru(
                **inputs,
                initial_state=initial_state,
                implementation=self.implementation,
            )
        if intermediates is not None:
            r, i, a = gates_and_decay(**inputs, padding_mask=layout.mask)
            h = layout.restore_last(y, initial_state)
            intermediates["recurrence_gate"] = layout.restore(r)
            intermediates["input_gate"] = layout.restore(i)
            intermediates["decay"] = layout.restore(a)
            intermediates["state"] = h
        return y, None if state is None else {"recurrent": final_state}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "num_gate_blocks": self.num_gate_blocks,
            "recurrence": self.recurrence,
            "decay_initializer": keras.initializers.serialize(
                self.decay_initializer
            ),
            "gate_initializer": keras.initializers.serialize(
                self.gate_initializer
            ),
            "implementation": self.implementation,
        }


class InnerRGLRU(RGLRU):
    """An RGLRU that is built with the layer which it is a part of.

    So its weights have that layer's path.
    """

    builds_itself = False
