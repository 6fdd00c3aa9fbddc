"""What a token costs, and which tokens may not be chosen, before anything is chosen.

Shapes: B batch, W beam width, V vocabulary, T room for target tokens.

Log probabilities are never written out for the whole vocabulary: the logits are edited in their own
scale, and only what is chosen is normalised. The edits, in their order:
* the logits are divided by the temperature;
* a language model's log probabilities are added; <unk> pays `unkpen`;
* </s> is not for a beam whose constraints are not met; nor is what a trie or a function forbids;
* a row at its greatest length may only choose </s>, and a prefix leaves one token as well, at its
  own score, whatever the rest of this list says;
* sequences have their biases; tokens of the source pay the encoder repetition penalty, those that a
  beam already holds the repetition penalty; </s> decays. Where these work on logits
  (`Rules.on_logits`) they come before the language model, and probabilities follow from them;
* <pad> is never chosen, </s> not before `min_len`, nor what is suppressed, nor what would repeat an
  n-gram or complete a bad word;
* the caller's own function has its say, but for what is forbidden already;
* what is left is normalised, if that is asked for; a token that is alone is then certain.

Source: fairseq `sequence_generator.py`; transformers' order of the edits that it has, but for the
temperature, which comes last there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bart_hk.generation import constraints
from bart_hk.generation.histories import (
    add_to_sequences,
    ban_ngrams,
    decay,
    penalise_held,
    written,
)
from bart_hk.generation.ranking import best_of_first_axis
from bart_hk.generation.state import Limits, Rules, State, history
from bart_hk.generation.trie import mask_logits


class Scored(NamedTuple):
    """The continuations of every beam. A log probability is a logit less the normaliser."""

    logits: jax.Array  # float32 [V, B, W]; -inf where a token may not be chosen
    normaliser: jax.Array  # float32 [B, W]
    only: jax.Array  # int32 [B], the only token that may be chosen; -1: whatever the logits allow
    alone: jax.Array  # float32 [B, W], that token's logit


def edit(logits: jax.Array, state: State, limits: Limits, rules: Rules) -> Scored:
    """The edits above, of the logits [V, B, W] that follow a state's present tokens."""
    step = state.step
    vocabulary, batch, beam = logits.shape
    ids = jnp.arange(vocabulary)[:, None, None]
    if rules.tempered:
        logits = logits / limits.temperature
    if rules.on_logits:
        logits = _weigh(logits, jnp.zeros((batch, beam)), state, limits, rules)
    normaliser = _normaliser(logits)
    if rules.lm is not None:
        tokens = history(state).reshape(batch * beam, -1)
        log_probs = jnp.asarray(rules.lm(tokens, step + 1))
        _check_shape("lm", log_probs, (batch * beam, vocabulary), "log probabilities")
        added = limits.lm_weight * log_probs
        logits = logits + added.T.reshape(logits.shape)
    if rules.unk is not None:
        logits = logits - jnp.where(ids == rules.unk, limits.unkpen, 0.0)
    if limits.constraints is not None:
        unmet = ~constraints.may_end(limits.constraints, state.extra.constraints)
        logits = jnp.where((ids == rules.eos) & unmet, -jnp.inf, logits)
    if limits.trie is not None:
        logits = mask_logits(limits.trie, state.extra.nodes, logits)
    if limits.allowed is not None:
        logits = jnp.where(jnp.moveaxis(limits.allowed, -1, 0), logits, -jnp.inf)

    at_end = step >= limits.max_len  # [B]
    width = limits.prefix.shape[1]
    forced = jnp.where(step < width, limits.prefix[:, jnp.minimum(step, width - 1)], -1)
    only = jnp.where(at_end, rules.eos, forced)
    alone = jnp.take_along_axis(logits, jnp.maximum(only, 0)[None, :, None], 0)[0]  # [B, W]

    if not rules.on_logits:
        logits = _weigh(logits, normaliser, state, limits, rules)
    too_short = (step < limits.min_len)[None, :, None]
    never = (ids == rules.pad) | (too_short & (ids == rules.eos))
    logits = jnp.where(never, -jnp.inf, logits)
    if limits.suppress is not None:
        logits = logits.at[limits.suppress].set(-jnp.inf, mode="drop")
    if limits.begin_suppress is not None:
        first = (step == jnp.sum(limits.prefix >= 0, axis=1))[None, :, None]
        kept = jnp.where(first, -jnp.inf, logits[limits.begin_suppress])
        logits = logits.at[limits.begin_suppress].set(kept, mode="drop")
    if rules.no_repeat_ngram_size:
        # </s> is spared: with n = 1 and </s> as the start token no hypothesis could ever end.
        text = written(state, vocabulary)
        logits = ban_ngrams(logits, text, rules.no_repeat_ngram_size, state, rules.eos)
    if rules.encoder_no_repeat_ngram_size:
        n = rules.encoder_no_repeat_ngram_size
        logits = ban_ngrams(logits, limits.source[:, None], n, state, spared=-1)
    if limits.bad_words is not None:
        logits = add_to_sequences(logits, limits.bad_words, state)
    if rules.logits_processor is not None:
        origin = 0.0 if rules.on_logits else normaliser
        scores = (logits - origin).reshape(vocabulary, -1).T
        tokens = history(state).reshape(batch * beam, -1)
        found = jnp.asarray(rules.logits_processor(tokens, step + 1, scores))
        _check_shape("logits_processor", found, scores.shape, "the scores")
        found = found.T.reshape(logits.shape) + origin
        logits = jnp.where(logits > -jnp.inf, found, -jnp.inf)
    scored = Scored(logits, normaliser, only, alone)
    return renormalised(scored, logits) if rules.renormalised else scored


