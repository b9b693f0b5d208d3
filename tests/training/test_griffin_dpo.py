"""DPO: loss and gradients of a plain computation, references that stay."""

import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin import GriffinDPO
from keras_griffin.training import chunked_cross_entropy
from support.checks import assert_close
from support.checks import to_numpy
from support.conversations import instruction_preprocessor
from support.models import VOCABULARY
from support.models import loss_and_gradients
from support.models import randomize
from support.models import run
from support.models import tiny_model
from support.once import once

SMALL = {
    "num_layers": 2,
    "block_types": ("recurrent", "local_attention"),
    "final_logit_soft_cap": 2.0,
}
BETA, PAIRS, TIME = 0.7, 3, 9
TEXTS = {
    "prompts": ["to be", "or"],
    "chosen": ["no", "not be"],
    "rejected": ["user", "to"],
}


def data(pads="anywhere"):
    """Rows with pads, of whose tokens some are the reply's."""
    rng = np.random.default_rng(0)
    shape = (PAIRS, 2, TIME)
    x = {
        "token_ids": rng.integers(0, VOCABULARY, shape).astype("int32"),
        "padding_mask": rng.random(shape) < 0.8,
        "labels": rng.integers(0, VOCABULARY, shape).astype("int32"),
        "label_mask": rng.random(shape) < 0.5,
    }
    x["label_mask"] &= x["padding_mask"]
    x["label_mask"][..., :2] = False  # the prompt
    assert x["label_mask"].any(axis=-1).all()
    return x


def make(**changes):
    """Models of the same weights."""
    keras.utils.set_random_seed(0)
    return tiny_model(**{**SMALL, **changes})


def with_adapters():
    model = make()
    model.enable_lora(2)
    randomize_adapters(model)
    return model


def randomize_adapters(model):
    rng = np.random.default_rng(5)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.normal(size=v.shape))


def trainer_of(model, reference=None, optimizer=None):
    trainer = GriffinDPO(model, BETA, reference)
    trainer.compile(optimizer or keras.optimizers.SGD(1.0))
    return trainer


