"""What all layers that mix along time have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_griffin import keras_compat
from keras_griffin.layers.base_layer import BaseLayer
from keras_griffin.layers.input_checks import check_names
from keras_griffin.layers.input_checks import check_row_shape
from keras_griffin.layers.rematerialization import rematerialized
from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.layers.token_layout import init_rows


class TemporalLayer(BaseLayer):
    """Base of the layers that mix information along time.

    A subclass gives `mix`, which computes on compact rows (see
    `TokenLayout`), and `init_mixer_state`. This class gives them the one call
    signature and the one state convention of the package, and what
    `keras.layers.GRU` has of both, for `keras.layers.Bidirectional` and
    `keras.layers.TimeDistributed` too.

    Args:
        return_sequences: bool. Return `y` of all tokens, `(batch, time,
            width)`, or that of each row's last real token alone, `(batch,
            width)`, 0 for a row of pads. Defaults to `True`, unlike a GRU's.
        return_state: bool. What the call argument is where it is not given.
            Defaults to `False`.
        go_backwards: bool. Read each row from its end. As a GRU's, `y` is in
            the order of reading: that of the last token comes first. Defaults
            to `False`.
        stateful: `False`. No layer keeps a state; hand it on by
            `return_state` and `initial_state`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(batch, time, width)`.
        padding_mask: `(batch, time)`, 0 at pads, which change nothing
            anywhere, and otherwise the number of the token's document: a new
            one starts wherever it differs from the previous real token's. In
            a mask of bools all tokens are of the document that the row is
            in. `None`: `mask`.
        initial_state: dict from `init_state` or from an earlier call with
            `return_state=True`; the rows go on where it ends. `None`: every
            row starts a document.
        return_state: bool. Also return the state after the last real token.
            Defaults to that of the constructor.
        positions: `(batch, time)` int. Position of each token in its document,
            from 0, if the caller has them; pads then have to come last in
            each row. Defaults to `None`: they are found from the rest.
        return_intermediates: bool. Also return, as the last, what the
            recurrence computed on the way; see `RGLRU`. Layers with an RG-LRU
            only. Defaults to `False`.
        mask: `(batch, time)`, Keras' name for `padding_mask`; only one of
            them can be given. `None`: the mask that `x` carries, from
            `Embedding(mask_zero=True)` say, unless there is a
            `padding_mask`. The layers after this one get the mask too.

    Returns:
        `y` `(batch, time, width)`, or `(y, state)`, `(y, intermediates)`,
        `(y, state, intermediates)`. The state is a dict of arrays whose axis
        0 is the batch. Outputs at pads have no meaning.

    Raises:
        ValueError: for unknown arguments, inputs of another shape, a state
            that is not a dict of this layer, and where two arguments
            contradict each other.

    Example:
    ```python
    model = keras.Sequential([
        keras.layers.Embedding(10, 16, mask_zero=True),
        keras.layers.Bidirectional(
            keras_griffin.layers.RGLRU(16, num_gate_blocks=4)
        ),
        keras_griffin.layers.RecurrentBlock(
            16, num_gate_blocks=4, return_sequences=False
        ),
    ])
    y = model(np.array([[3, 1, 4], [2, 7, 0]]))  # (2, 32), 0 is a pad
    ```
    """

    # For `keras.layers.Bidirectional`.
    stateful = False
    states = None

    def __init__(
        self,
        return_sequences: bool = True,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        **kwargs: Any,
    ) -> None:
        # Keras would round a float32 state to a 16-bit compute dtype.
        super().__init__(autocast=False, **kwargs)
        if stateful:
            raise ValueError(
                "The state of a row is handed on, and no layer keeps one. "
                f"Received: stateful={stateful}. Call `y, state = layer(x, "
                "return_state=True)`, then `layer(x, initial_state=state)`; "
                "to train over pieces of long texts, see `StatefulTrainer`."
            )
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        check_names(kwargs)
        # Keras looks for a mask only where `x` is the only tensor.
        names = ("padding_mask", "initial_state")
        given = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
        if (
            given.get("initial_state") is not None
            and given.get("padding_mask") is None
            and given.get("mask") is None
            and not isinstance(x, keras.KerasTensor)
        ):
            kwargs["mask"] = keras_compat.mask_of(x)
        return super().__call__(x, *args, **kwargs)

    def call(
        self,
        x: Any,
        padding_mask: Any = None,
        initial_state: Any = None,
        return_state: bool | None = None,
        positions: Any = None,
        return_intermediates: bool = False,
        mask: Any = None,
        **mix_options: Any,
    ) -> Any:
        x = ops.cast(x, self.compute_dtype)
        self._check_call(x, padding_mask, positions, mask)
        if initial_state is not None:
            initial_state = _state(initial_state)
        if padding_mask is None:
            padding_mask = mask
        if self.go_backwards:
            x, padding_mask = _flipped(x), _flipped(padding_mask)
        if return_state is None:
            return_state = self.return_state
        batch, time = ops.shape(x)[:2]
        layout = TokenLayout(
            batch, time, padding_mask, initial_state, positions
        )
        if return_state and initial_state is None:
            initial_state = self.init_state(batch)
        intermediates = {}
        if return_intermediates:
            self.intermediates_spec(x.shape)  # raises if there are none
            mix_options["intermediates"] = intermediates
        y, mixer_state = self.mix(
            layout.compact(x), layout, initial_state, **mix_options
        )
        if self.return_sequences:
            y = layout.restore(y)
        else:
            y = layout.last(y, ops.zeros((batch, y.shape[-1]), y.dtype))
        outputs = [y]
        if return_state:
            outputs.append({**layout.next_rows(batch), **mixer_state})
        if return_intermediates:
            outputs.append(intermediates)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def mix(self, x: Any, layout: Any, state: Any) -> tuple[Any, Any]:
        """Computes on compact rows.

        Args:
            x: `(batch, time, width)`, pads last.
            layout: the `TokenLayout` of `x`.
            state: dict of arrays, or `None` to start and to end without one.

        Layers with an RG-LRU take `intermediates` too: a dict that they fill
        with arrays in the caller's order of tokens.

        Returns:
            `(y, state)`: the layer's own part of the state, `None` where no
            state was given.
        """
        raise NotImplementedError(
            f"A temporal layer has to define `mix`. Received: "
            f"{type(self).__name__}, which does not. Define it."
        )

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        """Returns the layer's own part of a fresh state."""
        raise NotImplementedError(
            f"A temporal layer has to define `init_mixer_state`. Received: "
            f"{type(self).__name__}, which does not. Define it."
        )

    def init_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        """Returns the state of `batch_size` rows that have seen no token.

        Args:
            batch_size: int. Number of rows.
            max_length: int. Tokens that a row may have in all. Only global
                attention needs it; the other layers' states do not grow.
                Defaults to `None`.

        Returns:
            dict of arrays, axis 0 of each is the batch.
        """
        return {
            **init_rows(batch_size),
            **self.init_mixer_state(batch_size, max_length),
        }

    def intermediates_spec(self, shape: Any) -> dict[str, Any]:
        """Returns the `KerasTensor`s of the intermediates.

        Args:
            shape: shape of the layer's input.

        Raises:
            ValueError: for a layer that has no RG-LRU.
        """
        raise ValueError(
            "`return_intermediates` needs a layer with an RG-LRU. Received: "
            f"{type(self).__name__} {self.name!r}. Ask an RGLRU, or a block "
            "with a RecurrentBlock."
        )

    def seeds(self) -> list[Any]:
        """Returns the variables that a call draws dropout from."""
        return []

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        """Keras' remat with dropout and masks, and on TensorFlow."""
        remat = super().rematerialized_call
        if remat(layer_call, *args, **kwargs) is layer_call:
            return layer_call
        return rematerialized(remat, layer_call, self.seeds())

    def compute_output_spec(
        self,
        x: Any,
        padding_mask: Any = None,
        initial_state: Any = None,
        return_state: bool | None = None,
        positions: Any = None,
        return_intermediates: bool = False,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        self._check_call(x, padding_mask, positions, mask)
        shape = x.shape
        if not self.return_sequences:
            shape = (shape[0], shape[-1])
        outputs = [keras.KerasTensor(shape, dtype=self.compute_dtype)]
        if self.return_state if return_state is None else return_state:
            if initial_state is None:
                initial_state = self.init_state(1)
            outputs.append(
                {
                    name: keras.KerasTensor(
                        (x.shape[0], *leaf.shape[1:]),
                        dtype=keras.backend.standardize_dtype(leaf.dtype),
                    )
                    for name, leaf in _state(initial_state).items()
                }
            )
        if return_intermediates:
            outputs.append(self.intermediates_spec(x.shape))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        spec = self.compute_output_spec(keras.KerasTensor(input_shape))
        return keras.tree.map_structure(lambda leaf: leaf.shape, spec)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        if previous_mask is None or not self.return_sequences:
            return None
        return _flipped(previous_mask) if self.go_backwards else previous_mask

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
        }

    def _check_call(self, x, padding_mask, positions, mask):
        if len(x.shape) != 3:
            raise ValueError(
                "`x` must have shape (batch, time, width). Received: "
                f"x.shape={tuple(x.shape)}. Add the missing axis."
            )
        if padding_mask is not None and mask is not None:
            raise ValueError(
                "`mask` is Keras' name for `padding_mask`. Received: both. "
                "Give one of them."
            )
        if positions is not None and self.go_backwards:
            raise ValueError(
                "`positions` are those of rows that are read forwards. "
                "Received: `positions` for a layer with go_backwards=True. "
                "Leave them out: they are found from `padding_mask`."
            )
        for name, value in (
            ("padding_mask", padding_mask),
            ("positions", positions),
            ("mask", mask),
        ):
            if value is not None:
                check_row_shape(name, value, x)


def _flipped(x):
    """`x` `(batch, time, ...)` from its end; `None` stays."""
    return None if x is None else ops.flip(x, axis=1)


def _state(state):
    """The state that was given, out of the list of a `Bidirectional`."""
    if isinstance(state, (list, tuple)) and len(state) == 1:
        state = state[0]
    if isinstance(state, dict) and "position" in state:
        return state
    found = sorted(state) if isinstance(state, dict) else type(state).__name__
    raise ValueError(
        "`initial_state` must be a dict as `init_state` makes it: what a layer "
        "remembers, and how many tokens each row has seen. Received: "
        f"{found}. Take `layer.init_state(batch_size)`, or the state of a call "
        "with return_state=True, and replace in it what you have."
    )