def renormalised(scored: Scored, logits: jax.Array) -> Scored:
    """`scored`, with probabilities of what these logits [V, B, W] leave to be chosen."""
    mass = _normaliser(logits)
    mass = jnp.where(mass > -jnp.inf, mass, 0.0)  # nothing is left
    return Scored(logits, mass, scored.only, jnp.where(scored.alone > -jnp.inf, mass, -jnp.inf))


def _normaliser(logits: jax.Array) -> jax.Array:
    """What makes log probabilities of logits [V, B, W]: float32 [B, W]."""
    # Over few columns, XLA's CPU compiler makes good loops for two dimensions alone.
    columns = logits.reshape(logits.shape[0], -1)
    return jax.nn.logsumexp(columns, axis=0).reshape(logits.shape[1:])


def best_of_each_beam(
    scored: Scored, state: State, limits: Limits, count: int
) -> tuple[jax.Array, jax.Array]:
    """Each beam's best continuations: cumulative scores and tokens, [B, W, min(count, V)] each."""
    vocabulary = scored.logits.shape[0]
    best, tokens = best_of_first_axis(scored.logits, min(count, vocabulary))
    forced = (scored.only >= 0)[:, None, None]
    first = jnp.full_like(best, -jnp.inf).at[:, :, 0].set(scored.alone)
    best = jnp.where(forced, first, best)
    tokens = jnp.where(forced, scored.only[:, None, None], tokens)
    return cumulative(best, scored, state, limits), tokens


def cumulative(logits: jax.Array, scored: Scored, state: State, limits: Limits) -> jax.Array:
    """The scores of hypotheses that go on with tokens of these edited logits, [B, W, ...]."""
    at_end = (state.step >= limits.max_len)[:, None, None]
    log_probs = logits - scored.normaliser[..., None]
    free = at_end & limits.free_eos & (log_probs > -jnp.inf)
    return jnp.where(free, 0.0, log_probs) + state.score[..., None]


def alone_if_forced(scored: Scored) -> jax.Array:
    """The logits [V, B, W] with all but the only token at -inf, in the rows that have one."""
    ids = jnp.arange(scored.logits.shape[0])[:, None, None]
    only = scored.only[None, :, None]
    kept = jnp.where(ids == only, scored.alone, -jnp.inf)
    return jnp.where(only >= 0, kept, scored.logits)


def _weigh(
    logits: jax.Array, origin: jax.Array, state: State, limits: Limits, rules: Rules
) -> jax.Array:
    """Biases, penalties and the decay, of scores that count from `origin` [B, W]."""
    if limits.sequence_bias is not None:
        logits = add_to_sequences(logits, limits.sequence_bias, state)
    if limits.encoder_repetition_penalty is not None:
        # It makes them more probable, where the other makes them less.
        penalty = 1 / limits.encoder_repetition_penalty
        logits = penalise_held(logits, limits.source[:, None], origin, penalty)
    if limits.repetition_penalty is not None:
        text = written(state, logits.shape[0])
        logits = penalise_held(logits, text, origin, limits.repetition_penalty)
    if limits.decay is not None:
        start, factor = limits.decay
        logits = decay(logits, rules.eos, origin, state.step - start, factor)
    return logits


def _check_shape(what: str, found: jax.Array, shape: tuple[int, ...], meaning: str) -> None:
    """
    Raises:
        ValueError: a caller's function gives an array of another shape.
    """
    if found.shape != shape:
        raise ValueError(
            f"{what} gives an array of shape {found.shape} for {shape[0]} rows of tokens; "
            f"it must be {shape}, {meaning} of the vocabulary"
        )
