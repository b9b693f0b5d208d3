"""JAX: a kernel for the platform, and over the devices of a mesh.

XLA cannot partition a kernel. So where there is a mesh, an operation runs in
`jax.shard_map`: rows over the axis "batch", channels over "model", and time
over "sequence". The mesh is that of the context (`jax.set_mesh`), else that of
`keras.distribution`, so that it may consist of devices that are not here.
"""

import functools

import jax
import keras
from jax.extend.core import Primitive
from jax.interpreters import batching
from jax.interpreters import mlir
from jax.sharding import PartitionSpec

from keras_griffin.kernels.dispatch import log_once

AXES = ("batch", "sequence", "model")


def by_platform(kernels, ops, *args):
    """Runs the kernel for the platform that this is lowered for, else `ops`.

    Unlike `jax.lax.platform_dependent` it traces nothing for other platforms
    (tracing a kernel takes a second), and knows how many devices there are.

    Args:
        kernels: dict from a platform of JAX, `"tpu"` or `"cuda"`, to a
            callable. Where that raises `NotImplementedError`, or where XLA
            would have to partition it, `ops` runs; the reason is logged once.
        ops: callable for every other platform.
        *args: arrays, or structures of them.
    """
    arrays, tree = jax.tree.flatten(args)

    def flat(function):
        def run(*arrays):
            return jax.tree.leaves(function(*jax.tree.unflatten(tree, arrays)))

        return run

    results = _by_platform.bind(
        *arrays,
        kernels=tuple((name, flat(kernel)) for name, kernel in kernels.items()),
        ops=flat(ops),
    )
    structure = jax.tree.structure(jax.eval_shape(ops, *args))
    return jax.tree.unflatten(structure, results)


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


@_by_platform.def_impl
def _run(*arrays, **functions):
    return jax.jit(functools.partial(_by_platform.bind, **functions))(*arrays)


@_by_platform.def_abstract_eval
def _result_types(*types, kernels, ops):
    del kernels
    return jax.make_jaxpr(ops)(*types).out_avals


def _batched(arrays, axes, kernels, ops):
    def mapped(function):
        return jax.vmap(function, in_axes=tuple(axes))

    results = _by_platform.bind(
        *arrays,
        kernels=tuple((name, mapped(kernel)) for name, kernel in kernels),
        ops=mapped(ops),
    )
    return results, (0,) * len(results)


batching.primitive_batchers[_by_platform] = _batched


def _lower(platform, context, *arrays, kernels, ops):
    function = ops
    if platform in dict(kernels):
        try:
            _refuse_partitioning(context.module_context.axis_context)
            jax.make_jaxpr(dict(kernels)[platform])(*context.avals_in)
            function = dict(kernels)[platform]
        except NotImplementedError as error:
            log_once(f"Plain operations instead of a kernel: {error}")
    return mlir.lower_fun(function, multiple_results=True)(context, *arrays)


def _refuse_partitioning(axis_context):
    devices = getattr(axis_context, "num_devices", 1)  # 1 in a shard_map
    if devices not in (None, 1):
        raise NotImplementedError(
            "XLA cannot partition a kernel over several devices. Received: "
            f"{devices} devices and no mesh. Use keras.distribution or "
            "jax.set_mesh, or call it in a shard_map."
        )


for _platform in ("tpu", "cuda", None):
    mlir.register_lowering(
        _by_platform,
        functools.partial(_lower, _platform),
        platform=_platform,
    )


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


def find_mesh():
    """The `Mesh` to divide an operation over, or `None`.

    Raises:
        NotImplementedError: if the mesh has an axis of another name.
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
