"""What a token costs, or that it is forbidden, for what stands before it or in the source.

Shapes: B batch, W beam width, V vocabulary, S source length, T room for target tokens, N sequences
of ids, L tokens of the longest before its last.

Logits are [V, B, W]. Where a *text* is looked at, it is int32 [B, W, T], or [B, 1, S] of the
source, and holds V (or more) where it has no token.

Source: transformers' `logits_process.py`; the repetition penalty is that of Keskar et al. 2019
(CTRL).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.generation.state import State, history

_MOST = 1e6  # that a decay may grow to: what is this much more probable is certain


class Sequences(NamedTuple):
    """Sequences of ids, and what is added to the score of a token that completes one."""

    before: Any  # int32 [N, L], a sequence's tokens but the last, right-aligned; -1: any
    last: Any  # int32 [N], V where there is no sequence
    added: Any  # float32 [N]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], float]], vocabulary: int) -> "Sequences | None":
        """From (ids, what is added); None if there are none.

        N and L are powers of two, so that few programs are compiled.
        """
        if not rows:
            return None
        count = _power_of_two(len(rows))
        longest = _power_of_two(max(len(ids) for ids, _ in rows) - 1)
        found = cls(
            np.full((count, longest), -1, np.int32),
            np.full(count, vocabulary, np.int32),
            np.zeros(count, np.float32),
        )
        for i, (ids, added) in enumerate(rows):
            found.before[i, longest - len(ids) + 1 :] = ids[:-1]
            found.last[i], found.added[i] = ids[-1], added
        return found


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def padded_ids(ids: Sequence[int], vocabulary: int) -> np.ndarray | None:
    """int32 [N], N a power of two, V behind the last; None if there are no ids."""
    if not ids:
        return None
    room = _power_of_two(len(ids)) - len(ids)
    return np.pad(np.asarray(ids, np.int32), (0, room), constant_values=vocabulary)


def add_to_sequences(logits: jax.Array, sequences: Sequences, state: State) -> jax.Array:
    """What a sequence adds, wherever the next token would complete it.

    The decoder's start token is part of none.
    """
    size = sequences.before.shape[1]
    positions = state.step + 1 - size + jnp.arange(size)
    latest = jnp.take(history(state), positions, axis=2, mode="clip")
    latest = jnp.where(positions > 0, latest, -2)[:, :, None]  # [B, W, 1, L]
    fits = jnp.all((latest == sequences.before) | (sequences.before == -1), axis=3)  # [B, W, N]
    added = jnp.where(fits, sequences.added, 0.0)
    b, w = (x[..., None] for x in jnp.indices(logits.shape[1:]))
    return logits.at[sequences.last, b, w].add(added, mode="drop")


def penalise_held(
    logits: jax.Array, text: jax.Array, origin: jax.Array | float, penalty: Any
) -> jax.Array:
    """Scores of tokens that a text holds are divided by the penalty where they are positive and
    multiplied where they are negative; they count from `origin` [B, W]."""
    vocabulary, *shape = logits.shape
    held = jnp.broadcast_to(text, (*shape, text.shape[2]))
    b, w = (x[..., None] for x in jnp.indices(shape))
    origin = jnp.broadcast_to(jnp.asarray(origin), shape)[..., None]
    scores = logits.at[held, b, w].get(mode="fill", fill_value=0.0) - origin
    scores = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return logits.at[held, b, w].set(scores + origin, mode="drop")


def written(state: State, vocabulary: int) -> jax.Array:
    """The text of each beam so far, the decoder's start token included: int32 [B, W, T]."""
    held = history(state)
    return jnp.where(jnp.arange(held.shape[2]) <= state.step, held, vocabulary)


def ban_ngrams(logits: jax.Array, text: jax.Array, n: int, state: State, spared: int) -> jax.Array:
    """-inf where a token would end an n-gram of the text; for one token, `spared`, never.

    The decoder's start token counts as a hypothesis's first token.
    """
    starts = text.shape[2] - (n - 1)  # n-grams that fit in
    if starts < 1:
        return logits
    vocabulary, *shape = logits.shape
    held = history(state)
    repeats = jnp.broadcast_to(state.step + 2 >= n, (*shape, starts))
    for i in range(n - 1):
        last = jax.lax.dynamic_slice_in_dim(held, state.step - (n - 2) + i, 1, 2)
        repeats &= text[:, :, i : i + starts] == last
    banned = jnp.broadcast_to(text[:, :, n - 1 :], repeats.shape)
    banned = jnp.where(repeats & (banned != spared), banned, vocabulary)
    b, w = (x[..., None] for x in jnp.indices(shape))
    return logits.at[banned, b, w].set(-jnp.inf, mode="drop")


def decay(
    logits: jax.Array, token: int, origin: jax.Array | float, times: jax.Array, factor: Any
) -> jax.Array:
    """A token's score s, from `origin` [B, W], plus |s| (factor ** times - 1), times int32 [B]."""
    score = logits[token] - origin
    grown = jnp.minimum(factor ** jnp.maximum(times, 0).astype(jnp.float32), _MOST) - 1
    added = jnp.where(score > -jnp.inf, jnp.abs(score) * grown[:, None], 0.0)
    return logits.at[token].add(added)
