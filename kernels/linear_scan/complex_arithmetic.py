"""Arithmetic on numbers held as tuples: `(real,)` or `(real, imaginary)`.

Pairs of real tensors, not complex tensors: float32 pairs work on every
backend and accelerator, and Pallas kernels take them as they are.
"""


def add(p, q):
    return tuple(u + v for u, v in zip(p, q, strict=True))


def multiply(p, q):
    if len(p) == 1:
        return (p[0] * q[0],)
    return (p[0] * q[0] - p[1] * q[1], p[0] * q[1] + p[1] * q[0])


def conjugate(p):
    return p if len(p) == 1 else (p[0], -p[1])
