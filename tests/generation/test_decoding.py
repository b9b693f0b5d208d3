"""What `generate`, `generate_stream` and `score` take beside a prompt."""

import itertools
import threading

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_griffin
from keras_griffin.generation import decoding
from keras_griffin.generation import scoring
from keras_griffin.generation.decoding import STOP_IDS
from keras_griffin.generation.prompts import MIN_BUCKET
from keras_griffin.generation.prompts import stream_text
from keras_griffin.layers import windowed_attention
from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import VOCABULARY
from support.models import run
from support.models import scatter
from support.models import tiny_model
from support.models import tokens

PROMPT = "ROMEO: Why, "


@pytest.fixture(scope="module")
def shakespeare():
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.compile(sampler="greedy")
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ragged(lengths):
    rows = [tokens(1, n, seed=n)[0] for n in lengths]
    ids, mask = scatter(rows, max(lengths), where="right")
    return {"token_ids": ids, "padding_mask": mask}


def new_tokens(model, inputs, count=12, **options):
    options.setdefault("stop_token_ids", None)
    outputs = model.generate(
        inputs, max_new_tokens=count, strip_prompt=True, **options
    )
    return [
        row[mask]
        for row, mask in zip(
            outputs["token_ids"], outputs["padding_mask"], strict=True
        )
    ]


def test_max_new_tokens_counts_from_each_rows_end(model):
    rows = new_tokens(model, ragged((2, 20, 7)))
    assert [len(row) for row in rows] == [12, 12, 12]
    for count in (1, 40):
        more = new_tokens(model, ragged((2, 20, 7)), count)
        for row, other in zip(rows, more, strict=True):
            n = min(len(row), len(other))
            assert len(other) == count
            np.testing.assert_array_equal(row[:n], other[:n])


def test_any_of_several_stop_ids_ends_a_row(model):
    free = new_tokens(model, ragged((5,)))[0]
    others = [id for id in range(VOCABULARY) if id not in free][:20]
    stops = [*others, int(free[3])]
    assert len(stops) > STOP_IDS
    end = np.flatnonzero(free == free[3])[0]
    stopped = new_tokens(model, ragged((5,)), stop_token_ids=stops)[0]
    np.testing.assert_array_equal(stopped, free[: end + 1])


@pytest.mark.backend_independent
def test_sampler_of_a_call(model):
    inputs = ragged((4, 9))
    greedy = new_tokens(model, inputs)
    cold = new_tokens(model, inputs, sampler="random", temperature=1e-4)
    np.testing.assert_array_equal(cold, greedy)
    first = new_tokens(model, inputs, sampler="random", seed=1)
    again = new_tokens(model, inputs, sampler="random", seed=1)
    other = new_tokens(model, inputs, sampler="random", seed=2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    sampler = keras_hub.samplers.RandomSampler(seed=1)
    held = new_tokens(model, inputs, sampler=sampler)
    np.testing.assert_array_equal(first, held)
    # The sampler goes on drawing.
    assert not np.array_equal(held, new_tokens(model, inputs, sampler=sampler))
    beam = keras_hub.samplers.BeamSampler(num_beams=1)
    np.testing.assert_array_equal(
        new_tokens(model, inputs, sampler=beam), greedy
    )


@pytest.mark.backend_independent
def test_a_users_own_sampler(model):
    class Forbidding(keras_hub.samplers.Sampler):
        def __init__(self, token):
            super().__init__()
            self.token = token

        def get_next_token(self, probabilities):
            ids = ops.arange(probabilities.shape[-1])
            return ops.argmax(ops.where(ids == self.token, 0, probabilities))

    first = int(new_tokens(model, ragged((5,)))[0][0])
    for token in (first, VOCABULARY):
        rows = new_tokens(model, ragged((5,)), sampler=Forbidding(token))
        assert (rows[0][0] == first) == (token != first)


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="eager: nothing is compiled"
)
def test_settings_compile_nothing(monkeypatch):
    model = tiny_model()
    traces = []
    call_with_state = type(model.backbone).call_with_state

    def counted(self, *args, **kwargs):
        traces.append(1)
        return call_with_state(self, *args, **kwargs)

    monkeypatch.setattr(type(model.backbone), "call_with_state", counted)

    def generate(lengths, count, p, **options):
        sampler = keras_hub.samplers.TopPSampler(p=p)
        new_tokens(model, ragged(lengths), count, sampler=sampler, **options)

    generate((3, 9), 5, 0.9)
    first = len(traces)
    assert first > 0
    generate((12, 2), 90, 0.5, temperature=0.3, seed=7)
    generate((2, 16), 1, 0.1, stop_token_ids=(3, 4, 5))
    assert len(traces) == first


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="eager: nothing is compiled"
)
def test_another_k_compiles_nothing(monkeypatch):
    model = tiny_model(vocabulary_size=128)
    compiled = []
    compile = type(model._functions).compile

    def counted(self, function, *args, **options):
        def traced(*inputs):
            compiled.append(function)
            return function(*inputs)

        return compile(self, traced, *args, **options)

    monkeypatch.setattr(type(model._functions), "compile", counted)

    def traces(k):
        before = len(compiled)
        sampler = keras_hub.samplers.TopKSampler(k=k)
        new_tokens(model, ragged((3,)), 2, sampler=sampler)
        return len(compiled) - before

    assert traces(5) == 3  # the prefill, the loop and the last token
    assert [traces(k) for k in (1, 6, 64)] == [0, 0, 0]
    # Up to twice as many share the next loop and last token.
    assert [traces(k) for k in (65, 128, 5)] == [2, 0, 0]


