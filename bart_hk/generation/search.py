"""One search on the device, by fairseq's rules (`sequence_generator.py`, `search.py`).

Shapes: B batch, W beam width, V vocabulary, S source length, T room for target tokens, D model
width, C candidates.

A step decodes the present beams, edits what may come next (`edits`), chooses candidates by the
method that the rules name (`choices`, `sampling`, `constraints`, `contrastive`), and then:
* of the candidates only the first W may end a hypothesis, and the first W that do not go on. Where
  there are only W in all, a hypothesis that ended leaves its place empty;
* a row is done when it has W hypotheses, reached its greatest length, or has no beam left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bart_hk.generation import constraints, contrastive, stops, trie
from bart_hk.generation.choices import beam_search, diverse_groups, diverse_siblings
from bart_hk.generation.edits import Scored, alone_if_forced, best_of_each_beam, cumulative, edit
from bart_hk.generation.sampling import beam_samples, samples
from bart_hk.generation.state import Choice, Limits, Rules, State

# (tokens int32 [B, W], step, cache, ancestors bool [B, W, T, W])
#   -> logits float32 [V, B, W], cache, attention float32 [B, W, S], features float32 [D, B, W]
#      (None unless the rules' method is "contrastive")
Decode = Callable[
    [jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any, jax.Array, jax.Array | None]
]


def run(state: State, decode: Decode, limits: Limits, rules: Rules) -> State:
    """Searches until every row is done, `limits.until` is reached, or the room is used up."""

    def going_on(state: State) -> jax.Array:
        room = (state.step < state.tokens.shape[1]) & (state.step < limits.until)
        return jnp.any(~state.done) & room

    return jax.lax.while_loop(going_on, lambda s: advance(s, decode, limits, rules), state)


def advance(state: State, decode: Decode, limits: Limits, rules: Rules) -> State:
    """One step of every row."""
    step, beam = state.step, rules.beam
    state = state._replace(
        tokens=state.tokens.at[:, step].set(state.token),
        scores=state.scores.at[:, step].set(state.score),
        parents=state.parents.at[:, step].set(state.parent),
        lineage=state.lineage.at[:, :, step].set(jnp.arange(beam, dtype=jnp.int32)),
    )
    past = jnp.arange(state.tokens.shape[1]) <= step  # [T]
    ancestors = past[:, None] & (state.lineage[..., None] == jnp.arange(beam))
    logits, cache, attention, features = decode(state.token, step, state.cache, ancestors)
    state = state._replace(attention=state.attention.at[:, step].set(attention), cache=cache)
    if rules.method == "contrastive":
        assert features is not None
        return contrastive.advance(state, logits, features, limits, rules)

    scored = edit(logits, state, limits, rules)
    choice, overlap = _choose(scored, state, limits, rules)
    ends = choice.tokens == rules.eos  # [B, C]
    if limits.stops is not None:
        nodes = jnp.take_along_axis(state.extra.stops, choice.beams, 1)
        nodes, completed = stops.follow(limits.stops, nodes, choice.tokens)
        ends |= completed & (scored.only < 0)[:, None]
    ends &= choice.scores > -jnp.inf
    may_end = ends[:, :beam] & ~state.ignore
    state = _end_hypotheses(state, choice, may_end, limits, rules)
    # The first W that go on, in their order; where there are fewer, what ended fills the places.
    gone = ends.at[:, :beam].set(may_end | state.ignore)
    order = jnp.arange(ends.shape[1])
    if rules.method == "beam_sampling":  # the order of draws says what may end, scores what goes on
        order = jnp.argsort(jnp.argsort(-choice.scores, axis=1), axis=1)
    places, chosen = jax.lax.top_k(-(order + ends.shape[1] * gone), beam)

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), 1)

    parent, token = take(choice.beams), take(choice.tokens)
    score = jnp.where(take(ends), -jnp.inf, take(choice.scores))  # nothing follows an end
    extra = state.extra._replace(overlap=overlap)
    if choice.constraints is not None:
        extra = extra._replace(constraints=jax.tree.map(take, choice.constraints))
    if limits.stops is not None:
        extra = extra._replace(stops=take(nodes))
    if limits.trie is not None:
        nodes = jnp.take_along_axis(extra.nodes, parent, 1)
        extra = extra._replace(nodes=trie.advance(limits.trie, nodes, token))
    return state._replace(
        step=step + 1,
        token=token,
        score=score,
        parent=parent,
        lineage=jnp.take_along_axis(state.lineage, parent[..., None], 1),
        ignore=-places >= ends.shape[1],
        done=state.done | _is_done(state, score, limits, rules),
        extra=extra,
    )


def _choose(
    scored: Scored, state: State, limits: Limits, rules: Rules
) -> tuple[Choice, jax.Array | None]:
    """The candidates, and of diverse groups their new overlap."""
    match rules.method:
        case "beam":
            return beam_search(scored, state, limits, rules), None
        case "siblings":
            return diverse_siblings(scored, state, limits, rules), None
        case "groups":
            return diverse_groups(scored, state, limits, rules)
        case "sampling":
            return samples(scored, state, limits, rules), None
        case "beam_sampling":
            return beam_samples(scored, state, limits, rules), None
        case "constraints":
            return _constrained(scored, state, limits, rules), None
    raise AssertionError(rules.method)


def _constrained(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    best, tokens = best_of_each_beam(scored, state, limits, 2 * rules.beam)
    b, w = (x[..., None] for x in jnp.indices(best.shape[:2]))
    logits = alone_if_forced(scored)

    def score_of(tokens: jax.Array) -> jax.Array:
        values = logits.at[jnp.maximum(tokens, 0), b, w].get(mode="fill", fill_value=-jnp.inf)
        return cumulative(values, scored, state, limits)

    found = constraints.constrained_candidates(
        limits.constraints, state.extra.constraints, best, tokens, score_of
    )
    return Choice(*found)


def _end_hypotheses(
    state: State,
    choice: Choice,
    ends: jax.Array,  # bool [B, W], which of the first W candidates do
    limits: Limits,
    rules: Rules,
) -> State:
    """Adds the hypotheses that end: in their order, while there are places (fairseq); or, unless
    `early_stopping` is True, in the order of their scores, the best taking the places of others
    (transformers)."""
    beam = ends.shape[1]
    ends = ends & ~state.done[:, None]
    steps = jnp.broadcast_to(state.step, ends.shape)
    all_ends = jnp.concatenate([jnp.arange(beam) < state.ended[:, None], ends], axis=1)
    columns = (
        (state.ended_step, steps),
        (state.ended_token, choice.tokens[:, :beam]),
        (state.ended_beam, choice.beams[:, :beam]),
        (state.ended_score, choice.scores[:, :beam]),
    )
    both = [jnp.concatenate(pair, axis=1) for pair in columns]  # [B, 2 W] each
    if rules.early_stopping is True:
        worth = -jnp.arange(2 * beam)
    else:
        worth = normalised(both[3], both[0] + 1, limits)
    _, order = jax.lax.top_k(jnp.where(all_ends, worth, -jnp.inf), beam)
    step, token, origin, score = (jnp.take_along_axis(x, order, 1) for x in both)
    ended = jnp.minimum(jnp.sum(all_ends, axis=1), beam)
    return state._replace(
        ended_step=step, ended_token=token, ended_beam=origin, ended_score=score, ended=ended
    )


def normalised(scores: jax.Array, lengths: jax.Array, limits: Limits) -> jax.Array:
    """Cumulative scores of hypotheses of these lengths, </s> counted, over length ** lenpen."""
    return scores / lengths.astype(jnp.float32) ** limits.lenpen


def _is_done(state: State, score: jax.Array, limits: Limits, rules: Rules) -> jax.Array:
    """bool [B]: does a row stop after this step, which left beams of these scores?"""
    full = state.ended == score.shape[1]
    over = (state.step >= limits.max_len) | jnp.all(score == -jnp.inf, axis=1)
    if rules.early_stopping is not True:
        # transformers: is the best that the beams can still reach no better than the worst kept?
        length = jnp.broadcast_to(state.step + 1, over.shape)
        if rules.early_stopping == "never":
            length = jnp.where(limits.lenpen > 0, limits.max_len + 1, length)
        possible = normalised(jnp.max(score, axis=1), length, limits)
        kept = normalised(state.ended_score, state.ended_step + 1, limits)
        full &= possible <= jnp.min(kept, axis=1)
    return full | over
