"""Losses by position, against logits of whole rows."""

import numpy as np
import pytest

from keras_griffin import evaluation
from support.checks import assert_close
from support.models import PATTERNS
from support.models import WINDOW
from support.models import run
from support.models import tiny_model
from support.models import tokens

pytestmark = pytest.mark.backend_independent

TEXT = tokens(1, 60)[0]
LENGTH = 3 * WINDOW + 1
STRIDE = 8


def rows(stride):
    starts = range(0, len(TEXT) - LENGTH + 1, stride)
    return np.stack([TEXT[i : i + LENGTH] for i in starts])


def expected_losses(model, token_ids):
    logits = run(model, token_ids).astype("float64")[:, :-1]
    chosen = np.take_along_axis(logits, token_ids[:, 1:, None], axis=-1)
    nats = np.log(np.exp(logits).sum(axis=-1)) - chosen[..., 0]
    return nats.mean(axis=0)


def test_losses_of_rows_that_overlap():
    model = tiny_model(block_types=PATTERNS["mixed"])
    assert len(rows(STRIDE)) % 4  # the last batch is smaller
    losses = evaluation.loss_by_position(
        model, TEXT, LENGTH, stride=STRIDE, batch_size=4
    )
    assert losses.shape == (LENGTH - 1,)
    assert losses.dtype == "float64"
    assert_close(losses, expected_losses(model, rows(STRIDE)))


def test_rows_tile_the_text_by_default():
    model = tiny_model(num_layers=1, block_types=("recurrent",))
    losses = evaluation.loss_by_position(model, TEXT.tolist(), LENGTH)
    assert_close(losses, expected_losses(model, rows(LENGTH)))
    # What is left at the end of the text makes no row.
    longest = len(TEXT) // LENGTH * LENGTH
    shorter = evaluation.loss_by_position(model, TEXT[:longest], LENGTH)
    np.testing.assert_array_equal(losses, shorter)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"length": 1}, "`length` must be at least 2. Received: length=1"),
        ({"stride": 0}, "`stride` must be at least 1. Received: stride=0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"token_ids": TEXT[None]}, r"Received: shape \(1, 60\)"),
        ({"length": 61}, r"Received: shape \(60,\), length=61"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    arguments = {"token_ids": TEXT, "length": LENGTH, **changes}
    with pytest.raises(ValueError, match=message):
        evaluation.loss_by_position(None, **arguments)
