"""Greedy and beam search on the device, by fairseq's rules (`sequence_generator.py`, `search.py`).

Shapes: B batch, W beam width, V vocabulary, S source length, T room for target tokens.

Nothing that grows with a hypothesis is ever moved. A *slot* (t, w) holds what beam row w wrote at
step t: the token it was fed, its cumulative score, its keys and values. When beams are reordered
only `lineage` is, which names the slot of each beam at every earlier step; hypotheses are read out
at the end by following `parents` back (`read_out`).

The rules, in the order in which a step applies them:
* log probabilities of the logits over the temperature; <pad> is never chosen; <unk> pays `unkpen`;
* a row at its greatest length may only choose </s>; the first token may be forced;
* otherwise </s> is not chosen before `min_len`, nor a token that would repeat an n-gram;
* the best 2 W continuations over all beams are the candidates; of those only the first W may end a
  hypothesis, and the first W that are not </s> go on;
* a row is done when it has W hypotheses, or reached its greatest length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.generation.ranking import best_of_first_axis

# (tokens int32 [B, W], step, cache, ancestors bool [B, W, T, W])
#   -> logits float32 [V, B, W], cache, attention float32 [B, W, S]
Decode = Callable[[jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any, jax.Array]]


@dataclass(frozen=True)
class Rules:
    """The part of a search that a program is compiled for."""

    beam: int
    eos: int
    pad: int
    unk: int | None
    forced: int | None  # first generated token
    no_repeat_ngram_size: int = 0
    tempered: bool = False  # is the temperature anything but 1?


class Limits(NamedTuple):
    """The part of a search that may change from call to call without compiling again."""

    min_len: jax.Array | np.ndarray  # int32 [B]
    max_len: jax.Array | np.ndarray  # int32 [B]
    temperature: jax.Array | np.ndarray  # float32
    unkpen: jax.Array | np.ndarray  # float32
    # bool: </s> at the greatest length scores 0 (match_source_len)
    free_eos: jax.Array | np.ndarray


class State(NamedTuple):
    step: jax.Array  # int32, the number of slots written
    # Of the present beams: the last token, the cumulative score, the beam it came from.
    token: jax.Array  # int32 [B, W]
    score: jax.Array  # float32 [B, W]
    parent: jax.Array  # int32 [B, W]
    lineage: jax.Array  # int32 [B, W, T], the slot of each beam at each step
    # Of every slot.
    tokens: jax.Array  # int32 [B, T, W]
    scores: jax.Array  # float32 [B, T, W]
    parents: jax.Array  # int32 [B, T, W]
    attention: Any  # float32 [B, T, W, S]; None once nobody asks for it
    # Of the hypotheses that ended, in the order in which they did.
    ended_step: jax.Array  # int32 [B, W], the step that chose </s>
    ended_beam: jax.Array  # int32 [B, W], the beam that did
    ended_score: jax.Array  # float32 [B, W], cumulative
    ended: jax.Array  # int32 [B], how many
    done: jax.Array  # bool [B]
    cache: Any


def begin(
    rows: jax.Array, source_length: int, length: int, cache: Any, beam: int, start: int
) -> State:
    """The state before the first step, with room for `length` steps; `rows` bool [B] take part."""
    (batch,) = rows.shape

    def full(value: float, *shape: int) -> jax.Array:
        return jnp.full(
            (batch, *shape), value, jnp.float32 if isinstance(value, float) else jnp.int32
        )

    return State(
        step=jnp.int32(0),
        token=full(start, beam),
        # All beams are the same at first, so only the first has any chance.
        score=full(-jnp.inf, beam).at[:, 0].set(0.0),
        parent=full(0, beam),
        lineage=full(0, beam, length),
        tokens=full(0, length, beam),
        scores=full(0.0, length, beam),
        parents=full(0, length, beam),
        attention=full(0.0, length, beam, source_length),
        ended_step=full(0, beam),
        ended_beam=full(0, beam),
        ended_score=full(0.0, beam),
        ended=full(0),
        done=~rows,
        cache=cache,
    )


def grow(state: State, length: int, cache: Any) -> State:
    """`state` with room for `length` steps, and the cache that has it too."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        room = [(0, 0)] * x.ndim
        room[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, room)

    return state._replace(
        lineage=pad(state.lineage, 2),
        tokens=pad(state.tokens, 1),
        scores=pad(state.scores, 1),
        parents=pad(state.parents, 1),
        attention=pad(state.attention, 1),
        cache=cache,
    )


