"""Where each token of a batch stands: in its document, row and state."""

import keras
from keras import ops

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.linear_scan.loop_unrolled import take_columns

# The part of every temporal layer's state that counts tokens. "segment_id" is
# the number of the last token's document, under the name that files have for
# it; 0 before the first numbered one.
ROW_KEYS = ("position", "segment_id", "length")


def init_rows(batch_size):
    """Returns the counters of `batch_size` rows that have seen no token."""
    return {key: ops.zeros((batch_size,), dtype="int32") for key in ROW_KEYS}


class TokenLayout:
    """Positions of tokens in their documents, with pads moved out of the way.

    All temporal layers compute on compact rows: real tokens first, pads last.
    There a pad can change no real token, a window of `k` tokens is a slice,
    and `positions` says everything about documents: a new one starts where
    the position is 0, and a token may look back `s` tokens if and only if its
    position is at least `s`.

    Args:
        batch: int or scalar tensor. Number of rows.
        time: int or scalar tensor. Tokens in a row.
        padding_mask: `(batch, time)`, 0 at pads and otherwise the number of
            the token's document: a new one starts wherever it differs from
            the previous real token's. A mask of bools numbers no documents:
            every row goes on with the one it is in, number 1 if it is the
            first. `None`: as a mask of true everywhere.
        state: dict with the `ROW_KEYS`, from an earlier call, or `None`.
        positions: `(batch, time)` int, when they are known already. Pads then
            have to be last.
        is_start: bool. Whether the rows have seen no token yet. Defaults to
            `None`: where there is no `state`.
        num_kept: `(batch,)` int. The state is to be that after so many of a
            row's real tokens; those after them are computed, and leave no
            trace. Defaults to `None`: all of them.

    Attributes:
        positions: `(batch, time)` int32, on compact rows.
        mask: `(batch, time)` bool on compact rows, which tokens the state has
            seen, or `None` where that is all.
        place: `(batch, time)` int32, the column to which each token moved, or
            `None` if none did.
        is_start: bool. Whether there is nothing before these tokens.
        keeps_all: bool. Whether the state has seen all real tokens.
    """

    def __init__(
        self,
        batch,
        time,
        padding_mask=None,
        state=None,
        positions=None,
        is_start=None,
        num_kept=None,
    ):
        self.is_start = state is None if is_start is None else is_start
        self._time = time
        self._state = state
        self.place = None
        self.mask = None
        self._order = None
        self._num_real = None
        self._documents = None
        if padding_mask is not None:
            if keras.backend.standardize_dtype(padding_mask.dtype) != "bool":
                self._documents = ops.cast(padding_mask, "int32")
                padding_mask = self._documents
            self.mask = ops.cast(padding_mask, "bool")
            self._num_real = ops.sum(ops.cast(self.mask, "int32"), axis=1)
            # A single column has nowhere to move.
            if positions is None and not _is_one(time):
                self._set_order()
        if self._documents is not None:
            self._documents = self.compact(self._documents)
        if positions is None:
            positions = self._find_positions(batch)
        self.positions = ops.cast(positions, "int32")
        self.keeps_all = num_kept is None
        if not self.keeps_all:
            columns = ops.arange(time, dtype="int32")[None, :]
            self.mask = columns < num_kept[:, None]
            self._num_real = num_kept

    def _set_order(self):
        real = ops.cast(self.mask, "int32")
        columns = ops.arange(self._time, dtype="int32")[None, :]
        num_real = self._num_real[:, None]
        self.place = ops.where(
            self.mask,
            ops.cumsum(real, axis=1) - 1,
            num_real + ops.cumsum(1 - real, axis=1) - 1,
        )
        key = ops.where(self.mask, columns, columns + self._time)
        if dispatch.is_converting:
            # Converters take this sort alone.
            _, self._order = ops.top_k(-key, self._time)
        else:
            self._order = ops.argsort(key, axis=1)
        self.mask = columns < num_real

    def _find_positions(self, batch):
        columns = ops.arange(self._time, dtype="int32")[None, :]
        columns = ops.broadcast_to(columns, (batch, self._time))
        documents, state = self._documents, self._state
        # The column of the token at position 0, before these if negative.
        start = 0 if state is None else -state["position"][:, None]
        if documents is not None:
            before = documents[:, :1]
            if state is not None:
                before = state["segment_id"][:, None]
                before = ops.where(ops.equal(before, 0), 1, before)
            before = ops.concatenate([before, documents], axis=1)[:, :-1]
            start = ops.where(ops.equal(documents, before), start, columns)
            start = _cumulative_max(start)
        return columns - start

    def compact(self, x):
        """Moves real tokens of `x` `(batch, time, ...)` to the front."""
        if self._order is None:
            return x
        return permute(x, self._order)

    def restore(self, x):
        """Undoes `compact`."""
        if self.place is None:
            return x
        return permute(x, self.place)

    def restore_last(self, x, before=None):
        """As `restore`; a pad gets the value of the real token before it.

        Args:
            x: `(batch, time, width)`.
            before: `(batch, width)`, for pads with no token before. `None`:
                zeros.
        """
        if self.mask is None:
            return x
        if before is None:
            before = ops.zeros_like(x[:, 0])
        before = ops.cast(before, x.dtype)
        x = ops.concatenate([before[:, None], x], axis=1)
        real = ops.cast(self.restore(self.mask), "int32")
        return permute(x, ops.cumsum(real, axis=1))

    def last(self, values, before):
        """Value at each row's last real token; that of `before` if none.

        Args:
            values: `(batch, time, ...)` on compact rows.
            before: `(batch, ...)`.
        """
        # In front of them: so it holds for no token at all, too.
        values = ops.concatenate([before[:, None], values], axis=1)
        if self.mask is None:
            return values[:, -1]
        return permute(values, self._num_real[:, None])[:, 0]

    @property
    def num_real(self):
        """Tokens of each row that count: `(batch,)` int32, or an int."""
        return self._time if self._num_real is None else self._num_real

    def next_rows(self, batch):
        """Returns the row counters after these tokens."""
        rows = self._state or init_rows(batch)
        position = self.last(self.positions + 1, rows["position"])
        document = rows["segment_id"]
        if self._documents is not None:
            document = self.last(self._documents, document)
        return {
            "position": position,
            "segment_id": document,
            "length": rows["length"] + ops.cast(self.num_real, "int32"),
        }


