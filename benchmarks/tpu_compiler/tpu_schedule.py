#!/usr/bin/env python3
"""Compiles a JAX function for an absent TPU; prints what the compiler made.

    cd benchmarks/tpu_compiler
    python tpu_schedule.py FILE.py:CASE [--target v5e] [--json]

CASE is a function in FILE.py: `CASE(spec) -> (function, arguments)`, where
`spec(shape, dtype)` makes the abstract arguments. Needs jax and libtpu; nothing
runs on a device and no array is allocated.

Printed, for the whole compiled program:
  hbm_bytes   bytes moved between HBM and the chip, padded tiles included
  compute_ms  bundles of the final schedules x trip counts / clock (static: no
              stalls of banks or DMA)
  hbm_ms      hbm_bytes / data-sheet bandwidth
  bound_ms    sum over operations of max(compute, hbm): a lower bound
  peak_mib    peak of HBM
and, per Pallas kernel, each loop with its length in bundles and trip count.
Only ratios between two versions on one target mean something. Clocks: v4 1.05,
v5e 1.50, v5p 1.75 GHz from the peak bfloat16 rate; v6e 1.75 and tpu7x 1.9 GHz
are assumptions.
"""

import argparse
import glob
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile

TOPOLOGY = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:1x1",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:1x1",
    "tpu7x": "tpu7x:2x2x1",
}
GHZ_AND_GBS = {
    "v4": (1.05, 614),
    "v5e": (1.5, 819),
    "v5p": (1.75, 2765),
    "v6e": (1.75, 1640),
    "tpu7x": (1.9, 3690),
}
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
    "f64": 8,
}
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
BUNDLE = re.compile(
    r"^\s*(0x[0-9a-f]+|0)\s+(?:([A-Z]{2}(?:,[A-Z]{2})*)\s*)?"
    r":\s+((?:>\s?)*)\{(.*)$"
)


def quiet_environment(dump):
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        TPU_ACCELERATOR_TYPE="v5litepod-1",
        TPU_LOG_DIR="disabled",
        TPU_STDERR_LOG_LEVEL="3",
        TPU_MIN_LOG_LEVEL="3",
        TF_CPP_MIN_LOG_LEVEL="3",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} "
        "--xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true",
    )


def _bytes(kind, dims, layout):
    """(bytes with tile padding, memory space) of one array type in HLO text."""
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
    n = 1
    for v in d:
        n *= v
    return n * ITEM[kind], space


def _closing(text):
    depth = 1
    for i, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0:
            return i
    return len(text)


def _parts(hlo, fusion):
    """What a fusion touches of its operands, where that is not all of them.

    Returns:
        `({operand: bytes}, bytes or None)`: read of those of which it takes
        some rows alone, and written if it puts rows into one of them in place.
    """
    called = re.search(r"calls=%([\w.\-]+)", fusion)
    start = called and hlo.find(f"\n%{called.group(1)} (")
    if not called or start < 0:
        return {}, None
    lines = hlo[start : hlo.index("\n}", start)].splitlines()[2:]

    def size(name):
        return next(
            _bytes(*SHAPE.search(line).groups())[0]
            for line in lines
            if re.search(rf"%{re.escape(name)} = ", line)
        )

    read, written = {}, None
    for line in lines:
        m = re.search(r"%([\w.\-]+) = .* parameter\((\d+)\)", line)
        if not m:
            continue
        name, index = re.escape(m.group(1)), int(m.group(2))
        uses = [x for x in lines if re.search(rf"[(, ]%{name}[,)]", x)]
        taken = [
            re.search(rf"%(\S+) = \S+ (?:gather|dynamic-slice)\(%{name},", x)
            for x in uses
        ]
        put = [
            re.search(
                rf"(?:scatter\(%{name}, %\S+, |"
                rf"dynamic-update-slice\(%{name}, )%([\w.\-]+)",
                x,
            )
            for x in uses
        ]
        if uses and all(taken):
            read[index] = sum(size(x.group(1)) for x in taken)
        elif len(uses) == 1 and put[0]:
            read[index], written = 0, size(put[0].group(1))
    return read, written


