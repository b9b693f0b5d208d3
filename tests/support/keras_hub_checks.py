"""KerasHub's checks of its own models, for ours.

`TestCase` is in no public module of KerasHub: this is the one place of the
tests that takes it from `keras_hub.src` (read in 0.29), and an ImportError here
says that it has moved.
"""

from keras_hub.src.tests.test_case import TestCase


def keras_hub_checks(**init_kwargs):
    """KerasHub's `TestCase`, whose `run_..._test` are called as functions.

    Args:
        **init_kwargs: what some of them look for on the test itself.
    """
    checks = TestCase("run_backbone_test")
    checks.init_kwargs = init_kwargs
    return checks
