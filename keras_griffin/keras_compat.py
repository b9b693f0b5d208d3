"""Every private name of Keras and KerasHub that this package touches.

Read in Keras 3.15.1 and KerasHub 0.32.0. Each function says why there is no
public way, and what would make it needless; tests/test_keras_compat.py names
what a release has taken away, and keeps private names out of other files.
"""

from __future__ import annotations

import contextlib
import re
import threading

import keras
from keras.src import backend
from keras.src.backend.common import global_state

# === Layers ===


def all_layers(layer, include_self=True):
    """The layers inside of a layer, in the order of KerasHub's adapter files.

    `keras.Model.layers` stops at the first level, and other layers have no
    list. Needless with a public, recursive one.
    """
    return layer._flatten_layers(include_self=include_self)


def mask_of(x):
    """The mask that a tensor carries from an earlier layer, or `None`.

    Keras gives it to `call` only if there is no other tensor among the
    arguments. Needless when it does so with a state beside `x` too.
    """
    return backend.get_keras_mask(x)


def kernel_without_adapter(dense):
    """The kernel of a float `Dense`, of which `kernel` has LoRA's part too.

    Needless with a public attribute, or when Keras applies LoRA to the inputs
    of a float layer as it does to those of a quantized one.
    """
    return dense._kernel


def remove_weight(layer, name):
    """Takes a weight out of a layer, and sets the attribute to `None`.

    `del` does so too, and collects all of Python's garbage each time: a minute
    for the adapters of 26 blocks. Needless if it did not.
    """
    layer._untrack_variable(getattr(layer, name))
    setattr(layer, name, None)


def forget_adapters(backbone):
    """Makes KerasHub write no adapter file any more, after a merge.

    KerasHub can enable adapters, but not remove them.
    """
    backbone._lora_enabled_layers = []


def set_own_policy(layer):
    """Gives a layer its own policy, where it was built with a map of them.

    Keras' quantized `Dense` asks the map for its mode, which is that of the
    default, and saves no scales. The public setter writes into the map.
    Needless when Keras asks `layer.quantization_mode`.
    """
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        layer._dtype_policy = policy[layer.path]


def save_zero_point(layer):
    """Has Keras write the zero point of a GPTQ or AWQ kernel.

    Keras leaves it out as if only int4 kernels had one, and then refuses its
    own file. Needless when `Dense.save_own_variables` writes it.
    """
    # kernel, scale, zero point
    layer._get_kernel_with_merged_lora = lambda: (None, None, layer.kernel_zero)


# === Variables ===


def forget_uninitialized():
    """Leaves variables without values that would get random ones.

    They were made in `StatelessScope(initialize_variables=False)`, and Keras
    would draw values at the end of the next scope. Needless with a public way
    to build a model for a checkpoint.
    """
    global_state.set_global_attribute("uninitialized_variables", [])


def has_value(variable):
    """Whether a variable has a value: `variable.value` would draw one."""
    return variable._value is not None


def initialize(variable, value=None):
    """Gives its first value to a variable that was made without one.

    Args:
        variable: a `keras.Variable`.
        value: tensor, or `None` for that of its initializer.
    """
    if value is None:
        variable._deferred_initialize()
    else:
        variable._initialize(value)


def own_layout(variable):
    """The layout that `set_layout` gave a variable, or `None`.

    A distribution's public `get_variable_layout` does not tell it from one
    that it has just looked up.
    """
    return variable._layout


def set_layout(variable, layout):
    """Gives a variable a layout of its own under `keras.distribution`.

    `add_weight` takes none, and a `DataParallel` has no layout map. It holds
    from the next value on.
    """
    variable._layout = layout


# === PyTorch ===


class OwnParameters:
    """On PyTorch, each weight is a parameter once, under its name in the layer.

    Keras names parameters by the path of the weight, in which the layer's own
    name differs from one instance to the next, and names those of sub-layers
    once more in each layer above: no `state_dict` would fit another instance.
    It registers them when a layer is built, and not what adapters or
    quantization add later. Needless when Keras does otherwise.

    `check_conversion` sees each function that PyTorch applies to the weights,
    `to` and `half` among them, also for a module that the layer is in.
    """

    if keras.config.backend() == "torch":

        def _track_variables(self):
            super()._track_variables()
            # Module by module, PyTorch would find each weight once more.
            for name, part in list(self._modules.items()):
                if isinstance(part, keras.Layer):
                    self.__dict__[name] = self._modules.pop(name)
            parts = {"": self}
            if not isinstance(self, keras.Model):
                # A model names its layers; others have them from anywhere.
                parts |= {
                    f"{name}/": part
                    for name, part in vars(self).items()
                    if isinstance(part, keras.Layer)
                }
            names = {}
            for prefix, part in parts.items():
                for v in part.variables:
                    path = v.path.removeprefix(f"{part.path}/")
                    path = re.sub(r"seed_generator(_\d+)?/", "", path)
                    names[id(v)] = prefix + path
            parameters = type(self._torch_params)()
            for v in self.variables:
                parameters[names[id(v)]] = v.value
            self._torch_params = parameters

        def _post_track_variable(self, variable):
            if hasattr(self, "_torch_params"):
                self._track_variables()

        def _post_untrack_variable(self, variable):
            if hasattr(self, "_torch_params"):
                self._track_variables()

        def _apply(self, function, *args, **kwargs):
            self.check_conversion(function)
            self.register_parameters()
            return super()._apply(function, *args, **kwargs)

        def register_parameters(self) -> None:
            """Registers the weights as they are now."""
            # That of a functional model lies where PyTorch does not look.
            known = self._modules.get("_torch_params", {})
            now = {id(v.value) for v in self.variables}
            if {id(value) for value in known.values()} != now:
                self._track_variables()