def test_long_prompts_are_read_in_pieces(monkeypatch):
    model = tiny_model(block_types=PATTERNS["mixed"])
    inputs = ragged((40, 3, 33))
    expected = new_tokens(model, inputs)
    whole = run(model, inputs["token_ids"], inputs["padding_mask"])
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 16)
    for actual, wanted in zip(new_tokens(model, inputs), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    state = model.init_state(3, max_length=64)
    logits, _ = model.prefill(inputs, state)
    assert_close(logits, whole[np.arange(3), [39, 2, 32]])


def test_many_ragged_rows_equal_each_alone():
    model = tiny_model()
    lengths = np.random.default_rng(0).integers(1, 3000, 64)
    lengths[:2] = 1, 3000
    together = new_tokens(model, ragged(lengths), 4)
    for i in (0, 1, 2, 63):
        alone = new_tokens(model, ragged((lengths[i],)), 4)
        np.testing.assert_array_equal(together[i], alone[0])


def test_a_state_goes_on_exactly(model, tmp_path):
    inputs = ragged((30,))
    whole = new_tokens(model, inputs, 20)[0]
    text, state = model.generate(
        inputs, max_new_tokens=8, stop_token_ids=None, return_state=True
    )
    assert to_numpy(state["length"]).tolist() == [38]
    model.save_state(state, tmp_path / "state.npz")
    loaded = model.load_state(tmp_path / "state.npz")
    assert loaded.keys() == state.keys()
    # The next token of the text is read after the state.
    rest = new_tokens(
        model, {"token_ids": np.array([whole[8:9]] * 3)}, 11, state=loaded
    )
    for row in rest:
        np.testing.assert_array_equal(row, whole[9:])


def test_the_returned_state_is_each_rows_own(model):
    inputs = ragged((5, 9))
    free = new_tokens(model, inputs)
    stop = int(free[0][2])
    outputs, state = model.generate(
        inputs, max_new_tokens=12, stop_token_ids=(stop,), return_state=True
    )
    # A stop token is given out, but not read.
    read = outputs["padding_mask"] & (outputs["token_ids"] != stop)
    read[:, :5] |= outputs["padding_mask"][:, :5]
    read[1, :9] = True
    lengths = read.sum(axis=1)
    assert lengths[0] < outputs["padding_mask"][0].sum()
    np.testing.assert_array_equal(to_numpy(state["length"]), lengths)
    _, expected = model.prefill({**outputs, "padding_mask": read})
    for actual, wanted in zip(
        keras.tree.flatten(state), keras.tree.flatten(expected), strict=True
    ):
        assert_close(actual, to_numpy(wanted), name="state")


def test_a_states_file_does_not_grow(model, tmp_path):
    sizes = []
    for time in (20, 500):
        _, state = model.prefill({"token_ids": tokens(1, time)})
        path = tmp_path / f"{time}.npz"
        model.save_state(state, path)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1]


def test_nothing_is_read_before_a_first_prompt(monkeypatch):
    """A fresh state has no keys to look at, and a later one has."""
    keys = []
    attend = windowed_attention._attend_blocks

    def recorded(q, k, *args):
        keys.append(k.shape[1] * k.shape[2])
        return attend(q, k, *args)

    monkeypatch.setattr(windowed_attention, "_attend_blocks", recorded)
    model = tiny_model()
    ids = tokens(1, 4)
    _, state = model.prefill({"token_ids": ids})
    first, keys[:] = max(keys), []
    model.prefill({"token_ids": ids}, state)
    width = 4 if keras.config.backend() == "torch" else MIN_BUCKET
    assert first == width < max(keys)


