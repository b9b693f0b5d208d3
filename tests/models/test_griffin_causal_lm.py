import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_griffin
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.sampling import settings_of
from keras_griffin.generation.sampling import with_settings
from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import WINDOW
from support.models import run
from support.models import scatter
from support.models import tiny_model
from support.models import tokens
from support.once import once

MAX_LENGTH = 32
# 1 is shorter than the convolution, 21 longer than three windows.
PROMPT_LENGTHS = (1, 5, 3 * WINDOW + 3)


def prompts(lengths=PROMPT_LENGTHS, max_length=MAX_LENGTH, where="right"):
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    ids, mask = scatter(rows, max_length, where=where)
    return {"token_ids": ids, "padding_mask": mask}


def row(inputs, i):
    return {name: value[i : i + 1] for name, value in inputs.items()}


def samplers():
    return {
        "greedy": keras_hub.samplers.GreedySampler(),
        "top_k": keras_hub.samplers.TopKSampler(k=5, seed=1),
        "top_p": keras_hub.samplers.TopPSampler(p=0.7, seed=2),
        "random": keras_hub.samplers.RandomSampler(seed=3, temperature=0.7),
        "beam": keras_hub.samplers.BeamSampler(num_beams=3),
        "contrastive": keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.3),
    }


def generate_uncached(model, sampler, inputs):
    """KerasHub's sampler on a row alone, a whole forward pass a token."""
    # A seed draws other numbers where `k` is no data.
    sampler = with_settings(sampler, settings_of(sampler))
    token_ids = ops.convert_to_tensor(inputs["token_ids"])
    start = int(inputs["padding_mask"].sum())
    width = token_ids.shape[1]
    columns = np.arange(width)[None]

    def hidden_states(prompt):
        mask = ops.ones_like(prompt)
        return model.backbone({"token_ids": prompt, "padding_mask": mask})

    def next(prompt, cache, index):
        # Causality: what stands behind `index` does not matter.
        hidden = ops.take(hidden_states(prompt), index - 1, axis=1)
        return model._logits(hidden), hidden, cache

    def loop(token_ids):
        return sampler(
            next=next,
            prompt=token_ids,
            index=start,
            mask=ops.convert_to_tensor(columns < start),
            hidden_states=hidden_states(token_ids),
            model=model,
        )

    # XLA draws other numbers than TensorFlow does without it.
    compiled = model._functions.compile(loop, xla=True)
    return to_numpy(compiled(token_ids))


@pytest.mark.parametrize(
    "name",
    ["greedy", "top_k", "beam", *once("top_p", "random", "contrastive")],
)
def test_cached_equals_uncached(name):
    inputs = row(prompts(), 1)
    model = tiny_model(block_types=PATTERNS["mixed"])
    expected = generate_uncached(model, samplers()[name], inputs)
    model.compile(sampler=samplers()[name])
    actual = model.generate(inputs, stop_token_ids=None)
    np.testing.assert_array_equal(actual["token_ids"], expected)
    assert actual["padding_mask"].all()


@pytest.fixture(scope="module", params=["greedy", "beam", *once("contrastive")])
def exact_model(request):
    """A model with a sampler that draws no random numbers."""
    keras.utils.set_random_seed(0)
    return tiny_model(sampler=samplers()[request.param])


def alone(inputs, i):
    """Three times the same row: so nothing compiles anew."""
    return {name: value[[i] * 3] for name, value in inputs.items()}


def test_ragged_batch_equals_each_row_alone(exact_model):
    inputs = prompts()
    together = exact_model.generate(inputs, stop_token_ids=None)
    for i, length in enumerate(PROMPT_LENGTHS):
        single = exact_model.generate(alone(inputs, i), stop_token_ids=None)
        np.testing.assert_array_equal(
            together["token_ids"][i], single["token_ids"][0]
        )
        np.testing.assert_array_equal(
            together["token_ids"][i, :length], inputs["token_ids"][i, :length]
        )
    for where in ("left", "anywhere"):
        padded = exact_model.generate(prompts(where=where), stop_token_ids=None)
        np.testing.assert_array_equal(
            padded["token_ids"], together["token_ids"]
        )


