"""Measures of a model: synthetic tasks, loss by position, lm-eval."""

from keras_griffin.evaluation.loss_by_position import (
    loss_by_position as loss_by_position,
)
