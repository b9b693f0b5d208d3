import functools
import threading

import keras

from keras_griffin import keras_compat
from keras_griffin.generation.sampling import copy_sampler
from keras_griffin.generation.sampling import kind_of_sampler
from keras_griffin.generation.sampling import settings_of
from keras_griffin.generation.sampling import with_settings
from keras_griffin.generation.state_files import state_specs

HALVES = ("bfloat16", "float16")

# XLA on a CPU multiplies in float32. It converts all smaller weights at once,
# before a loop or as early as it can: the 2B then takes 21 GiB. These options
# (jax 0.10 and 0.12) let it convert each where it is used.
LEAN_XLA = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,"
    "while-loop-expensive-invariant-code-motion",
}


class CompiledFunctions:
    """Functions of a model's weights, each compiled once a shape.

    What the backend compiles with: `jax.jit`, `tf.function`, nothing on
    PyTorch, where the step of a token is recorded instead.

    Args:
        model: a compiled `GriffinCausalLM`.
    """

    def __init__(self, model):
        self._model = model
        self._functions = {}
        self._steps = {}  # of PyTorch
        self._structure = None
        # Of the weights; see `keras_compat.KeepsState`.
        self.state_lock = threading.RLock()

    @functools.cached_property
    def state_specs(self):
        """What the model's states look like; see `state_files`."""
        return state_specs(self._model)

    def run(self, function, *args, xla=False):
        """Runs `function(model, *args)`, compiled."""
        self.forget_stale()
        if function not in self._functions:
            self._functions[function] = self.compile(
                functools.partial(function, self._model), xla=xla
            )
        return self._functions[function](*args)

    def step(self, function):
        """`function(model, ...)` of a token, as part of what calls it.

        On PyTorch, where nothing is compiled, it is recorded. `forget_stale`
        drops what it keeps of the weights.
        """
        step = functools.partial(function, self._model)
        if keras.config.backend() != "torch" or self._model.run_eagerly:
            return step
        from keras_griffin.generation.recorded_torch import RecordedStep

        return self._steps.setdefault(function, RecordedStep(step))

    def with_sampler(self, sampler, function, *static, xla=False):
        """A compiled `function(model, sampler, *static, ...)`.

        There is one for each kind of sampler: its settings and its random
        state go in as data.
        """
        self.forget_stale()
        key = (function, static, *kind_of_sampler(sampler))
        if key not in self._functions:
            own = copy_sampler(sampler)

            def run(settings, *args):
                sampler = with_settings(own, settings)
                return function(self._model, sampler, *static, *args)

            self._functions[key] = (
                own,
                self.compile(run, own.variables, xla),
                threading.Lock(),
            )
        own, compiled, lock = self._functions[key]

        def run_with(*args):
            # Between the assignments the random state is this call's.
            with lock:
                for inside, outside in zip(
                    own.variables, sampler.variables, strict=True
                ):
                    inside.assign(outside)
                outputs = compiled(settings_of(sampler), *args)
                for inside, outside in zip(
                    own.variables, sampler.variables, strict=True
                ):
                    outside.assign(inside)
            return outputs

        return run_with

    def forget_stale(self):
        """Drops what was made of weights that are no longer there.

        LoRA, merging and quantization of the backbone change its weights
        without telling this model, and a `tf.function` would not notice.
        """
        model = self._model
        for step in self._steps.values():
            step.read_weights_anew()
        structure = [(v.path, v.dtype, v.shape) for v in model.variables]
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            self._structure = structure
            self._functions, self._steps = {}, {}
            model.train_function = None
            model.test_function = None
            model.predict_function = None
            if model._replica_call is not None:
                from keras_griffin.distribution import tensorflow_strategies

                replica_call = tensorflow_strategies.function_of_replica(model)
                model._replica_call = replica_call

    def compile(self, function, variables=(), xla=False):
        """Compiles a function of the weights that may change `variables`.

        Args:
            function: callable.
            variables: those that it may change.
            xla: bool. Whether TensorFlow should take XLA unless the model
                was told otherwise.
        """
        model = self._model
        backend = keras.config.backend()
        if backend == "torch":
            import torch

            return torch.no_grad()(function)
        if model.run_eagerly and backend == "tensorflow":
            return function
        if backend == "tensorflow":
            import tensorflow as tf

            if model._requested_jit_compile != "auto":
                xla = model.jit_compile
            elif _has_weights(model, HALVES) and _computes_on_a_cpu():
                xla = False  # oneDNN multiplies them as they are
            else:
                xla = xla or model.jit_compile
            # What is traced is written in operations already.
            return tf.function(function, jit_compile=xla, autograph=False)

        import jax

        def stateless(weights, values, *args):
            mapping = zip(
                [*model.variables, *variables], weights + values, strict=True
            )
            with keras.StatelessScope(state_mapping=mapping) as scope:
                outputs = function(*args)
            return outputs, [scope.get_current_value(v) for v in variables]

        if not model.run_eagerly:
            options = {}
            if _has_weights(model, HALVES) and _computes_on_a_cpu():
                options = lean_xla()
            stateless = jax.jit(stateless, compiler_options=options)

        def compiled(*args):
            with self.state_lock:
                outputs, values = stateless(
                    keras_compat.values_now(model),
                    [v.value for v in variables],
                    *args,
                )
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return outputs

        return compiled


@functools.cache
def lean_xla():
    """The options of `LEAN_XLA` that this release of JAX knows."""
    import jax

    known = {}
    for name, value in LEAN_XLA.items():
        option = {name: value}
        lowered = jax.jit(lambda x: x, compiler_options=option).lower(0.0)
        try:
            lowered.compile()
        except jax.errors.JaxRuntimeError:
            continue
        known |= option
    return known


def _computes_on_a_cpu():
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import tensorflow as tf

    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def _has_weights(model, dtypes):
    """Whether a weight of the model is stored in one of `dtypes`."""
    return any(
        keras.backend.standardize_dtype(v.dtype) in dtypes
        for v in model.weights
    )