def test_rows_that_stop_disturb_no_others(exact_model):
    inputs = prompts()
    free = exact_model.generate(inputs, stop_token_ids=None)["token_ids"]
    # A token that row 1 makes soon.
    stop = int(free[1, PROMPT_LENGTHS[1] + 2])
    stops = (stop, VOCABULARY - 1)
    stopped = exact_model.generate(inputs, stop_token_ids=stops)
    for i, length in enumerate(PROMPT_LENGTHS):
        single = exact_model.generate(alone(inputs, i), stop_token_ids=stops)
        for key in ("token_ids", "padding_mask"):
            np.testing.assert_array_equal(stopped[key][i], single[key][0])
        new = stopped["token_ids"][i][stopped["padding_mask"][i]][length:]
        ends = np.flatnonzero(np.isin(new, stops))
        assert len(ends) == 0 or ends[0] == len(new) - 1
        if not isinstance(exact_model.sampler, keras_hub.samplers.BeamSampler):
            np.testing.assert_array_equal(
                new, free[i, length : length + len(new)]
            )
    if isinstance(exact_model.sampler, keras_hub.samplers.GreedySampler):
        assert not stopped["padding_mask"][1].all()


@pytest.mark.backend_independent
def test_a_stop_token_that_ends_the_prompt_stops_nothing():
    model = tiny_model()
    inputs = row(prompts(), 1)
    last = int(inputs["token_ids"][0, PROMPT_LENGTHS[1] - 1])
    free = model.generate(inputs, stop_token_ids=None)
    stopped = model.generate(inputs, stop_token_ids=(last,))
    assert stopped["padding_mask"].sum() > PROMPT_LENGTHS[1]
    n = stopped["padding_mask"].sum()
    np.testing.assert_array_equal(
        stopped["token_ids"][0, :n], free["token_ids"][0, :n]
    )


@pytest.mark.backend_independent
def test_strip_prompt():
    model = tiny_model()
    whole = model.generate(prompts(), stop_token_ids=None)
    for where in ("left", "right"):
        new = model.generate(
            prompts(where=where), stop_token_ids=None, strip_prompt=True
        )
        for i, length in enumerate(PROMPT_LENGTHS):
            np.testing.assert_array_equal(
                new["token_ids"][i][new["padding_mask"][i].astype(bool)],
                whole["token_ids"][i, length:],
            )


@pytest.mark.backend_independent
def test_beam_of_width_one_is_greedy():
    model = tiny_model()
    greedy = model.generate(prompts(), stop_token_ids=None)
    model.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=1))
    beam = model.generate(prompts(), stop_token_ids=None)
    np.testing.assert_array_equal(beam["token_ids"], greedy["token_ids"])


@pytest.mark.backend_independent
def test_a_full_prompt_comes_back():
    model = tiny_model()
    inputs = prompts((MAX_LENGTH, MAX_LENGTH))
    outputs = model.generate(inputs, stop_token_ids=None)
    np.testing.assert_array_equal(outputs["token_ids"], inputs["token_ids"])


def test_prefill_and_decode_equal_the_whole():
    model = tiny_model(final_logit_soft_cap=3.0)
    ids = tokens(2, 30)
    expected = run(model, ids)
    logits, state = model.prefill({"token_ids": ids[:, :16]})
    assert_close(logits, expected[:, 15])
    whole, whole_state = model.prefill({"token_ids": ids})
    assert_close(whole, expected[:, -1])
    logits, state = model.prefill({"token_ids": ids[:, 16:24]}, state)
    assert_close(logits, expected[:, 23])
    for t in range(24, 30):
        logits, state = model.decode_step(ids[:, t], state)
        assert_close(logits, expected[:, t], name=f"token {t}")
    for actual, wanted in zip(
        keras.tree.flatten(state), keras.tree.flatten(whole_state), strict=True
    ):
        assert_close(actual, to_numpy(wanted), name="state")


