"""JAX: a kernel for the platform, and over the devices of a mesh.

XLA cannot partition a kernel. So where there is a mesh, an operation runs in
`jax.shard_map`: rows over the axis "batch", channels over "model", and time
over "sequence". The mesh is that of the context (`jax.set_mesh`), else that of
`keras.distribution`, so that it may consist of devices that are not here.
"""

import jax
import keras
from jax.sharding import PartitionSpec

from keras_griffin.kernels.dispatch import log_once

AXES = ("batch", "sequence", "model")


def takes(platform, check, *args):
    """Whether the kernel of a platform takes the case; if not, logs why.

    To be asked before `jax.lax.platform_dependent`, which traces a kernel on
    every platform.

    Args:
        platform: string, of JAX.
        check: callable that raises `NotImplementedError` if the kernel does
            not take `args`. It looks at shapes and dtypes alone.
    """
    try:
        check(*args)
    except NotImplementedError as error:
        log_once(
            f"Plain operations instead of a kernel on {platform!r}: {error}"
        )
        return False
    return True


def result(shape, dtype, inputs):
    """A result of a kernel: in a `shard_map` it varies as all inputs do.

    Since jax 0.6 kernels have to tell, and there is no public way to unite the
    types of several arrays but an operation on all of them.
    """
    like = jax.eval_shape(
        lambda *values: sum(map(jax.numpy.sum, values)), *inputs
    )
    return like.update(shape=shape, dtype=dtype)


def alike(arrays):
    """A tree of arrays; in a `shard_map` around, all vary as any of them does.

    A gradient of our own must vary as its argument, and what each device adds
    to that of a weight has to be summed. JAX does both for an addition.
    """
    types = jax.sharding.get_abstract_mesh().axis_types
    if jax.sharding.AxisType.Manual not in types:
        return arrays
    # Sums of nothing: XLA takes them out again.
    nothing = sum(
        jax.numpy.sum(array.reshape(-1)[:0], dtype="float32")
        for array in jax.tree.leaves(arrays)
    )
    return jax.tree.map(
        lambda array: (
            array | (nothing != 0)
            if array.dtype == bool
            else array + nothing.astype(array.dtype)
        ),
        arrays,
    )


def choose(implementation, arrays):
    """The implementation to run, and the `Mesh` to run it over or `None`.

    Args:
        implementation: string, one of `dispatch.IMPLEMENTATIONS`.
        arrays: arrays or `None`, the first `(batch, time, width)`.

    Raises:
        NotImplementedError: if a kernel was asked for by name, and cannot be
            divided over the devices that there are.
    """
    x = arrays[0]
    if x.size == 0 or x.shape[1] == 1:
        return "ops", None  # one update of the state: nothing for a kernel
    try:
        _refuse_unknown_sizes(x.shape)
        return implementation, find_mesh(arrays)
    except NotImplementedError as error:
        if implementation not in ("auto", "ops"):
            raise
        if implementation == "auto":
            log_once(f"Plain operations instead of a kernel: {error}")
        return "ops", None


class Mesh:
    """The devices to divide an operation over.

    Args:
        mesh: mesh of JAX; `None`: that of the context.
        names: dict from each of `AXES` that there is to its name in `mesh`.
        free: set of the names of `mesh` that no `shard_map` around divides.
        explicit: bool. Whether arrays carry their sharding in their type.
    """

    def __init__(self, mesh, names, sizes, free, explicit):
        self.mesh = mesh
        self.names = names
        self.sizes = sizes
        self.free = free
        self.explicit = explicit

    def divides(self, axis, length):
        """Whether a length can be divided over one of `AXES`."""
        name = self.names.get(axis)
        return name is None or length % self.sizes[name] == 0

    def split(self, **lengths):
        """Which axes divide the given lengths, as `{axis: name}`."""
        found = {}
        for axis, length in lengths.items():
            name = self.names.get(axis)
            if name is None:
                continue
            if self.divides(axis, length):
                found[axis] = name
            else:
                log_once(
                    f"Every device of the mesh axis {name!r} computes the "
                    f"whole recurrence: {length} is not divisible by its "
                    f"size, {self.sizes[name]}."
                )
        return found

    def run(self, function, args, in_axes, out_axes, split):
        """Runs `function(*args)` on a part of the arrays on each device.

        Args:
            function: callable from arrays, or `None`, to a tuple of arrays.
            args: tuple of arrays or `None`.
            in_axes, out_axes: for each array, one of `AXES` or `None` for
                each of its dimensions.
            split: result of `split`.
        """

        def spec(axes):
            return PartitionSpec(*(split.get(axis) for axis in axes))

        given = [i for i, arg in enumerate(args) if arg is not None]

        def run(*arrays):
            full = [None] * len(args)
            for i, array in zip(given, arrays, strict=True):
                full[i] = array
            return function(*full)

        arrays = [args[i] for i in given]
        in_specs = tuple(spec(in_axes[i]) for i in given)
        if self.explicit:
            arrays = map(jax.sharding.reshard, arrays, in_specs)
        return jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=tuple(map(spec, out_axes)),
            axis_names=self.free,
            check_vma=False,  # kernels do not know it
        )(*arrays)


