"""What a step of training needs on a TPU slice, from the TPU's compiler."""

import collections
import contextlib
import dataclasses
import math
import os
import re
import time

import jax
import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_griffin.distribution.griffin_parallel import GriffinParallel
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

# Usable HBM of a chip [GiB], its peak rate in bfloat16 [TFLOP/s], and the
# cores that the name of a slice counts for it. Source of the first: what
# libtpu 0.0.52 says of a program that is larger, "exceeds available HBM
# (95.73G)"; tests/plan/test_train_step.py asks it. Of the others:
# cloud.google.com/tpu/docs/{v5e,v5p,v6e}.
CHIPS = {
    "v5e": {"memory": 15.75, "tflops": 197, "cores": 1},
    "v5p": {"memory": 95.73, "tflops": 459, "cores": 2},
    "v6e": {"memory": 31.24, "tflops": 918, "cores": 1},
}
# Slices that can be rented, by their number of chips; v5p is a 3-D torus.
SHAPES = {
    2: {
        1: "1x1",
        4: "2x2",
        8: "2x4",
        16: "4x4",
        32: "4x8",
        64: "8x8",
        128: "8x16",
        256: "16x16",
    },
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
    },
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
GIB = 2**30
ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
}


@dataclasses.dataclass
class Plan:
    """What the compiler says of a step; sizes in bytes and for one chip."""

    name: str
    slice_name: str
    num_chips: int
    mesh: dict
    batch_size: int
    length: int
    options: str
    parameters: int
    trainable: int
    flops: float
    memory: float
    fits: bool
    arguments: float
    collectives: dict | None = None
    seconds: float = 0

    @property
    def available(self):
        return CHIPS[_generation(self.slice_name)]["memory"] * GIB

    def __str__(self):
        mesh = ", ".join(f"{axis}={n}" for axis, n in self.mesh.items())
        chip = CHIPS[_generation(self.slice_name)]
        lines = [
            f"{self.name}: {self.parameters:,} parameters, "
            f"{self.trainable:,} trained",
            f"Slice: {self.slice_name}, {self.num_chips} chips, mesh {mesh}",
            f"Batch: {self.batch_size} rows of {self.length} tokens; "
            f"{self.options}",
            f"Memory of a chip: {self.memory / GIB:.2f} GiB of "
            f"{chip['memory']:.2f} GiB: "
            + ("it fits" if self.fits else "IT DOES NOT FIT"),
        ]
        if self.fits:
            lines.append(
                f"  weights, optimizer and data {self.arguments / GIB:.2f} "
                f"GiB, the rest {(self.memory - self.arguments) / GIB:.2f} GiB"
            )
        lines.append(
            f"Matrix products of a chip: {self.flops / 1e12:.2f} TFLOP a step, "
            f"{self.flops / 1e12 / chip['tflops']:.3f} s at least"
        )
        if self.fits and self.collectives is None:
            lines.append(
                "Collectives of a step: unknown, the compiler failed to print "
                "its program"
            )
        elif self.fits:
            lines.append("Collectives of a step:")
            lines += [
                f"  {kind}: {count}, {size / GIB:.3f} GiB"
                for kind, (count, size) in sorted(self.collectives.items())
            ] or ["  none"]
        lines.append(f"Compiled in {self.seconds:.0f} s; no TPU was used.")
        return "\n".join(lines)


