"""What a program costs, read off it: FLOPs, collectives, memory."""

import collections
import math
import re

import jax

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
}


def count_flops(jaxpr):
    """FLOPs of the matrix products of a traced function, on all devices.

    A loop counts as often as it runs, if that is known while tracing.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2
                * math.prod(equation.outvars[0].aval.shape)
                * math.prod(shape[axis] for axis in contracted)
            )
        if equation.primitive.name == "cond":  # one branch runs
            total += max(map(count_flops, params["branches"]))
            continue
        times = params.get("length", 1)
        if "grid_mapping" in params:  # a Pallas kernel
            times = math.prod(params["grid_mapping"].grid)
        for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += times * count_flops(inner)
    return total


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def collectives(compiled):
    """`count_collectives` of a program; `None` if it can't be printed."""
    try:
        return count_collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        # libtpu 0.0.52 can't print some programs that it has made
        # ("async-update instruction should have 1 operands").
        return None


def count_collectives(text):
    """Collectives of a compiled program, loops included.

    Args:
        text: str. Its HLO.

    Returns:
        dict from kind to `[count, bytes]`: how often it runs, and the sizes
        of its results on one chip (of a reduce-scatter: of its inputs).
    """
    bodies, entry = _computations(text)
    times = collections.Counter({entry: 1})
    # One collective that runs beside other work stands in many fusions.
    unique = {}
    # A computation stands before those that call it.
    for name in reversed(bodies):
        for line in bodies[name]:
            known = re.search(r'"known_trip_count":{"n":"(\d+)"}', line)
            repeat = int(known[1]) if known and " while(" in line else 1
            for called in re.findall(
                r"(?:body|calls|to_apply)=%?([\w.-]+)", line
            ):
                times[called] += repeat * times[name]
            kind = re.search(
                rf" = (.*) ({'|'.join(COLLECTIVES)})(-start)?\(", line
            )
            if kind is None:
                continue
            sizes = [
                ITEM_BYTES[item] * math.prod(map(int, shape.split(",")))
                for item, shape in re.findall(r"(\w+)\[([\d,]+)\]", kind[1])
            ]
            if kind[3] and kind[2] in ("all-gather", "collective-permute"):
                sizes = sizes[len(sizes) // 2 :]  # operands come first
            label = kind[2]
            if name.startswith("all-reduce-scatter"):
                label = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", line)
            unique[channel[1] if channel else line] = (
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


def _computations(text):
    """Lines of each computation of an HLO module, and the first one's name."""
    bodies, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


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
