"""What a program costs, read off it: FLOPs, collectives, memory."""

import collections
import math
import re
import tempfile
from pathlib import Path

import jax

from keras_griffin.plan import hlo_operations

# How JAX names the operations of a part of a step: the gradient of what is
# outside of the backbone, the embedding, and Keras' AdamW.
PARTS = {
    "loss": ("jvp()", "jvp(token_embedding)"),
    "embedding": ("/token_embedding/",),
    "optimizer": ("/adam_w",),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


def count_flops(jaxpr, in_kernels=False):
    """FLOPs of the matrix products of a traced function, on all devices.

    A loop counts as often as it runs, if that is known while tracing.

    Args:
        in_kernels: bool. Whether to count those in Pallas kernels alone.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        params = equation.params
        if equation.primitive.name == "dot_general" and not in_kernels:
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(shape[axis] for axis in contracted)
            )
        if equation.primitive.name == "cond":  # one branch runs
            total += max(count_flops(b, in_kernels) for b in params["branches"])
            continue
        times, alone = params.get("length", 1), in_kernels
        if "grid_mapping" in params:  # a Pallas kernel
            times, alone = math.prod(params["grid_mapping"].grid), False
        elif equation.primitive.name == "shard_map":  # what one device does
            times = params["mesh"].size
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += times * count_flops(inner, alone)
    return total


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def compile_and_print(lowered):
    """The compiled program, and its HLO.

    `compiled.as_text()` would fail on programs with an `async-update` of more
    than one operand (libtpu 0.0.52), so the compiler writes it to a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(
            {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        )
        (file,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, file.read_text(encoding="utf-8")


def step_bound(text, kernel_flops, chip):
    """How long a chip computes at least, by the data sheet.

    Of each operation the longer of two times: its matrix products at the peak
    rate, and its bytes at the bandwidth of the memory. What chips send each
    other is not in it.

    Args:
        text: str. The program's HLO.
        kernel_flops: float. Products of its Pallas kernels, on one chip: the
            HLO does not say. All kernels count as one operation.
        chip: dict. An entry of `slices.CHIPS`.

    Returns:
        `(bound, products, parts)`: seconds, those of the products alone, and
        a dict from a name in `PARTS` to its seconds of the bound. Operations
        that the compiler has joined count for the one that it names.
    """
    rate, bandwidth = 1e12 * chip["tflops"], 1e9 * chip["bandwidth"]
    bound, parts = 0, dict.fromkeys(PARTS, 0)
    products, kernel_bytes = kernel_flops / rate, 0
    for operation in hlo_operations.operations(text):
        flops = operation.times * operation.flops
        moved = operation.times * operation.bytes
        products += flops / rate
        if operation.opcode == "custom-call":
            kernel_bytes += moved
            continue
        seconds = max(flops / rate, moved / bandwidth)
        bound += seconds
        for part, names in PARTS.items():
            if any(name in operation.source for name in names):
                parts[part] += seconds
                break
    bound += max(kernel_flops / rate, kernel_bytes / bandwidth)
    return bound, products, parts


def count_collectives(text):
    """Collectives of a compiled program, loops included.

    Args:
        text: str. Its HLO.

    Returns:
        dict from kind to `[count, bytes]`: how often it runs, and the sizes
        of its results on one chip (of a reduce-scatter: of its inputs).
    """
    computations, entry = hlo_operations.parse(text)
    times = collections.Counter({entry: 1})
    # One collective that runs beside other work stands in many fusions.
    unique = {}
    # A computation stands before those that call it.
    for name in reversed(computations):
        for line in computations[name]:
            repeat = 1
            if line.opcode == "while":
                repeat = hlo_operations.trip_count(computations, line)
            for called in re.findall(
                r"(?:body|calls|to_apply)=%?([\w.-]+)", line.text
            ):
                times[called] += repeat * times[name]
            label = line.opcode.removesuffix("-start")
            if label not in COLLECTIVES:
                continue
            sizes = [
                hlo_operations.ITEM[item] * math.prod(map(int, dims.split(",")))
                for item, dims in re.findall(r"(\w+)\[([\d,]+)\]", line.kind)
            ]
            if line.opcode in ("all-gather-start", "collective-permute-start"):
                sizes = sizes[len(sizes) // 2 :]  # operands come first
            if name.startswith("all-reduce-scatter"):
                label = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", line.text)
            unique[channel[1] if channel else (name, line.name)] = (
                label,
                times[name],
                times[name] * sum(sizes),
            )
    found = {}
    for label, count, size in unique.values():
        total = found.setdefault(label, [0, 0])
        total[0] += count
        total[1] += size
    return found


def memory_needed(error, arguments):
    """Bytes that a program needs for which the compiler found no memory."""
    size = r"([\d.]+)([KMGT])"
    used = re.search(rf"Used {size} of", str(error))
    temporaries = re.search(rf"temporaries \({size}\) exceeds", str(error))
    found = used or temporaries
    if found is None:
        raise error
    needed = float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2])))
    return needed if used else needed + arguments
