"""Files and folders that appear with all their content, or not at all.

What is written lies in a hidden folder until it is complete. A new name then
appears by one rename. In a folder that exists, one rename of the hidden folder
to COMMITTED decides: from then on the new files are what the folder holds, and
whoever writes or reads next ends what was begun (`finish`).
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import uuid

import filelock

PARTIAL = ".keras_griffin-partial-"
COMMITTED = ".keras_griffin-new"
# Readers of other libraries begin with them: they go first and come last.
ENTRIES = ("config.json", "saved_model.pb")
# Inside of a hidden folder: what is to be, what is to go, and who is at it.
FOLDER, REMOVED, LOCK, FINISH_LOCK = "folder", "removed", "lock", "finish"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole_file(path):
    """Gives a path to write to; the file becomes `path` at the end.

    After an error, or a kill at any moment, `path` is what it was before.

    Args:
        path: str or path. The file to be. A device or a pipe is written to
            as it is.

    Raises:
        OSError: as `check_place`, and if the disk is full.

    Example:
    ```python
    with whole_file("prompt.npz") as file:
        np.savez(file, **arrays)
    ```
    """
    target = pathlib.Path(path).resolve()  # the file that a link points to
    check_place(target)
    if target.exists() and not target.is_file():
        yield target
        return
    with _scratch(target.parent) as scratch:
        file = scratch / target.name
        yield file
        if target.exists():
            shutil.copymode(target, file)
        _sync(file)
        os.replace(file, target)
        _sync(target.parent)


def check_place(path):
    """Raises unless `whole_file` can write a path, as far as is known now.

    Args:
        path: str or path.

    Raises:
        IsADirectoryError: if it is a folder.
        FileNotFoundError: if its folder does not exist.
        PermissionError: if nothing may be written there.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"A file is written. Received: {str(path)!r}, which is a folder. "
            "Give the name of a file in it."
        )
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(
            "A file must be written into a folder that exists. Received: "
            f"{str(path)!r}. Make the folder first, or correct the path."
        )
    regular = path.is_file() or not path.exists()
    if not os.access(folder if regular else path, os.W_OK):
        raise PermissionError(
            "A file must be written where you may write. Received: "
            f"{str(path)!r}. Choose another folder."
        )


