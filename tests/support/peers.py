"""The original implementations, built small, with every parameter random.

Settings are the arguments of `GriffinBackbone`; a peer is built from the same
dict. Both peers run on any Keras backend: arrays go in and out as NumPy.
"""

import json

import numpy as np

from keras_griffin.checkpoints import deepmind
from keras_griffin.checkpoints import weight_map

# lru_width != width, heads = gate blocks (all that the peers can express), a
# window shorter than most inputs, and a soft cap low enough to bend logits.
GRIFFIN = {
    "vocabulary_size": 40,
    "num_layers": 3,
    "hidden_dim": 32,
    "intermediate_dim": 40,
    "num_query_heads": 4,
    "head_dim": 8,
    "recurrent_dim": 48,
    "block_types": ("recurrent", "recurrent", "local_attention"),
    "attention_window_size": 5,
    "num_gate_blocks": 4,
    "scale_embeddings": True,
    "final_logit_soft_cap": 5.0,
}
# All runs once: for JAX to compile it well would cost more than it saves.
QUICK = {"xla_backend_optimization_level": 0}
TEXT = "the quick brown fox jumps over the lazy dog"


def random_parameter(name, shape, rng):
    """Returns a random array that suits a parameter's name.

    No parameter is left at its usual initial zero: a converter that swapped or
    dropped one would otherwise pass.
    """
    normal = rng.standard_normal(shape)
    if name.endswith(("a_param", "recurrent_param")):
        # Decays a**8 from 0.25 down to 0.003 at gate 1, near 1 at gate 0.
        return rng.uniform(-7.0, 0.0, shape).astype("float32")
    if name.endswith("a_imag_param"):
        return rng.uniform(0.0, 2.0, shape).astype("float32")
    is_matrix = len(shape) > 1 and not name.endswith(("bias", "b"))
    if not is_matrix:
        return (0.3 * normal).astype("float32")
    if name.endswith(("embedding", "embed_tokens.weight")):
        fan_in = shape[-1]
    elif name.endswith(".weight"):  # torch: (out, in)
        fan_in = shape[-1]
    else:  # (..., in, out)
        fan_in = shape[-2]
    return (normal / np.sqrt(fan_in)).astype("float32")


def segment_positions(lengths, time):
    """Returns DeepMind's `segment_pos` (1, time) of documents in one row.

    Left pads have -1, and every document starts at 0.
    """
    positions = np.concatenate([np.arange(length) for length in lengths])
    pads = np.full(time - positions.size, -1)
    return np.concatenate([pads, positions])[None].astype("int32")


def our_inputs(token_ids, segment_pos):
    """Returns the backbone's inputs for tokens and DeepMind's positions."""
    documents = np.cumsum(segment_pos == 0, axis=1).astype("int32")
    return {
        "token_ids": np.asarray(token_ids, "int32"),
        "padding_mask": np.where(segment_pos >= 0, documents, 0),
    }


def deepmind_config(settings, scan_type="LINEAR_NATIVE"):
    """Returns DeepMind's `GriffinConfig` for `GriffinBackbone` arguments."""
    from recurrentgemma import common

    kinds = {
        "recurrent": common.TemporalBlockType.RECURRENT,
        "local_attention": common.TemporalBlockType.ATTENTION,
    }
    pattern = settings["block_types"]
    return common.GriffinConfig(
        vocab_size=settings["vocabulary_size"],
        width=settings["hidden_dim"],
        mlp_expanded_width=settings["intermediate_dim"],
        num_heads=settings["num_query_heads"],
        lru_width=settings["recurrent_dim"],
        block_types=tuple(
            kinds[pattern[i % len(pattern)]]
            for i in range(settings["num_layers"])
        ),
        embeddings_scale_by_sqrt_dim=settings["scale_embeddings"],
        attention_window_size=settings["attention_window_size"],
        logits_soft_cap=settings["final_logit_soft_cap"] or 0.0,
        scan_type=common.ScanType[scan_type],
    )


class DeepMindGriffin:
    """`recurrentgemma.jax.Griffin` on the CPU.

    Args:
        settings: dict of `GriffinBackbone` arguments.
        seed: int. Seed of the parameters.
        dtype: str. Of the computation; parameters stay float32, rounded to
            what it can hold. Defaults to `"float32"`.
        scan_type: str. Of `recurrentgemma.common.ScanType`. Defaults to
            `"LINEAR_NATIVE"`, which is theirs without a TPU.
    """

    def __init__(
        self, settings, seed=0, dtype="float32", scan_type="LINEAR_NATIVE"
    ):
        import jax
        from recurrentgemma.jax import griffin

        self.model = griffin.Griffin(
            deepmind_config(settings, scan_type),
            gradient_checkpointing=False,
            dtype=dtype,
        )
        tokens = np.zeros((1, 1), "int32")
        shapes = jax.eval_shape(
            self.model.init, jax.random.PRNGKey(0), tokens, tokens
        )
        self.params = jax.tree.map(
            lambda x: x.astype(jax.numpy.dtype(dtype)).astype("float32"),
            _random_tree(shapes["params"], seed),
        )
        self._apply = jax.jit(self.model.apply, compiler_options=QUICK)

    def logits(self, token_ids, segment_pos):
        """Returns logits (batch, time, vocabulary)."""
        return self.step(token_ids, segment_pos, None)[0]

    def step(self, token_ids, segment_pos, cache, params=None):
        """Returns logits and the cache after the tokens."""
        params = self.params if params is None else params
        logits, cache = self._apply(
            {"params": params}, token_ids, segment_pos, cache
        )
        return np.asarray(logits, "float32"), cache

    def gradients(self, token_ids, segment_pos, cotangent):
        """Returns d sum(logits * cotangent) / d parameters, as a tree."""
        import jax

        def loss(params, token_ids, segment_pos):
            logits, _ = self.model.apply(
                {"params": params}, token_ids, segment_pos
            )
            return (logits * cotangent).sum()

        gradients = jax.jit(jax.grad(loss))(self.params, token_ids, segment_pos)
        return jax.tree.map(np.asarray, gradients)