# === Training ===


def build_for_training(model, batch):
    """Makes the variables of model, metrics and optimizer, as `fit` does.

    Needless with a public method; `train_on_batch` would change their values.
    """
    model._symbolic_build(data_batch=batch)


def variables_of(optimizer):
    """The weights that an optimizer was built for.

    Needless with a public name; `optimizer.variables` are its own.
    """
    return optimizer._trainable_variables


class KeepsState:
    """On JAX, what raises leaves the state of the last finished step.

    Keras takes the weights out of the variables before the first step, and
    gives XLA their memory. It knows where to put them back from once a step
    is done, and of the last one of several in one execution alone; `evaluate`
    and `predict` that raise put nothing back. Needless when Keras does so
    (3.15 does not). Only what fails on the device, behind Python's back, takes
    the weights with it.

    `state_lock` keeps other threads from reading weights that a step is about
    to take (see `values_now`).
    """

    if keras.config.backend() == "jax":
        # The thread whose steps have the state, or had it last.
        state_thread = None

        def jax_state_sync(self) -> None:
            if self.state_thread == threading.get_ident():
                if not all(map(has_value, self.variables)):
                    # Also if another call has set this meanwhile.
                    self._jax_state_synced = False
                super().jax_state_sync()

        def _get_jax_state(self, purge_model_variables=False, **kinds):
            with self.state_lock:
                self.jax_state_sync()
                if not all(map(has_value, self.variables)):
                    raise RuntimeError(
                        "A model trains, evaluates and predicts in one thread "
                        "at a time. Received: a second call while one runs. "
                        "Wait for it; `generate` may run beside it."
                    )
                state = super()._get_jax_state(**kinds)
                names = [name for name, wanted in kinds.items() if wanted]
                self._jax_state = dict(zip(names, state, strict=True))
                self._jax_state_synced = False
                self.state_thread = threading.get_ident()
                if purge_model_variables:
                    self._purge_model_variables(**kinds)
                return state

        def _make_function(self, step_function, **kwargs):
            def step(state, data):
                finished = []
                try:
                    with self.state_lock:
                        # No Ctrl-C comes between the step's end and the list.
                        finished.extend(map(step_function, [state], [data]))
                finally:
                    for _, new in finished:
                        kept = zip(self._jax_state, new, strict=True)
                        self._jax_state = dict(kept)
                return finished[0]

            steps = super()._make_function(step, **kwargs)

            def put_back_if_raised(state, iterator):
                with state_put_back(self):
                    return steps(state, iterator)

            return put_back_if_raised


@contextlib.contextmanager
def state_put_back(model):
    """Puts the weights of a `KeepsState` back if something is raised."""
    try:
        yield
    except BaseException:
        if keras.config.backend() == "jax":
            model.jax_state_sync()
        raise


def values_now(model):
    """The values of a model's variables on JAX, also while `fit` has them.

    Call it, and use the values, within the `state_lock` of a `KeepsState`.
    """
    variables = model.variables
    if all(map(has_value, variables)):
        return [v.value for v in variables]
    values = {}
    for name in ("trainable_variables", "non_trainable_variables"):
        held = (getattr(model, "_jax_state", None) or {}).get(name, ())
        own = getattr(model, name)
        values.update(zip(map(id, own), held, strict=False))
    if not all(id(v) in values for v in variables):
        raise RuntimeError(
            "The weights must be in the model. Received: a model whose weights "
            "another training has, a StatefulTrainer's for one. Wait for its "
            "end, or generate in a callback at the end of an epoch."
        )
    return [values[id(v)] for v in variables]


def build_from(model, batch_of):
    """Makes `fit` on TensorFlow build a model from `batch_of(model, iterator)`.

    Keras itself adds up the batches of all replicas, bool masks among them,
    which raises. Needless when it takes one of them.
    """
    build = type(model)._maybe_symbolic_build

    def maybe_symbolic_build(iterator=None, data_batch=None):
        if iterator is not None:
            iterator, data_batch = None, batch_of(model, iterator)
        build(model, iterator, data_batch)

    model._maybe_symbolic_build = maybe_symbolic_build


def own_strategy(model):
    """The strategy of tf.distribute that a model was made under, or `None`.

    The public `distribute_strategy` falls back to the default one.
    """
    return model._distribute_strategy


def additional_loss(model, loss):
    """A regularizer's or `add_loss`'s part of the loss of a replica.

    Under tf.distribute losses of replicas are added up. Needless if Keras'
    `compute_loss` could be given the other part.
    """
    return model._aggregate_additional_loss(loss)


# === Text ===


def add_special_token(tokenizer, token, name):
    """Makes `tokenizer.<name>_id` the id of a token, for any vocabulary.

    KerasHub's own tokenizers do so, and there is no other way that
    `special_token_ids` knows of.
    """
    tokenizer._add_special_token(token, name)


def tensorflow_tokenizer(tokenizer):
    """The `tensorflow_text` tokenizer of a SentencePiece tokenizer, or `None`.

    `keras.utils.set_random_seed` clears the cache that holds its model, and
    only this object knows. Needless when KerasHub makes it anew by itself.
    """
    return getattr(tokenizer, "_sentence_piece", None)
