"""What a PyTorch user does with a module, on a layer or model of Keras."""

import keras

from keras_griffin import keras_compat

if keras.config.backend() == "torch":
    import torch

    class TorchModule:
        """Before a Keras class: its weights are a `torch.nn.Module`'s.

        Keras registers weights as parameters when somebody asks for
        `parameters()`, and once. Here they are registered whenever PyTorch
        looks, so that `state_dict()` has all of them, adapters too.
        """

        def named_parameters(self, *args, **kwargs):
            self._register()
            return super().named_parameters(*args, **kwargs)

        def state_dict(self, *args, **kwargs):
            self._register()
            return super().state_dict(*args, **kwargs)

        def load_state_dict(self, *args, **kwargs):
            self._register()
            return super().load_state_dict(*args, **kwargs)

        def to(self, *args, **kwargs):
            """Moves the weights; their dtype is Keras' business."""
            for value in (*args, *kwargs.values()):
                # A dtype, or a tensor that has one.
                self._check_dtype(getattr(value, "dtype", value))
            self._register()
            return super().to(*args, **kwargs)

        def half(self):
            return self.to(torch.float16)

        def bfloat16(self):
            return self.to(torch.bfloat16)

        def float(self):
            return self.to(torch.float32)

        def double(self):
            return self.to(torch.float64)

        def _register(self):
            known = {id(value) for _, value in super().named_parameters()}
            if known != {id(variable.value) for variable in self.variables}:
                keras_compat.track_parameters(self)

        def _check_dtype(self, dtype):
            if not isinstance(dtype, torch.dtype):
                return
            own = {
                variable.value.dtype
                for variable in self.variables
                if variable.value.dtype.is_floating_point
            }
            if own != {dtype}:
                raise ValueError(
                    "The dtype of weights is set when a layer or model is "
                    f"made, by Keras. Received: {dtype} for weights of "
                    f"{', '.join(sorted(map(str, own)))}. Give "
                    f"dtype={str(dtype).removeprefix('torch.')!r} to the "
                    "constructor or to `from_preset`, or compute under "
                    "`torch.autocast`."
                )

else:

    class TorchModule:
        """Nothing, on backends without modules of their own."""
