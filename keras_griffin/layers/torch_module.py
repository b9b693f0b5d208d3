"""What a PyTorch user does with a module, on a layer or model of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_griffin import keras_compat

if keras.config.backend() == "torch":
    import torch

    class TorchModule(keras_compat.OwnParameters):
        """Before a Keras class: its weights are a `torch.nn.Module`'s.

        They are registered whenever PyTorch looks, so that `state_dict()` and
        optimizers get all of them, adapters too.
        """

        # What `train()` and `eval()` have said; `None` before.
        mode_of_torch = None

        # A `torch.nn.Sequential` asks its modules by this for parameters.
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            if not self.built:
                raise ValueError(
                    "The weights of a layer are made when it knows the width "
                    f"of its input. Received: {type(self).__name__} "
                    f"{self.name!r}, which does not know it, so that an "
                    "optimizer would leave it out. Call "
                    "`layer.build((None, None, width))` first."
                )
            self.register_parameters()
            return super().named_modules(*args, **kwargs)

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            self.register_parameters()
            return super().state_dict(*args, **kwargs)

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            self.register_parameters()
            return super().load_state_dict(*args, **kwargs)

        def train(self, mode: bool = True) -> Any:
            self.mode_of_torch = mode
            return super().train(mode)

        def check_conversion(self, function: Callable[..., Any]) -> None:
            """Raises for what would give the weights another dtype."""
            own = {v.dtype for v in self.variables if "float" in v.dtype}
            for name in own or {self.variable_dtype}:
                before = torch.empty(0, dtype=getattr(torch, name))
                after = str(function(before).dtype).removeprefix("torch.")
                if after != name:
                    raise ValueError(
                        "The dtype of weights is set when a layer or model is "
                        f"made, by Keras. Received: {after} for weights of "
                        f"{name}. Give dtype={after!r} to the constructor or "
                        "to `from_preset`, or compute under `torch.autocast`."
                    )

else:

    class TorchModule:
        """Nothing, on backends without modules of their own."""

        mode_of_torch = None
