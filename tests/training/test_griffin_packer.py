"""Packed rows: what is in them, and that `fit` takes them in every form."""

import json

import grain
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_griffin import GriffinPacker
from support.checks import assert_close
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import run
from support.models import tiny_model
from support.models import tokens

independent = pytest.mark.backend_independent

# Shorter than the convolution (1 to 3), as long as a row, longer than it by
# one, and than two and a half rows.
LENGTHS = (3, 1, 20, 2, 8, 9, 7, 0, 5, 1, 1, 17, 4)
ROW = 8


def documents(lengths=LENGTHS):
    return [tokens(1, n, seed=i)[0] for i, n in enumerate(lengths)]


def packer(**kwargs):
    return GriffinPacker(
        **{"sequence_length": ROW, "num_open_rows": 2, **kwargs}
    )


def pieces_of(rows):
    """`(ids, labels of weight 1)` of every piece of every row."""
    x, y, sample_weight = rows
    for i in range(len(y)):
        for number in range(1, x["padding_mask"][i].max() + 1):
            here = x["padding_mask"][i] == number
            ids = x["token_ids"][i][here].tolist()
            weighted = here & (sample_weight[i] == 1)
            # Only a last token can be without a label.
            assert weighted.sum() in (len(ids) - 1, len(ids))
            yield ids, y[i][weighted].tolist()


@independent
def test_rows_hold_each_token_once_and_predict_within_documents():
    x, y, sample_weight = packer()(documents())
    real = x["padding_mask"] > 0
    assert set(np.unique(sample_weight)) == {0, 1}
    assert np.all(sample_weight[~real] == 0)
    assert np.all(x["token_ids"][~real] == 0)
    assert np.all(np.diff(real.astype(int), axis=1) <= 0)  # pads come last
    expected = []
    for document in documents():
        document = document.tolist()
        for start in range(0, len(document), ROW):
            ids = document[start : start + ROW]
            expected.append((ids, document[start + 1 : start + 1 + len(ids)]))
    assert sorted(pieces_of((x, y, sample_weight))) == sorted(expected)
    for array in (y, *x.values()):
        assert array.dtype == "int32"
    assert sample_weight.dtype == "float32"


@independent
def test_packing_is_greedy():
    def row(*lengths):
        return sorted(lengths)

    def lengths_of_rows(lengths, num_open_rows):
        x, _, _ = packer(num_open_rows=num_open_rows)(documents(lengths))
        return [
            sorted(np.bincount(ids[ids > 0])[1:].tolist())
            for ids in x["padding_mask"]
        ]

    # 3 finds room in the first row, after 6 did not.
    assert lengths_of_rows((5, 6, 3, 2), 2) == [row(5, 3), row(6, 2)]
    # With one open row, 5 is given out for 6.
    assert lengths_of_rows((5, 6, 3, 2), 1) == [row(5), row(6), row(3, 2)]
    # The fullest is given out: 7, not 5.
    assert lengths_of_rows((5, 7, 6, 3), 2) == [row(7), row(5, 3), row(6)]


@independent
def test_pad_token_id():
    x, y, _ = packer(pad_token_id=9)([[1, 2]])
    assert x["token_ids"].tolist() == [[1, 2] + [9] * 6]
    assert y.tolist() == [[2] + [9] * 7]


def data_sets(documents):
    spec = tf.TensorSpec((None,), "int32")
    return {
        "tf.data": tf.data.Dataset.from_generator(
            lambda: iter(documents), output_signature=spec
        ),
        "grain map": grain.MapDataset.source(documents),
        "grain iter": grain.MapDataset.source(documents).to_iter_dataset(),
    }


@independent
@pytest.mark.parametrize("kind", data_sets([]))
def test_all_pipelines_give_the_same_rows(kind):
    packed = packer()(data_sets(documents())[kind])
    for _ in range(2):  # A dataset can be read again.
        rows = packed
        if kind == "tf.data":
            rows = packed.as_numpy_iterator()
        assert_same(stack(rows), packer()(documents()))
    assert_same(stack(packer().rows(iter(documents()))), packer()(documents()))


def stack(rows):
    return keras.tree.map_structure(lambda *leaves: np.stack(leaves), *rows)


def assert_same(x, y):
    keras.tree.map_structure(np.testing.assert_array_equal, x, y)


@independent
def test_grain_goes_on_from_any_row():
    packed = packer()(data_sets(documents())["grain map"])
    iterator = iter(packed)
    states, rows = [], []
    while True:
        states.append(json.loads(json.dumps(iterator.get_state())))
        row = next(iterator, None)
        if row is None:
            break
        rows.append(row)
    for i, state in enumerate(states):
        again = iter(packed)
        again.set_state(state)
        rest = list(again)
        assert len(rest) == len(rows) - i
        for a, b in zip(rest, rows[i:], strict=True):
            assert_same(a, b)


