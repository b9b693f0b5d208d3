"""What a state is, in a line."""

from keras_griffin.generation import state_rows
from support.models import tiny_model


def test_describe():
    model = tiny_model(num_layers=3)
    state = model.init_state(2)
    line = state_rows.describe(state)
    assert line.startswith("state of 2 rows, 3 blocks, ")
    assert line.endswith(" MB") and len(line) < 60
    one = tiny_model(num_layers=1, dtype="bfloat16").init_state(1)
    assert state_rows.describe(one).startswith("state of 1 row, 1 block, ")