def run(state: State, decode: Decode, limits: Limits, rules: Rules) -> State:
    """Searches until every row is done, or the state's room is used up."""

    def going_on(state: State) -> jax.Array:
        return jnp.any(~state.done) & (state.step < state.tokens.shape[1])

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
    logits, cache, attention = decode(state.token, step, state.cache, ancestors)
    state = state._replace(attention=state.attention.at[:, step].set(attention), cache=cache)

    scores, tokens, beams = candidates(logits, state, limits, rules)
    ends = (tokens == rules.eos) & (scores > -jnp.inf)  # [B, 2 W]
    state = _end_hypotheses(state, scores[:, :beam], beams[:, :beam], ends[:, :beam], limits)
    # The first W that do not end, in their order.
    place = jnp.arange(ends.shape[1]) + ends.shape[1] * ends
    _, chosen = jax.lax.top_k(-place, beam)
    parent = jnp.take_along_axis(beams, chosen, 1)
    return state._replace(
        step=step + 1,
        token=jnp.take_along_axis(tokens, chosen, 1),
        score=jnp.take_along_axis(scores, chosen, 1),
        parent=parent,
        lineage=jnp.take_along_axis(state.lineage, parent[..., None], 1),
    )


def candidates(
    logits: jax.Array, state: State, limits: Limits, rules: Rules
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best continuations, best first: cumulative scores, tokens and beams, each [B, 2 W].

    Log probabilities are never written out for the whole vocabulary: the logits are edited in their
    own scale, and only what `top_k` finds is normalised.
    """
    step, beam = state.step, rules.beam
    vocabulary, batch, _ = logits.shape
    if rules.tempered:
        logits = logits / limits.temperature
    # Over few columns, XLA's CPU compiler makes good loops for two dimensions alone.
    columns = logits.reshape(vocabulary, -1)
    normaliser = jax.nn.logsumexp(columns, axis=0).reshape(batch, beam)

    at_end = step >= limits.max_len  # [B]
    only = jnp.where(at_end, rules.eos, -1)  # [B], the only token allowed; -1: any
    if rules.forced is not None:
        only = jnp.where((step == 0) & ~at_end, rules.forced, only)
    alone = jnp.take_along_axis(logits, jnp.maximum(only, 0)[None, :, None], 0)[0]  # [B, W]

    too_short = (step < limits.min_len)[None, :, None]
    ids = jnp.arange(vocabulary)[:, None, None]
    never = (ids == rules.pad) | (too_short & (ids == rules.eos))
    if rules.unk is not None:
        logits = logits - jnp.where(ids == rules.unk, limits.unkpen, 0.0)
    logits = jnp.where(never, -jnp.inf, logits)
    if rules.no_repeat_ngram_size:
        logits = _ban_repeated_ngrams(logits, state, rules)

    # Each beam's best 2 W hold the best 2 W of all beams.
    best, tokens = best_of_first_axis(logits, min(2 * beam, vocabulary))  # [B, W, 2 W]
    forced = (only >= 0)[:, None, None]
    best = jnp.where(forced, jnp.full_like(best, -jnp.inf).at[:, :, 0].set(alone), best)
    tokens = jnp.where(forced, only[:, None, None], tokens)
    best = best - normaliser[..., None]
    free = (at_end & limits.free_eos)[:, None, None] & (best > -jnp.inf)
    best = jnp.where(free, 0.0, best) + state.score[..., None]

    scores, index = jax.lax.top_k(best.reshape(batch, -1), 2 * beam)
    tokens = jnp.take_along_axis(tokens.reshape(batch, -1), index, 1)
    return scores, tokens, index // best.shape[2]


def _ban_repeated_ngrams(logits: jax.Array, state: State, rules: Rules) -> jax.Array:
    """-inf where a token would end an n-gram that its beam already holds.

    The decoder's start token counts as the first token, as in fairseq. </s> is never banned: with
    n = 1 and </s> as the start token no hypothesis could ever end.
    """
    n, step = rules.no_repeat_ngram_size, state.step
    history = jnp.take_along_axis(state.tokens, state.lineage.swapaxes(1, 2), 2).swapaxes(1, 2)
    starts = history.shape[2] - (n - 1)  # n-grams that fit into [B, W, T]
    if starts < 1:
        return logits
    repeats = jnp.arange(starts) + n - 1 <= step
    for i in range(n - 1):
        last = jax.lax.dynamic_slice_in_dim(history, step - (n - 2) + i, 1, 2)
        repeats &= history[:, :, i : i + starts] == last
    banned = history[:, :, n - 1 :]  # [B, W, starts]
    banned = jnp.where(repeats & (banned != rules.eos), banned, logits.shape[0])
    b, w = jnp.indices(banned.shape[:2])
    return logits.at[banned, b[..., None], w[..., None]].set(-jnp.inf, mode="drop")


def _end_hypotheses(
    state: State,
    scores: jax.Array,  # float32 [B, W], of the candidates that may end
    beams: jax.Array,  # int32 [B, W]
    ends: jax.Array,  # bool [B, W]
    limits: Limits,
) -> State:
    beam = ends.shape[1]
    ends = ends & ~state.done[:, None]
    rank = state.ended[:, None] + jnp.cumsum(ends, axis=1) - 1
    # [B, candidate, hypothesis]; ranks of W and above find no place.
    place = ends[:, :, None] & (rank[:, :, None] == jnp.arange(beam))
    new = jnp.any(place, axis=1)
    ended = jnp.minimum(state.ended + jnp.sum(ends, axis=1), beam)

    def put(old: jax.Array, values: jax.Array) -> jax.Array:
        placed = jnp.sum(jnp.where(place, values[:, :, None], 0), axis=1, dtype=old.dtype)
        return jnp.where(new, placed, old)

    return state._replace(
        ended_step=jnp.where(new, state.step, state.ended_step),
        ended_beam=put(state.ended_beam, beams),
        ended_score=put(state.ended_score, scores),
        ended=ended,
        done=state.done | (ended == beam) | (state.step >= limits.max_len),
    )


class Ended(NamedTuple):
    """One hypothesis, read out: N tokens, </s> included."""

    tokens: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N], cumulative log probabilities
    attention: np.ndarray  # float32 [S, N]


def read_out(state: State, row: int, source_length: int, eos: int) -> list[Ended]:
    """The hypotheses of one row of a state on the host, in the order in which they ended.

    Their attention is empty where the state has none (None).
    """
    found = []
    for i in range(int(state.ended[row])):
        last = int(state.ended_step[row, i])
        slots = np.empty(last + 1, np.int64)
        slot = int(state.ended_beam[row, i])
        for step in range(last, -1, -1):
            slots[step] = slot
            slot = int(state.parents[row, step, slot])
        steps = np.arange(last + 1)
        tokens = np.append(state.tokens[row, steps, slots][1:], eos).astype(np.int32)
        scores = np.append(state.scores[row, steps, slots][1:], state.ended_score[row, i])
        attention = np.empty(0, np.float32)
        if state.attention is not None:
            attention = np.asarray(state.attention[row, steps, slots, :source_length]).T
        found.append(Ended(tokens, scores, attention))
    return found
