"""What a step of training needs on a TPU slice, from the TPU's compiler."""

import contextlib
import math
import time

import jax
import keras

from keras_griffin import keras_compat
from keras_griffin.distribution.griffin_parallel import GriffinParallel
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from keras_griffin.plan import costs_jax
from keras_griffin.plan import slices
from keras_griffin.plan.report import Plan


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
    devices = slices.devices(slice_name)
    distribution = GriffinParallel(batch, model, sequence, devices=devices)
    mesh = _mesh(distribution, batch_size)
    start = time.perf_counter()
    causal_lm = _abstract_model(
        preset, distribution, lora_rank, remat, dtype, changes
    )
    step, state, data = _abstract_step(
        causal_lm, distribution, batch_size, length
    )
    traced = _traced(step, state, data, distribution)
    options = [
        dtype,
        f"LoRA of rank {lora_rank}" if lora_rank else "all weights",
        "remat of each block" if remat else "no remat",
        "AdamW",
    ]
    result = Plan(
        name=preset,
        slice_name=slice_name,
        num_chips=len(devices),
        mesh=mesh,
        batch_size=batch_size,
        length=length,
        options=", ".join(options),
        parameters=_count(causal_lm.variables),
        trainable=_count(causal_lm.trainable_variables),
        flops=costs_jax.count_flops(traced.jaxpr) / len(devices),
        memory=0,
        fits=True,
        arguments=sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves((state, data))
        ),
    )
    kernel_flops = costs_jax.count_flops(traced.jaxpr, in_kernels=True)
    _compile(traced, result, kernel_flops / len(devices), thorough)
    result.seconds = time.perf_counter() - start
    return result


def _mesh(distribution, batch_size):
    """Sizes of the mesh's axes, by their names."""
    device_mesh = distribution.device_mesh
    mesh = dict(
        zip(
            device_mesh.axis_names,
            device_mesh.shape,
            strict=True,
        )
    )
    if batch_size % mesh["batch"]:
        raise ValueError(
            "The mesh's axis 'batch' must divide `batch_size`. Received: "
            f"batch_size={batch_size}, 'batch' of size {mesh['batch']}. Take a "
            f"multiple of {mesh['batch']}."
        )
    return mesh


def _count(variables):
    return sum(math.prod(v.shape) for v in variables)


def _traced(step, state, data, distribution):
    shardings = keras.tree.map_structure(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(None, shardings))
    previous = keras.distribution.distribution()
    keras.distribution.set_distribution(distribution)
    try:
        return jitted.trace(state, data)
    finally:
        keras.distribution.set_distribution(previous)


def _compile(traced, result, kernel_flops, thorough):
    """Fills in what the compiler says."""
    try:
        with _least_effort(not thorough):
            compiled, text = costs_jax.compile_and_print(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        result.memory = costs_jax.memory_needed(error, result.arguments)
        result.fits = False
    else:
        result.memory = compiled.memory_analysis().peak_memory_in_bytes
        result.collectives = costs_jax.count_collectives(text)
        result.bound, result.products, result.parts = costs_jax.step_bound(
            text, kernel_flops, result.chip
        )


@contextlib.contextmanager
def _least_effort(wanted):
    settings = {
        "jax_exec_time_optimization_effort": -1.0,  # until jax 0.11
        "jax_optimization_level": "O0",
    }
    before = {
        name: getattr(jax.config, name)
        for name in settings
        if wanted and hasattr(jax.config, name)
    }
    for name in before:
        jax.config.update(name, settings[name])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


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
            layout = distribution.get_variable_layout(variable)
            keras_compat.set_layout(variable, layout)
        optimizer.build(backbone.trainable_variables)
    keras_compat.forget_uninitialized()
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
        {"token_ids": row("int32"), "padding_mask": row("int32")},
        row("int32"),
        row("float32"),
    )
    keras_compat.build_for_training(model, data)
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
