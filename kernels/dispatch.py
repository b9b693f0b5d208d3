"""Which implementation of an operation runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading

import keras

IMPLEMENTATIONS = ("auto", "ops", "pallas_tpu", "pallas_gpu", "triton_gpu")
# What "auto" means in this process, unless `set_implementation` says so.
VARIABLE = "KERAS_GRIFFIN_IMPLEMENTATION"
# Tokens of a row whose length is not known when it is traced.
MAX_TIME = 2**24

_logger = logging.getLogger("keras_griffin")
_setting = None
# Whether operations are traced for a converter; see `converting`. Not a context
# variable, which `torch.compile` does not read.
is_converting = False
_one_conversion = threading.Lock()


def set_implementation(implementation: str | None) -> None:
    """Sets what `implementation="auto"` means, for the whole process.

    A layer or an operation that was given another name keeps it. Before the
    first call the environment variable `KERAS_GRIFFIN_IMPLEMENTATION` counts.
    Programs that are compiled already stay as they are, so call it first.

    Args:
        implementation: one of `IMPLEMENTATIONS`, or `None` to go back to the
            environment variable. `"auto"`: a kernel where there is one for
            the platform that a program is compiled for.

    Raises:
        ValueError: if `implementation` is unknown.

    Example:

    >>> from keras_griffin.kernels.dispatch import set_implementation
    >>> set_implementation("ops")  # no kernels, anywhere
    >>> set_implementation(None)
    """
    global _setting
    if implementation is not None:
        _check_name("implementation", implementation)
    _setting = implementation


def resolve(implementation):
    """The implementation that is meant: the setting, if it is `"auto"`.

    Raises:
        ValueError: if the name, or that in the environment, is unknown.
        NotImplementedError: if the name is not for this backend.
    """
    _check_name("implementation", implementation)
    source = f"implementation={implementation!r}"
    if implementation == "auto":
        if _setting is not None:
            implementation = _setting
            source = f"set_implementation({_setting!r})"
        elif VARIABLE in os.environ:
            implementation = os.environ[VARIABLE]
            source = f"{VARIABLE}={implementation}"
            _check_name(f"The variable {VARIABLE}", implementation)
    if implementation.startswith("pallas") and keras.config.backend() != "jax":
        raise NotImplementedError(
            f"{source} needs the JAX backend. Received: backend "
            f"{keras.config.backend()!r}. Set KERAS_BACKEND=jax, or use "
            "implementation='auto'."
        )
    return implementation


@contextlib.contextmanager
def converting():
    """What is traced within is for a converter to another format.

    It has neither loops nor sorts, which some converters do not take. What
    other threads trace meanwhile has none either, and computes the same.
    """
    global is_converting
    with _one_conversion:
        is_converting = True
        try:
            yield
        finally:
            is_converting = False


def doublings(time):
    """1, 2, 4 and so on, below a length.

    Args:
        time: int, or what stands for a length that is not known.
    """
    limit = time if isinstance(time, int) else MAX_TIME
    return [2**i for i in range(max(limit - 1, 0).bit_length())]


@functools.lru_cache
def log_once(message):
    """Logs a message as information, the first time."""
    _logger.info(message)


def _check_name(what, implementation):
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(
            f"`{what}` must be one of {known}. Received: {implementation!r}"
        )
