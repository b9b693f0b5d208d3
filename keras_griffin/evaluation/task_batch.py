import numpy as np


def task_batch(rows, is_answer):
    """Rows of a task as `fit` takes them.

    Args:
        rows: `(batch, time + 1)` int32 ids, answers included.
        is_answer: bool, broadcasts to `rows`. Which ids are to be predicted.

    Returns:
        `(x, y, sample_weight)`, see `SelectiveCopying.sample`.
    """
    x = np.ascontiguousarray(rows[:, :-1])
    weight = np.broadcast_to(is_answer, rows.shape)[:, 1:]
    return (
        {"token_ids": x, "padding_mask": np.ones_like(x)},
        np.ascontiguousarray(rows[:, 1:]),
        weight.astype("float32"),
    )
