"""Runs the shared cases, and compares with the float64 loops."""

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.linear_scan.reference import linear_scan_gradients
from keras_griffin.kernels.linear_scan.reference import linear_scan_reference
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.kernels.rg_lru.reference import rg_lru_gradients
from keras_griffin.kernels.rg_lru.reference import rg_lru_reference
from support.checks import assert_close
from support.checks import value_and_grad

MASKS = ("reset", "padding_mask")


def lowered_for(platform, function, *arguments):
    """The text of a jax function's program for a machine that is not here."""
    import jax

    trace = jax.jit(function).trace
    if platform != "cuda":
        return trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    # Since jax 0.12 lowering asks which GPU it is for.
    device = jax.sharding.AbstractDevice("NVIDIA A100", 108, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def in_float64(inputs):
    return {
        name: value if name in MASKS else value.astype("float64")
        for name, value in inputs.items()
    }


def assert_rg_lru_case(case, compiled=False, implementation="auto"):
    """Compares values and gradients with the float64 loop."""
    inputs, dy, d_final = case.make()
    masks = {name: inputs[name] for name in MASKS if name in inputs}
    names = [name for name in inputs if name not in MASKS]

    def function(*tensors):
        arguments = dict(zip(names, tensors, strict=True))
        return rg_lru(**arguments, **masks, implementation=implementation)

    values, gradients = value_and_grad(
        function,
        *(inputs[name] for name in names),
        cotangents=[dy, d_final],
        compiled=compiled,
    )
    exact = in_float64(inputs)
    for name, value, expected in zip(
        ("y", "final_state"), values, rg_lru_reference(**exact), strict=True
    ):
        assert_close(value, expected, case.dtype, name=name)
    expected = rg_lru_gradients(
        exact, dy.astype("float64"), d_final.astype("float64")
    )
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(gradient, expected[name], case.dtype, "gradients", name)


def complex_array(parts):
    """One float64 or complex128 array of a case's tuple."""
    if parts is None:
        return None
    parts = [part.astype("float64") for part in parts]
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def parts_of(array, count):
    return [array] if count == 1 else [array.real, array.imag]


def expected_scan_results(case):
    x, a, h, dy, d_final = (complex_array(z) for z in case.make())
    values = linear_scan_reference(x, a, h, case.reverse)
    gradients = linear_scan_gradients(x, a, h, dy, d_final, case.reverse)
    if h is None:
        gradients = gradients[:2]
    count = 2 if case.is_complex else 1
    return (
        [part for z in values for part in parts_of(z, count)],
        [part for z in gradients for part in parts_of(z, count)],
    )


def run_scan_case(case, compiled=False, implementation="auto"):
    """`linear_scan` on a case: flat lists of values and of gradients."""
    x, a, h, dy, d_final = case.make()
    count = len(x)

    def function(*flat):
        groups = [
            flat[i : i + count] if case.is_complex else flat[i]
            for i in range(0, len(flat), count)
        ]
        return linear_scan(
            *groups, reverse=case.reverse, implementation=implementation
        )

    arrays = [*x, *a, *(h or ())]
    return value_and_grad(
        function, *arrays, cotangents=[*dy, *d_final], compiled=compiled
    )


def assert_scan_case(case, compiled=False, implementation="auto"):
    """Compares values and gradients with the float64 loop."""
    values, gradients = run_scan_case(case, compiled, implementation)
    expected_values, expected_gradients = expected_scan_results(case)
    for i, (value, expected) in enumerate(
        zip(values, expected_values, strict=True)
    ):
        assert_close(value, expected, case.dtype, name=f"output {i}")
    for i, (gradient, expected) in enumerate(
        zip(gradients, expected_gradients, strict=True)
    ):
        assert_close(
            gradient, expected, case.dtype, "gradients", f"gradient {i}"
        )
