"""The scans that tests and benchmarks run: each for a reason of its own."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ScanCase:
    """One scan. `decay` says how `a` is drawn; see `make`."""

    why: str
    batch: int = 2
    time: int = 7
    width: int = 5
    dtype: str = "float32"
    reverse: bool = False
    is_complex: bool = False
    has_initial_state: bool = True
    decay: str = "uniform"

    def __str__(self):
        return self.why.replace(" ", "-")

    def make(self, seed=0):
        """Random `x`, `a`, `initial_state`, `dy` and `d_final`.

        Each a tuple of one array, or of two if complex. `initial_state` is
        `None` if the case has none. Values are exact in the case's dtype.
        """
        rng = np.random.default_rng(seed)
        parts = 2 if self.is_complex else 1
        shape = (self.batch, self.time, self.width)

        def normal(*shape):
            return tuple(
                rng.normal(size=shape).astype(self.dtype) for _ in range(parts)
            )

        modulus = rng.uniform(0.3, 1.0, size=shape)
        if self.decay == "near_one":
            modulus = rng.uniform(0.999, 1.0, size=shape)
        if self.decay == "resets":
            modulus *= rng.random(shape) > 0.3
        angle = rng.uniform(-np.pi, np.pi, size=shape)
        if not self.is_complex:
            angle = 0.0 * angle
        a = (modulus * np.cos(angle), modulus * np.sin(angle))[:parts]
        return (
            normal(*shape),
            tuple(part.astype(self.dtype) for part in a),
            normal(self.batch, self.width) if self.has_initial_state else None,
            normal(*shape),
            normal(self.batch, self.width),
        )


SCAN_CASES = [
    ScanCase("no time", time=0),
    ScanCase("no time reverse", time=0, reverse=True),
    ScanCase("one step", time=1),
    ScanCase("one step reverse complex", time=1, reverse=True, is_complex=True),
    ScanCase("two steps", time=2),
    ScanCase("three steps reverse", time=3, reverse=True),
    ScanCase("seven steps", time=7),
    ScanCase("one row one channel", batch=1, time=9, width=1),
    ScanCase("no initial state", time=7, has_initial_state=False),
    ScanCase("no initial state reverse", reverse=True, has_initial_state=False),
    ScanCase("resets", time=64, decay="resets"),
    ScanCase("resets reverse", time=64, decay="resets", reverse=True),
    ScanCase("chunks and a rest", time=1000),
    ScanCase("chunks and a rest reverse", time=1000, reverse=True),
    ScanCase("chunks and a rest complex", time=1000, is_complex=True),
    ScanCase("complex", time=64, is_complex=True),
    ScanCase("complex reverse", time=7, is_complex=True, reverse=True),
    ScanCase(
        "complex resets", time=64, is_complex=True, decay="resets", reverse=True
    ),
    ScanCase("training length", batch=2, time=2048, width=16, decay="near_one"),
    ScanCase("long memory", batch=1, time=5000, width=3, decay="near_one"),
    ScanCase("rows too wide for chunks", batch=8, time=20, width=2050),
    ScanCase("bfloat16", time=64, width=8, dtype="bfloat16"),
    ScanCase("bfloat16 reverse", time=7, dtype="bfloat16", reverse=True),
    ScanCase("bfloat16 complex", time=7, dtype="bfloat16", is_complex=True),
    ScanCase("float16", time=64, width=8, dtype="float16"),
    ScanCase("float16 one step", time=1, dtype="float16"),
]


@dataclasses.dataclass(frozen=True)
class RGLRUCase:
    """One call of `rg_lru`; see `make`."""

    why: str
    batch: int = 2
    time: int = 7
    width: int = 12
    gate_blocks: int = 3
    dtype: str = "float32"
    is_complex: bool = False
    has_initial_state: bool = True
    has_reset: bool = False
    has_padding: bool = False
    recurrence_param: tuple = (-7.0, -2.0)  # FACTS.md 1.1: the usual range

    def __str__(self):
        return self.why.replace(" ", "-")

    def make(self, seed=0):
        """Random arguments of `rg_lru` by name, `dy` and `d_final`.

        The arguments are exact in the case's dtype; masks are bool.
        """
        rng = np.random.default_rng(seed)
        shape = (self.batch, self.time, self.width)
        size_in = self.width // self.gate_blocks
        size_out = size_in // 2 if self.is_complex else size_in
        units = self.gate_blocks * size_out

        def normal(*shape, scale=1.0):
            return (scale * rng.normal(size=shape)).astype(self.dtype)

        inputs = {"x": normal(*shape)}
        for gate in ("recurrence_gate", "input_gate"):
            inputs[f"{gate}_kernel"] = normal(
                self.gate_blocks, size_in, size_out, scale=size_in**-0.5
            )
            inputs[f"{gate}_bias"] = normal(
                self.gate_blocks, size_out, scale=0.5
            )
        inputs["recurrence_param"] = rng.uniform(
            *self.recurrence_param, size=units
        ).astype(self.dtype)
        if self.is_complex:
            inputs["phase_param"] = normal(units)
        if self.has_reset:
            inputs["reset"] = rng.random(shape[:2]) < 0.2
            inputs["reset"][0, :1] = True
        if self.has_padding:
            inputs["padding_mask"] = rng.random(shape[:2]) < 0.7
            inputs["padding_mask"][-1, -1:] = False
        if self.has_initial_state:
            inputs["initial_state"] = rng.normal(
                size=(self.batch, self.width)
            ).astype("float32")
        d_final = rng.normal(size=(self.batch, self.width)).astype("float32")
        return inputs, normal(*shape), d_final


RG_LRU_CASES = [
    RGLRUCase("plain"),
    RGLRUCase("no time", time=0),
    RGLRUCase("decode step", time=1),
    RGLRUCase(
        "decode step with masks", time=1, has_reset=True, has_padding=True
    ),
    RGLRUCase("decode step complex", time=1, is_complex=True),
    RGLRUCase("no initial state", has_initial_state=False),
    RGLRUCase("resets", time=64, has_reset=True),
    RGLRUCase("padding", time=64, has_padding=True),
    RGLRUCase("resets and padding", time=64, has_reset=True, has_padding=True),
    RGLRUCase("long", batch=1, time=1000, gate_blocks=1, width=4),
    RGLRUCase("complex", time=64, is_complex=True),
    RGLRUCase(
        "complex resets and padding",
        is_complex=True,
        has_reset=True,
        has_padding=True,
    ),
    RGLRUCase(
        "normaliser at its bound", recurrence_param=(-30.0, -12.0), time=64
    ),
    RGLRUCase("forgets at once", recurrence_param=(2.0, 8.0)),
    RGLRUCase("bfloat16", dtype="bfloat16", time=64, has_reset=True),
    RGLRUCase("float16", dtype="float16", time=64, has_padding=True),
    RGLRUCase("bfloat16 complex", dtype="bfloat16", is_complex=True),
]
