"""Compiles the TPU kernels with libtpu; prints a line for each that compiled.

A process of its own: libtpu reads its environment once, and must not load into
the tests' process. No TPU is needed.
"""

import os

os.environ.update(
    KERAS_BACKEND="jax",
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_ACCELERATOR_TYPE="v5litepod-1",
    TPU_LOG_DIR="disabled",
)

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from keras_griffin.kernels.rg_lru import rg_lru  # noqa: E402

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
# (batch, time, width, gate blocks): a rest in time, blocks across vregs.
SHAPE = (2, 150, 192, 2)
SHAPE_OF_MESH = (4, 256, 512, 4)
MESHES = (("batch", "model"), ("batch", "sequence"))


def loss(*arguments):
    y, last = rg_lru(*arguments)
    return (y.astype("float32") ** 2).sum() + last.sum()


def lowered(shape, mesh, names, dtype, parts=1):
    """The gradient of `rg_lru`, lowered for arrays sharded over `names`."""
    batch, time, width, blocks = shape

    def spec(shape, *axes, dtype="float32"):
        axes = PartitionSpec(
            *(axis if axis in names else None for axis in axes)
        )
        return jax.ShapeDtypeStruct(
            shape, np.dtype(dtype), sharding=NamedSharding(mesh, axes)
        )

    size = width // blocks
    kernel = spec((blocks, size, size // parts), "model")
    bias = spec((blocks, size // parts), "model")
    x = spec(
        (batch, time, width),
        *("batch", "sequence", "model"),
        dtype=jax.numpy.dtype(dtype),
    )
    gradient = jax.grad(loss, argnums=tuple(range(5 + parts)))
    program = jax.jit(gradient).lower(
        x, *(kernel, bias) * 2, *[spec((width // parts,), "model")] * parts
    )
    return program, program.as_text().count("tpu_custom_call")


def main():
    for target, topology in TOPOLOGIES.items():
        devices = np.array(
            topologies.get_topology_desc(
                platform="tpu", topology_name=topology
            ).devices
        )
        mesh = jax.sharding.Mesh(devices[:1], ("batch",))
        # float32 needs the most VMEM; v4 has the least.
        dtypes = ("bfloat16", "float32")[: 2 if target in ("v4", "v5e") else 1]
        for dtype in dtypes:
            program, count = lowered(SHAPE, mesh, (), dtype)
            program.compile()
            print(f"{target} {dtype}: {count} kernels", flush=True)
        program, count = lowered(SHAPE, mesh, (), "bfloat16", parts=2)
        program.compile()
        print(f"{target} complex: {count} kernels", flush=True)
        if target != "v5e":
            continue
        for names in MESHES:
            mesh = keras.distribution.DeviceMesh(
                (2, 2), names, devices.reshape(2, 2)
            )
            distribution = keras.distribution.ModelParallel(
                layout_map=keras.distribution.LayoutMap(mesh),
                batch_dim_name="batch",
            )
            with distribution.scope():
                program, count = lowered(
                    SHAPE_OF_MESH, mesh.backend_mesh, names, "bfloat16"
                )
                program.compile()
            print(f"{target} {'x'.join(names)}: {count} kernels", flush=True)
        program, count = lowered(
            SHAPE_OF_MESH, mesh.backend_mesh, names, "bfloat16"
        )
        program.compile()
        print(f"{target} no mesh: {count} kernels", flush=True)


if __name__ == "__main__":
    main()
