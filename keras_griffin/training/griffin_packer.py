from __future__ import annotations

import collections
import itertools
import sys
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np


class GriffinPacker:
    """Packs documents of token ids into rows of one length, for `fit`.

    Several short documents share a row, each under a number of its own: the
    model computes for each what it would for the document alone, so that
    packing changes the speed and nothing else. Documents keep their tokens:
    each token is in one row, once.

    A document goes into the first of a few open rows that has room for it. If
    none has, the fullest row is given out. Documents longer than a row are cut
    into pieces that know nothing of each other; `stateful_rows` and a
    `StatefulTrainer` are the way to train on them whole.

    Args:
        sequence_length: int. Length of the rows [tokens].
        num_open_rows: int. More of them leave fewer pads, and move documents
            further from their neighbours. Defaults to `16`.
        pad_token_id: int. Defaults to `0`.

    Call arguments:
        documents: token ids, 1-D for each document, as
            - a sequence, say what a tokenizer returns;
            - a `tf.data.Dataset`;
            - a Grain `MapDataset` or `IterDataset`.

    Returns:
        Rows `(x, y, sample_weight)`, where `x` is a dict of `"token_ids"` and
        `"padding_mask"` (the document's number in the row, 1, 2, ..., and 0 at
        pads), `y` the next tokens, and `sample_weight` 1 where the next token
        belongs to the same document, 0 at a document's last token and at
        pads. For a sequence, arrays of all rows `(rows, sequence_length)`;
        for a dataset, a dataset of the same kind whose elements are rows
        `(sequence_length,)`, to be batched. The same rows for all of them.
        Grain's iterator can be saved and restored between any two rows.

    Raises:
        ValueError: for sizes below 1, and for documents that are not 1-D
            integers (out of a `tf.data` pipeline as
            `tf.errors.InvalidArgumentError`).

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    tokenizer = model.preprocessor.tokenizer
    documents = [
        [tokenizer.start_token_id, *ids, tokenizer.end_token_id]
        for ids in tokenizer(["To be, or not to be", "Words, words, words."])
    ]
    packer = keras_griffin.GriffinPacker(sequence_length=64)
    x, y, sample_weight = packer(documents)

    model.preprocessor = None  # the rows are tokens already
    model.compile(optimizer="adam")
    model.fit(x, y, sample_weight=sample_weight, batch_size=1)
    ```

    Source:
        First fit is the packing of Grain and of MaxText, among others.
    """

    def __init__(
        self,
        sequence_length: int,
        num_open_rows: int = 16,
        pad_token_id: int = 0,
    ) -> None:
        for name, size in (
            ("sequence_length", sequence_length),
            ("num_open_rows", num_open_rows),
        ):
            if size < 1:
                raise ValueError(
                    f"`{name}` must be at least 1. Received: {name}={size}. "
                    "Give a positive integer."
                )
        self.sequence_length = sequence_length
        self.num_open_rows = num_open_rows
        self.pad_token_id = pad_token_id

    def __call__(self, documents: Any) -> Any:
        # Neither is imported for documents that do not come from it.
        tf, grain = sys.modules.get("tensorflow"), sys.modules.get("grain")
        if tf is not None and isinstance(documents, tf.data.Dataset):
            return self._pack_tf_data(documents)
        if grain is not None and isinstance(
            documents, (grain.MapDataset, grain.IterDataset)
        ):
            return _pack_grain(self, documents)
        rows = list(self.rows(documents))
        _check_not_empty(rows)
        return _join(np.stack, rows)

    def rows(self, documents: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
        """Yields row after row, of any iterable of documents.

        Args:
            documents: iterable of 1-D token ids; it may be endless.

        Yields:
            `(x, y, sample_weight)`, of shape `(sequence_length,)` each.
        """
        open_rows = []
        for document in documents:
            for row in self._place(document, open_rows):
                yield self._make_row(*row)
        for pieces in open_rows:
            yield self._make_row(pieces)

    def _place(self, document, open_rows):
        """Puts a document into rows, and yields those that are done by it.

        Args:
            document: 1-D token ids.
            open_rows: list of rows, each a list of pieces. Changed.

        Yields:
            Arguments of `_make_row`.
        """
        document, length = _check_document(document), self.sequence_length
        whole = max(len(document) - 1, 0) // length
        for start in range(0, whole * length, length):
            end = start + length
            yield [document[start:end]], int(document[end])
        piece = document[whole * length :]
        if not len(piece):
            return
        for row in open_rows:
            if _size(row) + len(piece) <= length:
                row.append(piece)
                return
        if len(open_rows) == self.num_open_rows:
            yield (
                open_rows.pop(int(np.argmax(list(map(_size, open_rows))))),
                None,
            )
        open_rows.append([piece])

    def _make_row(self, pieces, next_token=None):
        """`(x, y, sample_weight)` of one row.

        Args:
            pieces: list of 1-D token ids.
            next_token: int. What follows a piece that fills the row.
        """
        numbers = [np.full(len(p), i) for i, p in enumerate(pieces, 1)]
        return self._finish(
            np.concatenate(pieces), np.concatenate(numbers), next_token
        )

    def stateful_rows(
        self, documents: Sequence[Any], batch_size: int
    ) -> tuple[Any, Any, Any]:
        """Returns all batches of `stateful_batches`, one below the other.

        Args:
            documents: sequence of 1-D token ids.
            batch_size: int. Number of rows that a batch has.

        Returns:
            `(x, y, sample_weight)`, of shape `(batches * batch_size,
            sequence_length)`: row `i` is continued by row `i + batch_size`.

        Raises:
            ValueError: as `stateful_batches`, and if there is no token.
        """
        batches = list(self.stateful_batches(documents, batch_size))
        _check_not_empty(batches)
        return _join(np.concatenate, batches)

    def stateful_batches(
        self, documents: Iterable[Any], batch_size: int
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Yields batches whose rows go on where the last batch's rows end.

        Row `i` of all batches together is one long text: document after
        document, whole. Only a model that keeps its state from batch to batch
        can make use of it: see `StatefulTrainer`. The mask counts documents,
        from 1. When they run out, rows end in pads.

        Args:
            documents: iterable of 1-D token ids; it may be endless.
            batch_size: int. Number of rows.

        Yields:
            `(x, y, sample_weight)`, of shape `(batch_size, sequence_length)`.

        Raises:
            ValueError: for a `batch_size` below 1, and for documents that are
                not 1-D integers.

        Example:
        ```python
        packer = keras_griffin.GriffinPacker(sequence_length=4)
        batches = packer.stateful_batches([range(1, 11), [5, 6]], batch_size=1)
        [x["token_ids"] for x, y, sample_weight in batches]
        # [[[1, 2, 3, 4]], [[5, 6, 7, 8]], [[9, 10, 5, 6]]]
        ```
        """
        if batch_size < 1:
            raise ValueError(
                "`batch_size` must be at least 1. Received: batch_size="
                f"{batch_size}. Give a positive integer."
            )
        # A token, its document's number, what follows it there or None.
        tokens = self._tokens_of_rows(documents, batch_size)
        while True:
            chunk = [
                list(itertools.islice(row, self.sequence_length))
                for row in tokens
            ]
            if not any(chunk):
                return
            yield _join(np.stack, [self._stateful_row(row) for row in chunk])

    def _tokens_of_rows(self, documents, batch_size):
        # A row takes the next document when it has none left, in the order in
        # which rows are read.
        numbered = enumerate(map(_check_document, documents), 1)

        def row():
            for number, document in numbered:
                for token, following in itertools.zip_longest(
                    document.tolist(), document[1:].tolist()
                ):
                    yield token, number, following

        return [row() for _ in range(batch_size)]

    def _stateful_row(self, tokens):
        if not tokens:
            return self._finish(np.zeros(0), np.zeros(0), None)
        token_ids, numbers, following = zip(*tokens)
        full = len(tokens) == self.sequence_length
        return self._finish(
            np.array(token_ids),
            np.array(numbers),
            following[-1] if full else None,
        )

    def _finish(self, token_ids, numbers, next_token):
        """Pads a row, and finds its labels and their weights."""
        real = len(token_ids)
        pads = self.sequence_length - real
        token_ids = np.pad(
            token_ids, (0, pads), constant_values=self.pad_token_id
        ).astype("int32")
        padding_mask = np.pad(numbers, (0, pads)).astype("int32")
        y = np.roll(token_ids, -1)
        y[-1] = self.pad_token_id if next_token is None else next_token
        sample_weight = np.zeros(self.sequence_length, "float32")
        sample_weight[:-1] = padding_mask[1:] == padding_mask[:-1]
        sample_weight[real:] = 0.0
        sample_weight[-1] = next_token is not None
        x = {"token_ids": token_ids, "padding_mask": padding_mask}
        return x, y, sample_weight

    def _pack_tf_data(self, documents):
        import tensorflow as tf

        ids = tf.TensorSpec((self.sequence_length,), "int32")
        names = ("token_ids", "padding_mask")
        return tf.data.Dataset.from_generator(
            lambda: self.rows(documents.as_numpy_iterator()),
            output_signature=(
                dict.fromkeys(names, ids),
                ids,
                tf.TensorSpec((self.sequence_length,), "float32"),
            ),
        )


def _pack_grain(packer, documents):
    import grain

    class Rows(grain.DatasetIterator):
        def __init__(self, parent):
            super().__init__(parent)
            self._open, self._done = [], collections.deque()

        def __next__(self):
            while not self._done:
                try:
                    document = next(self._parent)
                except StopIteration:
                    if not self._open:
                        raise
                    self._done.append((self._open.pop(0), None))
                else:
                    self._done.extend(packer._place(document, self._open))
            return packer._make_row(*self._done.popleft())

        def get_state(self):
            # Lists and ints: Grain writes states as JSON.
            return {
                "parent": self._parent.get_state(),
                "open": [_to_lists(pieces) for pieces in self._open],
                "done": [
                    (_to_lists(p), following) for p, following in self._done
                ],
            }

        def set_state(self, state):
            self._parent.set_state(state["parent"])
            self._open = [_to_arrays(pieces) for pieces in state["open"]]
            self._done = collections.deque(
                (_to_arrays(p), following) for p, following in state["done"]
            )

    class PackedIterDataset(grain.IterDataset):
        def __iter__(self):
            return Rows(self._parent.__iter__())

    if isinstance(documents, grain.MapDataset):
        documents = documents.to_iter_dataset()
    return PackedIterDataset(documents)


def _check_document(document):
    array = np.asarray(document)
    if array.size == 0 and array.ndim == 1:
        return array.astype("int32")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "A document must be token ids, 1-D and integers. Received: shape "
            f"{array.shape}, dtype {array.dtype}. Tokenize texts, and unbatch "
            "datasets."
        )
    return array.astype("int32")


def _to_lists(pieces):
    return [piece.tolist() for piece in pieces]


def _to_arrays(pieces):
    return [np.array(piece, "int32") for piece in pieces]


def _size(row):
    return sum(len(piece) for piece in row)


def _check_not_empty(rows):
    if not rows:
        raise ValueError(
            "Documents must have a token at least. Received: none. Is the "
            "iterator used up?"
        )


def _join(how, parts):
    """Arrays of all parts `(x, y, sample_weight)`, by `np.stack` or so."""
    x, y, sample_weight = zip(*parts)
    x = {name: how([part[name] for part in x]) for name in x[0]}
    return x, how(y), how(sample_weight)
