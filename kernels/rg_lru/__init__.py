from keras_griffin.kernels.rg_lru.api import rg_lru as rg_lru
