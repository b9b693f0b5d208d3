"""Measures of a model: synthetic tasks, loss by position, lm-eval."""
