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
  products_ms matrix products / data-sheet rate of bfloat16
  hbm_ms      hbm_bytes / data-sheet bandwidth
  bound_ms    sum over operations of the largest of the three: a lower bound
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
from pathlib import Path

# So that it runs from a checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_griffin.plan.hlo_operations import operations  # noqa: E402

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
# Peak of bfloat16, of a chip. Source: cloud.google.com/tpu/docs/v4, v5e, v5p,
# v6e, tpu7x.
TFLOPS = {"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 2307}
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
        # After the user's own.
        LIBTPU_INIT_ARGS=f"{os.environ.get('LIBTPU_INIT_ARGS', '')} "
        f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles",
    )


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


def _of_a_twin(operation, found, schedules):
    """The compiler schedules one of several operations that are the same."""
    for other in found:
        if other.twin == operation.twin and other.name in schedules:
            return schedules[other.name]
    return 0, []


def _times(operation, found, schedules, target):
    """A row of the report, all runs of the operation, and its loops."""
    ghz, gbs = GHZ_AND_GBS[target]
    cycles, loops = schedules.get(operation.name) or _of_a_twin(
        operation, found, schedules
    )
    row = dict(
        name=operation.name,
        source=operation.source,
        result=operation.result,
        times=operation.times,
        bundles=cycles,
        bytes=operation.bytes,
        flops=operation.flops,
        compute_ms=operation.times * cycles / ghz / 1e6,
        products_ms=operation.times * operation.flops / TFLOPS[target] / 1e9,
        hbm_ms=operation.times * operation.bytes / gbs / 1e6,
    )
    row["bound_ms"] = max(row["compute_ms"], row["products_ms"], row["hbm_ms"])
    return row, loops


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

    from keras_griffin.plan import costs_jax

    device = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGY[target]
    ).devices[0]
    place = SingleDeviceSharding(device)
    fn, args = case(
        lambda shape, dtype: jax.ShapeDtypeStruct(
            shape, jax.numpy.dtype(dtype), sharding=place
        )
    )
    compiled, text = costs_jax.compile_and_print(
        jax.jit(fn, donate_argnums=donate).lower(*args)
    )
    found, ops = operations(text), schedules(dump)
    result = dict(
        target=target,
        hbm_bytes=sum(o.times * o.bytes for o in found),
        compute_ms=0.0,
        hbm_ms=0.0,
        products_ms=0.0,
        bound_ms=0.0,
        peak_mib=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", 0)
        / 2**20,
        kernels={},
        operations=[],
    )
    for operation in found:
        row, loops = _times(operation, found, ops, target)
        result["operations"].append(row)
        for name in ("compute_ms", "hbm_ms", "products_ms", "bound_ms"):
            result[name] += row[name]
        if operation.opcode == "custom-call" and loops:
            result["kernels"][operation.name] = dict(
                compute_ms=row["compute_ms"], hbm_ms=row["hbm_ms"], loops=loops
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
    for key in (
        *("hbm_bytes", "compute_ms", "products_ms", "hbm_ms", "bound_ms"),
        "peak_mib",
    ):
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
