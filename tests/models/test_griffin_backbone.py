import keras
import numpy as np
import pytest
from keras import ops

import keras_griffin
from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import TINY
from support.models import VOCABULARY
from support.models import WINDOW
from support.models import loss_and_gradients
from support.models import run
from support.models import scatter
from support.models import tiny_backbone
from support.models import tiny_model
from support.models import tokens
from support.once import once

TIME = 3 * WINDOW + 2
WIDTH = TIME + 7


@pytest.fixture(scope="module")
def backbone():
    """Every type of block."""
    keras.utils.set_random_seed(0)
    return tiny_backbone(block_types=PATTERNS["mixed"])


@pytest.mark.parametrize("where", ["left", "right", "anywhere"])
def test_pads_change_nothing(backbone, where):
    rows = [tokens(1, n, seed=n)[0] for n in (TIME, 5, 1)]
    ids, mask = scatter(rows, WIDTH, where=where)
    outputs = run(backbone, ids, mask)
    for i, row in enumerate(rows):
        # The row alone, in the same shape so that nothing compiles anew.
        alone, alone_mask = scatter([row] * 3, WIDTH, where="right")
        expected = run(backbone, alone, alone_mask)[0, : len(row)]
        assert_close(outputs[i][mask[i]], expected, name=f"row {i}")
    unpadded = run(backbone, np.stack([rows[0]] * 3))[0]
    assert_close(outputs[0][mask[0]], unpadded, name="unpadded")


def test_packed_documents_equal_each_alone(backbone):
    # 1, 2 and 3: shorter than the convolution; 4: than the window.
    lengths = [2, 1, WINDOW - 2, 3, 2 * WINDOW, 2]
    documents = [tokens(1, n, seed=n)[0] for n in lengths]
    packed = np.concatenate(documents)
    ids, mask = scatter([packed] * 3, WIDTH)
    numbers = np.zeros(ids.shape, "int32")
    for i in range(3):
        numbers[i, mask[i]] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    outputs = run(backbone, ids, numbers)
    for i in range(3):
        ends = np.cumsum(lengths)
        for document, end in zip(documents, ends, strict=True):
            alone, alone_mask = scatter([document] * 3, WIDTH, where="right")
            expected = run(backbone, alone, alone_mask)[0, : len(document)]
            actual = outputs[i][mask[i]][end - len(document) : end]
            assert_close(actual, expected, name=f"ends at {end}")


def test_padding_and_packing_give_the_same_gradients():
    model = tiny_model()
    # A seed whose loss is large: an error is measured against it.
    rng = np.random.default_rng(1)
    documents = [tokens(1, n, seed=n)[0] for n in (2, 9, WINDOW)]
    weights = [rng.normal(size=(len(d), VOCABULARY)) for d in documents]

    def alone(width):
        ids, mask = scatter(documents, width, where="right")
        weight = np.zeros((*ids.shape, VOCABULARY))
        for i, w in enumerate(weights):
            weight[i, mask[i]] = w
        return loss_and_gradients(model, ids, weight, mask)

    value, gradients = alone(12)
    ids, mask = scatter([np.concatenate(documents)], 25)
    numbers = np.zeros(ids.shape, "int32")
    numbers[mask] = np.repeat([5, 6, 7], [len(d) for d in documents])
    weight = np.zeros((*ids.shape, VOCABULARY))
    weight[mask] = np.concatenate(weights)
    packed_value, packed_gradients = loss_and_gradients(
        model, ids, weight, numbers
    )
    assert_close(packed_value, value)
    for variable, actual, expected in zip(
        model.trainable_variables, packed_gradients, gradients, strict=True
    ):
        assert_close(actual, expected, kind="gradients", name=variable.path)


def call_with_state(backbone, ids, state, mask=None):
    """`call_with_state`, compiled."""
    if not hasattr(backbone, "compiled_call"):
        model = keras_griffin.GriffinCausalLM(backbone)

        def function(ids, state, optional):
            return backbone.call_with_state(ids, state, **optional)

        backbone.compiled_call = model._functions.compile(function)
    optional = {}
    if mask is not None:
        optional["padding_mask"] = ops.convert_to_tensor(mask)
    return backbone.compiled_call(ops.convert_to_tensor(ids), state, optional)


@pytest.mark.parametrize("pieces", [[1] * TIME, [7, 1, 0, TIME - 8]])
def test_splitting_changes_nothing(backbone, pieces):
    ids = tokens(2, TIME)
    state = backbone.init_state(2, max_length=TIME)
    outputs, start = [], 0
    for piece in pieces:
        hidden, state = call_with_state(
            backbone, ids[:, start : start + piece], state
        )
        outputs.append(to_numpy(hidden))
        start += piece
    assert_close(np.concatenate(outputs, axis=1), run(backbone, ids))
    assert to_numpy(state["length"]).tolist() == [TIME, TIME]


