"""Loss and size of the shipped preset in other dtypes and quantized.

    python benchmarks/quality/quantization.py

Writes the table to standard output as Markdown. The loss is in nats a
character on the last 10 % of Tiny Shakespeare, as of
`train_shakespeare_preset.py`; calibration texts are from the first 90 %.
"""

import math
import platform
import tempfile
import time
from pathlib import Path

import keras
from keras.quantizers import AWQConfig
from keras.quantizers import GPTQConfig
from keras.quantizers import Int4QuantizationConfig
from keras.quantizers import Int8QuantizationConfig
from train_shakespeare_preset import nats_per_character
from train_shakespeare_preset import read_splits

import keras_griffin

PRESET = "griffin_shakespeare_en"
DTYPES = ("float32", "bfloat16", "float16")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CALIBRATION = {"num_samples": 32, "sequence_length": 256}


def configurations(tokenizer, text):
    texts = {"dataset": [text], "tokenizer": tokenizer, **CALIBRATION}
    return {
        "int8": Int8QuantizationConfig(),
        "int8, weights alone": Int8QuantizationConfig(
            activation_quantizer=None
        ),
        "float8": "float8",
        "int4, blocks of 128": Int4QuantizationConfig(block_size=128),
        "int4, blocks of 32": Int4QuantizationConfig(block_size=32),
        "int4, GPTQ, groups of 128": GPTQConfig(**texts, group_size=128),
        "int4, GPTQ, groups of 32": GPTQConfig(**texts, group_size=32),
        "int4, AWQ, groups of 32": AWQConfig(**texts, group_size=32),
    }


def load(dtype):
    return keras_griffin.GriffinCausalLM.from_preset(
        PRESET, dtype=dtype, preprocessor=None
    )


def size_in_memory(model):
    """Bytes of all weights, scales included, without float8's histories."""
    return sum(
        math.prod(v.shape) * BYTES.get(v.dtype, 1)
        for v in model.variables
        if "amax_history" not in v.path
    )


def size_on_disk(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_to_preset(folder)
        files = Path(folder).glob("*.weights.h5")
        return sum(file.stat().st_size for file in files)


def row(name, model, tokenizer, text, base=None):
    start = time.perf_counter()
    loss = nats_per_character(model, tokenizer, text)
    change = "" if base is None else f"{loss - base:+.4f}"
    print(
        f"| {name} | {loss:.4f} | {change} | {size_in_memory(model):,} | "
        f"{size_on_disk(model):,} | {time.perf_counter() - start:.0f} |",
        flush=True,
    )
    return loss


def main():
    train_text, text = read_splits()
    print(
        f"Keras {keras.__version__} on {keras.config.backend()}, "
        f"{platform.machine()}\n\n"
        "| | loss | change | bytes of weights | bytes of the file | seconds |\n"
        "|---|---|---|---|---|---|"
    )
    base = None
    tokenizer = keras_griffin.GriffinTokenizer.from_preset(PRESET)
    for dtype in DTYPES:
        model = load(dtype)
        loss = row(dtype, model, tokenizer, text, base)
        base = loss if base is None else base
    for name, config in configurations(tokenizer, train_text).items():
        model = load("float32")
        if isinstance(config, str):
            model.quantize(config)
        else:
            model.quantize(config=config)
        row(name, model, tokenizer, text, base)


if __name__ == "__main__":
    main()
