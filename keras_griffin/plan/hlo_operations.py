"""What each operation of a compiled program moves and multiplies.

Reads the text of an optimised HLO module, `compiled.as_text()`.
"""

import dataclasses
import math
import re

import numpy as np

ITEM = {
    "f32": 4,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
# Passes over the bfloat16 unit for a product of float32, by its precision.
PASSES = {"highest": 6, "high": 3}
WITHOUT_WORK = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "opt-barrier",
    "partition-id",
    "while",
)
SLICES = ("slice-start", "async-start", "dynamic-slice-start")
STRIPS = (("size", 1), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1))


@dataclasses.dataclass
class Operation:
    """An instruction that the chip carries out `times` times."""

    name: str
    opcode: str
    source: str  # the function that it comes from, as JAX names it
    result: str  # type of the (first) result
    bytes: int  # between HBM and the chip, padded tiles included
    flops: float  # of its matrix products, float32 ones by their passes
    twin: str  # what is the same for operations with the same schedule
    times: int = 1


@dataclasses.dataclass
class _Instruction:
    name: str
    kind: str  # the type of its result
    opcode: str
    operands: list
    text: str  # after the operands

    @property
    def arrays(self):
        return [_bytes(*shape) for shape in SHAPE.findall(self.kind)]

    @property
    def dims(self):
        found = SHAPE.search(self.kind)
        return [int(v) for v in found[2].split(",") if v] if found else []


def operations(hlo):
    """`[Operation]` of a module, those of loops as often as they run."""
    computations, entry = parse(hlo)
    return list(_walk(computations, entry, 1))


def _walk(computations, name, times):
    body = {i.name: i for i in computations[name]}
    for instruction in computations[name]:
        if instruction.opcode == "while":
            called = re.search(r"body=%?([\w.\-]+)", instruction.text)[1]
            trips = trip_count(computations, instruction)
            yield from _walk(computations, called, times * trips)
        if instruction.opcode == "conditional":
            yield from _walk(
                computations, _longest(computations, instruction), times
            )
            continue
        if instruction.opcode in WITHOUT_WORK:
            continue
        if instruction.opcode.endswith(("-done", "-update")):
            continue
        if '"AllocateBuffer"' in instruction.text:  # writes nothing
            continue
        source = re.search(r'op_name="([^"]*)"', instruction.text)
        yield Operation(
            instruction.name,
            instruction.opcode,
            source[1] if source else "",
            (SHAPE.search(instruction.kind) or [""])[0].partition("{")[0],
            _traffic(computations, body, instruction),
            _flops(computations, body, instruction),
            _twin(computations, body, instruction),
            times,
        )