def test_splitting_padded_and_packed_rows_changes_nothing(backbone):
    lengths = [2, 9, 1, TIME - 12]
    ids, mask = scatter([tokens(1, TIME)[0]] * 2, WIDTH)
    numbers = np.zeros(ids.shape, "int32")
    for i in range(2):
        numbers[i, mask[i]] = np.repeat([4, 5, 4, 9], lengths)
    expected = run(backbone, ids, numbers)
    state = backbone.init_state(2, max_length=TIME)
    outputs = []
    for start in range(0, WIDTH, 9):
        part = slice(start, start + 9)
        hidden, state = call_with_state(
            backbone, ids[:, part], state, numbers[:, part]
        )
        outputs.append(to_numpy(hidden))
    outputs = np.concatenate(outputs, axis=1)
    assert_close(outputs[mask], expected[mask])
    assert to_numpy(state["position"]).tolist() == [lengths[-1]] * 2
    assert to_numpy(state["segment_id"]).tolist() == [9, 9]


def test_state_has_the_batch_in_front_and_a_fixed_size():
    backbone = tiny_backbone()
    state = backbone.init_state(5)
    assert all(leaf.shape[0] == 5 for leaf in keras.tree.flatten(state))
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(state)]
    _, after = call_with_state(backbone, tokens(5, 40), state)
    assert shapes == [tuple(leaf.shape) for leaf in keras.tree.flatten(after)]
    assert after["blocks"][2]["keys"].shape[1] == WINDOW + 1
    assert keras.backend.standardize_dtype(
        after["blocks"][0]["recurrent"].dtype
    ) == ("float32")


def test_rows_and_the_future_are_not_seen(backbone):
    ids = tokens(3, TIME)
    before = run(backbone, ids)
    ids[1, 10] = (ids[1, 10] + 1) % VOCABULARY
    after = run(backbone, ids)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1, :10], before[1, :10])
    assert (np.abs(after[1, 10:] - before[1, 10:]).max(axis=-1) > 0).all()


CHANGES = {
    "vocabulary_size": 31,
    "num_layers": 2,
    "hidden_dim": 24,
    "intermediate_dim": 25,
    "num_query_heads": 4,
    "head_dim": 12,
    "recurrent_dim": 16,
    "block_types": ["recurrent", "global_attention"],
    "attention_window_size": 3,
    "num_gate_blocks": 2,
    "conv_kernel_size": 3,
    "recurrence": "complex",
    "scale_embeddings": True,
    "final_logit_soft_cap": 0.5,
    "rope_max_wavelength": 50.0,
    "rope_fraction": 1.0,
    "layer_norm_epsilon": 0.5,
    "decay_initializer": "paper",
}


def described(model):
    """Weight shapes, initial weights, and outputs of the weights set alike."""
    shapes = [tuple(w.shape) for w in model.weights]
    decay = model.backbone.blocks[0].temporal.rglru.recurrence_param
    first_decays = to_numpy(decay.value).round(6).tolist()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(0.5 * rng.normal(size=weight.shape))
    inputs = {"token_ids": tokens(1, 12), "padding_mask": np.ones((1, 12))}
    outputs = to_numpy(model(inputs))
    return shapes, first_decays, outputs.round(5).tolist()


@pytest.fixture(scope="module")
def unchanged():
    keras.utils.set_random_seed(0)
    return described(
        keras_griffin.GriffinCausalLM(keras_griffin.GriffinBackbone(**TINY))
    )


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", CHANGES)
def test_every_argument_matters_and_is_kept(name, unchanged):
    keras.utils.set_random_seed(0)
    arguments = {**TINY, name: CHANGES[name]}
    backbone = keras_griffin.GriffinBackbone(**arguments)
    changed = described(keras_griffin.GriffinCausalLM(backbone))
    assert changed != unchanged
    config = backbone.get_config()
    assert config[name] == CHANGES[name]
    again = keras_griffin.GriffinBackbone.from_config(config)
    assert again.get_config() == config


@pytest.mark.parametrize("with_head", [False, True])
def test_dropout_drops_in_training_alone(with_head):
    model = tiny_model(dropout=0.5)
    assert model.backbone.get_config()["dropout"] == 0.5
    model = model if with_head else model.backbone
    ids = tokens(1, 12)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    first = to_numpy(model(inputs, training=True))
    assert (to_numpy(model(inputs, training=True)) != first).any()
    evaluated = to_numpy(model(inputs, training=False))
    np.testing.assert_array_equal(evaluated, to_numpy(model(inputs)))