def hbm_traffic(hlo):
    """[(instruction, opcode, bytes)] of the entry computation, in HBM alone."""
    entry = hlo[hlo.index("\nENTRY") :]
    entry = entry[: entry.index("\n}")]
    shapes, rows = {}, []
    for line in entry.splitlines():
        m = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        if not m:
            continue
        name, rest = m.groups()
        cut = _closing(rest[1:]) + 2 if rest[0] == "(" else rest.index(" ")
        kind, rest = rest[:cut], rest[cut:].strip()
        m = re.match(r"([\w\-]+)\(", rest)
        if not m:
            continue
        op = m.group(1)
        shapes[name] = [_bytes(*s) for s in SHAPE.findall(kind)]
        if op in (
            "parameter",
            "constant",
            "tuple",
            "get-tuple-element",
            "bitcast",
            "iota",
            "after-all",
        ) or op.endswith("-done"):
            continue
        args = rest[len(op) + 1 :]
        operands = re.findall(r"%([\w.\-]+)", args[: _closing(args)])
        partly, rows_written = {}, None
        if op == "fusion":
            partly, rows_written = _parts(hlo, rest)
        read = sum(
            partly.get(i, b)
            for i, o in enumerate(operands)
            for b, s in shapes.get(o, [])
            if s == 0
        )
        write = sum(b for b, s in shapes[name] if s == 0)
        if rows_written is not None and write:
            write = rows_written
        if op == "copy-start":
            (wb, ws), (rb, rs) = shapes[name][0], shapes[name][1]
            read, write = rb if rs == 0 else 0, wb if ws == 0 else 0
        elif op in ("slice-start", "async-start", "dynamic-slice-start"):
            arrays = [v for v in shapes[name] if v[0] > 1024]
            if arrays:
                b, s = arrays[-1]
                read, write = (
                    b if all(v[1] == 0 for v in arrays[:-1]) else 0,
                    b if s == 0 else 0,
                )
        rows.append((name, op, read + write))
    return rows


def _bundles(path):
    out = []
    for line in open(path, errors="replace"):
        m = BUNDLE.match(line)
        if m:
            out.append(
                [
                    int(m.group(1), 16),
                    m.group(2) or "",
                    m.group(3).count(">"),
                    m.group(4),
                ]
            )
        elif out:
            out[-1][3] += line
    return out


def _loops(bundles):
    loops = []
    for i, (start, tag, depth, text) in enumerate(bundles):
        if "LB" not in tag:
            continue
        regions = set(re.findall(r"[Ss]tart region (\d+)", text)) | set(
            re.findall(r"region (\d+)", text)
        )
        end = None
        for j in range(i, len(bundles)):
            m = re.search(
                r"sbr\.rel \((!?%p\w+)\) target = \$region(\d+)", bundles[j][3]
            )
            if m and m.group(2) in regions:
                end = j
        if end is None:
            inside = [
                j for j in range(i, len(bundles)) if bundles[j][2] >= depth
            ]
            later = [
                j
                for j in range(i + 1, len(bundles))
                if "LB" in bundles[j][1] and bundles[j][2] <= depth
            ]
            end = [j for j in inside if not later or j < later[0]][-1]
        else:
            end = min(end + 4, len(bundles) - 1)
        loops.append(
            dict(start=start, depth=depth, length=bundles[end][0] - start + 1)
        )
    return loops