def find_mesh(arrays=()):
    """The `Mesh` to divide an operation over, or `None`.

    Args:
        arrays: arrays, or `None`, that the operation reads.

    Raises:
        NotImplementedError: if the mesh has an axis of another name, or if
            there is none and the arrays lie on several devices.
    """
    mesh, names = None, dict(zip(AXES, AXES, strict=True))
    context = jax.sharding.get_abstract_mesh()
    distribution = keras.distribution.distribution()
    if context.axis_names:
        types = dict(zip(context.axis_names, context.axis_types, strict=True))
        sizes = dict(context.shape)
    elif distribution is not None:
        mesh = distribution.device_mesh.backend_mesh
        sizes = dict(mesh.shape)
        types = {}
        if distribution.batch_dim_name is not None:
            names["batch"] = distribution.batch_dim_name
    else:
        _refuse_several_devices(arrays)
        return None
    manual = jax.sharding.AxisType.Manual
    free = {name for name in sizes if types.get(name) != manual}
    if all(sizes[name] == 1 for name in free):
        return None
    unknown = [
        name for name in free if sizes[name] > 1 and name not in names.values()
    ]
    if unknown:
        raise NotImplementedError(
            "A kernel runs over meshes whose axes are named 'batch', 'model' "
            f"and 'sequence'. Received: {sorted(unknown)}. Name them so, or "
            "call it in a shard_map of your own."
        )
    return Mesh(
        mesh,
        {axis: name for axis, name in names.items() if name in free},
        sizes,
        free,
        any(types.get(name) == jax.sharding.AxisType.Explicit for name in free),
    )


def _refuse_unknown_sizes(shape):
    if not all(isinstance(size, int) for size in shape):
        raise NotImplementedError(
            "A kernel needs sizes that are known. Received: shape="
            f"{tuple(map(str, shape))}. Give `jax.export` numbers, or use "
            "implementation='ops'."
        )


def _refuse_several_devices(arrays):
    """XLA cannot partition a kernel.

    Types tell of devices where arrays do. Those of `in_shardings` come too
    late: there JAX itself refuses the TPU's kernels when lowering.
    """
    for array in arrays:
        if array is None:
            continue
        devices = jax.typeof(array).sharding.mesh.size
        if devices > 1:
            raise NotImplementedError(
                "XLA cannot partition a kernel over several devices. Received: "
                f"{devices} devices and no mesh. Use keras.distribution or "
                "jax.set_mesh, or call it in a shard_map."
            )


def over_sequence(axis, decay, forward, backward, multiply_add, reverse=False):
    """An affine recurrence whose time is divided over a mesh axis.

    Each device computes what its part of time does to a state: multiply by
    `decay` and add what comes out from a state of zero. These pass between the
    devices, and then each device runs again from the state that enters. The
    gradient goes the same way, backwards.

    Args:
        axis: name of the mesh axis, inside a `shard_map`.
        decay: callable `inputs` to what a state is multiplied with.
        forward: callable `(inputs, state)` to `(outputs, state)`.
        backward: callable `(inputs, state, outputs, d_outputs, d_state)` to
            `(d_inputs, d_state)`.
        multiply_add: callable `(decay, state, end, conjugate)` to
            `decay * state + end`.
        reverse: bool. Whether time runs backwards.

    Returns:
        A callable like `forward`, with a gradient.
    """

    def exchange(product, end, state, reverse, conjugate):
        """The state that enters here, and the last of all."""
        gathered = jax.lax.all_gather((product, end), axis)

        def step(state, part):
            return multiply_add(part[0], state, part[1], conjugate), state

        last, entering = jax.lax.scan(step, state, gathered, reverse=reverse)
        here = jax.lax.axis_index(axis)
        return jax.tree.map(lambda part: part[here], entering), last

    def zeros(tree):
        return jax.tree.map(jax.numpy.zeros_like, tree)

    def run(inputs, state):
        product = decay(inputs)
        _, end = forward(inputs, zeros(state))
        entering, last = exchange(product, end, state, reverse, False)
        outputs, _ = forward(inputs, entering)
        return (outputs, last), (inputs, entering, product, outputs)

    @jax.custom_vjp
    def unit(inputs, state):
        return run(inputs, state)[0]

    def unit_backward(kept, gradients):
        inputs, entering, product, outputs = kept
        # In a shard_map each device gets its share of what all have alike.
        d_outputs, d_last = gradients[0], jax.lax.psum(gradients[1], axis)
        _, end = backward(inputs, entering, outputs, d_outputs, zeros(d_last))
        leaving, first = exchange(product, end, d_last, not reverse, True)
        d_inputs, _ = backward(inputs, entering, outputs, d_outputs, leaving)
        share = 1.0 / jax.lax.axis_size(axis)
        return d_inputs, jax.tree.map(lambda part: share * part, first)

    unit.defvjp(run, unit_backward)
    return unit
