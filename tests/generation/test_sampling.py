"""Samples against the exact distribution that they are drawn from: chi-squared tests.

The distribution is computed apart from the search: the decoder's logits, teacher-forced, and the
definitions in numpy. Seeds are fixed, so the outcome is. That the draws are enough is tested too:
each test would notice a temperature that is off by 5 %.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import chi2

from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.model import BART

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SURE = 1e-3  # the least p-value of what is taken for the same
COPIES, SAMPLES, SEEDS = 300, 40, (1, 2, 3, 4)  # 48,000 draws
# `<s>` and two free tokens.
SHORT = {"max_len_b": 3}
CASES = {
    "plain": {},
    "warmer": {"temperature": 1.6},
    "topk": {"sampling_topk": 6},
    "topk_warmer": {"sampling_topk": 12, "temperature": 1.4},
    "topp": {"sampling_topp": 0.8},
    "topp_warmer": {"sampling_topp": 0.9, "temperature": 1.5},
    "both": {"sampling_topk": 9, "sampling_topp": 0.85, "temperature": 1.3},
    "edited": {"unkpen": 1.0, "suppress_tokens": (5, 6, 40), "min_len": 3, "temperature": 1.2},
}


@pytest.fixture(scope="module")
def model(trained):
    config, params = trained("post_norm")
    return Generator(BART(config)), params


@pytest.fixture(scope="module")
def source(golden):
    """A gap at the beginning, so that much is open."""
    sources = golden("generation/cases.json")["models"]["post_norm"]["sources"]
    return np.array(next(s for s in sources if s[1] == 4 and len(s) > 5))


def exact(model, source, before, options):
    """Probabilities [V] of the token after `before`, by the definitions."""
    generator, params = model
    bart = generator.bart
    encoded = bart.encode(params, source[None])
    features = bart.decode(params, np.array([[EOS, *before]]), encoded).features
    logits = np.asarray(bart.project(params, features)[0, -1], np.float64)
    log_probs = log_softmax(logits / options.temperature)
    log_probs[PAD] = -np.inf
    log_probs[UNK] -= options.unkpen
    log_probs[list(options.suppress_tokens)] = -np.inf
    if len(before) < options.min_len:
        log_probs[EOS] = -np.inf
    if options.sampling_topk > 0:
        log_probs[np.argsort(-log_probs)[options.sampling_topk :]] = -np.inf
    probabilities = softmax(log_probs)
    if options.sampling_topp > 0:
        order = np.argsort(-probabilities)
        reached = np.cumsum(probabilities[order]) >= options.sampling_topp
        probabilities[order[np.argmax(reached) + 1 :]] = 0
        probabilities /= probabilities.sum()
    return probabilities


def p_value(drawn, probabilities):
    """Of the chi-squared test: are these draws (ids) from these probabilities [V]?"""
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = len(drawn) * probabilities
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 10  # together they are one outcome
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    real = expected > 0
    if real.sum() == 1:
        return 1.0
    statistic = np.sum((counts[real] - expected[real]) ** 2 / expected[real])
    return chi2.sf(statistic, real.sum() - 1)


@pytest.fixture(scope="module")
def samples(model, source):
    """`samples(name)`: a case's options, and the tokens of its samples in the order of draws."""
    generator, params = model

    @functools.cache
    def draw(name):
        found = []
        for seed in SEEDS:
            options = GenerationOptions(
                sampling=True, beam=SAMPLES, seed=seed, **SHORT, **CASES[name]
            )
            rows = generator.generate(
                params,
                [source] * COPIES,
                options,
                batch_size=COPIES,
                max_tokens=1 << 14,
                attention=False,
            )
            found += [h["tokens"] for row in rows for h in row]
        assert len(found) == len(SEEDS) * COPIES * SAMPLES
        return options, found

    return draw


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_distribution(model, source, samples, name):
    options, drawn = samples(name)
    first = np.array([tokens[1] for tokens in drawn])
    expected = exact(model, source, [BOS], options)
    assert p_value(first, expected) > SURE
    # What follows each of the most frequent first tokens.
    frequent = [token for token in np.argsort(-np.bincount(first)) if token != EOS][:3]
    for token in frequent:
        second = np.array([tokens[2] for tokens in drawn if tokens[1] == token])
        assert len(second) > 500
        assert p_value(second, exact(model, source, [BOS, token], options)) > SURE


