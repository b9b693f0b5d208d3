"""Figure 3 of the Griffin paper, step time by length, from the TPU's compiler.

    python benchmarks/tpu_compiler/figure_3.py [--only v5e 1B] [--table]

A step is not compiled whole. Each part of it is, forward and backward, for a
TPU that is not there (`block_on_a_tpu.py` says how): one block of each kind at
each length, and once the vocabulary, that is the embedding and the loss. A
model's bound is the sum of its parts, blocks times how many of them it has.
What is in `benchmarks/results/figure_3.json` is not compiled again; a part
takes a minute or some. `--table` compiles nothing and writes the page.
"""

import argparse
import collections
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS.parent))  # So that it runs from a checkout.

import block_on_a_tpu  # noqa: E402
import tpu_schedule  # noqa: E402

RESULTS = BENCHMARKS / "results" / "figure_3.json"
TARGETS = ("v5e", "v6e")
SIZES = ("1B", "7B")
MODELS = {"Griffin": "griffin", "Hawk": "hawk", "MQA Transformer": "mqa"}
TOKENS = 32768  # of a batch, at every length
LENGTHS = (2048, 4096, 8192, 32768)
KINDS = ("recurrent", "local_attention", "global_attention")
# Figure 3 at 2k, 4k and 8k, relative to the MQA Transformer at 2k; read from
# the PDF's text, where labels of some bars are lost. `None`: lost.
PAPER = {
    ("400M", "Griffin"): (0.93, 0.96, 0.98),
    ("400M", "MQA Transformer"): (1.00, 1.17, 1.46),
    ("1B", "Griffin"): (0.97, 0.99, 1.01),
    ("1B", "MQA Transformer"): (1.00, 1.12, None),
}


HEAD = """\
# Figure 3 of the Griffin paper, from the TPU's compiler

`python benchmarks/tpu_compiler/{script}`, {date}, {versions}.
No TPU was used. The paper's shapes (presets `griffin_1b`, `hawk_1b`, `mqa_1b`
and those of 7B), window 1024, mixed bfloat16, {tokens} tokens a batch at each
length. **Not whole models:** one block of each kind, forward and backward, by
the report of [block_on_a_tpu](block_on_a_tpu.md), times how many of them the
model has, and once the embedding and the loss of 256,000 words (the paper gives
no vocabulary). It is one chip's arithmetic and memory, without the optimizer,
the final norm, remat, and what chips send each other. Pairs of blocks that
attention's kernels skip behind the mask are taken out. It is a lower bound.

![Step time by length](figure_3.svg)
"""
READING = """\
**Where we agree.** At 1B on a v5e Griffin's blocks take 0.98, 1.00 and 1.00 of
the Transformer's at 2k, for rows of 2k, 4k and 8k; the paper has 0.97, 0.99 and
1.01. The Transformer takes 1.16 at 4k, and 1.11 with the vocabulary, of which
every model has the same; the paper has 1.12. It grows less at 7B than at 1B, as
the paper says of wider models: 1.23 at 8k, and 1.19 with the vocabulary. The
one label that is left of the paper's 7B is 1.13, probably of that bar. Griffin
7B is slower than the Transformer at 2k, by 7 %, with the vocabulary 5 %; the
paper says "slightly". Hawk and Griffin are flat to 32k.

**Where we do not.** On a v6e the Transformer is dearer: Griffin's blocks take
0.91 of it at 2k (at 7B 1.04), and it takes 1.81 times as much at 8k and 4.65
times at 32k. A v6e multiplies 4.7 times as fast as a v5e; attention's kernels
wait for the arithmetic around their products (heads of 128, softmax), and so
does less of a recurrent block.

**What cannot be compared.** The paper measured pods of TPU-v3, which this
compiler does not know; it does not go beyond 8k, and Hawk is not in what its
text tells. In a step of 1B the vocabulary is a third of our bound, so that all
ratios are nearer to 1 with it; the paper's vocabulary is not known. It is the
same at all lengths. On a v5e that of 7B fills the chip's memory: there XLA
multiplies once more to save some.
"""


def backbone_of(size, model="Griffin"):
    """The arguments of a model's backbone."""
    from keras_griffin.checkpoints import preset_index

    name = f"{MODELS[model]}_{size.lower()}"
    return dict(preset_index.preset_entry(name)["backbone"])


