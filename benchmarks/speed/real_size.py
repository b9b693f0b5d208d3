"""RecurrentGemma at its real size here, beside transformers.

    python benchmarks/speed/real_size.py                    the 2B, 26 layers
    python benchmarks/speed/real_size.py --layers 5         a smaller machine
    python benchmarks/speed/real_size.py --tasks load save --who torch
    python benchmarks/speed/real_size.py --preset recurrent_gemma_9b_en \
        --layers 38 --tasks int8 --who torch jax

Writes a checkpoint of random bfloat16 numbers in Hugging Face's format, in the
shapes of RecurrentGemma 2B, and runs each task of each implementation in a
process of its own; "logits" tells how far float32 logits are from those of
transformers. Times are of the second call where there are two; memory is what
the process took at most: resident (with the libraries' and files' pages), and
anonymous, less that before the model was loaded.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from conditions import conditions  # noqa: E402

WHO = ("transformers", "torch", "jax", "tensorflow")
TASKS = ("load", "generate", "lora", "int8", "save", "logits")
PRESET = "recurrent_gemma_2b_en"
SHARD = 3  # GiB
BLOCK = 2**20  # random numbers, repeated
PROMPTS = (64, 1024)  # tokens
NEW = 8  # tokens whose mean time is taken, after a first one
RANK, LORA_TOKENS, LORA_STEPS = 4, 256, 3
GIB = 2**30
READ = 2**30  # bytes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default=PRESET, help="whose shapes")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--folder", help="where the checkpoint is, or is put")
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        who, task = arguments.process
        print(json.dumps(run_here(who, task, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(arguments.folder or folder)
        if not (folder / "config.json").exists():
            folder.mkdir(exist_ok=True)
            write_checkpoint(folder, arguments.layers, arguments.preset)
        files = list(folder.glob("*.safetensors"))
        for path in files:  # into the page cache
            with open(path, "rb") as file:
                while file.read(2**26):
                    pass
        size = sum(path.stat().st_size for path in files)
        print(
            f"{conditions()} {arguments.preset}, {arguments.layers} layers, "
            f"{size / GIB:.2f} GiB of weights. Memory is read at "
            f"{bandwidth() / 1e9:.0f} GB/s: a token takes "
            f"{size / bandwidth():.2f} s at least.\n"
        )
        print("| | task | what |\n|---|---|---|")
        for task in arguments.tasks:
            for who in arguments.who:
                if (who, task) != ("transformers", "int8"):
                    report(who, task, folder)


def bandwidth():
    """How fast this machine reads its memory [bytes/s]."""
    x = np.ones(READ // 8)
    took = min(seconds(np.dot, x, x)[0] for _ in range(3))
    return x.nbytes / took


def report(who, task, folder):
    command = [sys.executable, __file__, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["KERAS_BACKEND"] = "torch" if who == "transformers" else who
    result = subprocess.run(
        [*command, "--process", who, task],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        shown = f"failed ({result.returncode}): {result.stderr[-300:]!r}"
    else:
        found = json.loads(result.stdout.splitlines()[-1])
        shown = ", ".join(f"{name} {x:.2f}" for name, x in found.items())
    print(f"| {who} | {task} | {shown} |", flush=True)


def write_checkpoint(folder, layers, preset=PRESET):
    import ml_dtypes

    import keras_griffin
    from keras_griffin.checkpoints import huggingface_config
    from keras_griffin.checkpoints import huggingface_weights
    from keras_griffin.checkpoints import preset_index
    from keras_griffin.checkpoints import safetensors_folder
    from keras_griffin.checkpoints import weight_map

    arguments = preset_index.preset_entry(preset)["backbone"]
    arguments = {**arguments, "num_layers": layers, "dtype": "bfloat16"}
    backbone = weight_map.build_empty(
        lambda: keras_griffin.GriffinBackbone(**arguments)
    )
    huggingface_config.write_config(
        huggingface_config.hf_config(backbone), folder
    )
    table = weight_map.rows(huggingface_weights.HUGGINGFACE, backbone)
    shapes = weight_map.tensor_shapes(table, backbone)
    values = np.random.default_rng(0).normal(size=BLOCK) * 0.02
    values = values.astype(ml_dtypes.bfloat16)
    safetensors_folder.write(
        folder,
        {name: (shape, "bfloat16") for name, shape in shapes.items()},
        ((name, np.resize(values, shape)) for name, shape in shapes.items()),
        SHARD,
    )


# === In a process of its own ===


def run_here(who, task, folder):
    """Returns `{what: number}` of one task."""
    # Imports are no part of what is measured.
    if who == "transformers":
        from transformers import RecurrentGemmaForCausalLM  # noqa: F401
    else:
        from keras_griffin import GriffinCausalLM  # noqa: F401
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    functions = {"load": load, "generate": generate, "lora": lora}
    functions |= {"int8": int8, "save": save, "logits": logits}
    try:
        found = functions[task](who, folder)
    finally:
        done.set()
        watching.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["resident GiB"] = resident / GIB
    found["anonymous GiB"] = (peak[0] - before) / GIB
    return found


def anonymous():
    """Memory of this process that no file backs [bytes]."""
    with open("/proc/self/status") as file:
        (line,) = [x for x in file if x.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def seconds(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def loaded(who, folder, dtype="bfloat16"):
    if who == "transformers":
        import torch
        from transformers import RecurrentGemmaForCausalLM

        model = RecurrentGemmaForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        )
        return model.eval()
    import keras_griffin

    return keras_griffin.GriffinCausalLM.from_preset(
        folder, dtype=dtype, preprocessor=None
    )


def load(who, folder):
    took, model = seconds(loaded, who, folder)
    if who != "transformers":
        del model
        freed = anonymous() / GIB  # by `del` alone
        gc.collect()
        return {"load s": took, "after del GiB": freed}
    return {"load s": took}


def generator(who, model):
    """A function of `(token_ids, new tokens)`."""
    if who == "transformers":
        import torch

        def run(ids, new):
            ids = torch.from_numpy(ids)
            with torch.no_grad():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                )

        return run
    model.compile(sampler="greedy")

    def run(ids, new):
        model.generate(
            {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)},
            max_new_tokens=new,
            stop_token_ids=None,
        )

    return run


def prompt(tokens):
    return np.random.default_rng(0).integers(3, 25000, (1, tokens))


def generate(who, folder):
    run = generator(who, loaded(who, folder))
    found = {}
    for tokens in PROMPTS:
        run(prompt(tokens), 1)
        found[f"first of {tokens} s"], _ = seconds(run, prompt(tokens), 1)
    found["a token s"] = token_seconds(run, found[f"first of {PROMPTS[0]} s"])
    return found


def token_seconds(run, first):
    run(prompt(PROMPTS[0]), 1 + NEW)
    both, _ = seconds(run, prompt(PROMPTS[0]), 1 + NEW)
    return (both - first) / NEW


def lora(who, folder):
    model = loaded(who, folder)
    ids = prompt(LORA_TOKENS + 1)
    step = (
        transformers_lora(model) if who == "transformers" else our_lora(model)
    )
    times = [seconds(step, ids)[0] for _ in range(LORA_STEPS)]
    return {"step s": times[-1], "first step s": times[0]}


def our_lora(model):
    import keras

    model.backbone.enable_lora(RANK)
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="auto")

    def step(ids):
        x = {"token_ids": ids[:, :-1]}
        x["padding_mask"] = np.ones_like(x["token_ids"], bool)
        model.train_on_batch(x, ids[:, 1:])

    return step


def transformers_lora(model):
    """Adapters where KerasHub has them, `x W + (x A) B`."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear
            self.a = torch.nn.Parameter(
                torch.randn(linear.in_features, RANK) * 0.02
            )
            self.b = torch.nn.Parameter(torch.zeros(RANK, linear.out_features))

        def forward(self, x):
            low = (x @ self.a.to(x.dtype)) @ self.b.to(x.dtype)
            return self.linear(x) + low

    model.requires_grad_(False)
    for block in model.model.layers:
        for name in ("q_proj", "v_proj", "linear_x", "linear_out"):
            part = block.temporal_block
            if hasattr(part, name):
                setattr(part, name, Adapted(getattr(part, name)))
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(adapters, 1e-4)

    def step(ids):
        ids = torch.from_numpy(ids[:, :-1])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def int8(who, folder):
    took, model = seconds(loaded, who, folder, "int8_from_bfloat16")
    run = generator(who, model)
    run(prompt(PROMPTS[0]), 1)
    first, _ = seconds(run, prompt(PROMPTS[0]), 1)
    return {
        "load s": took,
        f"first of {PROMPTS[0]} s": first,
        "a token s": token_seconds(run, first),
    }


