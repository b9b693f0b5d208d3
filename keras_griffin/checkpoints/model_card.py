"""A README.md for a folder of weights, with what is known of the model."""

import pathlib

import keras

from keras_griffin.checkpoints.preset_index import block_counts
from keras_griffin.version import __version__

FILE = "README.md"

LOAD_OURS = """\
import keras_griffin

model = keras_griffin.GriffinCausalLM.from_preset("<this folder>")
print(model.generate("Once upon a time", max_length=64))"""
LOAD = {
    "keras-hub": LOAD_OURS,
    "classifier": """\
import keras_griffin

classifier = keras_griffin.GriffinTextClassifier.from_preset("<this folder>")
print(classifier.predict(["Once upon a time"]))""",
    "embedder": """\
import keras_griffin

embedder = keras_griffin.GriffinTextEmbedder.from_preset("<this folder>")
print(embedder.encode_text(["Once upon a time"]))""",
    "transformers": """\
import transformers

model = transformers.AutoModelForCausalLM.from_pretrained("<this folder>")""",
    "flax": """\
import orbax.checkpoint
import recurrentgemma.jax

params = orbax.checkpoint.PyTreeCheckpointer().restore("<this folder>/model")
model = recurrentgemma.jax.Griffin(config)  # below
logits, _ = model.apply({"params": params}, token_ids, segment_pos)""",
    "torch": """\
import recurrentgemma.torch
import torch

model = recurrentgemma.torch.Griffin(config)  # below
model.load_state_dict(torch.load("<this folder>/model.pt", weights_only=True))\
""",
}
LIBRARIES = {"flax": "recurrentgemma", "torch": "recurrentgemma"}
LIBRARIES.update(dict.fromkeys(("classifier", "embedder"), "keras-hub"))
# The hub's names of what a model does.
PIPELINES = {
    "classifier": "text-classification",
    "embedder": "feature-extraction",
}

CARD = """\
---
library_name: {library}
pipeline_tag: {pipeline}
tags:
- griffin
- recurrent_gemma
---
# {title}

{parameters:,} parameters in {dtype}, {layers} blocks ({blocks}). Architecture:
[Griffin](https://arxiv.org/abs/2402.19427). Written by keras_griffin
{version} with Keras {keras_version}.

```python
{code}
```
{more}
| argument of `GriffinBackbone` | value |
| --- | --- |
{table}

To be completed by the author, because no file tells it: training data,
training, evaluation, intended use and licence. Models made from RecurrentGemma
stay under [Gemma's terms of use](https://ai.google.dev/gemma/terms).
"""
ALSO_OURS = """
keras_griffin reads this folder too: `GriffinCausalLM.from_preset`.
"""
WINDOW = """
transformers (5.23) counts a token itself into `attention_window_size`, so that
config.json has {number} for the {window} tokens before it.
"""


def write(folder, backbone, form):
    """Writes README.md into a folder that has none.

    Args:
        folder: str or path.
        backbone: `GriffinBackbone`.
        form: str. A key of `LOAD`: what reads the folder.
    """
    config = backbone.get_config()
    for name in ("name", "trainable", "dtype", "implementation"):
        config.pop(name, None)
    counts = block_counts(config)
    is_ours = LIBRARIES.get(form, form) == "keras-hub"
    more = "" if is_ours else ALSO_OURS
    window = backbone.attention_window_size
    if form == "transformers":
        more += WINDOW.format(number=window + 1, window=window)
    if form in ("flax", "torch"):
        more += _deepmind_config(backbone)
    text = CARD.format(
        library=LIBRARIES.get(form, form),
        pipeline=PIPELINES.get(form, "text-generation"),
        title=backbone.name,
        parameters=backbone.count_params(),
        dtype=backbone.variable_dtype,
        layers=backbone.num_layers,
        blocks=", ".join(f"{n} {kind}" for kind, n in counts.items()),
        version=__version__,
        keras_version=keras.__version__,
        code=LOAD[form],
        more=more,
        table="\n".join(f"| {k} | {_cell(v)} |" for k, v in config.items()),
    )
    (pathlib.Path(folder) / FILE).write_text(text, encoding="utf-8")


def _deepmind_config(backbone):
    kinds = {"recurrent": "RECURRENT", "local_attention": "ATTENTION"}
    blocks = ", ".join(f"kinds.{kinds[kind]}" for kind in backbone.block_types)
    return f"""
```python
from recurrentgemma import common

kinds = common.TemporalBlockType
pattern = [{blocks}]
config = common.GriffinConfig(
    vocab_size={backbone.vocabulary_size},
    width={backbone.hidden_dim},
    mlp_expanded_width={backbone.intermediate_dim},
    num_heads={backbone.num_query_heads},
    lru_width={backbone.recurrent_dim},
    block_types=tuple(
        pattern[i % len(pattern)] for i in range({backbone.num_layers})
    ),
    embeddings_scale_by_sqrt_dim={backbone.scale_embeddings},
    attention_window_size={backbone.attention_window_size},
    logits_soft_cap={backbone.final_logit_soft_cap or 0.0},
)
```
"""


def _cell(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