class DeepMindTorchGriffin:
    """`recurrentgemma.torch.Griffin` in float32 on the CPU.

    Args:
        settings: dict of `GriffinBackbone` arguments.
        seed: int. Seed of the parameters.
    """

    def __init__(self, settings, seed=0):
        import torch
        from recurrentgemma.torch import griffin

        self.model = griffin.Griffin(
            deepmind_config(settings), gradient_checkpointing=False
        ).eval()
        _randomize(self.model, seed)
        self.state_dict = self.model.state_dict()
        self._torch = torch

    def logits(self, token_ids, segment_pos):
        """Returns logits (batch, time, vocabulary)."""
        with self._torch.no_grad():
            logits, _ = self.model(
                self._torch.from_numpy(token_ids),
                self._torch.from_numpy(segment_pos),
            )
        return logits.numpy()


class DeepMindComplexRGLRU:
    """`recurrentgemma.jax.layers.RGLRU(only_real=False)` in float32.

    Args:
        width: int.
        num_heads: int. Number of gate blocks.
        seed: int. Seed of the parameters.
    """

    def __init__(self, width, num_heads, seed=0):
        import jax
        from recurrentgemma import common
        from recurrentgemma.jax import layers

        self.layer = layers.RGLRU(
            width=width,
            num_heads=num_heads,
            scan_type=common.ScanType.LINEAR_NATIVE,
            only_real=False,
        )
        shapes = jax.eval_shape(
            self.layer.init,
            jax.random.PRNGKey(0),
            np.zeros((1, 1, width), "float32"),
            np.zeros((1, 1), "int32"),
        )
        self.params = _random_tree(shapes["params"], seed)

    def apply(self, x, segment_pos):
        """Returns outputs and the final state, both merged (real, imag)."""
        import jax

        y, state = jax.jit(self.layer.apply, compiler_options=QUICK)(
            {"params": self.params}, x, segment_pos
        )
        return np.asarray(y), np.asarray(state)


class HuggingFaceGriffin:
    """`RecurrentGemmaForCausalLM` of transformers, float32 on the CPU.

    As an oracle for our window W it is given W + 1, as it counts the token
    itself. It is right only without padding and in one pass (5.23).

    Args:
        settings: dict of `GriffinBackbone` arguments.
        seed: int. Seed of the parameters.
    """

    def __init__(self, settings, seed=0):
        import transformers

        names = {"recurrent": "recurrent", "local_attention": "attention"}
        config = transformers.RecurrentGemmaConfig(
            vocab_size=settings["vocabulary_size"],
            num_hidden_layers=settings["num_layers"],
            hidden_size=settings["hidden_dim"],
            intermediate_size=2 * settings["intermediate_dim"],
            num_attention_heads=settings["num_query_heads"],
            num_key_value_heads=1,
            lru_width=settings["recurrent_dim"],
            block_types=[names[kind] for kind in settings["block_types"]],
            attention_window_size=settings["attention_window_size"],
            logits_soft_cap=settings["final_logit_soft_cap"],
        )
        self.model = transformers.RecurrentGemmaForCausalLM(config).eval()
        _randomize(self.model, seed)

    def logits(self, token_ids, window):
        """Returns logits (batch, time, vocabulary).

        Args:
            token_ids: int array `(batch, time)`, without padding.
            window: int. Tokens before itself that a token sees, our W.
        """
        import torch

        self.model.config.attention_window_size = window + 1
        with torch.no_grad():
            tokens = torch.from_numpy(np.asarray(token_ids, "int64"))
            return self.model(tokens, use_cache=False).logits.numpy()

    def save(self, folder, dtype="float32", **options):
        """Writes a folder as `save_pretrained` does, with a tokenizer.

        Args:
            folder: path.
            dtype: str. dtype of the stored weights.
            options: further arguments of `save_pretrained`.
        """
        import torch
        import transformers

        # No progress bar on stderr; transformers has no argument for it.
        transformers.utils.logging.disable_progress_bar()
        stored = {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                stored[name] = parameter.to(getattr(torch, dtype))
                # Also what the oracle computes with. (Casting the whole
                # model would round its rotary frequencies, too.)
                parameter.copy_(stored[name])
        self.model.save_pretrained(folder, state_dict=stored, **options)
        write_tokenizer(folder / "tokenizer.model")


def write_tokenizer(path, vocabulary_size=40):
    """Trains a SentencePiece model with Gemma's special ids on a few lines."""
    path.write_bytes(train_tokenizer("unigram", False, vocabulary_size))


def train_tokenizer(kind, exact, vocabulary_size=None):
    """Returns a SentencePiece model trained on a few lines.

    Args:
        kind: `"bpe"` or `"unigram"`.
        exact: bool. Whether it leaves text as it is and falls back to bytes,
            as Gemma's does.
        vocabulary_size: int. Defaults to `None`: what `kind` needs.
    """
    import io

    import sentencepiece

    options = {}
    if exact:
        options = {
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
        }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, TEXT.upper()[:9]] * 5),
        model_writer=model,
        model_type=kind,
        vocab_size=vocabulary_size or (310 if exact else 40),
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
        unk_piece="<unk>",
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def edit_json(path, **changes):
    """Changes keys of a JSON file; the value `None` removes a key."""
    content = json.loads(path.read_text())
    content.update(changes)
    content = {k: v for k, v in content.items() if v is not None}
    path.write_text(json.dumps(content))


