"""Weight maps as tables, and moving weights along them in both directions.

A row of a table says where one variable of a `GriffinBackbone` is found in
another library's checkpoint. Every converter is such a table and a way to read
tensors; checking, transposing, casting and placing are written here once.

Nothing here imports the models: a backbone is any object with their attributes.
"""

import contextlib
import contextvars
import dataclasses
import gc
import math
import typing

import keras
import numpy as np

from keras_griffin import keras_compat
from keras_griffin.checkpoints import arrays
from keras_griffin.layers.apply_dense import order_kernels
from keras_griffin.training import quantization

MAX_NAMES_IN_ERROR = 5
# Seconds of loading before progress is shown: small models never get there.
PROGRESS_DELAY = 2

# Numbers of a model for which memory is freed first: a fifth of a second.
LARGE = 10**8

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row: `variable` of ours is `tensor` of theirs.

    Args:
        variable: str. Attribute path from the backbone, as in
            `"blocks.{block}.temporal.conv.kernel"`.
        tensor: str. Their name. `{block}` stands for the block's index.
        layout: str. A key of `LAYOUTS`: how their axes are ordered.
            Defaults to `"same"`.
        part: int or `None`. Index on the first axis of a tensor that holds
            several variables. Defaults to `None`: the whole tensor.
    """

    variable: str
    tensor: str
    layout: str = "same"
    part: int | None = None

    def for_block(self, index):
        """Returns the row of block `index`."""
        return dataclasses.replace(
            self,
            variable=self.variable.format(block=index),
            tensor=self.tensor.format(block=index),
        )


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """A checkpoint format: the rows of each part of the model.

    Args:
        name: str. The format's name in error messages.
        model: rows outside the blocks.
        block: rows that every block has.
        recurrent: rows of a recurrent block.
        attention: rows of an attention block, local or global.
        phase: further rows of a recurrent block with
            `recurrence="complex"`. Defaults to `()`: the format has no complex
            recurrence.
    """

    name: str
    model: tuple
    block: tuple
    recurrent: tuple
    attention: tuple
    phase: tuple = ()


class Layout(typing.NamedTuple):
    """Reorders axes: `to_ours(theirs)` and its inverse `to_theirs(ours)`.

    Of NumPy arrays and of the backend's tensors.
    """

    to_ours: typing.Callable
    to_theirs: typing.Callable


def _transposed(x):
    # TensorFlow's tensors have no `T`.
    return x.T if hasattr(x, "T") else keras.ops.transpose(x)


LAYOUTS = {
    "same": Layout(lambda x: x, lambda x: x),
    # (out, in), as torch.nn.Linear stores it <-> (in, out).
    "transposed": Layout(_transposed, _transposed),
    # (width, 1, kernel_size), as torch.nn.Conv1d stores it
    # <-> (kernel_size, width).
    "depthwise": Layout(
        lambda x: _transposed(x[:, 0, :]), lambda x: _transposed(x)[:, None, :]
    ),
    # (1, 1, width), ready to broadcast <-> (width,).
    "row": Layout(lambda x: x[0, 0], lambda x: x[None, None]),
}


def rows(weight_map, backbone):
    """Returns the rows of `weight_map` for every variable of `backbone`.

    Args:
        weight_map: `WeightMap`.
        backbone: `GriffinBackbone`.

    Returns:
        A list of `Weight`, without `{block}` in the names.

    Raises:
        ValueError: if the format cannot hold the backbone's recurrence.
    """
    recurrent = weight_map.block + weight_map.recurrent
    if backbone.recurrence == "complex" and not weight_map.phase:
        raise ValueError(
            f'{weight_map.name} can only hold `recurrence="real"`. Received: '
            f'recurrence="{backbone.recurrence}". Save this model with '
            "`save_to_preset` instead."
        )
    if backbone.recurrence == "complex":
        recurrent += weight_map.phase
    attention = weight_map.block + weight_map.attention

    result = list(weight_map.model)
    types = backbone.block_types
    for index in range(len(backbone.blocks)):
        is_recurrent = types[index % len(types)] == "recurrent"
        for row in recurrent if is_recurrent else attention:
            result.append(row.for_block(index))
    return result


def find_variable(model, path):
    """Returns the variable at an attribute path such as `"blocks.0.mlp"`."""
    found = model
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    return found


def their_shape(row, our_shape):
    """Returns the shape that the checkpoint must have for one variable.

    Of a tensor with several parts it is the shape of one part.
    """
    # A broadcast scalar has a shape but no memory.
    stand_in = np.broadcast_to(np.float32(0), our_shape)
    return LAYOUTS[row.layout].to_theirs(stand_in).shape


def tensor_shapes(table, model):
    """Returns `{tensor name: shape}` that `table` expects for `model`."""
    shapes = {}
    for row in table:
        shape = their_shape(row, find_variable(model, row.variable).shape)
        if row.part is not None:
            parts = shapes.get(row.tensor, (0,))[0]
            shape = (max(parts, row.part + 1),) + shape
        shapes[row.tensor] = shape
    return shapes


def tensor_dtypes(table, model):
    """Returns `{tensor name: dtype name}` of a model's weights.

    Raises:
        ValueError: if a weight is no float, because it was quantized.
    """
    dtypes = {}
    for row in table:
        dtype = keras.backend.standardize_dtype(
            find_variable(model, row.variable).dtype
        )
        if "float" not in dtype or "float8" in dtype:
            raise ValueError(
                "Only floating-point weights can be exported. Received: "
                f"{row.variable} in {dtype}. Export the model before it is "
                "quantized; `save_to_preset` keeps a quantized one."
            )
        dtypes[row.tensor] = dtype
    return dtypes


def build_empty(build):
    """Returns a model that has no value in any of its variables yet.

    A checkpoint fills them by `load`, so that no random values are drawn and no
    second copy is ever in memory; then `fill_rest`.

    Args:
        build: callable without arguments that returns the model.

    Example:
        >>> model = build_empty(lambda: keras_griffin.GriffinBackbone(**config))
    """
    with keras.StatelessScope(initialize_variables=False):
        model = build()
    keras_compat.forget_uninitialized()
    if sum(math.prod(v.shape) for v in model.variables) > LARGE:
        # Keras' models are cycles, which Python frees when it likes. One that
        # was deleted should go before the weights of this one come.
        gc.collect()
    return model


@contextlib.contextmanager
def weights_follow():
    """Has `build_for_weights` draw no values: a file's are about to come."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def build_for_weights(build):
    """Returns `build()`; within `weights_follow` its weights hold anything.

    KerasHub and Keras assign to variables that have a value, and drawing those
    of a large model takes longer than reading it.
    """
    if not _weights_follow.get():
        return build()
    model = build_empty(build)
    for weight in model.weights:
        weight_dtype = keras.backend.standardize_dtype(weight.dtype)
        value = keras.ops.empty(weight.shape, weight_dtype)
        keras_compat.initialize(weight, value)
    order_kernels(model, is_filled=False)
    fill_rest(model)
    return model