@pytest.mark.parametrize("split", [16, 9])
def test_prefill_starts_documents_where_numbers_change(split):
    model = tiny_model()
    ids = tokens(2, 16)
    # The last document begins at column 12; and one of both rows goes on.
    numbers = np.array([[1] * 5 + [2] * 7 + [1] * 4] * 2)
    logits, state = model.prefill(
        {"token_ids": ids[:, :split], "padding_mask": numbers[:, :split]}
    )
    if split < 16:
        logits, state = model.prefill(
            {"token_ids": ids[:, split:], "padding_mask": numbers[:, split:]},
            state,
        )
    expected, alone = model.prefill({"token_ids": ids[:, 12:]})
    assert_close(logits, to_numpy(expected))
    # A mask of ones, bools and no mask at all go on in document 1.
    for mask in (numbers[:, :1], numbers[:, :1].astype(bool), None):
        more = {"token_ids": ids[:, :1], "padding_mask": mask}
        logits, state = model.prefill(more, state)
        expected, alone = model.prefill({"token_ids": ids[:, :1]}, alone)
        assert_close(logits, to_numpy(expected))


def test_prefill_of_pads_alone_keeps_the_state():
    model = tiny_model()
    ids = tokens(2, 16)
    _, state = model.prefill({"token_ids": ids})
    mask = np.zeros((2, 16), bool)
    mask[0] = True
    _, after = model.prefill({"token_ids": ids, "padding_mask": mask}, state)
    for before, now in zip(
        keras.tree.flatten(state), keras.tree.flatten(after), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(before)[1], to_numpy(now)[1])
    assert to_numpy(after["length"]).tolist() == [32, 16]


def test_states_are_values(tmp_path):
    model = tiny_model()
    ids = tokens(1, 16)
    logits, state = model.prefill({"token_ids": ids})
    saved = [to_numpy(leaf) for leaf in keras.tree.flatten(state)]
    np.savez(tmp_path / "state.npz", *saved)
    # Two texts go on from one state, in turns.
    first, second = np.array([3]), np.array([4])
    a, state_a = model.decode_step(first, state)
    b, state_b = model.decode_step(second, state)
    a, _ = model.decode_step(first, state_a)
    b, _ = model.decode_step(second, state_b)
    for token, logits in ((3, a), (4, b)):
        text = np.concatenate([ids[0], [token, token]])[None]
        expected = run(model, text.astype("int32"))[:, -1]
        assert_close(logits, expected)
    with np.load(tmp_path / "state.npz") as file:
        leaves = [ops.convert_to_tensor(file[name]) for name in file]
    loaded = keras.tree.pack_sequence_as(state, leaves)
    again, _ = model.decode_step(first, loaded)
    expected, _ = model.decode_step(first, state)
    np.testing.assert_array_equal(to_numpy(again), to_numpy(expected))


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="eager: nothing is compiled"
)
def test_new_prompt_lengths_compile_nothing(monkeypatch):
    model = tiny_model()
    traces = []
    call_with_state = type(model.backbone).call_with_state

    def counted(self, *args, **kwargs):
        traces.append(1)
        return call_with_state(self, *args, **kwargs)

    monkeypatch.setattr(type(model.backbone), "call_with_state", counted)
    model.generate(prompts((9, 3)), stop_token_ids=None)
    first = len(traces)
    assert first > 0
    for lengths in ((10, 4), (12, 15), (2, 16)):
        model.generate(prompts(lengths), stop_token_ids=None)
    assert len(traces) == first


@pytest.mark.backend_independent
def test_buckets_grow_by_doubling():
    assert [bucket(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]


def test_generates_after_an_error():
    model = tiny_model()
    inputs = prompts()
    expected = model.generate(inputs, stop_token_ids=None)
    wrong = dict(inputs, token_ids=inputs["token_ids"] + VOCABULARY)
    with pytest.raises(ValueError, match="must lie in"):
        model.generate(wrong, stop_token_ids=None)
    again = model.generate(inputs, stop_token_ids=None)
    np.testing.assert_array_equal(again["token_ids"], expected["token_ids"])


@pytest.mark.backend_independent
def test_empty_prompts_are_refused():
    model = tiny_model()
    inputs = prompts()
    inputs["padding_mask"][1] = False
    with pytest.raises(ValueError, match="no real token in row 1 of 3"):
        model.generate(inputs, stop_token_ids=None)


@pytest.mark.backend_independent
def test_a_prompt_is_one_document():
    model = tiny_model()
    inputs = prompts()
    expected = model.generate(inputs, stop_token_ids=None)
    # Whatever its number is.
    numbers = np.where(inputs["padding_mask"], [[1], [-2], [3]], 0)
    numbered = {**inputs, "padding_mask": numbers}
    found = model.generate(numbered, stop_token_ids=None)
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])
    numbers[2, 3] += 1
    for name in ("generate", "score"):
        with pytest.raises(ValueError, match=r"Received: \[3 4\] in row 2"):
            ENTRANCES[name](model, inputs, numbered)