def logits(who, folder):
    """How far float32 logits are from transformers', which come first."""
    model = loaded(who, folder, "float32")
    ids = prompt(PROMPTS[0])
    file = Path(folder) / "logits.npy"
    if who == "transformers":
        import torch

        with torch.no_grad():
            found = model(torch.from_numpy(ids)).logits.numpy()
        np.save(file, found)
        return {"largest logit": float(np.abs(found).max())}
    import keras

    mask = np.ones_like(ids)
    found = model({"token_ids": ids, "padding_mask": mask})
    found = keras.ops.convert_to_numpy(found)
    expected = np.load(file)
    is_same = found.argmax(-1) == expected.argmax(-1)
    return {
        "largest difference": float(np.abs(found - expected).max()),
        "same greedy tokens": float(is_same.mean()),
    }


def save(who, folder):
    model = loaded(who, folder)
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as out:
        if who == "transformers":
            took, _ = seconds(model.save_pretrained, out)
            return {"save s": took}
        transformers_form, _ = seconds(model.export_to_transformers, out)
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as out:
        preset, _ = seconds(model.save_to_preset, out)
        again, _ = seconds(loaded, who, out)
    return {
        "export s": transformers_form,
        "preset s": preset,
        "load preset s": again,
    }


if __name__ == "__main__":
    main()
