"""How far a result may be from the float64 reference: one table for all."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest error, as a fraction of the reference's largest magnitude."""

    values: float
    gradients: float


# float32 sums over thousands of steps, each rounded to 6e-8. The 16-bit types
# compute in float32 and round once at the end: to 2**-9 and 2**-11.
TOLERANCES = {
    "float32": Tolerance(values=1e-5, gradients=5e-5),
    "bfloat16": Tolerance(values=4e-3, gradients=8e-3),
    "float16": Tolerance(values=1e-3, gradients=2e-3),
}