def train(model, x, changed):
    """One step of an ordinary batch, and one of another."""
    model.train_on_batch(x, x["token_ids"])
    model.train_on_batch(changed, x["token_ids"])


ENTRANCES = {
    "call": lambda model, x, changed: model(changed),
    "backbone": lambda model, x, changed: model.backbone(changed),
    "symbolic": lambda model, x, changed: model(
        {name: keras.Input((4,), dtype="int32") for name in changed}
    ),
    "fit": lambda model, x, changed: model.fit(changed, x["token_ids"]),
    # On JAX, Keras then comes to `call` and no more to `__call__`.
    "train_on_batch": train,
    "predict": lambda model, x, changed: model.backbone.predict(changed),
    "intermediates": lambda model, x, changed: model.backbone.intermediates(
        changed
    ),
    "prefill": lambda model, x, changed: model.prefill(changed),
    "generate": lambda model, x, changed: model.generate(
        changed, stop_token_ids=None
    ),
    "score": lambda model, x, changed: model.score(changed),
}


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", ENTRANCES)
def test_segment_ids_of_earlier_versions(name):
    model = tiny_model(num_layers=1)
    ids = tokens(2, 4)
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    changed = {**x, "segment_ids": np.ones_like(ids)}
    with pytest.raises(ValueError, match="Give `padding_mask = np.where"):
        ENTRANCES[name](model, x, changed)


def test_decode_step_takes_one_token_a_row():
    model = tiny_model()
    _, state = model.prefill({"token_ids": tokens(2, 16)})
    with pytest.raises(ValueError, match=r"must have shape \(batch,\)"):
        model.decode_step(tokens(2, 1), state)


@pytest.mark.backend_independent
def test_samplers_that_cannot_work_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="must not take tokens back"):
        model.compile(sampler=keras_hub.samplers.SpeculativeSampler())
    with pytest.raises(ValueError, match="one text for each prompt"):
        model.compile(
            sampler=keras_hub.samplers.BeamSampler(return_all_beams=True)
        )


@pytest.mark.parametrize("packed", [False, True])
def test_fit_on_arrays_learns(packed):
    model = tiny_model()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), run_eagerly=False)
    ids = np.tile(np.arange(1, 9, dtype="int32"), (8, 3))
    x = {
        "token_ids": ids[:, :-1],
        "padding_mask": np.ones_like(ids[:, :-1]),
    }
    if packed:
        numbers = np.repeat(np.arange(1, 4, dtype="int32"), 8)
        x["padding_mask"] = np.tile(numbers[:-1], (8, 1))
    history = model.fit(x, ids[:, 1:], epochs=15, batch_size=8, verbose=0)
    assert history.history["loss"][-1] < 0.6 * history.history["loss"][0]


def test_fit_refuses_ids_out_of_the_vocabulary():
    model = tiny_model()
    x = {
        "token_ids": np.full((2, 4), VOCABULARY, "int32"),
        "padding_mask": np.ones((2, 4), "int32"),
    }
    with pytest.raises(ValueError, match="must lie in"):
        model.fit(x, x["token_ids"], verbose=0)


def test_saved_and_loaded_by_keras(tmp_path):
    sampler = keras_hub.samplers.TopPSampler(p=0.5)
    model = tiny_model(sampler, final_logit_soft_cap=5.0)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    assert isinstance(again, keras_griffin.GriffinCausalLM)
    assert isinstance(again.sampler, keras_hub.samplers.TopPSampler)
    assert again.sampler.p == 0.5
    assert isinstance(again.optimizer, keras.optimizers.SGD)
    ids = tokens(2, 9)
    np.testing.assert_array_equal(run(again, ids), run(model, ids))


def test_logits_are_float32_and_capped():
    model = tiny_model(final_logit_soft_cap=0.5, dtype="bfloat16")
    inputs = {"token_ids": tokens(1, 4), "padding_mask": np.ones((1, 4))}
    logits = model(inputs)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert np.abs(to_numpy(logits)).max() <= 0.5
