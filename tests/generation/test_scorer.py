"""Scores of given targets and of next tokens, against the search and against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.scorer import Scorer
from bart_hk.model import BART, Ensemble
from tests.parameters import random_params


@pytest.fixture(scope="module")
def bart(trained):
    return BART(trained("post_norm")[0])


@pytest.fixture(scope="module")
def scorer(bart):
    return Scorer(bart)


def rows_of(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """<s> ... </s> of the given lengths."""
    rng = np.random.default_rng(seed)
    return [np.concatenate([[0], rng.integers(5, 48, n - 2), [2]]) for n in lengths]


def log_probs(bart, params, source, prefix):
    """float64 [N + 1, V]: of every next token, after the start token and each token of a prefix."""
    previous = jnp.asarray([[2, *prefix]])
    encoded = bart.encode(params, jnp.asarray(source)[None])
    features = bart.decode(params, previous, encoded).features
    logits = np.asarray(bart.project(params, features)[0], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scores_of_a_search_are_those_of_teacher_forcing(bart, params, dtype):
    bart = BART(bart.config, jnp.dtype(dtype))
    rows = rows_of(9, 2, 20)
    # Beyond the first stage, so that the cache grows on the way.
    found = Generator(bart).generate(params, rows, GenerationOptions(beam=2, min_len=36))
    pairs = [(row, h) for row, hypotheses in zip(rows, found, strict=True) for h in hypotheses]
    assert min(len(h["tokens"]) for _, h in pairs) > 36
    sources, targets = [row for row, _ in pairs], [h["tokens"] for _, h in pairs]
    scored = Scorer(bart).score(params, sources, targets, attention=True)
    atol = 1e-4 if dtype == "float32" else 0.1
    for (_, hypothesis), again in zip(pairs, scored, strict=True):
        np.testing.assert_array_equal(hypothesis["tokens"], again["tokens"])
        np.testing.assert_allclose(hypothesis["score"], again["score"], atol=atol)
        if dtype == "float32":
            for key in ("positional_scores", "attention"):
                np.testing.assert_allclose(hypothesis[key], again[key], atol=atol)


def test_a_score_is_the_mean_of_the_targets_log_probabilities(bart, params, scorer):
    sources, targets = rows_of(9, 25, 4, 9), rows_of(30, 2, 11, 7, seed=1)
    found = scorer.score(params, sources, targets)
    for source, target, hypothesis in zip(sources, targets, found, strict=True):
        expected = log_probs(bart, params, source, target[:-1])[np.arange(len(target)), target]
        np.testing.assert_allclose(hypothesis["positional_scores"], expected, atol=1e-4)
        np.testing.assert_allclose(hypothesis["score"], expected.mean(), atol=1e-4)
        assert hypothesis["tokens"].tolist() == target.tolist()
        assert hypothesis["attention"].shape == (0,)
        assert hypothesis["score"].dtype == hypothesis["positional_scores"].dtype == np.float32


def test_a_pairs_score_does_not_depend_on_its_neighbours_or_its_batch(params, scorer):
    sources, targets = rows_of(9, 25, 4, 9, 16, 30), rows_of(30, 2, 11, 7, 9, 38, seed=1)
    together = scorer.score(params, sources, targets, attention=True)
    for limits in ({"batch_size": 1}, {"max_tokens": 40}):
        again = scorer.score(params, sources, targets, attention=True, **limits)
        for a, b in zip(together, again, strict=True):
            for key in ("score", "positional_scores", "attention"):
                np.testing.assert_allclose(a[key], b[key], atol=1e-5)
    assert [h["attention"].shape for h in together] == [
        (len(s), len(t)) for s, t in zip(sources, targets, strict=True)
    ]


def test_logits_of_more_positions_than_a_chunk(bart, params, scorer):
    """12 rows of 40 positions are two chunks, the second of them in part padding."""
    sources, targets = rows_of(*[8] * 12), rows_of(*[39] * 12, seed=3)
    found = scorer.score(params, sources, targets)
    alone = [scorer.score(params, [s], [t])[0] for s, t in zip(sources, targets, strict=True)]
    for a, b in zip(found, alone, strict=True):
        np.testing.assert_allclose(a["positional_scores"], b["positional_scores"], atol=1e-5)


def test_memory_does_not_grow_with_batch_times_vocabulary(bart):
    config = bart.config.replace(vocab_size=20_000, max_target_positions=512)
    params = random_params(config, 0.1)
    shape = jax.ShapeDtypeStruct((16, 512), jnp.int32)
    source = jax.ShapeDtypeStruct((16, 8), jnp.int32)
    compiled = Scorer(BART(config))._score.lower(params, source, shape, attention=False).compile()
    logits = 16 * 512 * 20_000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


def test_the_next_tokens_are_the_most_probable_ones(bart, params, scorer):
    sources = rows_of(9, 25, 4)
    prefixes = [np.array([0, 7, 9]), np.array([], np.int32), rows_of(14, seed=5)[0]]
    prefixes[1] = np.array([0])
    found = scorer.next_tokens(params, sources, prefixes, 6)
    for source, prefix, (ids, scores) in zip(sources, prefixes, found, strict=True):
        expected = log_probs(bart, params, source, prefix)[-1]
        assert ids.tolist() == np.argsort(-expected, kind="stable")[:6].tolist()
        np.testing.assert_allclose(scores, expected[ids], atol=1e-4)
    (everything,) = scorer.next_tokens(params, sources[:1], prefixes[:1], 1000)
    assert len(everything[0]) == bart.config.vocab_size
    assert np.exp(everything[1]).sum() == pytest.approx(1, abs=1e-5)


def test_an_ensemble_has_the_mean_of_its_members_probabilities(bart, params):
    other = random_params(bart.config, 0.2)
    both = Scorer(Ensemble((bart, bart)))
    source, target = rows_of(9)[0], rows_of(6, seed=1)[0]
    apart = [np.exp(log_probs(bart, tree, source, target)) for tree in (params, other)]
    mean = np.log(np.mean(apart, axis=0))
    (found,) = both.score((params, other), [source], [target])
    expected = mean[np.arange(len(target)), target]
    np.testing.assert_allclose(found["positional_scores"], expected, atol=1e-4)
    ((ids, scores),) = both.next_tokens((params, other), [source], [target], 4)
    assert ids.tolist() == np.argsort(-mean[-1])[:4].tolist()
    np.testing.assert_allclose(scores, mean[-1, ids], atol=1e-4)


def test_nothing_in_nothing_out(params, scorer):
    assert scorer.score(params, [], []) == []
    assert scorer.next_tokens(params, [], [], 3) == []


def test_pairs_that_fall_in_the_same_buckets_compile_once(params, bart):
    scorer = Scorer(bart)
    scorer.score(params, rows_of(9, 14), rows_of(12, 10))
    compiled = scorer._score._cache_size()
    assert compiled == 1
    scorer.score(params, rows_of(10, 15), rows_of(16, 9, seed=4))
    assert scorer._score._cache_size() == compiled


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.array([], np.int32), "1 is empty"),
        (np.array([0, 48, 2]), "1 holds the id 48, outside the vocabulary of 48"),
        (np.array([0.0, 2.0]), r"1 must be a 1-D array of integer ids, not float64"),
    ],
)
def test_bad_rows_are_named(params, scorer, row, message):
    good = np.array([0, 2])
    for method, what in ((scorer.score, "target"), (_one_next(scorer), "prefix")):
        with pytest.raises(ValueError, match=f"source {message}"):
            method(params, [good, row], [good, good])
        with pytest.raises(ValueError, match=f"{what} {message}"):
            method(params, [good, good], [good, row])


def _one_next(scorer):
    return lambda params, sources, prefixes: scorer.next_tokens(params, sources, prefixes, 1)


def test_rows_that_are_too_many_or_too_long_are_named(params, scorer):
    source = np.array([0, 2])
    with pytest.raises(ValueError, match="source 0 has 33 tokens, .* only 32 positions"):
        scorer.score(params, [np.zeros(33, np.int32)], [source])
    with pytest.raises(ValueError, match="target 0 has 41 tokens, .* only 40 positions"):
        scorer.score(params, [source], [np.zeros(41, np.int32)])
    with pytest.raises(ValueError, match="prefix 0 has 40 tokens, .* only 39 positions"):
        scorer.next_tokens(params, [source], [np.zeros(40, np.int32)], 1)
    with pytest.raises(ValueError, match="1 sources do not go with 2 targets"):
        scorer.score(params, [source], [source, source])
