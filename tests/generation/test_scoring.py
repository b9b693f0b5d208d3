"""`score` as KerasHub's models have it."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from support.checks import assert_close
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import tiny_model
from support.models import tokens

IDS = tokens(2, 7)
MASK = np.array([[0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2, 2]])


@pytest.fixture(scope="module")
def model():
    return tiny_model(block_types=PATTERNS["mixed"], scale_embeddings=True)


def test_logits_are_the_models(model):
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    logits = to_numpy(model(inputs))
    scores = model.score(token_ids=IDS, padding_mask=MASK)
    assert_close(to_numpy(scores)[MASK > 0], logits[MASK > 0])
    assert_close(
        model.score(token_ids=IDS), to_numpy(model({"token_ids": IDS}))
    )


def test_losses_are_those_of_the_targets(model):
    targets = np.roll(IDS, -1, axis=1)
    losses = model.score(token_ids=IDS, scoring_mode="loss", target_ids=targets)
    scores = model.score({"token_ids": IDS})
    assert_close(-to_numpy(losses)[:, :-1], scores[:, 1:])


def test_a_function_sees_each_layer_and_may_change_it(model):
    seen = []

    def look(x, index):
        seen.append((index, tuple(x.shape)))
        return x

    expected = to_numpy(model.score(token_ids=IDS, padding_mask=MASK))
    actual = model.score(
        token_ids=IDS, padding_mask=MASK, layer_intercept_fn=look
    )
    assert_close(to_numpy(actual)[MASK > 0], expected[MASK > 0])
    assert seen == [(i, (2, 7, 16)) for i in range(-1, 3)]
    for layer in range(-1, 3):
        changed = model.score(
            token_ids=IDS,
            padding_mask=MASK,
            layer_intercept_fn=lambda x, i: ops.flip(x, 2) if i == layer else x,
        )
        assert np.abs(to_numpy(changed) - expected).max() > 1e-3
    # In the order of the tokens: what stands at a token reaches no earlier one.
    later = ops.convert_to_tensor((np.arange(7) == 4)[:, None], "float32")
    changed = to_numpy(
        model.score(
            token_ids=IDS,
            padding_mask=MASK,
            layer_intercept_fn=lambda x, i: x + later,
        )
    )
    before = (MASK > 0) & (np.arange(7) < 4)
    assert_close(changed[before], expected[before])


def test_as_gemma_scores():
    """The same call, the same shapes and the same layers' numbers."""
    gemma = keras_hub.models.GemmaCausalLM(
        keras_hub.models.GemmaBackbone(
            vocabulary_size=29,
            num_layers=3,
            num_query_heads=1,
            num_key_value_heads=1,
            hidden_dim=16,
            intermediate_dim=16,
            head_dim=8,
        )
    )
    found = []
    for model in (tiny_model(), gemma):
        layers = []
        outputs = [
            model.score(
                token_ids=ops.convert_to_tensor(IDS),
                padding_mask=ops.ones((2, 7)),
                scoring_mode=mode,
                target_ids=ops.convert_to_tensor(IDS),
                layer_intercept_fn=lambda x, i: layers.append(i) or x,
            )
            for mode in ("logits", "loss")
        ]
        found.append(
            [
                layers,
                *(
                    (tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
                    for x in outputs
                ),
            ]
        )
    assert found[0] == found[1]


def test_mistakes_are_told(model):
    with pytest.raises(ValueError, match="'logits' or 'loss'"):
        model.score(token_ids=IDS, scoring_mode="both")
    with pytest.raises(ValueError, match="one id for each"):
        model.score(
            token_ids=IDS, scoring_mode="loss", target_ids=np.transpose(IDS)
        )
    with pytest.raises(ValueError, match="needs `target_ids`"):
        model.score(token_ids=IDS, scoring_mode="loss")
    with pytest.raises(ValueError, match="Did you mean target_ids"):
        model.score(token_ids=IDS, targets=IDS)
    for arguments in (
        {},
        {"inputs": {"token_ids": IDS}, "token_ids": IDS},
        {"inputs": {"token_ids": IDS}, "scoring_mode": "loss"},
    ):
        with pytest.raises(ValueError, match="either `inputs`, or KerasHub's"):
            model.score(**arguments)
