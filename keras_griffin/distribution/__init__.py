"""Training on many devices and hosts."""

from keras_griffin.distribution.griffin_parallel import (
    GriffinParallel as GriffinParallel,
)
from keras_griffin.distribution.layout_map import (
    check_layout_map as check_layout_map,
)
from keras_griffin.distribution.layout_map import layout_map as layout_map