@pytest.mark.parametrize("name", CASES)
def test_the_draws_are_enough(model, source, samples, name):
    """Another temperature, k or p would have been noticed."""
    options, drawn = samples(name)
    first = np.array([tokens[1] for tokens in drawn])
    others = [{"temperature": options.temperature * factor} for factor in (0.95, 1.05)]
    if options.sampling_topk > 0 and options.sampling_topp < 0:
        others += [{"sampling_topk": options.sampling_topk + d} for d in (-1, 1)]
    if options.sampling_topp > 0:
        others += [{"sampling_topp": -1.0}]
    for other in others:
        changed = dataclasses.replace(options, **other)
        assert p_value(first, exact(model, source, [BOS], changed)) < SURE, other


def test_samples_of_a_row_are_independent(model, source, samples):
    """Two samples are as often equal as chance has it, within a row and in all."""
    options, drawn = samples("plain")
    chance = np.sum(exact(model, source, [BOS], options) ** 2)
    rows = np.array([tokens[1] for tokens in drawn]).reshape(-1, SAMPLES)
    counts = np.stack([np.bincount(row, minlength=48) for row in rows])
    within = np.mean(np.sum(counts * (counts - 1), axis=1)) / (SAMPLES * (SAMPLES - 1))
    counts = counts.sum(axis=0)
    overall = np.sum(counts * (counts - 1)) / (rows.size * (rows.size - 1))
    np.testing.assert_allclose([within, overall], chance, rtol=0.05)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_beam_samples_are_drawn_without_replacement(model, source, temperature):
    """Two beams: of four tokens drawn after `<s>`, the more probable two go on."""
    generator, params = model
    drawn = []
    for seed in SEEDS:
        options = GenerationOptions(
            beam_sampling=True, beam=2, seed=seed, max_len_b=2, min_len=2, temperature=temperature
        )
        rows = generator.generate(
            params, [source] * 5000, options, batch_size=500, max_tokens=1 << 14, attention=False
        )
        drawn += [tuple(sorted(int(h["tokens"][1]) for h in row)) for row in rows]
    pairs, number = np.unique(drawn, axis=0), {}
    probabilities = exact(model, source, [BOS], options)
    chances = best_two_of_four(probabilities)
    number = {pair: i for i, pair in enumerate(sorted(chances))}
    assert {tuple(pair) for pair in pairs.tolist()} <= number.keys()
    ids = np.array([number[pair] for pair in drawn])
    expected = np.array([chances[pair] for pair in sorted(chances)])
    assert p_value(ids, expected) > SURE
    # With replacement, or of another temperature, it would be another distribution.
    for factor in (0.9, 1.1):
        other = softmax(np.log(np.maximum(probabilities, 1e-300)) / factor)
        chances = best_two_of_four(other)
        assert p_value(ids, np.array([chances[pair] for pair in sorted(chances)])) < 1e-9


def best_two_of_four(probabilities):
    """How probable it is that two tokens are the most probable of four drawn without replacement:
    {(a, b): chance}, a < b."""
    order = np.argsort(-probabilities)
    order = order[probabilities[order] > 0]
    p = probabilities[order]
    sets = np.array(list(itertools.combinations(range(len(p)), 4)))  # most probable first
    chance = np.zeros(len(sets))
    for permutation in itertools.permutations(range(4)):
        left, product = 1.0, 1.0
        for i in permutation:
            product = product * p[sets[:, i]] / left
            left = left - p[sets[:, i]]
        chance += product
    found = {}
    for (a, b), value in zip(order[sets[:, :2]].tolist(), chance, strict=True):
        pair = (min(a, b), max(a, b))
        found[pair] = found.get(pair, 0.0) + value
    return found