def test_states_of_bfloat16_and_of_global_attention(tmp_path):
    model = tiny_model(block_types=PATTERNS["mixed"], dtype="bfloat16")
    state = model.init_state(2, max_length=40)
    _, state = model.prefill({"token_ids": tokens(2, 20)}, state)
    model.save_state(state, tmp_path / "state.npz")
    loaded = model.load_state(tmp_path / "state.npz")
    for actual, wanted in zip(
        keras.tree.flatten(loaded), keras.tree.flatten(state), strict=True
    ):
        assert actual.dtype == wanted.dtype
        np.testing.assert_array_equal(
            to_numpy(ops.cast(actual, "float32")),
            to_numpy(ops.cast(wanted, "float32")),
        )


def test_files_that_hold_no_state_of_the_model(model, tmp_path):
    other = tiny_model(recurrent_dim=32)
    model.save_state(model.init_state(1), tmp_path / "state.npz")
    with pytest.raises(ValueError, match="architecture that made it"):
        other.load_state(tmp_path / "state.npz")
    (tmp_path / "text").write_text("no state")
    with pytest.raises(ValueError, match="a file of `save_state`"):
        model.load_state(tmp_path / "text")


@pytest.mark.backend_independent
def test_two_texts_made_in_turns_do_not_mix(shakespeare):
    prompts = (PROMPT, "The king ")
    options = {"max_new_tokens": 12, "sampler": "random"}
    alone = [
        "".join(shakespeare.generate_stream(p, seed=3, **options))
        for p in prompts
    ]
    streams = [
        shakespeare.generate_stream(p, seed=3, **options) for p in prompts
    ]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert len(pieces) > 1
    texts = ["".join(row) for row in zip(*pieces, strict=True)]
    assert texts == alone


def test_streamed_text_is_the_generated_text(shakespeare):
    whole = shakespeare.generate(PROMPT, max_new_tokens=30)
    pieces = list(shakespeare.generate_stream(PROMPT, max_new_tokens=30))
    assert 1 < len(pieces) < 30
    assert PROMPT + "".join(pieces) == whole


def test_unicode_survives_streaming(shakespeare):
    text = "a é ß 漢字 🙂🏽 עברית \u0301x"
    tokenizer = shakespeare.preprocessor.tokenizer
    ids = np.array(tokenizer(text))
    for size in (1, 4):
        pieces = [(ids[i : i + size], i) for i in range(0, len(ids), size)]
        streamed = stream_text(tokenizer, ids[:0], pieces)
        text = "".join(piece for piece, _ in streamed)
        assert text == tokenizer.detokenize(ids)


@pytest.mark.backend_independent
def test_text_goes_on_from_a_state(shakespeare):
    _, state = shakespeare.generate(PROMPT, max_new_tokens=8, return_state=True)
    texts = shakespeare.generate(
        ["my lord", "no"], max_new_tokens=8, state=state
    )
    assert texts[0].startswith("my lord") and texts[1].startswith("no")
    pieces = shakespeare.generate_stream("no", max_new_tokens=8, state=state)
    assert "no" + "".join(pieces) == texts[1]


def test_threads_do_not_disturb_each_other(model):
    inputs = [ragged((n, n + 2)) for n in (3, 6)]
    expected = [new_tokens(model, x) for x in inputs]
    results = [None] * 4

    def work(i):
        results[i] = new_tokens(model, inputs[i % 2])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[i % 2])


def test_a_stream_that_is_left_leaves_the_model_usable(shakespeare):
    whole = shakespeare.generate(PROMPT, max_new_tokens=12)
    stream = shakespeare.generate_stream(PROMPT, max_new_tokens=12)
    next(stream)
    stream.close()
    assert shakespeare.generate(PROMPT, max_new_tokens=12) == whole


