"""Which files of a preset's folder belong together, and whether they do.

`save_to_preset` writes MANIFEST beside the files, with size and SHA-256 of
each, and a load compares them. A folder without it, of KerasHub's say, is
loaded without this check.
"""

import concurrent.futures
import contextlib
import fnmatch
import hashlib
import json
import pathlib

from keras_griffin.checkpoints import model_card
from keras_griffin.files import inside

MANIFEST = "keras_griffin_files.json"
# Old weights would be read besides, or instead of, the new ones.
WEIGHTS = "model*.weights.*"
# What goes with a backbone that is replaced, and with a task that is.
OF_BACKBONE = (WEIGHTS, "task.json", "task.weights.h5")
OF_TASK = (*OF_BACKBONE, "preprocessor.json", "tokenizer.json")


def write_manifest(folder, target, stale=()):
    """Writes MANIFEST into a folder whose files will join those of `target`.

    Args:
        folder: path. The new files.
        target: path. The folder to be; need not exist.
        stale: patterns of old files that go.
    """
    files = {
        name: entry
        for name, entry in _manifest(target).items()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in stale)
    }
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, model_card.FILE):
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    text = json.dumps({"files": files}, indent=2) + "\n"
    (pathlib.Path(folder) / MANIFEST).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def checked(folder, weights=True):
    """Around the loading of a folder: compares its files with MANIFEST.

    It does so meanwhile, in a thread.

    Args:
        folder: str or path.
        weights: bool. Whether the weights are read, too. Defaults to `True`.

    Raises:
        ValueError: if a file is not the one that was written with the others,
            or the folder was replaced during the load.
    """
    files = _manifest(folder)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        differing = pool.submit(_differing, folder, files, weights)
        try:
            yield
        finally:
            _refuse(folder, differing.result())
    if _manifest(folder) != files:
        raise ValueError(
            "A folder must stay as it is while it is loaded. Received: "
            f"{str(folder)!r}, which was saved to meanwhile. Load it again."
        )


def _manifest(folder):
    if not inside.has_file(folder, MANIFEST):
        return {}
    files = inside.read_json(folder, MANIFEST).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) for entry in files.values()
    ):
        _refuse(folder, [f"{MANIFEST} without files"])
    return files


def _differing(folder, files, weights):
    differing = []
    for name, entry in files.items():
        if not weights and fnmatch.fnmatch(name, WEIGHTS):
            continue
        if not inside.has_file(folder, name):
            differing.append(f"{name} is missing")
            continue
        path = inside.file_inside(folder, name)
        if path.stat().st_size != entry.get("bytes"):
            differing.append(f"{name} has {path.stat().st_size} bytes")
        elif _hash(path) != entry.get("sha256"):
            differing.append(f"{name} has another content")
    return differing


def _refuse(folder, differing):
    if differing:
        raise ValueError(
            "The files of a preset must be those that were saved together. "
            f"Received: {str(folder)!r}, in which {'; '.join(differing[:3])}. "
            "Copy or download the folder again. If you changed a file on "
            f"purpose, remove {MANIFEST}, and nothing is compared."
        )


def _hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