def block(spec, size, kind, length):
    """`(function, arguments)` of a residual block, and its gradient."""
    from keras_griffin.models import griffin_blocks

    arguments = backbone_of(size)
    arguments.update(block_types=[kind], num_layers=1, implementation="auto")
    arguments = griffin_blocks.complete_arguments(arguments)
    return block_on_a_tpu.of_layer(
        spec,
        lambda: griffin_blocks.make_blocks(arguments, "mixed_bfloat16")[0],
        (TOKENS // length, length, arguments["hidden_dim"]),
    )


def vocabulary(spec, size):
    """The same of the embedding and the loss, which share their weight."""
    import jax
    import keras

    from keras_griffin import layers
    from keras_griffin.training import chunked_cross_entropy

    arguments = backbone_of(size)
    width = arguments["hidden_dim"]
    with keras.StatelessScope(initialize_variables=False):
        embedding = layers.ReversibleEmbedding(
            arguments["vocabulary_size"], width, dtype="mixed_bfloat16"
        )
    variable = embedding.embeddings

    def embed(table, ids):
        with keras.StatelessScope([(variable, table)]):
            return embedding(ids)

    def losses(hidden, targets):
        logits = embedding(hidden, reverse=True)
        logits = keras.ops.cast(logits, "float32")
        return (
            keras.ops.sparse_categorical_crossentropy(
                targets, logits, from_logits=True
            ),
        )

    def loss(table, hidden, ids):
        with keras.StatelessScope([(variable, table)]):
            (values,) = chunked_cross_entropy.map_tokens(
                losses, embedding, hidden, ids
            )
        return keras.ops.mean(values)

    def function(table, ids, hidden, dx):
        x, embedding_gradient = jax.vjp(lambda table: embed(table, ids), table)
        value, (d_table, d_hidden) = jax.value_and_grad(loss, (0, 1))(
            table, hidden, ids
        )
        return x, value, d_hidden, d_table + embedding_gradient(dx)[0]

    rows = (TOKENS // LENGTHS[0], LENGTHS[0])
    x = spec((*rows, width), "bfloat16")
    table = spec(variable.shape, variable.dtype)
    return function, (table, spec(rows, "int32"), x, x)


def parts():
    """`{name: case}` of all that is compiled."""
    found = {}
    for target, size in itertools.product(TARGETS, SIZES):
        found[f"{target}, {size}, vocabulary"] = functools.partial(
            vocabulary, size=size
        )
        for length, kind in itertools.product(LENGTHS, KINDS):
            found[f"{target}, {size}, {kind}, {length}"] = functools.partial(
                block, size=size, kind=kind, length=length
            )
    return found


def measure(name):
    """What the compiler says of a part; of attention, of what is computed."""
    target, size, kind, *length = name.split(", ")
    result = tpu_schedule.measure(parts()[name], target)
    skipped = 0.0
    for row in result["operations"]:
        if row["name"].startswith("splash_mqa"):
            share = computed(row["name"], size, kind, int(length[0]))
            least = max(row["compute_ms"] * share, row["hbm_ms"])
            skipped += row["bound_ms"] - least
    return {
        "bound_ms": result["bound_ms"] - skipped,
        "skipped_ms": skipped,
        "products_ms": result["products_ms"],
        "hbm_bytes": result["hbm_bytes"],
        "peak_mib": result["peak_mib"],
    }


def computed(name, size, kind, length):
    """The share of an attention kernel's steps that are not skipped.

    The schedule has the bundles of a pair of blocks of queries and keys for
    every pair of the grid, also where the mask hides all of it and the kernel
    goes on at once.
    """
    from keras_griffin.layers import splash_attention_jax

    arguments = backbone_of(size)
    is_local = kind == "local_attention"
    kernel = splash_attention_jax.make_kernel(
        length,
        arguments["num_query_heads"],
        arguments["attention_window_size"] if is_local else None,
    )
    # splash_mqa_fwd_..., splash_mqa_dq_..., splash_mqa_dkv_...
    info = getattr(kernel, f"{name.split('_')[2]}_mask_info")
    return float((info.block_mask > 0).mean())


def step(results, target, size, model, length):
    """`(blocks, vocabulary)` of a model's step [ms]; `None`: not compiled."""
    arguments = backbone_of(size, model)
    types = itertools.cycle(arguments["block_types"])
    counts = collections.Counter(
        itertools.islice(types, arguments["num_layers"])
    )
    names = {
        f"{target}, {size}, {kind}, {length}": count
        for kind, count in counts.items()
    }
    last = f"{target}, {size}, vocabulary"
    if not {*names, last} <= results.keys():
        return None
    blocks = sum(n * results[name]["bound_ms"] for name, n in names.items())
    return blocks, results[last]["bound_ms"]


def rows(results):
    """`(target, size, model, length, blocks, vocabulary, first)` [ms].

    `first`: the first two numbers of the MQA Transformer at 2048 tokens.
    """
    names = itertools.product(TARGETS, SIZES, MODELS, LENGTHS)
    for target, size, model, length in names:
        found = step(results, target, size, model, length)
        first = step(results, target, size, "MQA Transformer", LENGTHS[0])
        if found and first:
            yield target, size, model, length, *found, first


def table(results):
    lines = [
        "| target | size | model | tokens a row | bound [us a token] | of it "
        "the vocabulary | to the Transformer at 2048 | blocks alone |",
        "|" + "---|" * 8,
    ]
    for target, size, model, length, blocks, rest, first in rows(results):
        whole = blocks + rest
        lines.append(
            f"| {target} | {size} | {model} | {length} | "
            f"{1e3 * whole / TOKENS:.1f} | {rest / whole:.0%} | "
            f"**{whole / sum(first):.2f}** | **{blocks / first[0]:.2f}** |"
        )
    return lines


def blocks_table(results):
    lines = [
        "| target | size | block | "
        + " | ".join(f"{length} tokens" for length in LENGTHS)
        + " | products alone, 2048 tokens |",
        "|" + "---|" * (4 + len(LENGTHS)),
    ]
    for target, size, kind in itertools.product(TARGETS, SIZES, KINDS):
        found = [
            results.get(f"{target}, {size}, {kind}, {length}")
            for length in LENGTHS
        ]
        times = [f"{part['bound_ms']:.1f}" if part else "" for part in found]
        products = f"{found[0]['products_ms']:.1f}" if found[0] else ""
        lines.append(
            f"| {target} | {size} | {kind.replace('_', ' ')} | "
            f"{' | '.join(times)} | {products} |"
        )
    for target, size in itertools.product(TARGETS, SIZES):
        part = results.get(f"{target}, {size}, vocabulary")
        if part:
            lines.append(
                f"| {target} | {size} | embedding and loss | "
                + f"{part['bound_ms']:.1f} | " * len(LENGTHS)
                + f"{part['products_ms']:.1f} |"
            )
    return lines


def paper_table():
    lines = ["| size | model | 2k | 4k | 8k |", "|" + "---|" * 5]
    for (size, model), ratios in PAPER.items():
        cells = ["lost" if r is None else f"{r:.2f}" for r in ratios]
        lines.append(f"| {size} | {model} | {' | '.join(cells)} |")
    return lines


def plot(results):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    found = list(rows(results))
    for (i, size), (j, target) in itertools.product(
        enumerate(SIZES), enumerate(TARGETS)
    ):
        axes = panels[i][j]
        for color, (model, marker) in enumerate(
            zip(MODELS, "osD", strict=True)
        ):
            here = [r for r in found if r[:3] == (target, size, model)]
            axes.plot(
                [length for _, _, _, length, *_ in here],
                [blocks / first[0] for *_, blocks, _, first in here],
                marker=marker,
                color=f"C{color}",
                markerfacecolor="none",
                label=model,
            )
            paper = PAPER.get((size, model), ())
            axes.plot(
                [2048 * 2**n for n, r in enumerate(paper) if r],
                [r for r in paper if r],
                linestyle="",
                marker="x",
                markersize=9,
                color=f"C{color}",
                label=f"{model}, the paper" if paper else None,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks([1, 1.5, 2, 3], ["1", "1.5", "2", "3"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{size}, TPU {target}")
        axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("length of a row [tokens]")
    for axes in panels[:, 0]:
        axes.set_ylabel("blocks' bound,\nto MQA at 2k")
    panels[0][0].legend(fontsize="small")
    figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def page(results):
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("keras", "jax", "libtpu")
    )
    top = HEAD.format(
        script=Path(__file__).name,
        date=datetime.date.today().isoformat(),
        versions=versions,
        tokens=TOKENS,
    )
    return "\n".join(
        [
            top,
            *table(results),
            "",
            "The paper, from the text of its PDF, to the Transformer at 2k:",
            "",
            *paper_table(),
            "",
            READING,
            "## The parts [ms a batch]",
            "",
            *blocks_table(results),
            "",
        ]
    )


def read():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def in_own_process(name):
    """The compiler reads its options once."""
    output = subprocess.run(
        [sys.executable, __file__, "--part", name],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], help="parts with all of these words"
    )
    parser.add_argument("--part", choices=parts(), help="one alone, printed")
    parser.add_argument(
        "--table", action="store_true", help="compile nothing, write the page"
    )
    arguments = parser.parse_args()
    if arguments.part:
        return print(json.dumps(measure(arguments.part)))
    for name in parts():
        wanted = set(arguments.only) <= set(name.split(", "))
        if not wanted or arguments.table or name in read():
            continue
        found = in_own_process(name)
        # Another process may have written meanwhile, of the other chip.
        RESULTS.write_text(json.dumps({**read(), name: found}, indent=1) + "\n")
        print(name, f"{found['bound_ms']:.2f} ms", flush=True)
    RESULTS.with_suffix(".md").write_text(page(read()))
    plot(read())


if __name__ == "__main__":
    main()