class Failing(keras_hub.samplers.Sampler):
    """Fails while the loop is traced, or on PyTorch while it runs."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def get_next_token(self, probabilities):
        self.calls += 1
        if self.calls > 3 or keras.config.backend() != "torch":
            raise RuntimeError("no token")
        return ops.argmax(probabilities, axis=-1)


def test_an_exception_in_the_middle_leaves_the_model_usable(model):
    inputs = ragged((5, 9))
    expected = new_tokens(model, inputs)
    sampler = Failing()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no token"):
            new_tokens(model, inputs, sampler=sampler)
        for row, wanted in zip(
            new_tokens(model, inputs), expected, strict=True
        ):
            np.testing.assert_array_equal(row, wanted)


def test_streams_in_threads_do_not_mix(shakespeare):
    prompts = (PROMPT, "The king ")
    options = {"max_new_tokens": 12, "sampler": "random", "temperature": 0.7}

    def stream(i):
        return "".join(
            shakespeare.generate_stream(prompts[i], seed=i, **options)
        )

    expected = [stream(i) for i in range(2)]
    texts = [None] * 4

    def work(i):
        texts[i] = stream(i % 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == expected * 2


def test_prompts_without_a_token(model, shakespeare):
    ids, mask = tokens(2, 4), np.ones((2, 4), bool)
    mask[1] = False
    with pytest.raises(ValueError, match="no real token in row 1"):
        new_tokens(model, {"token_ids": ids, "padding_mask": mask})
    assert isinstance(shakespeare.generate("", max_new_tokens=3), str)


def test_a_stop_token_anywhere_ends_a_stream(shakespeare):
    tokenizer = shakespeare.preprocessor.tokenizer
    whole = shakespeare.generate(PROMPT, max_new_tokens=12)
    before = len(tokenizer(PROMPT))
    ids = np.array(tokenizer(whole))
    # In the first, the second and the third piece of tokens.
    for place in (before, before + 5, before + 9):
        end = before + np.flatnonzero(ids[before:] == ids[place])[0]
        options = {"max_new_tokens": 12, "stop_token_ids": (ids[place],)}
        streamed = "".join(shakespeare.generate_stream(PROMPT, **options))
        assert PROMPT + streamed == tokenizer.detokenize(ids[:end])


def test_scores_are_log_probabilities(monkeypatch):
    monkeypatch.setattr(scoring, "SCORE_CHUNK", 16)
    model = tiny_model()
    rows = [tokens(1, n, seed=n)[0] for n in (1, 9, 40)]
    ids, mask = scatter(rows, 45)
    scores = model.score({"token_ids": ids, "padding_mask": mask})
    assert scores.shape == ids.shape
    assert not scores[~mask].any()
    for i, row in enumerate(rows):
        logits = run(model, row[None])[0].astype("float64")
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_probs[np.arange(len(row) - 1), row[1:]]
        assert_close(scores[i][mask[i]], np.concatenate([[0.0], expected]))


@pytest.mark.backend_independent
def test_scores_of_text(shakespeare):
    texts = ["To be, or not to be", "be To not, or"]
    scores = shakespeare.score(texts)
    for text, score in zip(texts, scores, strict=True):
        assert score.shape == (len(shakespeare.preprocessor.tokenizer(text)),)
        assert (score < 0).all()
        assert_close(shakespeare.score(text), score)
    assert scores[0].mean() > scores[1].mean()


def test_calls_that_contradict_themselves(model, shakespeare):
    inputs = ragged((5,))
    with pytest.raises(ValueError, match="one of them decides"):
        new_tokens(model, inputs, max_length=9)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        sampler = keras_hub.samplers.TopKSampler(k=0)
        new_tokens(model, inputs, sampler=sampler)
    with pytest.raises(ValueError, match="at most the size of the voc"):
        sampler = keras_hub.samplers.ContrastiveSampler(k=VOCABULARY + 1)
        new_tokens(model, inputs, sampler=sampler)
    with pytest.raises(ValueError, match="one token after the other"):
        new_tokens(model, inputs, sampler="beam", state=model.init_state(1))
    with pytest.raises(ValueError, match="one row and one column"):
        model.prefill({"token_ids": tokens(1, 0)})
    with pytest.raises(ValueError, match="after the other"):
        shakespeare.generate_stream(PROMPT, sampler="contrastive")
    with pytest.raises(ValueError, match="no real token in row 0"):
        model.score(
            {"token_ids": tokens(1, 3), "padding_mask": np.zeros((1, 3))}
        )


def test_a_state_belongs_to_one_batch(shakespeare):
    import tensorflow as tf

    texts = tf.data.Dataset.from_tensor_slices(["a", "b"]).batch(1)
    with pytest.raises(ValueError, match="one batch"):
        shakespeare.generate(texts, return_state=True)