def fill_rest(model):
    """Gives the variables that no checkpoint holds their initial values.

    They are the seeds of dropout.
    """
    for variable in model.variables:
        if not keras_compat.has_value(variable):
            keras_compat.initialize(variable)
    order_kernels(model)


def check_tensors(table, model, shapes, origin):
    """Checks names and shapes before anything is assigned.

    Args:
        table: list of `Weight`.
        model: the object that the rows' variables belong to.
        shapes: dict of tensor name to shape, as found in the checkpoint.
        origin: str. Where the checkpoint is, for the error.

    Raises:
        ValueError: if a tensor is missing, unknown or of another shape.
    """
    expected = tensor_shapes(table, model)
    advice = (
        "Build the backbone from this checkpoint's own configuration, or "
        "choose the checkpoint that belongs to this backbone."
    )
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise ValueError(
            "A checkpoint must hold every weight of the backbone. Received: "
            f"{origin}, without {_some(missing)}. {advice}"
        )
    unknown = [name for name in shapes if name not in expected]
    if unknown:
        raise ValueError(
            "A checkpoint must hold nothing but the backbone's weights. "
            f"Received: {origin}, with {_some(unknown)} besides. {advice}"
        )
    differing = [
        f"{name} {tuple(shapes[name])} instead of {shape}"
        for name, shape in expected.items()
        if tuple(shapes[name]) != shape
    ]
    if differing:
        raise ValueError(
            "A checkpoint's tensors must have the shapes of the backbone. "
            f"Received: {origin}, with {_some(differing)}. {advice}"
        )


def load(table, model, shapes, read, origin):
    """Assigns a checkpoint to a model, one tensor at a time.

    All names and shapes are checked first. Each tensor is then read, cast to
    its variable's dtype and placed with the variable's sharding before the next
    one is read, so that no second copy of the model is ever in memory.

    Args:
        table: list of `Weight`, from `rows`.
        model: the object that the rows' variables belong to.
        shapes: dict of tensor name to shape, as found in the checkpoint.
        read: callable. `read(name)` returns a NumPy array that nothing else
            keeps: a variable may take over its memory.
        origin: str. Where the checkpoint is, for errors.

    Raises:
        ValueError: if a tensor is missing, unknown, of another shape, or holds
            numbers that are not finite in the variable's dtype. In the last
            case variables before it are assigned already.
    """
    check_tensors(table, model, shapes, origin)
    for row in with_progress(table, model, "Loading weights"):
        _load_row(row, model, read, origin)


