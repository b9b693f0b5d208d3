from keras_griffin.kernels.rg_lru.api import rg_lru as rg_lru
from keras_griffin.kernels.rg_lru.gates_and_decay import (
    gates_and_decay as gates_and_decay,
)
