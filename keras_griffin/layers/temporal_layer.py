"""What all layers that mix along time have in common."""

import keras
from keras import ops

from keras_griffin.layers.input_checks import check_names
from keras_griffin.layers.input_checks import check_row_shape
from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.layers.token_layout import init_rows


class TemporalLayer(keras.layers.Layer):
    """Base of the layers that mix information along time.

    A subclass gives `mix`, which computes on compact rows (see
    `TokenLayout`), and `init_mixer_state`. This class gives them the one call
    signature and the one state convention of the package.

    Call arguments:
        x: float tensor `(batch, time, width)`.
        padding_mask: `(batch, time)`, 0 at pads, which change nothing
            anywhere, and otherwise the number of the token's document: a new
            one starts wherever it differs from the previous real token's. In
            a mask of bools all tokens are of the document that the row is
            in. `None`: all tokens are real, and of that document.
        initial_state: dict from `init_state` or from an earlier call with
            `return_state=True`; the rows go on where it ends. `None`: every
            row starts a document.
        return_state: bool. Also return the state after the last real token.
            Defaults to `False`.
        positions: `(batch, time)` int. Position of each token in its document,
            from 0, if the caller has them; pads then have to come last in
            each row. Defaults to `None`: they are found from the rest.
        return_intermediates: bool. Also return, as the last, what the
            recurrence computed on the way; see `RGLRU`. Layers with an RG-LRU
            only. Defaults to `False`.

    Returns:
        `y` `(batch, time, width)`, or `(y, state)`, `(y, intermediates)`,
        `(y, state, intermediates)`. The state is a dict of arrays whose axis
        0 is the batch. Outputs at pads have no meaning.
    """

    def __init__(self, **kwargs):
        # Keras would round a float32 state to a 16-bit compute dtype.
        super().__init__(autocast=False, **kwargs)

    def __call__(self, *args, **kwargs):
        check_names(kwargs)
        return super().__call__(*args, **kwargs)

    def call(
        self,
        x,
        padding_mask=None,
        initial_state=None,
        return_state=False,
        positions=None,
        return_intermediates=False,
        **mix_options,
    ):
        x = ops.cast(x, self.compute_dtype)
        self._check_call(x, padding_mask, positions)
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
        outputs = [layout.restore(y)]
        if return_state:
            outputs.append({**layout.next_rows(batch), **mixer_state})
        if return_intermediates:
            outputs.append(intermediates)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def mix(self, x, layout, state):
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

    def init_mixer_state(self, batch_size, max_length=None):
        """Returns the layer's own part of a fresh state."""
        raise NotImplementedError(
            f"A temporal layer has to define `init_mixer_state`. Received: "
            f"{type(self).__name__}, which does not. Define it."
        )

    def init_state(self, batch_size, max_length=None):
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

    def intermediates_spec(self, shape):
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

    def compute_output_spec(
        self,
        x,
        padding_mask=None,
        initial_state=None,
        return_state=False,
        positions=None,
        return_intermediates=False,
    ):
        self._check_call(x, padding_mask, positions)
        outputs = [keras.KerasTensor(x.shape, dtype=self.compute_dtype)]
        if return_state:
            state = initial_state or self.init_state(1)
            outputs.append(
                {
                    name: keras.KerasTensor(
                        (x.shape[0], *leaf.shape[1:]),
                        dtype=keras.backend.standardize_dtype(leaf.dtype),
                    )
                    for name, leaf in state.items()
                }
            )
        if return_intermediates:
            outputs.append(self.intermediates_spec(x.shape))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _check_call(self, x, padding_mask, positions):
        if len(x.shape) != 3:
            raise ValueError(
                "`x` must have shape (batch, time, width). Received: "
                f"x.shape={tuple(x.shape)}. Add the missing axis."
            )
        for name, value in (
            ("padding_mask", padding_mask),
            ("positions", positions),
        ):
            if value is None:
                continue
            check_row_shape(name, value, x)