@independent
def test_endless_documents():
    rows = packer().rows(iter(lambda: [1, 2, 3], None))
    for _ in range(3):
        x, _, _ = next(rows)
        assert x["token_ids"].tolist() == [1, 2, 3, 1, 2, 3, 0, 0]


@independent
def test_bad_arguments_are_refused():
    for name in ("sequence_length", "num_open_rows"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
            packer(**{name: 0})
    for bad in ("text", [[1, 2]], [1.5], 3):
        with pytest.raises(ValueError, match="1-D and integers"):
            packer()([bad])
    with pytest.raises(ValueError, match="a token at least"):
        packer()([[], []])
    with pytest.raises(ValueError, match="a token at least"):
        packer().stateful_rows([[], []], batch_size=1)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="1-D and integers"
    ):
        list(packer()(tf.data.Dataset.from_tensors([[1, 2]])))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        next(packer().stateful_batches([[1]], batch_size=0))


@independent
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_stateful_batches_are_whole_documents(batch_size):
    batches = list(packer().stateful_batches(documents(), batch_size))
    assert all(y.shape == (batch_size, ROW) for _, y, _ in batches)
    x, y, sample_weight = keras.tree.map_structure(
        lambda *leaves: np.concatenate(leaves, axis=1), *batches
    )
    rows = packer().stateful_rows(documents(), batch_size)
    for k, batch in enumerate(batches):
        here = slice(k * batch_size, (k + 1) * batch_size)
        assert_same(keras.tree.map_structure(lambda a: a[here], rows), batch)
    assert len(rows[1]) == batch_size * len(batches)
    found = {}
    for i in range(batch_size):
        real = x["padding_mask"][i] > 0
        assert np.all(np.diff(real.astype(int)) <= 0)
        assert np.all(sample_weight[i][~real] == 0)
        for number in np.unique(x["padding_mask"][i][real]):
            here = x["padding_mask"][i] == number
            ids = x["token_ids"][i][here]
            # One document is in one row, without a gap.
            assert number not in found
            assert np.ptp(np.flatnonzero(here)) == len(ids) - 1
            found[number] = ids.tolist()
            weighted = here & (sample_weight[i] == 1)
            assert y[i][weighted].tolist() == ids[1:].tolist()
    expected = {i: d.tolist() for i, d in enumerate(documents(), 1) if len(d)}
    assert found == expected


# --- In `fit`, on every backend ---


def batches_of(kind, rows, batch_size=2):
    """Arguments of `fit`."""
    if kind == "arrays":
        x, y, sample_weight = packer()(rows)
        return {
            "x": x,
            "y": y,
            "sample_weight": sample_weight,
            "batch_size": batch_size,
        }
    return {
        "x": packer()(data_sets(rows)[kind]).batch(batch_size),
        # Without it, Keras warns where data of unknown length end.
        "steps_per_epoch": len(packer()(rows)[1]) // batch_size,
    }


def weights_after_fit(model, start, **inputs):
    model.set_weights(start)
    model.fit(**inputs, shuffle=False, verbose=0)
    return model.get_weights()


def test_fit_takes_packed_rows_from_every_pipeline():
    model = tiny_model()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    start = model.get_weights()
    expected = weights_after_fit(
        model, start, **batches_of("arrays", documents())
    )
    assert not np.allclose(expected[0], start[0])
    for kind in ("tf.data", "grain map"):
        inputs = batches_of(kind, documents())
        weights = weights_after_fit(model, start, **inputs)
        for a, b in zip(weights, expected, strict=True):
            assert_close(a, b, kind="gradients", name=kind)


def test_labels_at_borders_train_nothing():
    model = tiny_model()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    start = model.get_weights()
    x, y, sample_weight = packer()(documents())
    other = np.where(sample_weight, y, (y + 5) % VOCABULARY)
    assert np.any(other != y)
    results = [
        weights_after_fit(
            model, start, x=x, y=labels, sample_weight=sample_weight
        )
        for labels in (y, other)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def nats(model, rows):
    """Negative log likelihoods, in order, of the labels of weight 1."""
    x, y, sample_weight = rows
    logits = run(model, **x).astype("float64")
    chosen = np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(logits).sum(axis=-1)) - chosen
    return losses[sample_weight == 1]


@pytest.mark.parametrize("pattern", ["griffin", "hawk", "mqa"])
def test_packed_documents_have_the_loss_of_each_alone(pattern):
    model = tiny_model(block_types=PATTERNS[pattern])
    short = documents((3, 1, 2, 20, 2, 9, 1, 11))
    packer = GriffinPacker(sequence_length=25)
    together = packer(short)
    assert len(together[1]) < len(short)
    alone = [packer([document]) for document in short]
    alone = keras.tree.map_structure(lambda *a: np.concatenate(a), *alone)
    expected = np.sort(nats(model, alone))
    assert_close(np.sort(nats(model, together)), expected)
    # And a leak would be seen.
    np.minimum(together[0]["padding_mask"], 1, out=together[0]["padding_mask"])
    leaky = np.sort(nats(model, together))
    assert np.abs(leaky - expected).max() > 1e-3
