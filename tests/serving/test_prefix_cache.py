"""Prefixes in memory and on disk: longest match, budget, exactness."""

import numpy as np
import pytest

from keras_griffin import serving
from keras_griffin.serving.prefix import Prefix
from keras_griffin.serving.prefix import common
from keras_griffin.serving.prefix_cache import MAX_PREFIXES
from keras_griffin.serving.prefix_cache import PrefixCache
from keras_griffin.serving.prefix_folder import PrefixFolder
from keras_griffin.serving.prefix_folder import fingerprint
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import tiny_model

SHARED = np.random.default_rng(3).integers(1, VOCABULARY, 100)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prefix(*ids, floats=100):
    return Prefix(
        np.array(ids, "int32"),
        np.zeros((1, floats), "float32"),
        {"length": np.zeros((1,), "int32")},
    )


@pytest.mark.backend_independent
def test_the_longest_one_is_found():
    cache = PrefixCache(10**6)
    for ids in ((1,), (1, 2, 3), (1, 2, 3, 4, 5), (2, 3)):
        cache.keep(prefix(*ids))
    ids = np.array([1, 2, 3, 4, 9], "int32")
    assert cache.longest(ids).token_ids.tolist() == [1, 2, 3]
    assert cache.longest(ids, longer_than=3) is None
    assert cache.longest(ids[1:]).token_ids.tolist() == [2, 3]
    assert cache.longest(np.array([7], "int32")) is None
    assert cache.longest_common(ids) == 4
    assert common(ids, ids[:3]) == 3


@pytest.mark.backend_independent
def test_the_least_recently_used_goes_first():
    size = prefix(1).bytes
    assert size == 4 + 400 + 4
    cache = PrefixCache(3 * size)
    for id in (1, 2, 3):
        cache.keep(prefix(id))
    assert cache.longest(np.array([1, 5], "int32")) is not None
    cache.keep(prefix(4))
    kept = [p.token_ids[0] for p in cache._prefixes.values()]
    assert kept == [3, 1, 4] and cache.bytes == 3 * size
    cache.keep(prefix(5, floats=10**6))  # larger than all of it
    assert len(cache) == 3
    empty = PrefixCache(0)
    empty.keep(prefix(1))
    assert len(empty) == empty.bytes == 0


@pytest.mark.backend_independent
def test_there_are_not_too_many_to_look_through():
    cache = PrefixCache(10**9)
    for id in range(MAX_PREFIXES + 10):
        cache.keep(prefix(id))
    assert len(cache) == MAX_PREFIXES


def ask(engine, *rest):
    request = engine.submit(
        [*SHARED, *rest], max_new_tokens=6, temperature=0, stop_token_ids=None
    )
    return request, request.result(timeout=120)[0].token_ids


def test_what_requests_share_is_read_once(model):
    with serving.Engine(model, max_rows=2, prefill_chunk=32) as engine:
        first = [ask(engine, id, id + 1) for id in range(1, 5)]
        read = engine.statistics()["prompt_tokens_read"]
    # The second one finds out what is shared, the others go on from there.
    assert [request.cached_tokens for request, _ in first[2:]] == [100, 100]
    assert read == 102 + sum(102 - r.cached_tokens for r, _ in first[1:])
    with serving.Engine(
        model, max_rows=2, prefill_chunk=32, prefix_cache_bytes=0
    ) as engine:
        for (_, ids), id in zip(first, range(1, 5), strict=True):
            request, alone = ask(engine, id, id + 1)
            assert alone == ids and request.cached_tokens == 0


@pytest.mark.backend_independent
def test_a_conversation_goes_on_from_its_last_turn(model):
    with serving.Engine(model, max_rows=2, prefill_chunk=32) as engine:
        _, reply = ask(engine, 3)
        request, _ = ask(engine, 3, *reply, 4)
        assert request.cached_tokens == 100 + 1 + 6
        request, again = ask(engine, 3)  # the same once more
        assert request.cached_tokens == 101 and again == reply


@pytest.mark.backend_independent
def test_prefixes_outlive_the_engine(model, tmp_path):
    def engine():
        return serving.Engine(
            model, max_rows=2, prefill_chunk=32, prefix_folder=tmp_path
        )

    with engine() as first:
        expected = [ask(first, id)[1] for id in (1, 2, 3)]
    names = {path.name for path in tmp_path.rglob("*.npz")}
    assert len(names) >= 2
    with engine() as second:
        request, ids = ask(second, 1)
        assert request.cached_tokens == 100 and ids == expected[0]
        assert ask(second, 3)[1] == expected[2]
    other = tiny_model()
    other.weights[0].assign(2 * to_numpy(other.weights[0].value))
    assert fingerprint(other) != fingerprint(model)
    with serving.Engine(
        other, max_rows=2, prefill_chunk=32, prefix_folder=tmp_path
    ) as third:
        assert ask(third, 1)[0].cached_tokens == 0


@pytest.mark.backend_independent
def test_a_damaged_file_is_read_anew(model, tmp_path):
    folder = PrefixFolder(model, tmp_path)
    ids = np.array([1, 2, 3], "int32")
    logits, state = model.prefill({"token_ids": ids[None]})
    folder.write(Prefix(ids, logits, state))
    (name,) = folder.token_ids
    loaded = PrefixFolder(model, tmp_path).load(name)
    np.testing.assert_array_equal(loaded.token_ids, ids)
    np.testing.assert_array_equal(to_numpy(loaded.logits), to_numpy(logits))
    (file,) = tmp_path.rglob(f"{name}.npz")
    file.write_bytes(b"no state")
    with pytest.warns(UserWarning, match="read from files of an engine"):
        assert folder.load(name) is None
    assert not folder.token_ids
    (tokens,) = tmp_path.rglob("*.tokens.npz")
    tokens.write_bytes(b"no ids")
    with pytest.warns(UserWarning, match="It is read from the prompt again"):
        assert not PrefixFolder(model, tmp_path).token_ids
