"""Equal to `recurrentgemma.jax`, the original, in float32.

Errors are `max |ours - theirs| / max |theirs|` over real tokens. Left pads have
`segment_pos` -1 there and are masked here; documents restart at 0 there and
have ids of their own here.
"""

import functools

import keras
import numpy as np
import pytest

from keras_griffin.checkpoints import deepmind
from keras_griffin.layers import RGLRU
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from support import peers
from support.once import once

pytest.importorskip("recurrentgemma.jax")

TOLERANCE = 1e-5
# Sums over all tokens, and a square root's derivative of up to 1000.
GRADIENT_TOLERANCE = 2e-5
WINDOW = peers.GRIFFIN["attention_window_size"]
TIME = 2 * WINDOW + 3
ROWS = {
    "one document": [TIME],
    "left padding": [TIME - 4],
    "packed, some shorter than the convolution": [1, 2, 3, 7],
    "packed, longer than the window": [WINDOW + 1, WINDOW + 2],
    "packed after left padding": [2, 8],
}

VARIANTS = {
    "griffin": {},
    "hawk": {"block_types": ("recurrent",)},
    "attention": {"block_types": ("local_attention",)},
    "the paper's options": {
        "final_logit_soft_cap": None,
        "scale_embeddings": False,
    },
    "one head, recurrent_dim = hidden_dim": {
        "num_query_heads": 1,
        "num_gate_blocks": 1,
        "head_dim": 32,
        "recurrent_dim": 32,
    },
    "window of one": {"attention_window_size": 1},
}


@functools.cache
def make_peer(variant="griffin"):
    return peers.DeepMindGriffin({**peers.GRIFFIN, **VARIANTS[variant]})


def make_model(params, **settings):
    model = GriffinCausalLM(GriffinBackbone(**{**peers.GRIFFIN, **settings}))
    deepmind.load_flax_params(model.backbone, params)
    return model


def make_batch(time=TIME, rows=ROWS.values(), seed=0):
    """Returns token ids and `segment_pos`, (rows, time)."""
    rows = list(rows)
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, 40, (len(rows), time)).astype("int32")
    positions = [peers.segment_positions(row, time) for row in rows]
    return token_ids, np.concatenate(positions)


def our_logits(model, token_ids, segment_pos):
    return peers.our_outputs(model, peers.our_inputs(token_ids, segment_pos))


@pytest.mark.parametrize(
    "variant", ["griffin", "hawk", *once(*list(VARIANTS)[2:])]
)
def test_logits(variant, record_error):
    peer = make_peer(variant)
    model = make_model(peer.params, **VARIANTS[variant])
    token_ids, segment_pos = make_batch()
    theirs = peer.logits(token_ids, segment_pos)
    ours = our_logits(model, token_ids, segment_pos)
    for i, row in enumerate(ROWS):
        real = segment_pos[i] >= 0
        error = peers.relative_error(ours[i][real], theirs[i][real])
        record_error(error)
        assert error < TOLERANCE, row


@pytest.mark.parametrize("time", [WINDOW + 1, *once(1, WINDOW - 1, WINDOW)])
def test_lengths_around_the_window(time, record_error):
    peer = make_peer()
    model = make_model(peer.params)
    token_ids, segment_pos = make_batch(time, [[time], [time]])
    error = peers.relative_error(
        our_logits(model, token_ids, segment_pos),
        peer.logits(token_ids, segment_pos),
    )
    record_error(error)
    assert error < TOLERANCE


def test_global_attention_is_a_window_that_nothing_reaches(record_error):
    settings = {**peers.GRIFFIN, "block_types": ("local_attention",)}
    settings["attention_window_size"] = 1000
    peer = peers.DeepMindGriffin(settings)
    model = make_model(peer.params, block_types=("global_attention",))
    token_ids, segment_pos = make_batch()
    theirs = peer.logits(token_ids, segment_pos)
    ours = our_logits(model, token_ids, segment_pos)
    real = segment_pos >= 0
    error = peers.relative_error(ours[real], theirs[real])
    record_error(error)
    assert error < TOLERANCE


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "changes",
    [
        {"attention_window_size": WINDOW + 1},
        {"attention_window_size": WINDOW - 1},
        {"scale_embeddings": False},
        {"final_logit_soft_cap": 6.0},
        {"rope_fraction": 1.0},
        {"rope_max_wavelength": 5_000.0},
        {"layer_norm_epsilon": 1e-2},
    ],
)
def test_a_wrong_setting_would_be_noticed(changes):
    peer = make_peer()
    token_ids, segment_pos = make_batch()
    model = make_model(peer.params, **changes)
    theirs = peer.logits(token_ids, segment_pos)
    ours = our_logits(model, token_ids, segment_pos)
    assert peers.relative_error(ours[0], theirs[0]) > 100 * TOLERANCE