def log_softmax(logits):
    logits = logits.astype("float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def by_hand(x, policy_logits, reference_logits):
    """Equation 7 in NumPy: loss, rewards, and the logits' gradient."""
    labels, mask = x["labels"][..., None], x["label_mask"]

    def log_p(logits):
        logits = log_softmax(logits.reshape(*mask.shape, -1))
        of_labels = np.take_along_axis(logits, labels, axis=-1)[..., 0]
        return np.sum(of_labels * mask, axis=-1)

    rewards = BETA * (log_p(policy_logits) - log_p(reference_logits))
    margin = rewards[:, 0] - rewards[:, 1]
    loss = np.mean(np.log1p(np.exp(-margin)))
    of_margin = -1 / (1 + np.exp(margin)) / len(margin)
    of_log_p = BETA * of_margin[:, None] * np.array([1, -1])
    one_hot = np.eye(policy_logits.shape[-1])[x["labels"]]
    p = np.exp(log_softmax(policy_logits.reshape(one_hot.shape)))
    of_logits = (of_log_p[..., None] * mask)[..., None] * (one_hot - p)
    return loss, rewards, of_logits.reshape(policy_logits.shape)


def flat(x):
    return {name: value.reshape(-1, TIME) for name, value in x.items()}


def logits_of(model, x):
    return run(model, flat(x)["token_ids"], flat(x)["padding_mask"])


def check_a_step(model, trainer, reference_logits):
    x = data()
    policy = logits_of(model, x)
    loss, rewards, of_logits = by_hand(x, policy, reference_logits)
    rows = flat(x)
    _, gradients = loss_and_gradients(
        model, rows["token_ids"], of_logits, rows["padding_mask"]
    )
    assert_close(trainer.predict_on_batch(x), rewards)
    before = [to_numpy(v.value).copy() for v in model.trainable_variables]
    logs = trainer.train_on_batch(x, return_dict=True)
    margin = rewards[:, 0] - rewards[:, 1]
    assert 0 < np.mean(margin > 0) < 1
    expected = {
        "loss": loss,
        "reward_accuracy": np.mean(margin > 0),
    }
    assert sorted(logs) == [*sorted(expected), "reward_margin"]
    scale = np.abs(margin).max()  # their sum may be near 0
    assert_close(
        np.array(logs["reward_margin"] / scale + 1), np.mean(margin) / scale + 1
    )
    for name, value in expected.items():
        assert_close(np.array(logs[name]), np.array(value), name=name)
    assert max(np.abs(g).max() for g in gradients) > 1e-3
    for v, old, gradient in zip(
        model.trainable_variables, before, gradients, strict=True
    ):
        new = to_numpy(v.value)
        assert_close(old - new, gradient, kind="gradients", name=v.path)


# Logits all at once; of a few tokens; of one token.
LIMITS = {"one": 2**20, "rest": 2 * PAIRS * VOCABULARY * 4, "single": 1}


@pytest.mark.parametrize("limit", ["one", *once(*sorted({*LIMITS} - {"one"}))])
def test_adapters_off_equal_a_plain_computation(limit, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS[limit])
    model = with_adapters()
    base = make()
    check_a_step(model, trainer_of(model), logits_of(base, data()))


@pytest.mark.backend_independent
def test_a_second_model_equals_a_plain_computation(monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", LIMITS["rest"])
    model, reference = make(), make()
    randomize(model, seed=3)
    model.compile("sgd")
    trainer = trainer_of(model, reference)
    expected = reference.get_weights()
    check_a_step(model, trainer, logits_of(reference, data()))
    for a, b in zip(reference.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not reference.trainable_variables


@pytest.mark.backend_independent
def test_weights_of_pairs_and_pads():
    """And what stands at pads and beyond the reply does not matter."""
    trainer = trainer_of(with_adapters())
    x = data()
    garbage = {name: value.copy() for name, value in x.items()}
    garbage["token_ids"][~x["padding_mask"]] = 1
    garbage["labels"][~x["label_mask"]] = 1
    rewards = trainer.predict(x, verbose=0)
    assert_close(trainer.predict(garbage, verbose=0), rewards)
    weights = np.array([1.0, 0.0, 2.5], "float32")
    losses = np.log1p(np.exp(rewards[:, 1] - rewards[:, 0]))
    found = trainer.evaluate(x, sample_weight=weights, verbose=0)
    # Keras divides the loss by the pairs, and a metric by their weights.
    assert_close(np.array(found[0]), np.mean(losses * weights))
    margin = rewards[:, 0] - rewards[:, 1]
    assert_close(np.array(found[2]), np.average(margin, weights=weights))


@pytest.mark.backend_independent
def test_dropout_is_the_policys_alone():
    model = make(dropout=0.5)
    model.enable_lora(2)
    trainer = trainer_of(model)
    # Equal models: without dropout no reply has a reward.
    assert_close(trainer.predict_on_batch(data()) + 1, np.ones((PAIRS, 2)))
    assert np.abs(to_numpy(trainer(data(), training=True))).max() > 1e-3


def text_model(**arguments):
    preprocessor = instruction_preprocessor(**arguments)
    model = make(vocabulary_size=preprocessor.tokenizer.vocabulary_size())
    model.preprocessor = preprocessor
    return model


@pytest.mark.backend_independent
def test_texts_are_learned_and_the_base_model_stays(tmp_path):
    model = text_model()
    base = {v.path: to_numpy(v.value).copy() for v in model.variables}
    model.enable_lora(4)
    trainer = trainer_of(model, optimizer=keras.optimizers.Adam(0.02))
    history = trainer.fit(
        TEXTS, epochs=12, validation_data=TEXTS, verbose=0
    ).history
    assert history["loss"][0] == pytest.approx(np.log(2), rel=1e-4)
    assert history["val_loss"][-1] < 0.1
    assert history["val_reward_accuracy"][-1] == 1
    assert history["val_reward_margin"][-1] > 2
    for v in model.variables:
        if v.path in base:
            np.testing.assert_array_equal(base[v.path], to_numpy(v.value))
    with pytest.raises(ValueError, match="Save the adapters"):
        trainer.save_weights(tmp_path / "trainer.weights.h5")
    model.save_lora_weights(tmp_path / "preferences.lora.h5")
    again = text_model()
    again.load_lora_weights(tmp_path / "preferences.lora.h5")
    rewards = trainer_of(again).predict(TEXTS, verbose=0)
    assert_close(trainer.predict(TEXTS, verbose=0), rewards)


@pytest.mark.backend_independent
@pytest.mark.parametrize("turn_format", [None, "gemma"])
def test_rows(turn_format):
    model = text_model(turn_format=turn_format)
    reference = text_model(turn_format=turn_format)
    randomize(reference, seed=2)
    rows = GriffinDPO(model, reference=reference).rows(TEXTS)
    longest = 0
    for side, reply in enumerate(("chosen", "rejected")):
        pairs = {"prompts": TEXTS["prompts"], "responses": TEXTS[reply]}
        x, labels, learned = model.preprocessor(pairs)
        time = rows["token_ids"].shape[-1]
        longest = max(longest, to_numpy(x["padding_mask"]).sum(-1).max())
        for name, expected in {
            **x,
            "labels": labels,
            "label_mask": learned,
        }.items():
            expected = to_numpy(expected)[:, :time]
            np.testing.assert_array_equal(rows[name][:, side], expected)
    assert longest == time < 48
    sorted_rows = {name: value.dtype.name for name, value in rows.items()}
    assert set(sorted_rows.values()) == {"int32", "bool"}


@pytest.mark.backend_independent
def test_a_reply_that_is_cut_off_does_not_end():
    model = text_model(turn_format=None)
    model.enable_lora(2)
    end = model.preprocessor.tokenizer.end_token_id
    texts = {"prompts": ["k"], "chosen": ["k" * 30], "rejected": ["k" * 6]}
    for length, ends in ((7, [0, 0]), (8, [0, 1]), (9, [0, 1])):
        rows = trainer_of(model).rows(texts, sequence_length=length)
        assert rows["token_ids"].shape == (1, 2, length)
        is_end = (rows["labels"] == end) & rows["label_mask"]
        np.testing.assert_array_equal(is_end.sum(axis=-1), [ends])


@pytest.mark.backend_independent
def test_files_with_a_second_model(tmp_path):
    model, reference = make(), make()
    randomize(reference, seed=2)
    trainer = trainer_of(model, reference, keras.optimizers.Adam(0.01))
    trainer.fit(data(), verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert again.beta == BETA
    np.testing.assert_array_equal(
        again.predict(data(), verbose=0), trainer.predict(data(), verbose=0)
    )
    assert len(again.trainable_variables) == len(model.trainable_variables)
    for each in (trainer, again):
        each.fit(data(), shuffle=False, verbose=0)
    for a, b in zip(again.weights, trainer.weights, strict=True):
        assert_close(a.value, to_numpy(b.value))


@pytest.mark.backend_independent
def test_bad_arguments_are_refused():
    model = make()
    other = make()
    with pytest.raises(ValueError, match="There must be a reference"):
        GriffinDPO(model)
    with pytest.raises(ValueError, match="`causal_lm` must be a GriffinCausal"):
        GriffinDPO(model.backbone, reference=other)
    with pytest.raises(ValueError, match="`reference` must be a GriffinCausal"):
        GriffinDPO(model, reference=other.backbone)
    with pytest.raises(ValueError, match="the same backbone twice"):
        GriffinDPO(
            model, reference=keras_griffin.GriffinCausalLM(model.backbone)
        )
    with pytest.raises(ValueError, match="vocabularies of 29 and 31"):
        GriffinDPO(model, reference=make(vocabulary_size=31))
    for beta in (0, -1.0, float("nan"), "a"):
        with pytest.raises(ValueError, match="`beta` must be a number above"):
            GriffinDPO(model, beta, other)
    with pytest.raises(TypeError, match="loss"):
        GriffinDPO(model, BETA, other).compile("sgd", loss="mse")


@pytest.mark.backend_independent
def test_bad_data_are_refused():
    model = with_adapters()
    trainer = trainer_of(model)
    x = data()
    with pytest.raises(ValueError, match=r"shape \(pairs, 2, time\)"):
        trainer.fit({name: value[:, 0] for name, value in x.items()})
    with pytest.raises(ValueError, match="Pairs must be a dict"):
        trainer.predict({"token_ids": x["token_ids"]})
    with pytest.raises(ValueError, match="Pairs must be a dict"):
        trainer(x["token_ids"])
    with pytest.raises(ValueError, match=r"must lie in \[0, 28\]"):
        trainer.evaluate({**x, "labels": x["labels"] - 100})
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(ValueError, match="`y` must be None"):
            call(x, np.ones(PAIRS))
    with pytest.raises(ValueError, match="`y` must be None"):
        trainer.fit(x, validation_data=(x, np.ones(PAIRS)))
    with pytest.raises(ValueError, match="Texts need a preprocessor"):
        trainer.fit(TEXTS)
    model.backbone.final_norm.trainable = True
    trainer.compile("sgd")
    with pytest.raises(ValueError, match="these alone can be trained"):
        trainer.fit(x)
    model = text_model(turn_format=None)
    model.enable_lora(2)
    trainer = trainer_of(model)
    with pytest.raises(ValueError, match="a dict of prompts, chosen, rejected"):
        trainer.fit({**TEXTS, "id": ["1", "2"]})
    with pytest.raises(ValueError, match="one response for each prompt"):
        trainer.rows({**TEXTS, "rejected": ["b"]})
    with pytest.raises(ValueError, match="2 replies .* of pair 1"):
        prompts = ["a", "k" * 200]
        trainer.fit({**TEXTS, "prompts": prompts})