def relative_error(received, expected):
    """Returns max |received - expected| / max |expected|."""
    difference = np.abs(np.asarray(received) - np.asarray(expected)).max()
    return float(difference / np.abs(expected).max())


def flatten(tree):
    """Returns `{"a/b/c": leaf}` of a nested dict."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            inner = flatten(value).items()
            flat.update({f"{name}/{key}": leaf for key, leaf in inner})
        else:
            flat[name] = value
    return flat


def our_outputs(model, inputs):
    """Returns model(inputs) as NumPy.

    Compiled as a whole on JAX, where else each operation is, for each shape.
    """
    import keras

    inputs = {k: keras.ops.convert_to_tensor(x) for k, x in inputs.items()}
    if keras.backend.backend() != "jax":
        return keras.ops.convert_to_numpy(model(inputs))
    import jax

    state = [v.value for v in model.non_trainable_variables]

    def outputs(values, inputs):
        return model.stateless_call(values, state, inputs)[0]

    values = [v.value for v in model.trainable_variables]
    outputs = jax.jit(outputs, compiler_options=QUICK)
    return np.asarray(outputs(values, inputs))


def our_gradients(model, inputs, cotangent):
    """Returns d sum(model(inputs) * cotangent) / d weights, on any backend.

    Args:
        model: a built Keras model.
        inputs: what the model is called with.
        cotangent: array of the output's shape.

    Returns:
        dict from `id(variable)` to a NumPy array.
    """
    import keras

    inputs = {k: keras.ops.convert_to_tensor(x) for k, x in inputs.items()}
    variables = model.trainable_variables
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        state = [v.value for v in model.non_trainable_variables]

        def loss(values):
            y, _ = model.stateless_call(values, state, inputs)
            return (y * cotangent).sum()

        gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
        gradients = gradient([v.value for v in variables])
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs) * cotangent)
        gradients = tape.gradient(loss, [v.value for v in variables])
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    else:
        model.zero_grad()
        y = model(inputs)
        (y * keras.ops.convert_to_tensor(cotangent)).sum().backward()
        gradients = [variable.value.grad for variable in variables]
    return {
        id(variable): keras.ops.convert_to_numpy(gradient)
        for variable, gradient in zip(variables, gradients, strict=True)
    }


def paired_with_flax(backbone, tree):
    """Yields `(path, variable, leaf in our layout)` for a Flax tree.

    For trees that are not parameters, as gradients are.
    """
    leaves = flatten(tree)
    for row in weight_map.rows(deepmind.FLAX, backbone):
        leaf = leaves[row.tensor]
        if row.part is not None:
            leaf = leaf[row.part]
        leaf = weight_map.LAYOUTS[row.layout].to_ours(leaf)
        variable = weight_map.find_variable(backbone, row.variable)
        yield row.variable, variable, leaf


def load_complex_rglru(layer, params):
    """Assigns the tree of a `DeepMindComplexRGLRU` to a built `RGLRU`."""
    ours, theirs = "blocks.{block}.temporal.rglru.", "recurrent_block/rg_lru/"
    leaves = flatten(params)
    for row in deepmind.FLAX.recurrent + deepmind.FLAX.phase:
        if not row.variable.startswith(ours):
            continue
        path = row.variable.removeprefix(ours)
        leaf = leaves.pop(row.tensor.partition(theirs)[2])
        weight_map.find_variable(layer, path).assign(leaf)
    assert not leaves


def _randomize(module, seed):
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = random_parameter(name, tuple(parameter.shape), rng)
            parameter.copy_(torch.from_numpy(value))


def _random_tree(shapes, seed):
    import jax

    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: random_parameter(path[-1].key, leaf.shape, rng),
        shapes,
    )
