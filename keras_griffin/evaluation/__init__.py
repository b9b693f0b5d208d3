"""Measures of a model: synthetic tasks, loss by position, lm-eval."""

from keras_griffin.evaluation.exact_match import exact_match as exact_match
from keras_griffin.evaluation.induction_heads import (
    InductionHeads as InductionHeads,
)
from keras_griffin.evaluation.phonebook import Phonebook as Phonebook
from keras_griffin.evaluation.selective_copying import (
    SelectiveCopying as SelectiveCopying,
)