def trip_count(computations, loop):
    """How often a `while` runs; 1 if the program does not say.

    Where the compiler has not noted it, it is what the condition compares the
    counter with: JAX's loops count from 0.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    body = {i.name: i for i in computations.get(condition[1], [])}
    for test in body.values():
        if test.opcode == "compare" and "direction=LT" in test.text:
            limit = body[test.operands[1]]
            if limit.opcode == "constant":
                return int(limit.operands[0])
    return 1


def _longest(computations, conditional):
    """The branch that moves most."""
    branches = re.search(
        r"branch_computations=\{([^}]*)\}", conditional.text
    ) or re.search(
        r"(true_computation=\S+ false_computation=\S+)", conditional.text
    )
    names = re.findall(r"%([\w.\-]+)", branches[1])
    return max(
        names,
        key=lambda name: sum(o.bytes for o in _walk(computations, name, 1)),
    )


def parse(hlo):
    """`({computation: [instruction]}, name of the entry)`.

    Attributes can hold line ends and braces: an instruction goes on until the
    next one begins, a computation until a brace before an empty line.
    """
    computations, entry, name, lines = {}, None, None, []
    text = hlo.splitlines() + [""]
    for number, line in enumerate(text[:-1]):
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if name is None:
            if head:
                name, lines = head[2], []
                entry = name if head[1] else entry
        elif line == "}" and not text[number + 1].strip():
            found = [_instruction(text) for text in lines]
            computations[name] = [i for i in found if i is not None]
            name = None
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            lines.append(line)
        elif lines:
            lines[-1] += " " + line
    return computations, entry


def _instruction(line):
    name, rest = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line).groups()
    cut = _closing(rest[1:]) + 2 if rest[0] == "(" else rest.index(" ")
    kind, rest = rest[:cut], rest[cut:].strip()
    opcode = re.match(r"([\w\-]+)\(", rest)
    if opcode is None:
        return None
    rest = rest[opcode.end() :]
    end = _closing(rest)
    operands = re.findall(r"%([\w.\-]+)", rest[:end])
    if opcode[1] in ("parameter", "constant"):
        operands = [rest[:end]]
    return _Instruction(name, kind, opcode[1], operands, rest[end + 1 :])


def _closing(text):
    depth = 1
    for i, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0:
            return i
    return len(text)


def _bytes(kind, dims, layout):
    """`(bytes with tile padding, memory space)` of an array; space 0 is HBM."""
    if kind not in ITEM:
        return 0, 0
    d, space = [int(v) for v in dims.split(",") if v], 0
    if layout:
        m = re.search(r"S\((\d+)\)", layout)
        space = int(m.group(1)) if m else 0
        m = re.search(r"T\((\d+),(\d+)\)", layout)
        order = [int(v) for v in layout.split(":")[0].split(",") if v]
        if m and len(d) >= 2 and len(order) >= 2:
            sub, lane = int(m.group(1)), int(m.group(2))
            d[order[0]] = -(-d[order[0]] // lane) * lane
            d[order[1]] = -(-d[order[1]] // sub) * sub
    return math.prod(d) * ITEM[kind], space


def _called(computations, instruction):
    called = re.search(r"calls=%?([\w.\-]+)", instruction.text)
    return computations.get(called[1], []) if called else []


def _traffic(computations, body, instruction):
    """Bytes between HBM and the chip."""
    arrays = instruction.arrays
    if instruction.opcode == "copy-start":
        (wb, ws), (rb, rs) = arrays[:2]
        return (rb if rs == 0 else 0) + (wb if ws == 0 else 0)
    large = [v for v in arrays if v[0] > 1024]
    if instruction.opcode in SLICES and large:
        size, space = large[-1]
        read = size if all(v[1] == 0 for v in large[:-1]) else 0
        return read + (size if space == 0 else 0)
    partly, rows_written = {}, None
    if instruction.opcode == "fusion":
        partly, rows_written = _parts(_called(computations, instruction))
    read = sum(
        partly.get(i, size)
        for i, operand in enumerate(instruction.operands)
        if operand in body
        for size, space in body[operand].arrays
        if space == 0
    )
    write = sum(size for size, space in arrays if space == 0)
    if rows_written is not None and write:
        write = rows_written
    return read + write


def _twin(computations, body, instruction):
    """The operation without names and layouts: opcodes and types."""
    operands = [body[o] for o in instruction.operands if o in body]
    inside = sorted(
        (i.opcode, i.kind.partition("{")[0])
        for i in _called(computations, instruction)
    )
    kinds = [SHAPE.findall(i.kind) for i in (instruction, *operands)]
    types = [sorted(shape[:2] for shape in found) for found in kinds]
    return repr((instruction.opcode, types, inside))


def _parts(fusion):
    """What a fusion touches of its operands, where that is not all of them.

    Returns:
        `({operand: bytes}, bytes or None)`: read of those of which it takes
        some rows alone, and written if it puts rows into one of them in place.
    """
    sizes = {i.name: sum(b for b, _ in i.arrays[:1]) for i in fusion}
    read, written = {}, None
    for parameter in fusion:
        if parameter.opcode != "parameter":
            continue
        index = int(parameter.operands[0])
        uses = [
            i
            for i in fusion
            if i.opcode != "parameter" and parameter.name in i.operands
        ]
        if uses and all(
            i.opcode in ("gather", "dynamic-slice")
            and i.operands[0] == parameter.name
            for i in uses
        ):
            read[index] = sum(sizes[i.name] for i in uses)
        elif len(uses) == 1 and uses[0].operands[0] == parameter.name:
            if uses[0].opcode in ("scatter", "dynamic-update-slice"):
                place = 2 if uses[0].opcode == "scatter" else 1
                read[index] = 0
                written = sizes[uses[0].operands[place]]
    return read, written


def _flops(computations, body, instruction):
    """Of the matrix products in an instruction and what it calls."""
    if instruction.opcode == "convolution":
        return _convolution_flops(body, instruction)
    if instruction.opcode == "dot":
        contracted = re.search(
            r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text
        )[1]
        dims = body[instruction.operands[0]].dims
        length = math.prod(dims[int(v)] for v in contracted.split(",") if v)
        return 2.0 * math.prod(instruction.dims) * length
    called = _called(computations, instruction)
    inside = {i.name: i for i in called}
    return sum(_flops(computations, inside, i) for i in called)


def _convolution_flops(body, instruction):
    """XLA for TPUs makes a convolution of each matrix product."""
    lhs, rhs, out = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text
    ).groups()
    left, right = (body[name].dims for name in instruction.operands[:2])
    result = instruction.dims
    total = 2.0 * result[out.index("b")] * result[out.index("f")]
    total *= right[rhs.index("i")]
    window = re.search(r"window=\{([^}]*)\}", instruction.text)
    strips = _window(window[1] if window else "")
    for k in range(len(out) - 2):
        total *= _pairs(
            *(result[out.index(str(k))], left[lhs.index(str(k))]),
            *(strips[name][k] if name in strips else d for name, d in STRIPS),
            strips["pad"][k] if "pad" in strips else 0,
        )
    precision = re.search(r"operand_precision=\{(\w+)", instruction.text)
    return total * PASSES.get(precision[1] if precision else "", 1)


def _window(text):
    """`"size=8x1 pad=0_0x7_7"` to `{"size": [8, 1], "pad": [0, 7]}`."""
    return {
        name: [int(v.partition("_")[0]) for v in values.split("x")]
        for name, values in re.findall(r"(\w+)=(-?[\d_x\-]+)", text)
    }


def _pairs(outputs, inputs, size, stride, lhs_dilate, rhs_dilate, pad):
    """How many of `outputs x size` products meet an input, on one axis."""
    places = (
        np.arange(outputs)[:, None] * stride
        + np.arange(size)[None, :] * rhs_dilate
        - pad
    )
    last = (inputs - 1) * lhs_dilate
    met = (0 <= places) & (places <= last) & (places % lhs_dilate == 0)
    return int(met.sum())
