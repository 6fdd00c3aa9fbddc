"""What a token costs, and which tokens may not be chosen, before anything is chosen.

Shapes: B batch, W beam width, V vocabulary, T room for target tokens.

Log probabilities are never written out for the whole vocabulary: the logits are edited in their own
scale, and only what is chosen is normalised. The edits, in their order:
* the logits are divided by the temperature;
* a language model's log probabilities are added; <unk> pays `unkpen`;
* </s> is not for a beam whose constraints are not met; nor is what a trie or a function forbids;
* a row at its greatest length may only choose </s>, and a prefix leaves one token as well, at its
  own score, whatever the rest of this list says;
* tokens that a beam already holds pay the repetition penalty;
* <pad> is never chosen, </s> not before `min_len`, nor what is suppressed, nor what would repeat an
  n-gram.

Source: fairseq `sequence_generator.py`; of the repetition penalty Keskar et al. 2019 (CTRL), as
transformers applies it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bart_hk.generation import constraints
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
    if rules.repetition == "logits":
        logits = _penalise_repetitions(logits, 0.0, state, limits)
    # Over few columns, XLA's CPU compiler makes good loops for two dimensions alone.
    columns = logits.reshape(vocabulary, -1)
    normaliser = jax.nn.logsumexp(columns, axis=0).reshape(batch, beam)
    if rules.lm is not None:
        tokens = history(state).reshape(batch * beam, -1)
        log_probs = jnp.asarray(rules.lm(tokens, step + 1))
        if log_probs.shape != (batch * beam, vocabulary):
            raise ValueError(
                f"lm gives an array of shape {log_probs.shape} for {batch * beam} rows of tokens; "
                f"it must be {(batch * beam, vocabulary)}, log probabilities of the vocabulary"
            )
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

    if rules.repetition == "log_probs":
        logits = _penalise_repetitions(logits, normaliser, state, limits)
    too_short = (step < limits.min_len)[None, :, None]
    never = (ids == rules.pad) | (too_short & (ids == rules.eos))
    logits = jnp.where(never, -jnp.inf, logits)
    if limits.suppress is not None:
        logits = logits.at[limits.suppress].set(-jnp.inf, mode="drop")
    if rules.no_repeat_ngram_size:
        logits = _ban_repeated_ngrams(logits, state, rules)
    return Scored(logits, normaliser, only, alone)


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


def _penalise_repetitions(
    logits: jax.Array, origin: jax.Array | float, state: State, limits: Limits
) -> jax.Array:
    """Scores of tokens that a beam holds, the start token included, are divided by the penalty
    where they are positive and multiplied where they are negative; they count from `origin`."""
    held = history(state)  # [B, W, T]
    written = jnp.arange(held.shape[2]) <= state.step
    held = jnp.where(written, held, logits.shape[0])
    b, w = (x[..., None] for x in jnp.indices(held.shape[:2]))
    origin = jnp.broadcast_to(jnp.asarray(origin), held.shape[:2])[..., None]
    scores = logits.at[held, b, w].get(mode="fill", fill_value=0.0) - origin
    penalty = limits.repetition_penalty
    scores = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return logits.at[held, b, w].set(scores + origin, mode="drop")


def _ban_repeated_ngrams(logits: jax.Array, state: State, rules: Rules) -> jax.Array:
    """-inf where a token would end an n-gram that its beam already holds.

    The decoder's start token counts as the first token, as in fairseq. </s> is never banned: with
    n = 1 and </s> as the start token no hypothesis could ever end.
    """
    n, step = rules.no_repeat_ngram_size, state.step
    held = history(state)
    starts = held.shape[2] - (n - 1)  # n-grams that fit into [B, W, T]
    if starts < 1:
        return logits
    repeats = jnp.arange(starts) + n - 1 <= step
    for i in range(n - 1):
        last = jax.lax.dynamic_slice_in_dim(held, step - (n - 2) + i, 1, 2)
        repeats &= held[:, :, i : i + starts] == last
    banned = held[:, :, n - 1 :]  # [B, W, starts]
    banned = jnp.where(repeats & (banned != rules.eos), banned, logits.shape[0])
    b, w = jnp.indices(banned.shape[:2])
    return logits.at[banned, b[..., None], w[..., None]].set(-jnp.inf, mode="drop")