def test_decoding_step_by_step(record_error):
    peer = make_peer()
    model = make_model(peer.params)
    prompt, steps = 6, 2 * WINDOW
    time = prompt + steps
    token_ids, segment_pos = make_batch(time, [[time], [time - 2]])  # 2 pads

    def check(ours, theirs):
        error = peers.relative_error(
            keras.ops.convert_to_numpy(ours), theirs[:, -1]
        )
        record_error(error)
        assert error < TOLERANCE

    inputs = peers.our_inputs(token_ids[:, :prompt], segment_pos[:, :prompt])
    ours, state = model.prefill(inputs)
    theirs, cache = peer.step(
        token_ids[:, :prompt], segment_pos[:, :prompt], None
    )
    check(ours, theirs)
    for t in range(prompt, prompt + steps):
        ours, state = model.decode_step(token_ids[:, t], state)
        theirs, cache = peer.step(
            token_ids[:, t : t + 1], segment_pos[:, t : t + 1], cache
        )
        check(ours, theirs)
    for i in range(2):
        theirs = cache[f"blocks.{i}"]
        for name, expected in (
            ("recurrent", theirs.rg_lru_state),
            ("inputs", theirs.conv1d_state),
        ):
            received = keras.ops.convert_to_numpy(state["blocks"][i][name])
            assert peers.relative_error(received, expected) < TOLERANCE


def test_gradients_of_every_parameter(record_error):
    peer = make_peer()
    model = make_model(peer.params)
    token_ids, segment_pos = make_batch()
    real = (segment_pos >= 0)[:, :, None]
    cotangent = np.random.default_rng(1).standard_normal(real.shape[:2] + (40,))
    cotangent = np.where(real, cotangent, 0).astype("float32")

    theirs = peer.gradients(token_ids, segment_pos, cotangent)
    inputs = peers.our_inputs(token_ids, segment_pos)
    ours = peers.our_gradients(model, inputs, cotangent)
    for path, variable, expected in peers.paired_with_flax(
        model.backbone, theirs
    ):
        error = peers.relative_error(ours[id(variable)], expected)
        record_error(error)
        assert error < GRADIENT_TOLERANCE, path


def test_bfloat16_is_no_worse_than_the_original():
    """On the mean of five draws of tokens, by twice its standard error.

    One draw is 5 % off by chance, and where the processor multiplies bfloat16
    as JAX does here (TensorFlow on some), both errors have the same size.
    """
    draws = 5
    rounded = peers.DeepMindGriffin(peers.GRIFFIN, dtype="bfloat16")
    model = make_model(rounded.params, dtype="bfloat16")
    worse = []
    for seed in range(draws):
        token_ids, segment_pos = make_batch(seed=seed)
        real = segment_pos >= 0
        theirs = rounded.logits(token_ids, segment_pos)
        exact, _ = make_peer().step(
            token_ids, segment_pos, cache=None, params=rounded.params
        )
        ours = our_logits(model, token_ids, segment_pos)
        assert ours.dtype == "float32"
        our_error, their_error = (
            np.abs(logits[real] - exact[real]).mean()
            for logits in (ours, theirs)
        )
        worse.append(our_error - their_error)
    assert np.mean(worse) <= 2 * np.std(worse, ddof=1) / draws**0.5


def make_complex_layer(peer, units=16):
    layer = RGLRU(units, num_gate_blocks=2, recurrence="complex")
    layer.build((None, None, units))
    peers.load_complex_rglru(layer, peer.params)
    return layer


def test_complex_rglru(record_error):
    peer = peers.DeepMindComplexRGLRU(16, num_heads=2)
    layer = make_complex_layer(peer)
    _, segment_pos = make_batch()
    rng = np.random.default_rng(0)
    x = rng.standard_normal(segment_pos.shape + (16,)).astype("float32")
    inputs = peers.our_inputs(segment_pos, segment_pos)
    ours, state = layer(
        x, padding_mask=inputs["padding_mask"], return_state=True
    )
    theirs, their_state = peer.apply(x, segment_pos)
    real = segment_pos >= 0
    error = peers.relative_error(
        keras.ops.convert_to_numpy(ours)[real], theirs[real]
    )
    state = keras.ops.convert_to_numpy(state["recurrent"])
    record_error(error)
    assert error < TOLERANCE
    assert peers.relative_error(state, their_state) < TOLERANCE


def test_complex_rglru_goes_on_from_a_state(record_error):
    # Their own continuation drops the imaginary parts of the state (1.0.1,
    # `get_acc_dtype` of native complex numbers), so ours goes on from the
    # state of their first part and has to end like their single pass.
    peer = peers.DeepMindComplexRGLRU(16, num_heads=2)
    layer = make_complex_layer(peer)
    x = np.random.default_rng(0).standard_normal((3, TIME, 16))
    x = x.astype("float32")
    segment_pos = np.tile(np.arange(TIME, dtype="int32"), (3, 1))
    _, recurrent = peer.apply(x[:, :4], segment_pos[:, :4])
    theirs, their_state = peer.apply(x, segment_pos)
    state = layer.init_state(3)
    state["recurrent"] = keras.ops.convert_to_tensor(recurrent)
    state["position"] = state["position"] + 4
    ours, state = layer(x[:, 4:], initial_state=state, return_state=True)
    error = peers.relative_error(
        keras.ops.convert_to_numpy(ours), theirs[:, 4:]
    )
    state = keras.ops.convert_to_numpy(state["recurrent"])
    record_error(error)
    assert error < TOLERANCE
    assert peers.relative_error(state, their_state) < TOLERANCE