def plan(
    preset,
    slice_name="v5e-8",
    batch=-1,
    model=1,
    sequence=1,
    batch_size=8,
    length=2048,
    lora_rank=None,
    remat=False,
    dtype="mixed_bfloat16",
    thorough=False,
    **changes,
):
    """Compiles a step of `fit` for a TPU slice; allocates no weight.

    Args:
        preset: str. A name or a folder, as of `GriffinCausalLM.from_preset`.
        slice_name: str. `"v5e-8"`, `"v5p-16"` or `"v6e-256"`, say: Google's
            names, where v5p counts two cores a chip. Defaults to `"v5e-8"`.
        batch, model, sequence: int. The mesh, as of `GriffinParallel`.
        batch_size: int. Rows of a batch, on all chips together.
        length: int. Tokens of a row.
        lora_rank: int. Freezes the backbone and trains LoRA of this rank.
            Defaults to `None`: all weights are trained.
        remat: bool. Whether each block is computed anew in the gradient.
            Defaults to `False`.
        dtype: str. Policy of weights and computations. Defaults to
            `"mixed_bfloat16"`: float32 weights.
        thorough: bool. Whether to compile as `fit` would. `False` takes the
            compiler's least effort, several times faster; it finds a little
            more memory. Defaults to `False`.
        **changes: arguments of `GriffinBackbone` in place of the preset's.

    Returns:
        A `Plan`; `str(plan)` is the report.

    Raises:
        ValueError: for an unknown slice, sizes that do not divide, and
            another backend than JAX.

    Example:
    ```python
    from keras_griffin.plan.train_step_jax import plan

    print(plan("griffin_100m", "v5e-1"))
    ```
    """
    if keras.config.backend() != "jax":
        raise ValueError(
            "A plan is made with JAX. Received: backend "
            f"{keras.config.backend()!r}. Set KERAS_BACKEND=jax."
        )
    devices = _devices(slice_name)
    distribution = GriffinParallel(batch, model, sequence, devices=devices)
    mesh = distribution.device_mesh
    rows = mesh.shape[mesh.axis_names.index("batch")]
    if batch_size % rows:
        raise ValueError(
            "The mesh's axis 'batch' must divide `batch_size`. Received: "
            f"batch_size={batch_size}, 'batch' of size {rows}. Take a "
            f"multiple of {rows}."
        )
    start = time.perf_counter()
    causal_lm = _abstract_model(
        preset, distribution, lora_rank, remat, dtype, changes
    )
    step, state, data = _abstract_step(
        causal_lm, distribution, batch_size, length
    )
    shardings = keras.tree.map_structure(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(None, shardings))
    previous = keras.distribution.distribution()
    keras.distribution.set_distribution(distribution)
    try:
        traced = jitted.trace(state, data)
    finally:
        keras.distribution.set_distribution(previous)
    result = Plan(
        name=preset,
        slice_name=slice_name,
        num_chips=len(devices),
        mesh=dict(zip(mesh.axis_names, mesh.shape, strict=True)),
        batch_size=batch_size,
        length=length,
        options=", ".join(
            [
                dtype,
                f"LoRA of rank {lora_rank}" if lora_rank else "all weights",
                "remat of each block" if remat else "no remat",
                "AdamW",
            ]
        ),
        parameters=sum(math.prod(v.shape) for v in causal_lm.variables),
        trainable=sum(
            math.prod(v.shape) for v in causal_lm.trainable_variables
        ),
        flops=count_flops(traced.jaxpr) / len(devices),
        memory=0,
        fits=True,
        arguments=sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves((state, data))
        ),
    )
    try:
        with _least_effort(not thorough):
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        result.memory, result.fits = _needed(error, result.arguments), False
    else:
        result.memory = compiled.memory_analysis().peak_memory_in_bytes
        result.collectives = _collectives(compiled)
    result.seconds = time.perf_counter() - start
    return result


@contextlib.contextmanager
def _least_effort(wanted):
    settings = {
        "jax_exec_time_optimization_effort": -1.0,
        "jax_optimization_level": "O0",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items() if wanted else ():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _needed(error, arguments):
    """Bytes that a program needs for which the compiler found no memory."""
    size = r"([\d.]+)([KMGT])"
    used = re.search(rf"Used {size} of", str(error))
    temporaries = re.search(rf"temporaries \({size}\) exceeds", str(error))
    found = used or temporaries
    if found is None:
        raise error
    needed = float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2])))
    return needed if used else needed + arguments


def _generation(slice_name):
    return slice_name.partition("-")[0]


def _devices(slice_name):
    """Descriptions of a slice's chips, which need not exist."""
    generation, _, size = slice_name.partition("-")
    chip = CHIPS.get(generation)
    shapes = SHAPES[3 if generation == "v5p" else 2]
    sizes = [n * chip["cores"] for n in shapes] if chip else []
    if not size.isdecimal() or int(size) not in sizes:
        raise ValueError(
            "`slice_name` must be a generation and a size that can be rented."
            f" Received: {slice_name!r}. Sizes of "
            + (
                f"{generation}: {sizes}."
                if chip
                else f"the generations {sorted(CHIPS)} are like 'v5e-8'."
            )
        )
    from jax.experimental import topologies

    # libtpu would look for a machine with a TPU otherwise.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_LOG_DIR": "disabled",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    shape = shapes[int(size) // chip["cores"]]
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{generation}:{shape}"
    )
    return np.array(topology.devices)


