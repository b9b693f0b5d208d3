"""Operations and bytes of a training step on PyTorch; no GPU is needed.

    python benchmarks/gpu_compiler/launches_of_a_step.py

The step of `benchmarks/speed/on_a_gpu.py`, on tensors without memory (PyTorch's
device "meta"), once with plain operations and once with the Triton kernels.
Counts what PyTorch would launch: each operation that is no view, and for the
kernels what is around them. Bytes are those of all arguments and results: what
would pass if no cache held anything. Writes `benchmarks/results/`.

A launch of a `_foreach` operation is counted as one; a GPU needs some.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import os
import sys
from pathlib import Path

# Interpreted kernels take tensors that are not on a GPU. None runs here.
os.environ.update(KERAS_BACKEND="torch", TRITON_INTERPRET="1")
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS.parent))  # So that it runs from a checkout.
sys.path.insert(0, str(BENCHMARKS / "speed"))

import keras  # noqa: E402
import torch  # noqa: E402
from keras.src.backend.common import global_state  # noqa: E402
from on_a_gpu import SETTINGS  # noqa: E402
from on_a_gpu import TRAIN_BATCH  # noqa: E402
from on_a_gpu import TRAIN_LENGTH  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from torch.utils import _pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import keras_griffin  # noqa: E402
from keras_griffin.generation import recorded_torch  # noqa: E402
from keras_griffin.generation.decoding import decode_token  # noqa: E402
from keras_griffin.kernels.rg_lru import rg_lru_torch  # noqa: E402
from keras_griffin.kernels.rg_lru import triton_passes  # noqa: E402
from keras_griffin.kernels.triton_plan import Output  # noqa: E402
from keras_griffin.layers import attention_torch  # noqa: E402

IMPLEMENTATIONS = ("ops", "triton_gpu")
META = "meta"
CAPABILITY = (9, 0)  # an H100
PARTS = ("forward", "backward", "optimizer")
# No kernel fills what these make, and these only write what they get first.
EMPTY = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
)
WRITTEN = ("copy_", "fill_", "zero_")
GATHERED = ("embedding", "index_select", "gather", "nll_loss_forward")
SCATTERED = ("scatter_",)  # what is not written stays where it is
WEIGHTS_GB = 0.22  # of the model in bfloat16
SHOWN = 14  # rows of the table of operations

# Counted by this script before and after each change, torch 2.13; copied.
CHANGES = (
    "",
    'Before and after, launches and GB, "triton_gpu":',
    "",
    "| change | launches | GB |",
    "|---|---|---|",
    "| clipping: norms and products of all gradients at once | 335 fewer | "
    "158.5, 157.6 |",
    "| rotary angles: heads are split, not sliced | 1485, 1469 "
    "| 157.6, 157.1 |",
    "| loss: a softmax and two products for the gradient; 4.3 GB less since "
    "the target's logit is counted alone | 1469, 1444 | 157.1, 126.8 |",
    "| RMS normalization with its own gradient | 1444, 1314 | 126.8, 110.7 |",
    "| attention by `scaled_dot_product_attention` | 1314, 1246 "
    "| 110.7, 87.7 |",
    "| convolution with its own gradient; positions by `cummax` "
    "| 1246, 1161 | 87.7, 85.4 |",
    "| products add the bias; 8 allocations no longer counted | 1161, 1121 "
    "| 85.4, 81.7 |",
    "| the norm's small operations | 1121, 1108 | 81.7, 81.7 |",
    "",
    'With "ops" before all of them: 4076 launches and 210.4 GB. A token before '
    "the loss's row: 533 launches, recorded 431.",
)


# As on a GPU: norms of many tensors are one operation (torch 2.13).
_foreach_utils._get_foreach_kernels_supported_devices = lambda: [META]
attention_torch.is_usable = lambda q: q.device.type == META
# "meta" is no device of autocast's.
torch.is_autocast_enabled = lambda device_type=None: False


class Counter(TorchDispatchMode):
    """Counts launches and bytes by part of the step and operation."""

    def __init__(self):
        super().__init__()
        self.part = PARTS[0]
        self.launches = collections.Counter()
        self.bytes = collections.Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = operation(*args, **kwargs)
        name = operation.name().removeprefix("aten::").split(".")[0]
        if name.startswith("keras_griffin::rg_lru"):
            with self:
                self.look_inside(name, args)
        elif name not in EMPTY and not is_view(operation):
            read = [*args, *kwargs.values()]
            if name in WRITTEN:
                read = read[1:]
            if name in GATHERED:
                read = [results, *read[1:]]
            if name in SCATTERED:
                self.add(name, (read[1:], read[-1]))
            else:
                self.add(name, (read, results))
        return results

    def add(self, name, tensors):
        self.launches[self.part, name] += 1
        self.bytes[self.part, name] += sum(
            map(size_of, _pytree.tree_leaves(tensors))
        )

    def log_softmax(self, x, axis, dtype):
        """A GPU's kernel goes from 16 bits to float32 without a copy."""
        y = torch.empty(x.shape, dtype=dtype, device=META)
        self.add("_log_softmax", (x, y))
        return y

    def look_inside(self, name, args):
        """What is launched in one of our operations."""

        def run(kernel, plan, arguments):
            self.add(f"Triton's {kernel.__name__}", list(arguments.values()))
            return [
                torch.empty(v.shape, dtype=getattr(torch, v.dtype), device=META)
                for v in arguments.values()
                if isinstance(v, Output)
            ]

        if name.endswith("backward"):
            *inputs, y, dy, d_last = args
            inputs = rg_lru_torch._inputs(*inputs)
            triton_passes.backward(
                run,
                CAPABILITY,
                inputs,
                y,
                dy,
                d_last,
                rg_lru_torch._add_products,
            )
        else:
            inputs = rg_lru_torch._inputs(*args)
            triton_passes.forward(run, CAPABILITY, inputs)

    @contextlib.contextmanager
    def during(self, part):
        before, self.part = self.part, part
        yield
        self.part = before

    def total(self, what, part=None):
        return sum(n for key, n in what.items() if part in (None, key[0]))