def permute(x, index):
    """Reorders axis 1 of `x` `(batch, time, ...)` by `index` (batch, time)."""
    for _ in range(len(x.shape) - 2):
        index = ops.expand_dims(index, -1)
    if dispatch.is_converting and keras.config.backend() == "torch":
        # Keras' `take_along_axis` binds a program to its example's sizes.
        shape = (*index.shape[:2], *x.shape[2:])
        return x.gather(1, ops.cast(index, "int64").expand(shape))
    return ops.take_along_axis(x, index, axis=1)


def _cumulative_max(x):
    """The largest of each row of `x` `(batch, time)` up to each column."""
    time = x.shape[1]
    if keras.config.backend() == "torch" and not dispatch.is_converting:
        return x.cummax(1).values  # in one operation
    if isinstance(time, int):
        step = 1
        while step < time:
            larger = ops.maximum(x[:, step:], x[:, :-step])
            x = ops.concatenate([x[:, :step], larger], axis=1)
            step *= 2
        return x
    # A slice would have to know which is longer.
    if keras.config.backend() == "jax":
        import jax

        return jax.lax.cummax(x, axis=1)
    columns = ops.arange(ops.shape(x)[1], dtype="int32")
    for step in dispatch.doublings(time):
        earlier = take_columns(x, ops.maximum(columns - step, 0))
        x = ops.maximum(x, earlier)
    return x


def _is_one(time):
    return isinstance(time, int) and time == 1
