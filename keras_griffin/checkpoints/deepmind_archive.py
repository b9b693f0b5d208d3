"""DeepMind's checkpoints as files: Flax in orbax, PyTorch in a .pt file.

As on Kaggle: a folder with `tokenizer.model` and, for Flax, one folder that
orbax wrote or, for PyTorch, one .pt file with a state dict. Such an archive
tells parameters and nothing else. What their shapes do not say is taken to be
RecurrentGemma's, unless the archive was written here and has SETTINGS_FILE.
"""

import json
import math
import os
import pathlib
import pickle
import typing
import zipfile

from keras_griffin.checkpoints import arrays
from keras_griffin.checkpoints import deepmind
from keras_griffin.checkpoints import sizes
from keras_griffin.checkpoints import weight_map
from keras_griffin.files import inside
from keras_griffin.files.whole import finish

FRAMEWORKS = ("flax", "torch")
TOKENIZER_FILE = "tokenizer.model"
# The backbone's arguments; ours, DeepMind's archives have none.
SETTINGS_FILE = "keras_griffin.json"
FLAX_FOLDER = "model"
TORCH_FILE = "model.pt"
# Any of them marks a folder that orbax wrote, this year or in 2024.
ORBAX_FILES = ("_METADATA", "manifest.ocdbt", "checkpoint")
# What no parameter's shape tells. Source: recurrentgemma 1.0.1, common.py.
RECURRENT_GEMMA = {
    "attention_window_size": 2048,
    "final_logit_soft_cap": 30.0,
    "scale_embeddings": True,
}
# What its code fixes, and GriffinConfig has no field for.
FIXED = {
    "rope_max_wavelength": 10_000.0,
    "rope_fraction": 0.5,
    "layer_norm_epsilon": 1e-6,
}
CONV_KERNEL_SIZE = 4
# What orbax and torch raise of damaged files besides: they look no field up
# with care.
ODD = (AttributeError, AssertionError, IndexError, KeyError, TypeError)


class Archive(typing.NamedTuple):
    """Where the parts of an archive are.

    Attributes:
        framework: `"flax"` or `"torch"`.
        checkpoint: path of the orbax folder or of the .pt file.
        tokenizer: path of tokenizer.model, or `None`.
        settings: path of SETTINGS_FILE, or `None`.
    """

    framework: str
    checkpoint: pathlib.Path
    tokenizer: pathlib.Path | None
    settings: pathlib.Path | None


def find(path):
    """Returns the `Archive` at a path, or `None` if there is none.

    Args:
        path: str or path. The archive's folder, its orbax folder or .pt file.

    Raises:
        ValueError: if there are several checkpoints in the folder, or a file
            of it lies elsewhere or is no regular one.
    """
    path = pathlib.Path(path)
    finish(path)
    if path.is_file():
        found = [path] if path.suffix == ".pt" else []
    elif _is_orbax(path):
        found = [path]
    else:
        found = [p for p in sorted(path.iterdir()) if _is_checkpoint(p)]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            "An archive must hold one checkpoint. Received: "
            f"{path}, with {', '.join(p.name for p in found)}. Give the path "
            "of one of them."
        )
    (checkpoint,) = found
    beside = checkpoint.parent

    def file(name, limit):
        if not inside.has_file(beside, name):
            return None
        return inside.file_inside(beside, name, limit)

    if path.is_dir():
        _check_inside(path, checkpoint)
    return Archive(
        "flax" if checkpoint.is_dir() else "torch",
        checkpoint,
        file(TOKENIZER_FILE, inside.TOKENIZER_LIMIT),
        file(SETTINGS_FILE, inside.JSON_LIMIT),
    )


def _check_inside(folder, checkpoint):
    """Raises unless all files of a checkpoint are regular ones of a folder."""
    names = [checkpoint.relative_to(folder)] if checkpoint.is_file() else []
    for above, folders, files in os.walk(checkpoint):
        inner = pathlib.Path(above).relative_to(folder)
        for name in folders:
            if (folder / inner / name).is_symlink():
                raise ValueError(
                    "A checkpoint's folders must be no links. Received: "
                    f"{os.path.join(above, name)!r}. Put the files themselves "
                    "there, if you trust them."
                )
        names += [inner / name for name in files]
    for name in names:
        inside.file_inside(folder, name)


def _is_checkpoint(path):
    return path.suffix == ".pt" if path.is_file() else _is_orbax(path)


def _is_orbax(path):
    return any((path / name).is_file() for name in ORBAX_FILES)