def _abstract_model(preset, distribution, lora_rank, remat, dtype, changes):
    """A compiled model whose variables have no values."""
    optimizer = keras.optimizers.AdamW()
    blocks = [f"block_{i}" for i in range(1000)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.StatelessScope(initialize_variables=False))
        if remat:
            stack.enter_context(
                keras.RematScope(mode="list_of_layers", layer_names=blocks)
            )
        backbone = GriffinBackbone.from_preset(
            preset, load_weights=False, dtype=dtype, **changes
        )
        if lora_rank:
            backbone.enable_lora(lora_rank)
        for variable in backbone.variables:
            variable._layout = distribution.get_variable_layout(variable)
        optimizer.build(backbone.trainable_variables)
    # They would be initialized when the next scope ends.
    global_state.set_global_attribute("uninitialized_variables", [])
    causal_lm = GriffinCausalLM(backbone, compile=False)
    causal_lm.compile(optimizer)
    return causal_lm


def _abstract_step(model, distribution, batch_size, length):
    """`train_step` with descriptions of its state and of a batch."""

    def abstract(shape, dtype, layout):
        sharding = layout.backend_layout
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def row(dtype):
        shape = (batch_size, length)
        return abstract(shape, dtype, distribution.get_data_layout(shape))

    data = (
        {
            "token_ids": row("int32"),
            "padding_mask": row("int32"),
            "segment_ids": row("int32"),
        },
        row("int32"),
        row("float32"),
    )
    model._symbolic_build(data_batch=data)
    state = tuple(
        [
            abstract(v.shape, v.dtype, distribution.get_variable_layout(v))
            for v in variables
        ]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    return model.train_step, state, data


def count_flops(jaxpr):
    """FLOPs of the matrix products of a traced function, on all devices.

    A loop counts as often as it runs, if that is known while tracing.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(shape[axis] for axis in contracted)
            )
        if equation.primitive.name == "cond":  # one branch runs
            total += max(map(count_flops, params["branches"]))
            continue
        times = params.get("length", 1)
        if "grid_mapping" in params:  # a Pallas kernel
            times = math.prod(params["grid_mapping"].grid)
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += times * count_flops(inner)
    return total


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _collectives(compiled):
    try:
        return count_collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        # libtpu 0.0.52 can't print some programs that it has made
        # ("async-update instruction should have 1 operands").
        return None


def count_collectives(text):
    """Collectives of a compiled program, loops included.

    Args:
        text: str. Its HLO.

    Returns:
        dict from kind to `[count, bytes]`: how often it runs, and the sizes
        of its results on one chip (of a reduce-scatter: of its inputs).
    """
    bodies, entry = _computations(text)
    times = collections.Counter({entry: 1})
    # One collective that runs beside other work stands in many fusions.
    unique = {}
    # A computation stands before those that call it.
    for name in reversed(bodies):
        for line in bodies[name]:
            known = re.search(r'"known_trip_count":{"n":"(\d+)"}', line)
            repeat = int(known[1]) if known and " while(" in line else 1
            for called in re.findall(
                r"(?:body|calls|to_apply)=%?([\w.-]+)", line
            ):
                times[called] += repeat * times[name]
            kind = re.search(
                rf" = (.*) ({'|'.join(COLLECTIVES)})(-start)?\(", line
            )
            if kind is None:
                continue
            sizes = [
                ITEM_BYTES[item] * math.prod(map(int, shape.split(",")))
                for item, shape in re.findall(r"(\w+)\[([\d,]+)\]", kind[1])
            ]
            if kind[3] and kind[2] in ("all-gather", "collective-permute"):
                sizes = sizes[len(sizes) // 2 :]  # operands come first
            label = kind[2]
            if name.startswith("all-reduce-scatter"):
                label = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", line)
            unique[channel[1] if channel else line] = (
                label,
                times[name],
                times[name] * sum(sizes),
            )
    found = {}
    for label, count, size in unique.values():
        total = found.setdefault(label, [0, 0])
        total[0] += count
        total[1] += size
    return found


def _computations(text):
    """Lines of each computation of an HLO module, and the first one's name."""
    bodies, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry
