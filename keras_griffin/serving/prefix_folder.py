"""Prefixes on disk, for engines that are started again."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
from keras import ops

from keras_griffin.files.inside import regular_file
from keras_griffin.files.whole import whole_file
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.state_files import DAMAGE
from keras_griffin.serving.prefix import Prefix


class PrefixFolder:
    """A folder of prefixes, each in two files of its own.

    States are of the weights that made them: those of other weights stand in
    another folder beside them.

    Args:
        model: a `GriffinCausalLM`.
        folder: str or path. It is made if need be.

    Attributes:
        token_ids: dict of a prefix's name to its ids.
    """

    def __init__(self, model, folder):
        self._model = model
        self._folder = Path(folder) / fingerprint(model)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.token_ids = {}
        for path in sorted(self._folder.glob("*.tokens.npz")):
            try:
                self.token_ids[path.name.split(".")[0]] = _read(path)["ids"]
            except DAMAGE as error:
                _warn(path, error)

    def write(self, prefix):
        """Writes a prefix unless it is there."""
        name = _name(prefix.token_ids)
        if name in self.token_ids:
            return
        self._model.save_state(prefix.state, self._folder / f"{name}.npz")
        # Last: where these are, the state is.
        place = self._folder / f"{name}.tokens.npz"
        with whole_file(place) as part, open(part, "wb") as file:
            logits = to_numpy(prefix.logits)
            np.savez(file, ids=prefix.token_ids, logits=logits)
        self.token_ids[name] = prefix.token_ids

    def load(self, name):
        """Returns the prefix of a name; `None` if its files are damaged."""
        try:
            arrays = _read(self._folder / f"{name}.tokens.npz")
            state = self._model.load_state(self._folder / f"{name}.npz")
            logits = ops.convert_to_tensor(arrays["logits"])
            return Prefix(arrays["ids"], logits, state)
        except DAMAGE as error:
            _warn(self._folder / f"{name}.npz", error)
            del self.token_ids[name]
            return None


def fingerprint(model):
    """A name for the weights: of their shapes and of some of their values."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(
            json.dumps([list(variable.shape), str(variable.dtype)]).encode()
        )
        for end in (0, -1):
            value = variable.value
            for _ in variable.shape[:-1]:
                value = value[end]
            digest.update(to_numpy(ops.cast(value, "float32")).tobytes())
    return digest.hexdigest()[:16]


def _name(token_ids):
    ids = np.asarray(token_ids, "int32")
    return hashlib.sha256(ids.tobytes()).hexdigest()[:32]


def _read(path):
    regular_file(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in ("ids", "logits")}


def _warn(path, error):
    warnings.warn(
        "A prefix must be read from files of an engine's folder. Received: "
        f"{str(path)!r} ({error}). It is read from the prompt again; remove "
        "the file.",
        stacklevel=3,
    )
