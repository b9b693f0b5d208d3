"""Files of a checkpoint: regular ones, inside its folder, of a sane size."""

import json
import os
import pathlib
import stat

MIB = 2**20  # bytes
# The largest that are known are a tenth of these.
JSON_LIMIT = 16 * MIB
TOKENIZER_LIMIT = 64 * MIB
# Of Hugging Face's cache: snapshots/<revision>/<file> -> blobs/<hash>.
SNAPSHOTS, BLOBS = "snapshots", "blobs"


def regular_file(path, limit=None):
    """Returns a path after checking that it is a regular file.

    A pipe would keep whoever opens it waiting, and a device may never end.

    Args:
        path: str or path. Links are followed.
        limit: int. The largest size [bytes]. Defaults to `None`: any.

    Returns:
        A `pathlib.Path`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no regular file, or too large.
    """
    path = pathlib.Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"A file must exist to be read. Received: {str(path)!r}. Check "
            "the path."
        ) from None
    except (OSError, ValueError) as error:  # a loop of links, a zero byte
        raise ValueError(
            f"A file must have a path that can be followed. Received: "
            f"{str(path)!r} ({error}). Copy or download the folder again."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            "A file must be a regular one: no folder, pipe or device. "
            f"Received: {str(path)!r}. Put the file itself there."
        )
    if limit is not None and status.st_size > limit:
        raise ValueError(
            f"{path.name} must have at most {limit:,} bytes. Received: "
            f"{str(path)!r} of {status.st_size:,}. It is not what its name "
            "says; copy or download the folder again."
        )
    return path


def file_inside(folder, name, limit=None):
    """Returns the path of a regular file inside of a folder.

    Args:
        folder: str or path.
        name: str. The file's name in it, `"assets/vocabulary.spm"` say.
        limit: int. The largest size [bytes]. Defaults to `None`: any.

    Returns:
        A `pathlib.Path`.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it lies elsewhere, be it by a link (those of Hugging
            Face's cache into its blobs are followed), is no regular file, or
            too large.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    try:
        place, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop, a zero byte
        raise ValueError(
            f"A file must have a path that can be followed. Received: {name!r} "
            f"in {str(folder)!r} ({error}). Copy or download the folder again."
        ) from error
    allowed = [root]
    for above in root.parents:
        if above.name == SNAPSHOTS:
            allowed.append(above.parent / BLOBS)
    if not any(place.is_relative_to(one) for one in allowed):
        raise ValueError(
            "A checkpoint's files must lie in its folder. Received: "
            f"{name!r} in {str(folder)!r}, which is {str(place)!r}. Put the "
            "files themselves into the folder, if you trust them."
        )
    return regular_file(path, limit)


def has_file(folder, name):
    """Whether there is anything of this name in a folder, broken or not."""
    return os.path.lexists(os.path.join(folder, name))


def read_json(folder, name):
    """Returns the JSON object in a file of a folder.

    Args:
        folder: str or path.
        name: str.

    Raises:
        FileNotFoundError, ValueError: as `file_inside`, and a `ValueError` if
            it is not JSON, or not an object.
    """
    path = file_inside(folder, name, JSON_LIMIT)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} must be JSON. Received: {str(path)!r}, which breaks off "
            f"or is damaged ({error}). Copy or download the folder again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{name} must hold a JSON object. Received: {str(path)!r}, with a "
            f"{type(content).__name__}. Copy or download the folder again."
        )
    return content


def indexed_files(folder, name):
    """Returns the paths of the files that an index of shards names.

    Args:
        folder: str or path.
        name: str. The index: JSON with a `weight_map` of names to file names,
            or to lists of them.

    Raises:
        ValueError: if the index is not such a map, or a shard is missing or
            not inside the folder.
    """
    index = read_json(folder, name).get("weight_map")
    values = list(index.values()) if isinstance(index, dict) else []
    names = [x for v in values for x in (v if isinstance(v, list) else [v])]
    if not names or not all(isinstance(x, str) for x in names):
        raise ValueError(
            "An index must map tensor names to files under `weight_map`. "
            f"Received: {name} in {str(folder)!r}, with {index!r:.80} there. "
            "Copy or download the file again."
        )
    names = sorted(set(names))
    missing = [x for x in names if not has_file(folder, x)]
    if missing:
        raise ValueError(
            f"Every shard named in {name} must be there. Received: "
            f"{str(folder)!r}, without {', '.join(missing)}. Copy or download "
            "what is missing."
        )
    return [file_inside(folder, x) for x in names]
