"""Training that can be stopped, and goes on."""

from keras_griffin.training.resumable_data import ResumableData as ResumableData
from keras_griffin.training.resumable_fit import resumable_fit as resumable_fit
from keras_griffin.training.stop_on_nan import StopOnNaN as StopOnNaN
