"""TPU slices that can be rented: their chips, shapes and memory."""

import os

import numpy as np

# Usable HBM of a chip [GiB], its bandwidth [GB/s], the peak rate in bfloat16
# [TFLOP/s], and the cores that the name of a slice counts for it. Source of the
# first: what libtpu 0.0.52 says of a program that is larger, "exceeds available
# HBM (95.73G)"; tests/plan/test_train_step.py asks it. Of the others:
# cloud.google.com/tpu/docs/{v5e,v5p,v6e}.
CHIPS = {
    "v5e": {"memory": 15.75, "bandwidth": 819, "tflops": 197, "cores": 1},
    "v5p": {"memory": 95.73, "bandwidth": 2765, "tflops": 459, "cores": 2},
    "v6e": {"memory": 31.24, "bandwidth": 1640, "tflops": 918, "cores": 1},
}
# Slices that can be rented, by their number of chips; v5p is a 3-D torus.
SHAPES = {
    2: {
        1: "1x1",
        4: "2x2",
        8: "2x4",
        16: "4x4",
        32: "4x8",
        64: "8x8",
        128: "8x16",
        256: "16x16",
    },
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
    },
}


def generation(slice_name):
    """`"v5e-8"` -> `"v5e"`."""
    return slice_name.partition("-")[0]


def devices(slice_name):
    """Descriptions of a slice's chips, which need not exist."""
    kind, _, size = slice_name.partition("-")
    chip = CHIPS.get(kind)
    shapes = SHAPES[3 if kind == "v5p" else 2]
    sizes = [n * chip["cores"] for n in shapes] if chip else []
    if not size.isdecimal() or int(size) not in sizes:
        raise ValueError(
            "`slice_name` must be a generation and a size that can be rented."
            f" Received: {slice_name!r}. Sizes of "
            + (
                f"{kind}: {sizes}."
                if chip
                else f"the generations {sorted(CHIPS)} are like 'v5e-8'."
            )
        )
    from jax.experimental import topologies

    # libtpu would look for a machine with a TPU otherwise.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_LOG_DIR": "disabled",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    shape = shapes[int(size) // chip["cores"]]
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{shape}"
    )
    return np.array(topology.devices)
