"""Killed on 8 devices within an epoch, a run ends with the same weights."""

import signal

import numpy as np
import pytest

from support.processes import run

pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

SCRIPT = "training/killed_training.py"


def test_a_killed_run_goes_on(tmp_path):
    run(SCRIPT, tmp_path, "whole", devices=8, returncode=-signal.SIGKILL)
    backups = [path.name for path in (tmp_path / "backup").iterdir()]
    assert "7" in backups  # the one after 8 steps may not be complete
    run(SCRIPT, tmp_path, "rest", devices=8)
    whole = np.load(tmp_path / "whole.npz")
    rest = np.load(tmp_path / "rest.npz")
    assert set(whole) == set(rest)
    for name, weight in whole.items():
        np.testing.assert_array_equal(rest[name], weight)
