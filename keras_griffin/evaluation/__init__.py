"""Measures of a model: synthetic tasks, loss by position, lm-eval."""

from keras_griffin.evaluation.exact_match import exact_match as exact_match
from keras_griffin.evaluation.induction_heads import (
    InductionHeads as InductionHeads,
)
from keras_griffin.evaluation.loss_by_position import (
    loss_by_position as loss_by_position,
)
from keras_griffin.evaluation.phonebook import Phonebook as Phonebook
from keras_griffin.evaluation.selective_copying import (
    SelectiveCopying as SelectiveCopying,
)


def __getattr__(name):
    # Its base class is lm-eval's, which few installations have.
    if name == "GriffinLM":
        try:
            import lm_eval  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "GriffinLM needs lm-eval, which is not installed. Run: "
                "pip install 'keras-griffin[eval]'"
            ) from error
        from keras_griffin.evaluation.griffin_lm import GriffinLM

        return GriffinLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
