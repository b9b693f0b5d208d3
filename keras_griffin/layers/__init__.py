from keras_griffin.layers.block_diagonal_dense import (
    BlockDiagonalDense as BlockDiagonalDense,
)
from keras_griffin.layers.causal_conv1d import CausalConv1D as CausalConv1D
from keras_griffin.layers.decay_initializer import (
    DecayInitializer as DecayInitializer,
)
from keras_griffin.layers.gated_mlp import GatedMLP as GatedMLP
from keras_griffin.layers.local_mqa import LocalMQA as LocalMQA
from keras_griffin.layers.recurrent_block import (
    RecurrentBlock as RecurrentBlock,
)
from keras_griffin.layers.residual_block import ResidualBlock as ResidualBlock
from keras_griffin.layers.reversible_embedding import (
    ReversibleEmbedding as ReversibleEmbedding,
)
from keras_griffin.layers.rglru import RGLRU as RGLRU
from keras_griffin.layers.rglru_cell import RGLRUCell as RGLRUCell
from keras_griffin.layers.rms_normalization import (
    RMSNormalization as RMSNormalization,
)
