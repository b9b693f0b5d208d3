"""What happens around the imports of `keras_griffin/__init__.py`."""

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

# TensorFlow prints these while its libraries are loaded, before it reads
# TF_CPP_MIN_LOG_LEVEL: no setting of its own silences them (2.21). The errors
# among them say that CUDA plug-ins are registered twice, which is harmless, and
# that there is no GPU.
_TENSORFLOW_START = re.compile(
    rb"[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] "
    rb"|E\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] "
    rb"(Unable to register cu|failed call to cuInit)"
    rb"|WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|To enable the following instructions: "
)
_STDERR = 2  # the file descriptor that C++ writes to


def started_as_command():
    """True in a process of the `keras-griffin` command.

    It chooses the backend, which has to come before Keras is imported, and
    answers `--help` and `presets` at once, without Keras.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is looking for the module to run
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == __package__
    return Path(program).stem == "keras-griffin"


def is_installed(package):
    """True if a package can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # kept away by an import hook
        return False


@contextlib.contextmanager
def quiet_tensorflow():
    """Drops TensorFlow's start-up lines, and nothing else, from stderr.

    KerasHub imports TensorFlow, where it is installed, under every backend.
    Standard error is kept in a file meanwhile; what is not one of those
    lines is written on afterwards. Set `TF_CPP_MIN_LOG_LEVEL=0` to see all.
    """
    if (
        "tensorflow" in sys.modules
        or not is_installed("tensorflow")
        or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"
    ):
        yield
        return
    try:
        original = os.dup(_STDERR)
    except OSError:  # the process was started without a standard error
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(original, _STDERR)
            os.close(original)
            kept.seek(0)
            for line in kept:
                if not _TENSORFLOW_START.match(line):
                    os.write(_STDERR, line)