def backbone_config(archive):
    """Returns the arguments of `GriffinBackbone` for an archive.

    Args:
        archive: `Archive`.

    Returns:
        dict of keyword arguments.

    Raises:
        ImportError: if orbax-checkpoint or torch is not installed.
        ValueError: if the checkpoint is damaged or of another model.
    """
    shapes = _open(archive).shapes
    elements = sum(map(math.prod, shapes.values()))
    if archive.settings is not None:
        arguments = inside.read_json(archive.settings.parent, SETTINGS_FILE)
        sizes.check(arguments, elements, archive.settings)
        return arguments
    if archive.framework == "torch":
        shapes = deepmind.flax_shapes(shapes)
    try:
        config = deepmind.config_from_shapes(shapes, **RECURRENT_GEMMA)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        # A shape of another rank, or a tensor that is missing.
        raise _damaged(archive.checkpoint, error) from error
    # Attention alone has no convolution to tell it.
    config = {"conv_kernel_size": CONV_KERNEL_SIZE, **config}
    sizes.check(config, elements, archive.checkpoint)
    return config


def stored_dtypes(archive):
    """Returns the set of Keras dtype names of an archive's weights.

    Raises:
        ValueError: as `backbone_config`, and if they are no floats.
    """
    return set(_open(archive).dtypes.values())


def load_weights(backbone, archive):
    """Assigns an archive's weights, one tensor at a time.

    Args:
        backbone: `GriffinBackbone`.
        archive: `Archive`.

    Raises:
        ImportError: if orbax-checkpoint or torch is not installed.
        ValueError: if the checkpoint is damaged, or a tensor is missing,
            unknown, of another shape, no float or not finite.
    """
    checkpoint = _open(archive)
    weight_map.load(
        weight_map.rows(_weight_map(archive.framework), backbone),
        backbone,
        shapes=checkpoint.shapes,
        read=checkpoint.read,
        origin=str(archive.checkpoint),
    )


def write(backbone, folder, framework):
    """Writes a backbone as an archive, without a tokenizer.

    Args:
        backbone: `GriffinBackbone`.
        folder: str or path. Exists.
        framework: `"flax"` or `"torch"`.

    Raises:
        ImportError: if orbax-checkpoint or torch is not installed.
        ValueError: if DeepMind's code cannot express the backbone.
    """
    if framework not in FRAMEWORKS:
        raise ValueError(
            f"`framework` must be one of {', '.join(FRAMEWORKS)}. Received: "
            f"{framework!r}. DeepMind's package has these two."
        )
    settings = _settings(backbone)
    folder = pathlib.Path(folder)
    if framework == "flax":
        orbax = _orbax(folder)
        tree = deepmind.to_flax_params(backbone)
        path = (folder / FLAX_FOLDER).absolute()
        orbax.PyTreeCheckpointer().save(path, tree)
    else:
        torch = _torch(folder)
        state_dict = {
            name: _to_torch(torch, array)
            for name, array in deepmind.to_torch_params(backbone).items()
        }
        torch.save(state_dict, folder / TORCH_FILE)
    text = json.dumps(settings, indent=2) + "\n"
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _settings(backbone):
    """Returns the backbone's arguments if DeepMind's code can express it."""

    def require(condition, rule, received):
        if not condition:
            raise ValueError(
                f"{rule}, in DeepMind's code. Received: {received}. Keep this "
                "model with `save_to_preset`."
            )

    kinds = set(backbone.block_types)
    heads = backbone.num_query_heads
    require(
        "global_attention" not in kinds,
        "Attention is local",
        f"block_types={backbone.block_types}",
    )
    if "recurrent" in kinds:
        require(
            backbone.recurrence == "real",
            "A whole model's recurrence is real",
            f'recurrence="{backbone.recurrence}"',
        )
        require(
            backbone.conv_kernel_size == CONV_KERNEL_SIZE,
            f"`conv_kernel_size` is {CONV_KERNEL_SIZE}",
            f"conv_kernel_size={backbone.conv_kernel_size}",
        )
        require(
            backbone.num_gate_blocks == heads,
            "`num_gate_blocks` is `num_query_heads`",
            f"num_gate_blocks={backbone.num_gate_blocks}, "
            f"num_query_heads={heads}",
        )
    require(
        backbone.head_dim * heads == backbone.hidden_dim,
        "`head_dim` is `hidden_dim // num_query_heads`",
        f"head_dim={backbone.head_dim}, hidden_dim={backbone.hidden_dim}, "
        f"num_query_heads={heads}",
    )
    for name, value in FIXED.items():
        received = getattr(backbone, name)
        require(received == value, f"`{name}` is {value}", f"{received}")
    config = backbone.get_config()
    for name in ("name", "trainable", "dtype", "implementation"):
        config.pop(name, None)
    return config


class _Checkpoint(typing.NamedTuple):
    shapes: dict
    dtypes: dict
    read: typing.Callable