def efficient_attention(q, k, v, attn_mask, scale):
    """As on a GPU: "meta" has plain operations alone."""
    bias = torch.empty(attn_mask.shape, dtype=q.dtype, device=META)
    bias = bias.zero_().masked_fill_(attn_mask, 1.0)  # for the bytes
    bias = bias.expand(*q.shape[:-1], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, compute_log_sumexp=True, scale=scale
    )[0]


functional.scaled_dot_product_attention = efficient_attention


def is_view(operation):
    returns = operation._schema.returns
    return any(r.alias_info and not r.alias_info.is_write for r in returns)


def size_of(value):
    """Bytes in memory; those of a broadcast tensor once."""
    if isinstance(value, Output):
        value = torch.empty(
            value.shape, dtype=getattr(torch, value.dtype), device=META
        )
    if not isinstance(value, torch.Tensor):
        return 0
    count = value.itemsize
    for size, stride in zip(value.shape, value.stride(), strict=True):
        count *= size if stride else 1
    return count


def count(implementation):
    """The `Counter` of a step, which is not the first."""
    counter = Counter()
    with keras.device(META):
        model = keras_griffin.GriffinCausalLM(
            keras_griffin.GriffinBackbone(
                **SETTINGS,
                dtype="mixed_bfloat16",
                implementation=implementation,
            )
        )
        model.compile(
            optimizer=keras_griffin.GriffinAdamW(1e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
        )
        model.optimizer.build(model.trainable_variables)
        # Keras (3.15) takes "meta" and `device(type="meta")` for two devices,
        # and in going from one to the other drops gradients.
        global_state.set_global_attribute("torch_device", torch.device(META))
        ids = torch.ones(
            (TRAIN_BATCH, TRAIN_LENGTH), dtype=torch.int32, device=META
        )
        data = {"token_ids": ids, "padding_mask": ids}, ids
        in_part(counter, torch.Tensor, "backward", "backward")
        in_part(counter, model.optimizer, "apply", "optimizer")
        torch.log_softmax = counter.log_softmax
        with counter:
            model.train_step(data)
    return counter


def count_token():
    """The `Counter`s of a token: PyTorch's operations, and as recorded."""
    with keras.device(META):
        model = keras_griffin.GriffinCausalLM(
            keras_griffin.GriffinBackbone(**SETTINGS, dtype="bfloat16")
        )
        global_state.set_global_attribute("torch_device", torch.device(META))
        state = model.init_state(TRAIN_BATCH)
        ids = torch.ones((TRAIN_BATCH,), dtype=torch.int32, device=META)
        step = recorded_torch.RecordedStep(
            functools.partial(decode_token, model)
        )
        for i in range(recorded_torch.STEPS_BEFORE_RECORDING + 2):
            counter = Counter()
            with counter:
                step(ids, state)
            if not i:
                eager = counter
    return {"operation by operation": eager, "recorded": counter}


def in_part(counter, owner, name, part):
    """Counts what a method does as a part of the step."""
    method = getattr(owner, name)

    def counted(*args, **kwargs):
        with counter.during(part):
            return method(*args, **kwargs)

    setattr(owner, name, counted)


def token_lines(counters):
    lines = [
        "",
        f"A token of {TRAIN_BATCH} rows, all in bfloat16; weights have "
        f"{WEIGHTS_GB} GB. `generate` records a step after "
        f"{recorded_torch.STEPS_BEFORE_RECORDING} tokens:",
        "",
        "| | launches | GB |",
        "|---|---|---|",
    ]
    for name, counter in counters.items():
        launches = counter.total(counter.launches)
        moved = counter.total(counter.bytes) / 1e9
        lines.append(f"| {name} | {launches} | {moved:.2f} |")
    return lines


def table(counters, of_token):
    lines = [
        "# Launches and bytes of a training step on PyTorch, counted",
        "",
        f"`python benchmarks/gpu_compiler/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, "
        f"keras {keras.__version__}.",
        f"Griffin of 6 layers of width 1024, {TRAIN_BATCH} x {TRAIN_LENGTH} "
        "tokens, mixed bfloat16, GriffinAdamW, vocabulary 32768.",
        "**Nothing here ran on a GPU**: operations of PyTorch on tensors "
        "without memory, views left out.",
        "",
        "| | launches | forward | backward | optimizer | GB | forward | "
        "backward | optimizer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, counter in counters.items():
        cells = [
            counter.total(counter.launches, part) for part in (None, *PARTS)
        ]
        cells += [
            f"{counter.total(counter.bytes, part) / 1e9:.1f}"
            for part in (None, *PARTS)
        ]
        lines.append(f'| "{name}" | {" | ".join(map(str, cells))} |')
    for name, counter in counters.items():
        lines += [
            "",
            f'The operations with most bytes, "{name}":',
            "",
            "| operation | part | launches | GB |",
            "|---|---|---|---|",
        ]
        for key, moved in counter.bytes.most_common(SHOWN):
            part, operation = key
            lines.append(
                f"| {operation} | {part} | {counter.launches[key]} | "
                f"{moved / 1e9:.1f} |"
            )
    return [*lines, *token_lines(of_token), *CHANGES]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    counters = {name: count(name) for name in IMPLEMENTATIONS}
    lines = table(counters, count_token())
    print("\n".join(lines))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{Path(__file__).stem}.md"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
