"""Peak memory of loading a large checkpoint, on each backend.

Writes a checkpoint with the shapes of a preset in Hugging Face's format
(bfloat16, shards of 1 GiB, random values), loads it with
`GriffinCausalLM.from_preset` in a process of its own for each backend, and
prints what that process took at most. With `--distribute` JAX loads it onto
eight devices of the CPU by a `ModelParallel`.

    python benchmarks/speed/lean_loading.py
    python benchmarks/speed/lean_loading.py --preset recurrent_gemma_9b_en \
        --backends jax
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
SHARD = 1  # GiB
BLOCK = 2**20  # random numbers, repeated
ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import sys
import numpy as np, ml_dtypes
import keras_griffin
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import preset_index
from keras_griffin.checkpoints import safetensors_folder, weight_map

preset, folder, shard, block = sys.argv[1:]
arguments = preset_index.preset_entry(preset)["backbone"]
backbone = weight_map.build_empty(
    lambda: keras_griffin.GriffinBackbone(**arguments, dtype="bfloat16")
)
huggingface_config.write_config(huggingface_config.hf_config(backbone), folder)
table = weight_map.rows(huggingface_weights.HUGGINGFACE, backbone)
shapes = weight_map.tensor_shapes(table, backbone)
values = np.random.default_rng(0).normal(size=int(block)) * 0.02
values = values.astype(ml_dtypes.bfloat16)
safetensors_folder.write(
    folder,
    {name: (shape, "bfloat16") for name, shape in shapes.items()},
    ((name, np.resize(values, shape)) for name, shape in shapes.items()),
    float(shard),
)
"""

LOAD = """
import json, resource, sys, threading, time
import keras
import keras_griffin

folder, distribute = sys.argv[1:]

def memory(name):
    with open("/proc/self/status") as file:
        (line,) = [x for x in file if x.startswith(name + ":")]
    return int(line.split()[1]) * 1024

if distribute == "True":
    mesh = keras.distribution.DeviceMesh((1, 8), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*embeddings"] = ("model", None)
    layout[".*(gate|up|linear_x|linear_y|query).*kernel"] = (None, "model")
    layout[".*(down|linear_out|output_dense).*kernel"] = ("model", None)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout)
    )
before = {"rss": memory("VmRSS"), "anonymous": memory("RssAnon")}
peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], memory("RssAnon"))

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
model = keras_griffin.GriffinCausalLM.from_preset(
    folder, dtype="bfloat16", preprocessor=None
)
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps({
    "parameters": model.count_params(),
    "seconds": seconds,
    "before": before,
    "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "peak_anonymous": peak[0],
    "after": {"rss": memory("VmRSS"), "anonymous": memory("RssAnon")},
}))
"""


def run(script, backend, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **variables,
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="recurrent_gemma_2b_en")
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--distribute", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lean-") as folder:
        run(WRITE, "jax", arguments.preset, folder, SHARD, BLOCK)
        files = Path(folder).glob("*.safetensors")
        size = sum(file.stat().st_size for file in files)
        print(f"{arguments.preset}: {size / 1e9:.2f} GB of weights\n")
        print("| backend | process before | peak | peak / weights ", end="")
        print("| loading alone, anonymous | / weights | seconds |")
        print("|---|---|---|---|---|---|---|")
        flags = {}
        if arguments.distribute:
            flags["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        for backend in arguments.backends:
            result = json.loads(
                run(
                    LOAD, backend, folder, arguments.distribute, **flags
                ).splitlines()[-1]
            )
            alone = result["peak_anonymous"] - result["before"]["anonymous"]
            print(
                f"| {backend} | {result['before']['rss'] / 1e9:.2f} GB "
                f"| {result['peak_rss'] / 1e9:.2f} GB "
                f"| {result['peak_rss'] / size:.3f} | {alone / 1e9:.2f} GB "
                f"| {alone / size:.3f} | {result['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