def _open(archive):
    """Reads names, shapes and dtypes; `read(name)` reads one tensor."""
    opened = {"flax": _open_orbax, "torch": _open_torch}
    checkpoint = opened[archive.framework](archive.checkpoint)
    for name, dtype in checkpoint.dtypes.items():
        if "float" not in dtype or "float8" in dtype:
            raise ValueError(
                "Weights must be stored as floats. Received: "
                f"{archive.checkpoint}, with {name} as {dtype}. Load the "
                "original checkpoint, before quantisation."
            )
    return checkpoint


def _open_orbax(path):
    orbax = _orbax(path)
    path = path.absolute()
    # Not recurrentgemma's own `load_parameters`: with orbax 0.12 it fails.
    checkpointer = orbax.Checkpointer(orbax.PyTreeCheckpointHandler())
    try:
        metadata = checkpointer.metadata(path).item_metadata
    except (ValueError, OSError, *ODD) as error:
        raise _damaged(path, error) from error
    if metadata is None:
        raise _damaged(path, "orbax finds no parameters in it")
    leaves = _leaves(metadata.tree)
    # `save_parameters` of recurrentgemma wraps the tree, its archives may not.
    wrapped = set(metadata.tree) == {"params"}
    prefix = ("params",) if wrapped else ()

    def read(name):
        levels = (*prefix, *name.split("/"))
        item = restore = None
        for level in reversed(levels):
            first = item is None
            item = {level: 0 if first else item}
            restore = {level: _as_array(orbax) if first else restore}
        args = orbax.args.PyTreeRestore(
            item=item, restore_args=restore, partial_restore=True
        )
        try:
            value = checkpointer.restore(path, args=args)
        except (ValueError, OSError, *ODD) as error:
            raise _damaged(path, error) from error
        for level in levels:
            value = value[level]
        return value

    leaves = {levels[len(prefix) :]: leaf for levels, leaf in leaves.items()}
    try:
        checkpoint = _Checkpoint(
            {"/".join(levels): tuple(x.shape) for levels, x in leaves.items()},
            {"/".join(levels): x.dtype.name for levels, x in leaves.items()},
            read,
        )
    except (AttributeError, TypeError) as error:  # other leaves than arrays
        raise _damaged(path, error) from error
    size = sum(
        math.prod(x.shape) * arrays.np_dtype(x.dtype.name).itemsize
        for x in leaves.values()
    )
    sizes.check_compression(path, size)
    return checkpoint


def _as_array(orbax):
    import numpy as np

    return orbax.RestoreArgs(restore_type=np.ndarray)


def _leaves(tree, path=()):
    leaves = {}
    for name, value in tree.items():
        if hasattr(value, "items"):
            leaves.update(_leaves(value, (*path, name)))
        else:
            leaves[(*path, name)] = value
    return leaves


def _open_torch(path):
    torch = _torch(path)

    def tensors():
        # Mapped anew for every tensor: pages of a file that stays mapped
        # count as memory of the process.
        try:
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),
            )
        except pickle.UnpicklingError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                "A .pt file must hold nothing but tensors: other objects could "
                f"run code when they are loaded. Received: {path} ({reason}). "
                "Save `model.state_dict()`, or download the file again."
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, *ODD) as error:
            raise _damaged(path, error) from error

    state_dict = tensors()
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str)
        and isinstance(x, torch.Tensor)
        and (x.layout, x.device.type) == (torch.strided, "cpu")
        for name, x in state_dict.items()
    ):
        raise ValueError(
            "A .pt file must hold a state dict: names and tensors. Received: "
            f"{path}, with a {type(state_dict).__name__} of other things. Save "
            "`model.state_dict()`."
        )
    for name, x in state_dict.items():
        stored = x.untyped_storage().nbytes()
        if stored < x.numel() * x.element_size():
            raise _damaged(path, f"{name} has a shape without values")
    return _Checkpoint(
        {name: tuple(x.shape) for name, x in state_dict.items()},
        {
            name: str(x.dtype).removeprefix("torch.")
            for name, x in state_dict.items()
        },
        lambda name: deepmind.torch_to_numpy(tensors()[name]),
    )


def _to_torch(torch, array):
    if array.dtype == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _weight_map(framework):
    return {"flax": deepmind.FLAX, "torch": deepmind.TORCH}[framework]


def _damaged(path, error):
    return ValueError(
        f"A checkpoint must be complete and undamaged. Received: {path} "
        f"({error}). Download it again."
    )


def _orbax(path):
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "DeepMind's Flax checkpoints need orbax-checkpoint. Received: "
            f"{path}. Install it with `pip install keras-griffin[convert]`."
        ) from error
    return orbax.checkpoint


def _torch(path):
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "DeepMind's PyTorch checkpoints need torch. Received: "
            f"{path}. Install it with `pip install torch`."
        ) from error
    return torch
