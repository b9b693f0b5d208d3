"""Which implementation of an operation runs."""

import functools
import logging

import keras

IMPLEMENTATIONS = ("auto", "ops", "pallas_tpu")

_logger = logging.getLogger("keras_griffin")


def run(implementation, ops, pallas_tpu, *inputs):
    """Calls the implementation that was asked for.

    Args:
        implementation: one of `IMPLEMENTATIONS`. `"auto"` takes the kernel on
            a machine with a single TPU device, unless the kernel raises a
            `NotImplementedError`; the reason is logged, once. A name never
            falls back.
        ops, pallas_tpu: callables without arguments that return the
            implementation, so that one is imported only where it is used.
        *inputs: its arguments.

    Returns:
        What the implementation returns.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(
            f"`implementation` must be one of {known}. Received: "
            f"implementation={implementation!r}"
        )
    if implementation == "pallas_tpu":
        if keras.config.backend() != "jax":
            raise NotImplementedError(
                "implementation='pallas_tpu' needs the JAX backend. Received: "
                f"backend {keras.config.backend()!r}. Set KERAS_BACKEND=jax, "
                "or use implementation='auto'."
            )
        return pallas_tpu()(*inputs)
    if implementation == "auto" and _has_tpu():
        try:
            return pallas_tpu()(*inputs)
        except NotImplementedError as error:
            log_once(f"Plain operations instead of a TPU kernel: {error}")
    return ops()(*inputs)


@functools.lru_cache
def log_once(message):
    """Logs a message as information, the first time."""
    _logger.info(message)


def _has_tpu():
    if keras.config.backend() != "jax":
        return False
    import jax

    if jax.default_backend() != "tpu":
        return False
    if jax.device_count() > 1:
        log_once(
            "Plain operations instead of a TPU kernel: there are several "
            "devices, over which XLA cannot partition a kernel."
        )
        return False
    return True
