"""The scan on TensorFlow, by Triton."""

from keras_griffin.kernels.linear_scan.ops_scan import make_scan
from keras_griffin.kernels.linear_scan.ops_scan import scan_ops
from keras_griffin.kernels.linear_scan.triton_plan import check
from keras_griffin.kernels.linear_scan.triton_plan import loop
from keras_griffin.kernels.triton_tensorflow import check_call
from keras_griffin.kernels.triton_tensorflow import run


def scan_triton(x, a, carry, reverse=False, shifted=False):
    """See `ops_scan.make_scan`. No step, and one, are plain operations."""
    shape = tuple(x[0].shape)
    if 0 in shape or shape[1] == 1:
        return scan_ops(x, a, carry, reverse, shifted)
    check(x, a)
    check_call(x[0])
    return _scan(x, a, carry, reverse, shifted)


def _loop(x, a, carry, reverse, shifted):
    y, last = loop(run, x[0], a[0], carry[0], reverse, shifted)
    return (y,), (last,)


_scan = make_scan(_loop)
