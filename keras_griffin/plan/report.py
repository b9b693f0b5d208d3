"""What the compiler said of a training step, as numbers and as text."""

import dataclasses

from keras_griffin.plan import slices

GIB = 2**30


@dataclasses.dataclass
class Plan:
    """What the compiler says of a step; sizes in bytes and for one chip.

    `bound`, `products` and those of `parts` are seconds
    (`costs_jax.step_bound`). They and the collectives are `None` if the step
    does not fit.
    """

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
    bound: float | None = None
    products: float | None = None
    parts: dict | None = None
    seconds: float = 0

    @property
    def chip(self):
        return slices.CHIPS[slices.generation(self.slice_name)]

    def __str__(self):
        mesh = ", ".join(f"{axis}={n}" for axis, n in self.mesh.items())
        chip = self.chip
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
        if self.fits:
            shares = ", ".join(
                f"{part} {seconds / self.bound:.0%}"
                for part, seconds in self.parts.items()
            )
            lines += [
                "Operation by operation, products or memory: "
                f"{self.bound:.3f} s at least; the products are "
                f"{self.products / self.bound:.0%} of it (MFU at this bound)",
                f"  of it {shares}",
                "Collectives of a step:",
            ]
            lines += [
                f"  {kind}: {count}, {size / GIB:.3f} GiB"
                for kind, (count, size) in sorted(self.collectives.items())
            ] or ["  none"]
        lines.append(f"Compiled in {self.seconds:.0f} s; no TPU was used.")
        return "\n".join(lines)
