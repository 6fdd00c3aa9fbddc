"""Contrastive search: probable tokens whose features are unlike those of all tokens before.

Shapes: B batch, W candidates, V vocabulary, T room for target tokens, D model width.

The candidates for a position, the W most probable tokens, are fed as if they were beams that
share one history; once their features are known one of them is chosen, and what follows it gives
the next candidates. So one hypothesis results. Source: Su et al. 2022 (A Contrastive Framework for
Neural Text Generation); transformers' `penalty_alpha`, `top_k`.
"""

import jax
import jax.numpy as jnp

from bart_hk.generation.state import Extra, Limits, State


def begin(batch: int, beam: int, length: int, width: int) -> Extra:
    """What a search of this kind carries along: at first, the start token is the only candidate."""
    return Extra(
        chance=jnp.zeros((batch, beam), jnp.float32),
        context=jnp.zeros((batch, length, width), jnp.float32),
    )


def choose(
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
