"""Folders and files that appear with all their content, or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def whole_folder(path, replace=False):
    """Gives a folder to write into, which becomes `path` at the end.

    After an error nothing is left of it, and what was there before is as it
    was.

    Args:
        path: str or path. The folder to be. Its parents are made.
        replace: bool. Whether `path` may hold files already: new files then
            take the place of old ones with their names, one by one, and other
            old files stay. Defaults to `False`.

    Raises:
        ValueError: if `path` is a file, or holds files without `replace`.
    """
    target = pathlib.Path(path).resolve()  # "." has no name
    if target.exists() and not target.is_dir():
        raise ValueError(
            f"A folder is written. Received: {path}, which is a file. Choose "
            "another name."
        )
    if not replace and target.is_dir() and any(target.iterdir()):
        raise ValueError(
            "The folder to write must be new or empty, so that files of two "
            f"checkpoints never mix. Received: {path}, with "
            f"{sorted(p.name for p in target.iterdir())[:5]}. Choose another "
            "folder, or empty this one."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename must not cross file systems.
    outer = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        # With the permissions that the user's files have; `outer` is private.
        inner = pathlib.Path(outer) / target.name
        inner.mkdir()
        yield inner
        if target.is_dir():
            _move_files(inner, target)
        else:
            inner.rename(target)
    finally:
        shutil.rmtree(outer)


def _move_files(source, target):
    for file in sorted(source.rglob("*")):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
