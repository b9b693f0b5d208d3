"""The adapter for lm-eval, against lm-eval's own for Hugging Face models."""

import sys

import numpy as np
import pytest

import keras_griffin
from keras_griffin.generation import decoding
from keras_griffin.generation import scoring
from support import peers
from support.checks import assert_close
from support.conversations import instruction_preprocessor
from support.models import tiny_model

pytestmark = pytest.mark.backend_independent

WINDOW = peers.GRIFFIN["attention_window_size"]
LONG = "to be, or not to be: that is the question. " * 3
PAIRS = [
    ("to be, or", " not to be"),
    ("to be, or", " to be"),
    ("to be, or", " n"),
    ("", "to be"),
    ("", "or not"),
    ("the end ", "of it"),
    (LONG, " be"),
    (LONG, " that is the question, or what is it, or not?"),
    ("<bos>to be", " it"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def theirs(folder):
    """lm-eval's adapter of a small RecurrentGemma."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    preprocessor = instruction_preprocessor()
    size = preprocessor.tokenizer.vocabulary_size()
    peer = peers.HuggingFaceGriffin({**peers.GRIFFIN, "vocabulary_size": size})
    peer.save(folder)
    preprocessor.export_to_transformers(folder)
    # transformers counts a token itself, and takes a text of one token for
    # the next one of the last text.
    peer.model.config.attention_window_size = WINDOW + 1
    peer.model.config.use_cache = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    # It is not right about padded rows.
    return HFLM(pretrained=peer.model, tokenizer=tokenizer, batch_size=1)


@pytest.fixture(scope="module")
def model(theirs, folder):
    return keras_griffin.GriffinCausalLM.from_preset(folder)


@pytest.fixture
def ours(model, monkeypatch):
    # So that a test's texts are read in several pieces.
    monkeypatch.setattr(scoring, "SCORE_CHUNK", 16)
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 32)
    return keras_griffin.evaluation.GriffinLM(model, batch_size=3)


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=i)
        for i, args in enumerate(arguments)
    ]


def assert_same_likelihoods(received, expected):
    for (value, is_greedy), (other, other_greedy) in zip(
        received, expected, strict=True
    ):
        assert type(value) is float and type(is_greedy) is bool
        assert is_greedy == other_greedy
        assert_close(np.array(value), np.array(other))


def test_loglikelihoods_are_those_of_hugging_face(ours, theirs):
    requests = instances("loglikelihood", PAIRS)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    received = ours.loglikelihood(requests, disable_tqdm=True)
    assert_same_likelihoods(received, expected)
    assert len({value for value, _ in received}) == len(PAIRS)


def test_without_a_start_token(model, theirs, monkeypatch):
    requests = instances("loglikelihood", PAIRS[:5])
    monkeypatch.setattr(theirs, "add_bos_token", False)
    ours = keras_griffin.evaluation.GriffinLM(
        model, batch_size=3, add_bos_token=False
    )
    assert_same_likelihoods(
        ours.loglikelihood(requests, disable_tqdm=True),
        theirs.loglikelihood(requests, disable_tqdm=True),
    )


def test_greedy_continuations_are_found(ours, theirs):
    import torch

    context = ours.tok_encode("to be, or")
    greedy = []
    with torch.no_grad():
        for _ in range(3):
            ids = torch.tensor([context + greedy])
            logits = theirs.model(ids, use_cache=False).logits
            greedy.append(int(logits[0, -1].argmax()))
    other = [*greedy[:2], (greedy[2] + 1) % 40]
    requests = [(None, context, greedy), (None, context, other)]
    received = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [is_greedy for _, is_greedy in received] == [True, False]
    assert_same_likelihoods(received, expected)


def test_a_state_may_have_one_row_for_all(ours):
    context = np.array([[2, 5, 9]], "int32")
    _, state = ours.model.prefill({"token_ids": context})
    ids = np.array([[7, 8], [8, 7], [5, 5]], "int32")
    scores, is_greedy = ours.model.score(
        {"token_ids": ids}, state=state, return_greedy=True
    )
    whole = np.concatenate([np.repeat(context, 3, axis=0), ids], axis=1)
    expected, greedy = ours.model.score(
        {"token_ids": whole}, return_greedy=True
    )
    assert_close(scores[:, 1], expected[:, 4])
    assert not scores[:, 0].any() and is_greedy[:, 0].all()
    np.testing.assert_array_equal(is_greedy[:, 1], greedy[:, 4])
    assert greedy[:, 0].all() and not greedy.all()


def test_few_logits_at_once(ours, monkeypatch):
    """A large vocabulary makes the pieces short."""
    ids = np.array([[2, *range(5, 25)]] * 3, "int32")
    expected = ours.model.score({"token_ids": ids})
    # The largest power of 2 that is below 3.
    size = ours.model.backbone.vocabulary_size
    monkeypatch.setattr(scoring, "MAX_LOGITS", 3 * size * 3)
    pieces = []
    run = ours.model._functions.run
    monkeypatch.setattr(
        ours.model._functions,
        "run",
        lambda function, inputs, *args: (
            pieces.append(inputs["token_ids"].shape[1])
            or run(function, inputs, *args)
        ),
    )
    assert_close(ours.model.score({"token_ids": ids}), expected)
    assert set(pieces[:-1]) == {2}


@pytest.mark.parametrize("max_length", [None, 40])
def test_texts_are_those_of_hugging_face(ours, theirs, max_length, monkeypatch):
    monkeypatch.setattr(ours, "max_length", max_length)
    monkeypatch.setattr(theirs, "_max_length", max_length)
    requests = instances("loglikelihood_rolling", [(LONG,), ("to be",), ("",)])
    received = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert_close(np.array(received), np.array(expected))
    if max_length is not None:  # contexts lose their beginning alike
        requests = instances("loglikelihood", PAIRS)
        assert_same_likelihoods(
            ours.loglikelihood(requests, disable_tqdm=True),
            theirs.loglikelihood(requests, disable_tqdm=True),
        )


def test_a_context_is_read_once(ours, monkeypatch):
    read = []
    prefill = ours.model.prefill
    monkeypatch.setattr(
        ours.model,
        "prefill",
        lambda inputs, state: (
            read.append(inputs["padding_mask"].sum(axis=1).tolist())
            or prefill(inputs, state)
        ),
    )
    requests = instances("loglikelihood", PAIRS[:3] + PAIRS[5:6])
    ours.loglikelihood(requests, disable_tqdm=True)
    lengths = {
        len(ours.tok_encode(context.rstrip())) - 1
        for context in ("to be, or", "the end ")
    }
    assert [sorted(rows) for rows in read] == [sorted(lengths)]


def test_global_attention_has_room_for_the_continuations():
    model = tiny_model(
        block_types=("global_attention",), vocabulary_size=400, num_layers=1
    )
    model.preprocessor = instruction_preprocessor()
    pairs = PAIRS[:3]
    lm = keras_griffin.evaluation.GriffinLM(model, batch_size=3)
    received = lm.loglikelihood(
        instances("loglikelihood", pairs), disable_tqdm=True
    )
    rows = [lm.tok_encode(context + text) for context, text in pairs]
    expected = model.score(lm._padded(rows, 3))
    for row, ((value, _), (context, _)) in enumerate(
        zip(received, pairs, strict=True)
    ):
        start = len(lm.tok_encode(context))
        assert_close(np.array(value), expected[row, start:].sum())


def test_generated_text_ends_before_a_stop_string(ours, monkeypatch):
    monkeypatch.setattr(decoding, "DECODE_CHUNK", 4)
    contexts = ["to be, or", "the", LONG]
    expected = ours.model.generate(
        ours._padded([ours.tok_encode(context) for context in contexts], 3),
        max_new_tokens=12,
        strip_prompt=True,
        sampler="greedy",
    )
    settings = {"until": [], "max_gen_toks": 12}
    requests = instances(
        "generate_until", [(context, settings) for context in contexts]
    )
    assert ours.generate_until(requests, disable_tqdm=True) == expected
    stop = expected[0][3:5]
    settings = {"until": [stop], "max_gen_toks": 12}
    requests = instances(
        "generate_until", [(context, settings) for context in contexts]
    )
    assert ours.generate_until(requests, disable_tqdm=True) == [
        text.partition(stop)[0] for text in expected
    ]


def test_sampling_can_be_repeated(ours):
    settings = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 9}
    requests = instances("generate_until", [("to be", settings)] * 3)
    texts = ours.generate_until(requests, disable_tqdm=True)
    assert len(set(texts)) == 3
    assert ours.generate_until(requests, disable_tqdm=True) == texts


@pytest.mark.parametrize(
    "settings, kind, numbers",
    [
        ({}, "GreedySampler", {}),
        ({"do_sample": True, "temperature": 0.0}, "GreedySampler", {}),
        ({"temperature": 0.7}, "RandomSampler", {"temperature": 0.7}),
        ({"do_sample": True, "top_k": 5}, "TopKSampler", {"k": 5}),
        (
            {"do_sample": True, "top_p": 0.9, "top_k": 7},
            "TopPSampler",
            {"p": 0.9, "k": 7, "temperature": 1.0},
        ),
    ],
)
def test_what_a_task_says_of_sampling(ours, settings, kind, numbers):
    sampler = ours._generation_options(settings)["sampler"]
    assert type(sampler).__name__ == kind
    config = sampler.get_config()
    assert {name: config[name] for name in numbers} == numbers


def test_conversations_are_tokenized_as_by_hugging_face(ours, theirs):
    assert ours.chat_template(True) == theirs.chat_template(True)
    messages = [
        {"role": "user", "content": "to be?"},
        {"role": "assistant", "content": "or not."},
        {"role": "user", "content": "to <end_of_turn> be"},
    ]
    text = ours.apply_chat_template(messages[:1])
    assert ours.tok_encode(text) == theirs.tok_encode(
        theirs.apply_chat_template(messages[:1])
    )
    # What a user writes forges no turn.
    end = ours.model.preprocessor.tokenizer.token_to_id("<end_of_turn>")
    ids = ours.tok_encode(ours.apply_chat_template(messages))
    assert ids.count(end) == 3
    begun = ours.apply_chat_template(messages[:2], add_generation_prompt=False)
    assert begun == text + "or not."
    system = {"role": "system", "content": "Be brief."}
    assert ours.apply_chat_template([system, messages[0]]) == (
        ours.apply_chat_template(
            [{"role": "user", "content": "Be brief.\n\nto be?"}]
        )
    )
    assert ours.tokenizer_name.endswith("-gemma")


def test_results_are_cached(ours, tmp_path):
    from lm_eval.api.model import CachingLM

    kinds = {
        "loglikelihood": PAIRS[:2],
        "loglikelihood_rolling": [("to be",)],
        "generate_until": [("to be", {"max_gen_toks": 3, "until": ["x"]})],
    }
    for kind, arguments in kinds.items():
        requests = instances(kind, arguments)
        cached = CachingLM(ours, str(tmp_path / f"{kind}.db"))
        first = getattr(cached, kind)(requests)
        assert len(cached.dbdict) == len(requests)
        assert getattr(cached, kind)(requests) == first
        cached.dbdict.close()


def test_wrong_arguments(model):
    GriffinLM = keras_griffin.evaluation.GriffinLM
    with pytest.raises(ValueError, match="a `preprocessor` must be there"):
        GriffinLM(keras_griffin.GriffinCausalLM(model.backbone))
    for name, size in (
        ("batch_size", "auto"),
        ("max_length", 0),
        ("max_gen_toks", 0),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be an int of"):
            GriffinLM(model, **{name: size})
    lm = GriffinLM(model, max_length=4)
    with pytest.raises(ValueError, match="longer than `max_length`"):
        lm.loglikelihood(
            instances("loglikelihood", [("to", " be or not to be")]), True
        )
    with pytest.raises(ValueError, match="must be less than `max_length`"):
        lm.generate_until(
            instances("generate_until", [("to", {"max_gen_toks": 4})]), True
        )
    with pytest.raises(ValueError, match=r"Received: \['num_beams'\]"):
        lm.generate_until(
            instances("generate_until", [("to", {"num_beams": 4})]), True
        )


def test_a_model_without_turns(model):
    preprocessor = instruction_preprocessor(turn_format=None)
    plain = keras_griffin.GriffinCausalLM(model.backbone, preprocessor)
    lm = keras_griffin.evaluation.GriffinLM(plain)
    assert lm.chat_template(True) == ""
    with pytest.raises(ValueError, match="Messages need a `turn_format`"):
        lm.apply_chat_template([{"role": "user", "content": "to be?"}])


def test_without_lm_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"keras-griffin\[eval\]"):
        keras_griffin.evaluation.GriffinLM
    with pytest.raises(AttributeError, match="no attribute 'GriffonLM'"):
        keras_griffin.evaluation.GriffonLM