@contextlib.contextmanager
def whole_folder(path, replace=False, stale=()):
    """Gives a folder to write into, which becomes `path` at the end.

    After an error nothing is left of it, and what was there before is as it
    was. After a kill `path` holds all old files or, once `finish` has looked
    at it, all new ones.

    Args:
        path: str or path. The folder to be. Its parents are made.
        replace: bool. Whether `path` may hold files already: new files then
            take the place of old ones with their names, and other old files
            stay. Defaults to `False`.
        stale: patterns of names of old files that go even if no new file has
            their name. Defaults to `()`.

    Raises:
        ValueError: if `path` is a file, or holds files without `replace`.
        OSError: if the disk is full.
    """
    target = pathlib.Path(path).resolve()  # "." has no name
    if target.exists() and not target.is_dir():
        raise ValueError(
            f"A folder is written. Received: {path}, which is a file. Choose "
            "another name."
        )
    finish(target)
    _check_free(target, path, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, or in it: a rename must not cross file systems.
    beside = target if target.is_dir() else target.parent
    _clean(target.parent)
    with _scratch(beside) as scratch:
        inner = scratch / FOLDER / (target.name or "root")
        inner.mkdir(parents=True)
        yield inner
        _check_free(target, path, replace)
        for file in (*inner.rglob("*"), inner):
            _sync(file)
        if target.is_dir():
            _commit(scratch, inner, target, stale)
        else:
            os.rename(inner, target)
            _sync(target.parent)


def finish(folder):
    """Ends the replacement of a folder's files that a kill has cut off.

    Call it before a folder is read that `whole_folder` may have written.

    Args:
        folder: str or path. It need not exist.

    Raises:
        OSError: if the files must be moved and cannot be.
    """
    committed = pathlib.Path(folder) / COMMITTED
    while committed.is_dir():
        try:
            with filelock.FileLock(committed / FINISH_LOCK):
                _move(committed, pathlib.Path(folder))
        except OSError as error:
            raise OSError(
                error.errno,
                "The replacement of a folder's files must be ended before it "
                f"is read: it was cut off. Received: {str(folder)!r}, in "
                f"which files cannot be moved ({error}). Load it once where "
                "you may write to it; the new files are in "
                f"{COMMITTED!r}.",
            ) from error


def is_partial(path):
    """Whether a path lies in what is being written, and is whole with it."""
    parts = pathlib.Path(path).absolute().parts
    return any(part.startswith(PARTIAL) for part in parts)


def check_room(path, size):
    """Raises unless a disk has room, before HDF5 writes to it.

    HDF5 (2.0, h5py 3.15) ends the process by a signal on a full disk.

    Args:
        path: str or path. A file or folder on the disk.
        size: int. What is going to be written [bytes].

    Raises:
        OSError: if there is less room.
    """
    path = pathlib.Path(path).resolve()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < size:
        raise _full(path, errno.ENOSPC, f"{free:,} of {size:,} bytes are free")


@contextlib.contextmanager
def _scratch(parent):
    """A hidden folder in `parent`; those that writers died with go."""
    _clean(parent)
    scratch = None
    try:
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
        with filelock.FileLock(scratch / LOCK):
            yield scratch
    except OSError as error:
        if error.errno in FULL:
            raise _full(parent, error.errno, error) from error
        raise
    finally:
        if scratch is not None:
            _remove(scratch)


def _clean(parent):
    """Removes the hidden folders whose writers are not alive."""
    for scratch in parent.glob(PARTIAL + "*"):
        if not (scratch / LOCK).is_file():
            with contextlib.suppress(OSError):
                scratch.rmdir()
            continue
        with contextlib.suppress(filelock.Timeout):
            with filelock.FileLock(scratch / LOCK, blocking=False):
                _remove(scratch)


def _remove(scratch):
    """Removes a hidden folder, its lock last: by it what is left is known."""
    for name in (FOLDER, REMOVED):
        shutil.rmtree(scratch / name, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)


def _full(path, number, received):
    return OSError(
        number,
        "A disk must have room for what is written. Received: "
        f"{str(path)!r} ({received}). Free some, or choose another place; what "
        "was there before is as it was.",
    )


def _check_free(target, path, replace):
    """Raises if the folder holds files that may not be replaced."""
    if replace or not target.is_dir():
        return
    names = sorted(
        file.name
        for file in target.iterdir()
        if not file.name.startswith(PARTIAL)
    )
    if names:
        raise ValueError(
            "The folder to write must be new or empty, so that files of two "
            f"checkpoints never mix. Received: {path}, with {names[:5]}. "
            "Choose another folder, or empty this one."
        )


def _commit(scratch, inner, target, stale):
    """Decides that the new files are what `target` holds, and moves them."""
    for file in inner.rglob("*"):
        place = target / file.relative_to(inner)
        if place.exists() and place.is_dir() != file.is_dir():
            raise ValueError(
                "Files take the place of files, and folders of folders. "
                f"Received: {str(place)!r}, which is of the other kind. Move "
                "it away, or choose another folder."
            )
    removed = scratch / REMOVED
    removed.mkdir()
    for pattern in stale:
        for old in target.glob(pattern):
            if not (inner / old.name).exists():
                (removed / old.name).touch()
    _sync(removed)
    _sync(scratch)
    while True:
        try:
            os.rename(scratch, target / COMMITTED)
            break
        except OSError as error:
            # Another writer has just decided; its files come first.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            finish(target)
    _sync(target)
    finish(target)


def _move(committed, target):
    """Moves the new files to their places. May begin anew after a kill."""
    if not (committed / FOLDER).is_dir():  # another process was faster
        shutil.rmtree(committed, ignore_errors=True)
        return
    (source,) = (committed / FOLDER).iterdir()
    files = [file for file in sorted(source.rglob("*")) if not file.is_dir()]
    entries = [file for file in files if file.name in ENTRIES]
    for file in entries:
        (target / file.relative_to(source)).unlink(missing_ok=True)
    _sync(target)
    for old in sorted((committed / REMOVED).iterdir()):
        (target / old.name).unlink(missing_ok=True)
    for file in (*(x for x in files if x not in entries), *entries):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
        _sync(place.parent)
    # By one rename again: half a removed folder would tell too little.
    done = target / f"{PARTIAL}{uuid.uuid4().hex}"
    os.rename(committed, done)
    _remove(done)


def _sync(path):
    """Has the disk hold what was written to a file or a folder."""
    flags = os.O_RDONLY
    if path.is_dir():
        if os.name == "nt":  # which opens no folders
            return
    elif os.name == "nt":
        flags = os.O_RDWR  # of which alone it writes buffers out
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
