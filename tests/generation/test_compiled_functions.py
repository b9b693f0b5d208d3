"""With what the functions of a model are compiled."""

import keras
import pytest

from keras_griffin.generation import compiled_functions
from support.models import tiny_model
from support.models import tokens


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="eager: nothing is compiled"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_16_bit_weights_on_a_cpu_are_not_widened_all_at_once(
    dtype, monkeypatch
):
    """By options of XLA that JAX knows, or without XLA."""
    options = []
    if keras.config.backend() == "jax":
        import jax as package

        place, name, lean = (
            "jit",
            "compiler_options",
            compiled_functions.LEAN_XLA,
        )
        # Names that a release has dropped would be left out silently.
        assert compiled_functions.lean_xla() == lean
    else:
        import tensorflow as package

        place, name, lean = "function", "jit_compile", False
    compile = getattr(package, place)

    def recorded(*args, **kwargs):
        options.append(kwargs.get(name))
        return compile(*args, **kwargs)

    model = tiny_model(dtype=dtype)
    monkeypatch.setattr(package, place, recorded)
    model.generate({"token_ids": tokens(1, 3)}, max_new_tokens=2)
    options = [x for x in options if x is not None]  # ours, not JAX' own
    assert len(options) == 3  # the prompt, the loop, the last token
    # Of the loop; without it TensorFlow takes XLA there alone.
    assert (options[1] == lean) == (dtype == "bfloat16")


def test_decoding_on_jax_does_not_wait_for_the_host(monkeypatch):
    """All tokens of a call are one program, which talks to nobody."""
    if keras.config.backend() != "jax":
        pytest.skip("reads JAX's programs")
    import jax

    programs, jit = [], jax.jit

    def recorded_jit(function, **options):
        compiled = jit(function, **options)

        def call(*args):
            programs.append(compiled.lower(*args).as_text())
            return compiled(*args)

        return call

    model = tiny_model()
    ids = tokens(2, 40)
    mask = (ids > 0) & (range(40) < ids.shape[1] // 4 * (ids[:, :1] >= 0))
    with monkeypatch.context() as context:
        context.setattr(jax, "jit", recorded_jit)
        model.generate({"token_ids": ids, "padding_mask": mask.astype("int32")})
    loops = [text for text in programs if "stablehlo.while" in text]
    assert len(programs) == 3, len(programs)  # prompt, 29 tokens, the last one
    assert len(loops) >= 1
    for text in programs:
        for word in ("callback", "infeed", "outfeed", "stablehlo.send"):
            assert word not in text
