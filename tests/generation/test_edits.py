"""Penalties, bans and filters, each against its definition in plain numpy.

The definitions are transformers', in its order: `logits_process.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bart_hk.config import BARTConfig
from bart_hk.generation.edits import cumulative, edit
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.request import Request
from bart_hk.generation.sampling import beam_samples, samples, truncate
from bart_hk.generation.state import Limits, Rules, begin
from tests.generation.test_sampling import SURE, p_value

BOS, PAD, EOS, UNK = 0, 1, 2, 3
V, ROOM = 12, 8
CONFIG = BARTConfig(
    vocab_size=V,
    encoder_layers=1,
    decoder_layers=1,
    encoder_embed_dim=8,
    encoder_attention_heads=1,
    decoder_attention_heads=1,
    max_source_positions=16,
    max_target_positions=16,
)
SOURCES = [np.array([0, 5, 6, 7, 8, 2]), np.array([0, 9, 5, 6, 2])]
# Behind the start token, of each row's two beams. The first repeats 4 5, and is within 5 6 7 of its
# source; the third is before its source's </s>.
HELD = [[[0, 4, 5, 9, 4], [0, 7, 5, 5, 6]], [[0, 4, 10, 5, 6], [0, 8, 4, 11, 9]]]


def state_of(held, beam):
    """A state whose beams have written the start token and these."""
    tokens = np.asarray(held).reshape(-1, beam, np.shape(held)[-1])
    batch, _, count = tokens.shape
    rules = Rules(beam, EOS, PAD, UNK)
    state = begin(jnp.ones(batch, bool), 1, ROOM, None, rules, EOS)
    slots = np.full((batch, ROOM, beam), 3)  # what follows is not looked at
    slots[:, 0] = EOS
    slots[:, 1 : count + 1] = tokens.swapaxes(1, 2)
    lineage = np.broadcast_to(np.arange(beam)[:, None], (batch, beam, ROOM))
    return state._replace(step=jnp.int32(count), tokens=jnp.asarray(slots), lineage=lineage)


def edited(options, held=HELD, beam=2, seed=0, **arguments):
    """Of options: the logits, what `edit` makes of them as log probabilities, and the request."""
    request = Request.make(
        CONFIG,
        SOURCES,
        GenerationOptions(beam=beam, max_len_b=9, **options),
        is_ensemble=False,
        **arguments,
    )
    limits = request.limits([0, 1], 2, V)
    logits = np.random.default_rng(seed).normal(0, 3, (V, 2, beam)).astype(np.float32)
    scored = edit(jnp.asarray(logits), state_of(held, beam), limits, request.rules)
    assert (np.asarray(scored.only) == -1).all()
    found = np.asarray(scored.logits - scored.normaliser)
    return np.moveaxis(logits.astype(np.float64), 0, -1), np.moveaxis(found, 0, -1), request


def by_definition(logits, ids, source, options, pad=False):
    """transformers' processors, in its order, of the scores [V] behind `ids`, the start token
    first: logits for one beam, log probabilities for more."""
    scores = logits if options.beam == 1 else log_softmax(logits)
    scores = scores.copy()
    for sequence, added in options.sequence_bias:
        if len(sequence) == 1 or (
            len(sequence) <= len(ids) and tuple(ids[1 - len(sequence) :]) == sequence[:-1]
        ):
            scores[sequence[-1]] += added
    for held, penalty in (
        (source, 1 / options.encoder_repetition_penalty),
        (ids, options.repetition_penalty),
    ):
        for token in set(held):
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
    before_bans = scores.copy()
    for text, n, spared in (
        (ids, options.no_repeat_ngram_size, {EOS}),  # ours
        (source, options.encoder_no_repeat_ngram_size, set()),
    ):
        for i in range(len(text) - n + 1 if n else 0):
            *first, last = text[i : i + n]
            if list(ids[len(ids) - n + 1 :]) == first and last not in spared:
                scores[last] = -np.inf
    for word in options.bad_words_ids:
        if len(word) == 1 or (len(word) <= len(ids) and tuple(ids[1 - len(word) :]) == word[:-1]):
            scores[word[-1]] = -np.inf
    if options.exponential_decay_length_penalty is not None:
        start, factor = options.exponential_decay_length_penalty
        late = len(ids) - 1 - start
        if late > 0:
            scores[EOS] += abs(before_bans[EOS]) * (factor**late - 1)
    scores[list(options.suppress_tokens)] = -np.inf
    if len(ids) == 2:  # the forced <s> is there
        scores[list(options.begin_suppress_tokens)] = -np.inf
    if not pad:
        scores[PAD] = -np.inf
    return scores


# What is said of a sequence, and of a longer one; one that nothing fits, one that begins with the
# start token; and one of the longest.
BIASES = [((7,), 1.5), ((5, 9), -4.0), ((4, 9, 4, 7), 2.0), ((9, 4, 10), 3.0), ((10, 4), 9.0)]
OPTIONS = {
    "plain": {},
    "bias": {"sequence_bias": BIASES},
    "bias_by_name": {"sequence_bias": {(4, 6): 2.0, (6, 6): -2.0, (9, 6): 1.0}},
    "encoder_repetition": {"encoder_repetition_penalty": 1.7},
    "encoder_repetition_less": {"encoder_repetition_penalty": 0.4},
    "encoder_ngrams_1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_ngrams_2": {"encoder_no_repeat_ngram_size": 2},
    "encoder_ngrams_3": {"encoder_no_repeat_ngram_size": 3},
    "encoder_ngrams_7": {"encoder_no_repeat_ngram_size": 7},  # the sources have no more
    "bad_words": {"bad_words_ids": [[7], [4, 5], [9, 4, 6], [6, 2], [2, 0, 4, 5, 9, 4, 8], [8, 9]]},
    "decay": {"exponential_decay_length_penalty": (3, 1.5)},
    "decay_later": {"exponential_decay_length_penalty": (5, 1.5)},
    "decay_less": {"exponential_decay_length_penalty": (0, 0.5)},
    "begin": {"begin_suppress_tokens": [4, 5, 6]},
    "together": {
        "sequence_bias": BIASES,
        "repetition_penalty": 1.4,
        "encoder_repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [[9, 4, 6], [8]],
        "exponential_decay_length_penalty": (2, 1.2),
        "suppress_tokens": [11],
    },
}


# How many tokens there are behind the start token: five, and for some as few as there may be.
COUNTS = [(name, 5) for name in OPTIONS if name != "begin"]
COUNTS += [(name, 1) for name in ("begin", "bias", "bad_words", "together")]
# What is normalised before it is applied: bans, but not what makes tokens more or less probable.
BANS = {"bad_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": ()}
BANS |= {"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0}


@pytest.mark.parametrize("beam", [1, 2])
@pytest.mark.parametrize(("name", "count"), COUNTS)
def test_edits_are_their_definitions(name, count, beam):
    held = [[ids[:count] for ids in row[:beam]] for row in HELD]
    logits, found, request = edited(OPTIONS[name], held, beam)
    options, changed = request.options, False
    for row in range(2):
        for w in range(beam):
            texts = [EOS, *held[row][w]], SOURCES[row].tolist()
            expected = by_definition(logits[row, w], *texts, options)
            plain = by_definition(logits[row, w], *texts, GenerationOptions(beam=beam))
            changed |= (expected != plain).any()
            if beam == 1:
                free = dataclasses.replace(options, **BANS)
                free = by_definition(logits[row, w], *texts, free, pad=True)
                expected -= np.log(np.exp(free).sum())
            np.testing.assert_allclose(found[row, w], expected, atol=2e-5)
    assert changed == (name not in ("plain", "encoder_ngrams_7", "decay_later"))


def test_a_decay_is_never_more_than_certain():
    for beam in (1, 2):
        held = [row[:beam] for row in HELD]
        options = {"exponential_decay_length_penalty": (0, 1e6)}
        assert not np.isnan(edited(options, held, beam)[1]).any()


def test_a_decay_begins_after_a_prompt():
    """Of a decoder alone lengths are of what comes after the text that it is given."""
    options = GenerationOptions(beam=1, max_len_b=5, exponential_decay_length_penalty=(3, 1.5))
    for flavour, begins in (("decoder_only", [8, 7, 3]), ("encoder_decoder", [3, 3, 3])):
        config = CONFIG.replace(flavour=flavour)
        request = Request.make(config, SOURCES, options, is_ensemble=False)
        start, factor = request.limits([0, 1], 3, V).decay
        assert (start.tolist(), factor) == (begins, 1.5)  # the third row is padding


def test_a_processor_is_given_what_transformers_gives_and_cannot_allow_what_is_forbidden():
    seen = []

    def processor(tokens, count, scores):
        seen.append((np.asarray(tokens), int(count), np.asarray(scores)))
        return scores.at[:, 4].set(100.0).at[:, 7].set(100.0).at[:, 5].add(-jnp.inf)

    options = {"suppress_tokens": [4], "repetition_penalty": 2.0}
    for beam in (1, 2):
        held = [row[:beam] for row in HELD]
        logits, found, request = edited(options, held, beam, logits_processor=processor)
        tokens, count, scores = seen.pop()
        ids = [[EOS, *ids] for row in held for ids in row]
        assert tokens[:, :count].tolist() == ids
        for n, own in enumerate(ids):
            row, w = divmod(n, beam)
            expected = by_definition(logits[row, w], own, SOURCES[row].tolist(), request.options)
            np.testing.assert_allclose(scores[n], expected, atol=2e-5)
        assert (found[..., [4, 5, PAD]] == -np.inf).all() and (found.argmax(-1) == 7).all()
    with pytest.raises(ValueError, match=r"logits_processor gives an array of shape \(12,\) for 4"):
        edited({}, logits_processor=lambda tokens, count, scores: scores[0])
    with pytest.raises(ValueError, match="must be a function of tokens, their number .*not a list"):
        edited({}, logits_processor=[])


@pytest.mark.parametrize("beam", [1, 2])
def test_what_is_left_can_be_normalised(beam):
    options = {"suppress_tokens": [4, 5], "repetition_penalty": 2.0, "bad_words_ids": [[6]]}
    held = [row[:beam] for row in HELD]
    logits, found, request = edited({**options, "renormalize_logits": True}, held, beam)
    for row in range(2):
        for w in range(beam):
            ids, source = [EOS, *held[row][w]], SOURCES[row].tolist()
            expected = by_definition(logits[row, w], ids, source, request.options)
            np.testing.assert_allclose(found[row, w], log_softmax(expected), atol=2e-5)


def test_a_forced_token_is_certain_where_what_is_left_is_normalised():
    options = GenerationOptions(beam=2, max_len_b=5, renormalize_logits=True)
    request = Request.make(CONFIG, SOURCES, options, is_ensemble=False)
    limits = request.limits([0, 1], 2, V)
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (V, 2, 2)), jnp.float32)
    state = state_of(HELD, 2)._replace(score=jnp.zeros((2, 2)))
    scored = edit(logits, state, limits, request.rules)
    assert scored.only.tolist() == [EOS, EOS]
    assert cumulative(scored.alone[..., None], scored, state, limits).tolist() == [[[0], [0]]] * 2


# --- Filters --------------------------------------------------------------------------------------

FILTERS = {
    "topp": {"topp": 0.6},
    "min_p": {"min_p": 0.2},
    "min_p_most": {"min_p": 1.0},
    "typical_p": {"typical_p": 0.5},
    "typical_p_low": {"typical_p": 0.05},
    "typical_p_high": {"typical_p": 0.95},
    "epsilon_cutoff": {"epsilon_cutoff": 0.03},
    "epsilon_cutoff_high": {"epsilon_cutoff": 0.9},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "eta_cutoff_high": {"eta_cutoff": 0.9},
    "together": {
        "topp": 0.95,
        "min_p": 0.02,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.02,
        "eta_cutoff": 0.03,
    },
}


def filtered(logits, filters, fewest):
    """The definitions: logits [V], one filter after the other."""

    def keep(kept, order):
        first = np.argsort(-order, kind="stable")[:fewest]
        return np.where(kept | np.isin(np.arange(len(logits)), first), logits, -np.inf)

    for name in ("topp", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
        if name not in filters:
            continue
        value, p, log_p = filters[name], softmax(logits), log_softmax(logits)
        entropy = -np.sum(np.where(p > 0, p * np.where(p > 0, log_p, 0), 0))
        strange = np.abs(-log_p - entropy)
        if name in ("topp", "typical_p"):
            ranks = -p if name == "topp" else strange
            order = np.argsort(ranks, kind="stable")
            last = min(np.sum(np.cumsum(p[order]) < value), len(p) - 1)
            logits = keep(ranks <= ranks[order[last]], -ranks)
        else:
            least = {
                "min_p": value * p.max(),
                "epsilon_cutoff": value,
                "eta_cutoff": min(value, np.sqrt(value) * np.exp(-entropy)),
            }[name]
            logits = keep(p >= least, logits)
    return logits


def filtering(filters, method):
    """The limits and rules of these filters."""
    rest = {name: jnp.float32(value) for name, value in filters.items()}
    limits = Limits(min_len=jnp.zeros(1), max_len=jnp.full(1, 9), prefix=jnp.full((1, 1), -1))
    rules = Rules(1, EOS, PAD, UNK, method=method, nucleus="topp" in filters)
    return limits._replace(**rest), rules


@pytest.mark.parametrize("method", ["sampling", "beam_sampling"])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_their_definitions(name, method):
    filters = FILTERS[name]
    rng = np.random.default_rng(0)
    logits = rng.normal(0, [[[0.3, 1, 2, 3, 5]]], (40, 8, 5)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    found = truncate(jnp.asarray(logits), *filtering(filters, method))
    fewest = 2 if method == "beam_sampling" else 1
    expected = np.apply_along_axis(filtered, 0, logits.astype(np.float64), filters, fewest)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_array_equal(found, np.where(np.isfinite(expected), logits, -np.inf))
    assert (np.isfinite(found) != np.isfinite(logits)).any()


@pytest.mark.parametrize("name", ["min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"])
def test_samples_follow_what_filters_leave(name):
    """Chi-squared, of 20,000 draws."""
    filters, (batch, beam) = FILTERS[name], (100, 200)
    logits = np.random.default_rng(1).normal(0, 2, 30).astype(np.float32)
    limits, rules = filtering(filters, "sampling")
    limits = limits._replace(
        min_len=jnp.zeros(batch),
        max_len=jnp.full(batch, 9),
        prefix=jnp.full((batch, 1), -1),
        draws=jax.random.bits(jax.random.key(7), (batch, 2), jnp.uint32),
    )
    state = begin(jnp.ones(batch, bool), 1, 1, None, dataclasses.replace(rules, beam=beam), EOS)
    state = state._replace(step=jnp.int32(3))
    scored = edit(jnp.broadcast_to(logits[:, None, None], (30, batch, beam)), state, limits, rules)
    tokens = np.asarray(samples(scored, state, limits, rules).tokens).ravel()
    free = logits.astype(np.float64)
    free[PAD] = -np.inf
    assert p_value(tokens, softmax(filtered(free, filters, 1))) > SURE
    assert p_value(tokens, softmax(free)) < SURE


def test_drawn_tokens_are_scored_among_what_is_left_if_that_is_normalised():
    limits, rules = filtering({"min_p": 0.1}, "beam_sampling")
    limits = limits._replace(draws=jnp.ones((1, 2), jnp.uint32))
    state = begin(jnp.ones(1, bool), 1, 1, None, rules, EOS)._replace(step=jnp.int32(3))
    logits = np.random.default_rng(1).normal(0, 2, 30).astype(np.float32)
    free = logits.astype(np.float64)
    free[PAD] = -np.inf
    left = filtered(free, {"min_p": 0.1}, fewest=2)
    for draw, flag in ((beam_samples, False), (beam_samples, True), (samples, True)):
        rules = dataclasses.replace(rules, renormalised=flag)
        scored = edit(jnp.asarray(logits)[:, None, None], state, limits, rules)
        choice = draw(scored, state, limits, rules)
        log_probs = log_softmax(left if flag else logits)
        np.testing.assert_allclose(choice.scores[0], log_probs[choice.tokens[0]], atol=1e-5)