def schedules(dump):
    """{operation: (cycles, [loop, ...])} of a dump directory."""
    out = {}
    for path in sorted(glob.glob(os.path.join(dump, "*-final_bundles.txt"))):
        base = os.path.basename(path)
        if "schedule" in base or "late-" in base or "-TLP-" in base:
            continue
        name = re.sub(r"-\d+-final_bundles.txt", "", re.sub(r"^\d+-", "", base))
        bundles = _bundles(path)
        loops = _loops(bundles)
        exits = [
            (a, int(v))
            for a, _, _, t in bundles
            for v in re.findall(
                r"scmp\.\w+\.s32\.totalorder %\w+, (\d+) /\* loop exit test", t
            )
        ]

        def children(loop):
            return [
                k
                for k in loops
                if k["depth"] == loop["depth"] + 1
                and loop["start"] < k["start"] < loop["start"] + loop["length"]
            ]

        def cycles(loop):
            kids = children(loop)
            own = [
                v
                for a, v in exits
                if loop["start"] <= a < loop["start"] + loop["length"] + 3
                and not any(
                    k["start"] <= a < k["start"] + k["length"] for k in kids
                )
            ]
            loop["trips"] = own[-1] if own else 1
            return loop["trips"] * (
                loop["length"]
                - sum(k["length"] for k in kids)
                + sum(cycles(k) for k in kids)
            )

        top = [loop for loop in loops if loop["depth"] == 1]
        out[name] = (
            len(bundles)
            - sum(loop["length"] for loop in top)
            + sum(cycles(loop) for loop in top),
            loops,
        )
    return out


def measure(case, target="v5e", dump=None, donate=()):
    """Compiles `case(spec) -> (function, arguments)` for `target`.

    Once per process: the compiler reads its options once. `donate`: indices
    of the arguments whose memory the results may take.
    """
    keep = dump is not None
    dump = dump or tempfile.mkdtemp(prefix="tpu_schedule_")
    shutil.rmtree(dump, ignore_errors=True)
    os.makedirs(dump)
    quiet_environment(dump)
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    device = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGY[target]
    ).devices[0]
    place = SingleDeviceSharding(device)
    fn, args = case(
        lambda shape, dtype: jax.ShapeDtypeStruct(
            shape, jax.numpy.dtype(dtype), sharding=place
        )
    )
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    rows, ops = hbm_traffic(compiled.as_text()), schedules(dump)
    ghz, gbs = GHZ_AND_GBS[target]
    result = dict(
        target=target,
        hbm_bytes=sum(b for _, _, b in rows),
        compute_ms=0.0,
        hbm_ms=0.0,
        bound_ms=0.0,
        peak_mib=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", 0)
        / 2**20,
        kernels={},
    )
    for name, op, nbytes in rows:
        cycles, loops = ops.get(name, (0, []))
        compute, hbm = cycles / ghz / 1e6, nbytes / gbs / 1e6
        result["compute_ms"] += compute
        result["hbm_ms"] += hbm
        result["bound_ms"] += max(compute, hbm)
        if op == "custom-call" and loops:
            result["kernels"][name] = dict(
                compute_ms=compute, hbm_ms=hbm, loops=loops
            )
    if not keep:
        shutil.rmtree(dump, ignore_errors=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", help="FILE.py:FUNCTION")
    parser.add_argument("--target", default="v5e", choices=TOPOLOGY)
    parser.add_argument("--dump", help="keep the compiler's files here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    path, function = args.case.rsplit(":", 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))

    def case(spec):
        module_spec = importlib.util.spec_from_file_location(
            "tpu_schedule_case", path
        )
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        return getattr(module, function)(spec)

    result = measure(case, args.target, args.dump)
    if args.json:
        print(json.dumps(result))
        return
    for key in ("hbm_bytes", "compute_ms", "hbm_ms", "bound_ms", "peak_mib"):
        print(f"{key:12s} {result[key]:.4g}")
    for name, kernel in result["kernels"].items():
        print(
            f"kernel {name}: compute {kernel['compute_ms']:.4g} ms, "
            f"hbm {kernel['hbm_ms']:.4g} ms"
        )
        for loop in kernel["loops"]:
            print(
                f"  loop depth {loop['depth']}: {loop['length']} bundles "
                f"x {loop.get('trips', 1)}"
            )


if __name__ == "__main__":
    main()