def with_progress(table, model, title):
    """Yields the rows of a table, with a bar on stderr that counts bytes.

    Args:
        table: list of `Weight`.
        model: the object that the rows' variables belong to.
        title: str. What the bar says.
    """
    from tqdm.auto import tqdm

    sizes = []
    for row in table:
        variable = find_variable(model, row.variable)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        itemsize = arrays.np_dtype(dtype).itemsize
        sizes.append(math.prod(variable.shape) * itemsize)
    with tqdm(
        total=sum(sizes),
        desc=title,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=PROGRESS_DELAY,
    ) as bar:
        for row, size in zip(table, sizes, strict=True):
            yield row
            bar.update(size)


def export(table, model):
    """Yields `(tensor name, NumPy array)` of a model, one at a time.

    The inverse of `load`: bit-exact, in each variable's own dtype. Low-rank
    adapters are merged into what they adapt.

    Args:
        table: list of `Weight`, from `rows`.
        model: the object that the rows' variables belong to.

    Raises:
        ValueError: if a weight is quantized.
    """
    tensor_dtypes(table, model)  # refuses what cannot be exported, first
    waiting, counts = {}, _part_counts(table)
    for row in with_progress(table, model, "Writing weights"):
        # Keras' JAX variables are no tensors to `convert_to_numpy`, and the
        # backend reorders axes with all cores.
        value = keras.ops.convert_to_tensor(find_variable(model, row.variable))
        value = arrays.to_numpy(LAYOUTS[row.layout].to_theirs(value))
        if row.part is None:
            if not value.flags.c_contiguous:
                value = arrays.row_by_row(value)
            yield row.tensor, value
            continue
        found = waiting.setdefault(row.tensor, {})
        found[row.part] = value
        if len(found) == counts[row.tensor]:
            del waiting[row.tensor]
            yield row.tensor, np.stack([found[i] for i in sorted(found)])


def _load_row(row, model, read, origin):
    value = read(row.tensor)
    if row.part is not None:
        # A view would keep the other parts in memory with it.
        value = value[row.part].copy()
    variable = find_variable(model, row.variable)
    dtype = keras.backend.standardize_dtype(variable.dtype)
    to_ours = LAYOUTS[row.layout].to_ours
    name = row.variable.rpartition(".")[2]
    if dtype == "int8":
        arrays.check_finite(value, np.dtype("float32"), row.tensor, origin)
        numbers = arrays.empty(variable.shape, "int8")
        scale = quantization.rounded(to_ours(value), name, numbers)
        scales = find_variable(model, f"{row.variable}_scale")
        _give(scales, keras.ops.convert_to_tensor(scale, dtype=scales.dtype))
        _give(variable, arrays.adopt(numbers))
        return
    arrays.check_finite(value, arrays.np_dtype(dtype), row.tensor, origin)
    if keras.distribution.distribution() is not None:
        # Split on the host: else the whole tensor would be on one device.
        _give(
            variable,
            to_ours(value).astype(arrays.np_dtype(dtype), copy=False),
        )
        return
    is_torch = keras.config.backend() == "torch"
    if value.dtype == arrays.np_dtype(dtype) and not is_torch:
        _give(variable, arrays.adopt(arrays.row_by_row(to_ours(value))))
        return
    value = keras.ops.cast(to_ours(arrays.to_tensor(value)), dtype)
    is_kernel = row.layout == "transposed" and "16" in dtype
    if is_torch and not is_kernel:
        value = value.contiguous()  # kernels: see `order_kernels`
    _give(variable, value)


def _give(variable, value):
    distribution = keras.distribution.distribution()
    if distribution is not None:
        layout = distribution.get_variable_layout(variable)
        value = keras.distribution.distribute_tensor(value, layout)
    if keras_compat.has_value(variable):
        variable.assign(value)
    else:  # of `build_empty`
        keras_compat.initialize(variable, value)


def _part_counts(table):
    counts = {}
    for row in table:
        counts[row.tensor] = counts.get(row.tensor, 0) + 1
    return counts


def _some(names):
    shown = ", ".join(names[:MAX_NAMES_IN_ERROR])
    more = len(names) - MAX_NAMES_IN_ERROR
    return f"{shown} and {more} more" if more > 0 else shown