def test_fit_drops_out():
    model = tiny_model(dropout=0.5)
    model.compile(optimizer=keras.optimizers.SGD(0.0))
    ids = tokens(2, 12)
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    losses = model.fit(x, ids, epochs=3, verbose=0).history["loss"]
    assert len(set(losses)) == 3


@pytest.mark.backend_independent
def test_implementation_is_passed_on_and_kept():
    backbone = keras_griffin.GriffinBackbone(**TINY, implementation="ops")
    assert backbone.blocks[0].temporal.rglru.implementation == "ops"
    assert backbone.get_config()["implementation"] == "ops"


@pytest.mark.backend_independent
def test_reference_decays_are_shorter():
    def mean_decay(decay_initializer):
        keras.utils.set_random_seed(0)
        backbone = keras_griffin.GriffinBackbone(
            **TINY, decay_initializer=decay_initializer
        )
        return to_numpy(
            backbone.blocks[0].temporal.rglru.recurrence_param.value
        ).mean()

    # A larger Lambda forgets faster.
    assert mean_decay("reference") > mean_decay("paper") + 1


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *once("float16"), "mixed_bfloat16"]
)
def test_low_precision_is_near_and_finite(dtype):
    reference = tiny_backbone()
    backbone = tiny_backbone(dtype=dtype)
    backbone.set_weights([to_numpy(w.value) for w in reference.weights])
    expected = run(reference, tokens(2, 20))
    actual = run(backbone, tokens(2, 20))
    assert np.isfinite(actual).all()
    # A whole stack of roundings: their mean, which does not hang on the one
    # worst number of a random draw.
    error, scale = (
        float(np.abs(x).mean()) for x in (actual - expected, expected)
    )
    assert error < 0.05 * scale
    _, state = call_with_state(backbone, tokens(2, 20), backbone.init_state(2))
    assert keras.backend.standardize_dtype(
        state["blocks"][0]["recurrent"].dtype
    ) == ("float32")


def test_saved_and_loaded_by_keras(tmp_path):
    backbone = tiny_backbone(decay_initializer="reference")
    path = tmp_path / "backbone.keras"
    backbone.save(path)
    again = keras.saving.load_model(path)
    assert isinstance(again, keras_griffin.GriffinBackbone)
    ids = tokens(2, 9)
    np.testing.assert_array_equal(run(again, ids), run(backbone, ids))


ONES = np.ones((2, 5), "int32")


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"padding_mask": ONES}, "must be a dict with 'token_ids'"),
        (ONES, "must be a dict with 'token_ids'"),
        (
            {"token_ids": ONES[0], "padding_mask": ONES[0]},
            r"must have shape \(batch, time\)",
        ),
        (
            {"token_ids": ONES, "padding_mask": ONES[:, :4]},
            "`padding_mask` must have shape",
        ),
        (
            {
                "token_ids": ONES,
                "padding_mask": ONES,
                "segment_ids": ONES,
            },
            "Give `padding_mask = np.where",
        ),
        (
            {"token_ids": ONES * VOCABULARY, "padding_mask": ONES},
            r"must lie in \[0, 28\]. Received: ids from 29 to 29",
        ),
        (
            {"token_ids": -ONES, "padding_mask": ONES},
            "Received: ids from -1 to -1",
        ),
        (
            {"token_ids": np.array([["a"]]), "padding_mask": ONES[:1, :1]},
            "`token_ids` must be integers",
        ),
    ],
)
def test_wrong_inputs_are_refused(inputs, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model.backbone(inputs)
    with pytest.raises(ValueError, match=message):
        model.prefill(inputs)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_layers": 0}, "`num_layers` must be at least 1"),
        ({"num_query_heads": 3}, "`num_query_heads` must divide"),
        ({"num_gate_blocks": 5}, "`num_gate_blocks` must divide|num_blocks"),
        ({"block_types": ("mamba",)}, "`block_types` must name"),
        ({"block_types": ()}, "`block_types` must name"),
        ({"recurrence": "quaternion"}, "`recurrence` must be one of"),
        ({"final_logit_soft_cap": 0}, "must be positive, or None"),
        ({"implementation": "fast"}, "`implementation` must be one of"),
        ({"decay_initializer": "random"}, "`convention` must be one of"),
        ({"rope_fraction": 2.0}, "`rope_fraction` must lie in"),
        ({"attention_window_size": -1}, "`window_size` must be 0 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone = keras_griffin.GriffinBackbone(**{**TINY, **arguments})
        run(backbone, tokens(1, 4))


@pytest.mark.backend_independent
def test_global_attention_needs_the_length_of_its_state():
    backbone = tiny_backbone(block_types=PATTERNS["mqa"])
    with pytest.raises(ValueError, match="needs to know how many"):
        backbone.init_state(2)
