"""Contrastive search: probable tokens whose features are unlike those of all tokens before.

Shapes: B batch, W candidates, V vocabulary, T room for target tokens, D model width.

The candidates for a position, the W most probable tokens, are fed as if they were beams that
share one history; once their features are known one of them is chosen, and what follows it gives
the next candidates. So one hypothesis results. Source: Su et al. 2022 (A Contrastive Framework for
Neural Text Generation); transformers' `penalty_alpha`, `top_k`.
"""

import jax
import jax.numpy as jnp

from bart_hk.generation import stops
from bart_hk.generation.edits import best_of_each_beam, edit
from bart_hk.generation.state import Extra, Limits, Rules, State


def begin(batch: int, beam: int, length: int, width: int) -> Extra:
    """What a search of this kind carries along: at first, the start token is the only candidate."""
    return Extra(
        chance=jnp.zeros((batch, beam), jnp.float32),
        context=jnp.zeros((batch, length, width), jnp.float32),
    )


def advance(
    state: State, logits: jax.Array, features: jax.Array, limits: Limits, rules: Rules
) -> State:
    """The rest of a step, once the candidates are decoded: one stays, and has W successors."""
    beam = rules.beam
    winner, context = _choose(features, state, limits)

    def of_winner(x: jax.Array) -> jax.Array:
        """[B, W, ...] -> the same for all W: the winner's."""
        index = winner.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.broadcast_to(jnp.take_along_axis(x, index, 1), x.shape)

    # Only the winner goes on, so only its continuations are looked for.
    mine = of_winner(state.score)
    only_first = jnp.where(jnp.arange(beam) == 0, mine, -jnp.inf)
    logits = jnp.moveaxis(of_winner(jnp.moveaxis(logits, 0, -1)), -1, 0)
    chosen = state._replace(score=only_first, lineage=of_winner(state.lineage))
    scored = edit(logits, chosen, limits, rules)
    best, tokens = best_of_each_beam(scored, chosen, limits, beam)
    scores, tokens = best[:, 0], tokens[:, 0]  # [B, W]
    # The probability that counts is that among the tokens which may be chosen.
    mass = jax.nn.logsumexp(scored.logits[:, :, 0], axis=0)
    log_chance = scores - mine + (scored.normaliser[:, 0] - mass)[:, None]

    # A hypothesis ends when </s> was the winner, or what completes a stop string; at the greatest
    # length there is nothing else.
    token = jnp.take_along_axis(state.token, winner[:, None], 1)
    closed = token[:, 0] == rules.eos
    extra = state.extra
    if limits.stops is not None:
        nodes, completed = stops.follow(limits.stops, extra.stops[:, :1], token)
        closed |= completed[:, 0] & (state.step > jnp.sum(limits.prefix >= 0, axis=1))
        extra = extra._replace(stops=jnp.where(state.step > 0, nodes, extra.stops))
    closed &= (state.step > 0) & ~state.done
    at_end = (state.step >= limits.max_len) & (scores[:, 0] > -jnp.inf) & ~state.done & ~closed
    origin = jnp.take_along_axis(state.parent, winner[:, None], 1)[:, 0]
    ends = closed | at_end
    first = jnp.arange(beam) == 0

    def put(old: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(first & ends[:, None], value[:, None].astype(old.dtype), old)

    parent = jnp.broadcast_to(winner[:, None], tokens.shape).astype(jnp.int32)
    return state._replace(
        step=state.step + 1,
        token=tokens,
        score=scores,
        parent=parent,
        lineage=chosen.lineage,
        ended_step=put(state.ended_step, jnp.where(closed, state.step - 1, state.step)),
        ended_token=put(state.ended_token, jnp.where(closed, token[:, 0], rules.eos)),
        ended_beam=put(state.ended_beam, jnp.where(closed, origin, winner)),
        ended_score=put(state.ended_score, jnp.where(closed, mine[:, 0], scores[:, 0])),
        ended=jnp.where(ends, 1, state.ended),
        done=state.done | ends | jnp.all(scores == -jnp.inf, axis=1),
        extra=extra._replace(
            chance=jnp.where(scores > -jnp.inf, jnp.exp(log_chance), 0.0), context=context
        ),
    )


def _choose(
    features: jax.Array,  # float32 [D, B, W], of the present candidates
    state: State,
    limits: Limits,
) -> tuple[jax.Array, jax.Array]:
    """The candidate of each row, int32 [B], and the context with its features.

    It is the one with the greatest (1 - alpha) p - alpha s, where p is its probability and s the
    greatest cosine between its features and those of an earlier token, the start token included.
    """
    unit = jnp.moveaxis(features.astype(jnp.float32), 0, -1)  # [B, W, D]
    unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
    cosines = jnp.einsum("bwd,btd->bwt", unit, state.extra.context)
    past = jnp.arange(cosines.shape[2]) < state.step
    likeness = jnp.max(jnp.where(past, cosines, -1.0), axis=2)
    alpha = limits.penalty_alpha
    value = (1 - alpha) * state.extra.chance - alpha * likeness
    winner = jnp.argmax(jnp.where(state.score > -jnp.inf, value, -jnp.inf), axis=1)
    mine = jnp.take_along_axis(unit, winner[:, None, None], 1)  # [B, 1, D]
    return winner, jax.lax.dynamic_update_slice_in_dim(state.extra.context, mine, state.step, 1)
