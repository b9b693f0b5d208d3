"""Ends a writer at each of its steps, and fills the disk at each of them.

Python's own audit events tell the steps: a file opened for writing, a rename,
a removal, a new folder. What C code does between two of them is not seen.
"""

import contextlib
import errno
import os
import sys

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
GROWS = {"open", "os.mkdir"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """What a dead process does: nothing any more, not even cleaning up."""


class _Watch:
    root = None  # events outside of it are none of ours
    left = None  # steps until the end
    seen = 0
    full = False


def _on_event(event, arguments):
    if _Watch.root is None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITES:
            return
    elif event in CHANGES:
        path = arguments[0]
    else:
        return
    if not isinstance(path, (str, bytes, os.PathLike)) or not (
        os.fsdecode(path).startswith(_Watch.root)
    ):
        return
    _Watch.seen += 1
    if _Watch.left is None or _Watch.seen <= _Watch.left:
        return
    if not _Watch.full:
        raise Killed
    if event in GROWS:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def _watching(root, left, full):
    if not getattr(_Watch, "installed", False):
        sys.addaudithook(_on_event)  # for the life of the process
        _Watch.installed = True
    _Watch.left, _Watch.seen, _Watch.full = left, 0, full
    _Watch.root = str(root)
    try:
        yield
    finally:
        _Watch.root = None


def count_steps(write, root):
    """How many steps `write()` takes below the folder `root`."""
    with _watching(root, None, False):
        write()
    return _Watch.seen


def kill(write, root, after):
    """Runs `write()` until `after` steps are done."""
    with _watching(root, after, False), contextlib.suppress(Killed):
        write()


def fill_disk(write, root, after):
    """Runs `write()` on a disk that is full after some steps.

    Returns:
        Its error, or `None`.
    """
    with _watching(root, after, True):
        try:
            write()
        except OSError as error:
            return error
    return None
