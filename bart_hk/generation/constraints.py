"""Lexically constrained search: hypotheses that contain given phrases (Post and Vilar 2018, Hu et
al. 2019; fairseq `search.py`, LexicallyConstrainedBeamSearch).

On the host, `checked_constraints` refuses what cannot be and `compile_constraints` makes tables.
On the device, a search keeps a state for each beam (`initial_states`), forbids </s> where
`may_end` is False, takes the candidates of a step from `constrained_candidates`, and carries the
states of those that go on (`take_states`).

Shapes: B batch, W beam width, V vocabulary, M tokens offered to a beam, C candidates of a row.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.generation.constraint_states import (
    OrderedConstraints,
    Phrases,
    UnorderedConstraints,
    UnorderedStates,
)

Constraints = OrderedConstraints | UnorderedConstraints
States = jax.Array | UnorderedStates  # each kind of constraints has its own
T = TypeVar("T", bound=States)


def pack_constraints(batch: Sequence[Sequence[Any]]) -> np.ndarray:
    """Phrases of a batch as one array, in fairseq's format: int64 [B, N].

    A row is the number of its phrases, and then each phrase's ids and a 0; zeros fill it up. A row
    with a phrase that holds the id 0, which fairseq cannot pack, begins with the number of phrases
    times -1, and a -1 follows each phrase.

    Args:
        batch: of each row a list of phrases, of each phrase its ids.

    Raises:
        ValueError: a phrase is empty, or holds something else than ids of 0 and more.
    """
    rows = []
    for i, phrases in enumerate(batch):
        ids = [_phrase(phrase, i, j) for j, phrase in enumerate(phrases)]
        has_zero = any(not phrase.all() for phrase in ids)
        end = -1 if has_zero else 0
        parts = [part for phrase in ids for part in (phrase, [end])]
        rows.append(np.concatenate([[-len(ids) if has_zero else len(ids)], *parts]))
    packed = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def unpack_constraints(packed: Any) -> list[Any]:
    """The phrases in what `pack_constraints`, fairseq's or this module's, made.

    Args:
        packed: int array [B, N]; or one of its rows, [N], which is what fairseq's function takes.

    Returns:
        Of each row a list of phrases, int32 arrays; for [N], that of the row.

    Raises:
        ValueError: it is no such array.
    """
    array = np.asarray(packed)
    if array.ndim == 1:
        return _unpacked(array, 0)
    if array.ndim != 2:
        raise ValueError(
            f"packed constraints must be an array [rows, N], not of shape {array.shape}; "
            "pack_constraints makes one"
        )
    return [_unpacked(row, i) for i, row in enumerate(array)]


def _unpacked(row: np.ndarray, i: int) -> list[np.ndarray]:
    if not np.issubdtype(row.dtype, np.integer) or not row.size:
        raise ValueError(
            f"packed constraints must be integers and at least one a row, not {row.dtype} of "
            f"shape {row.shape}; pack_constraints makes them"
        )
    count = abs(int(row[0]))
    ends = 1 + np.flatnonzero(row[1:] == (0 if row[0] > 0 else -1))[:count]
    starts = np.append(1, ends + 1)
    phrases = [row[a:b] for a, b in zip(starts, ends, strict=False)]
    if len(phrases) < count or any(not phrase.size or phrase.min() < 0 for phrase in phrases):
        raise ValueError(
            f"row {i} of the packed constraints announces {count} phrases, but does not hold them "
            "as ids, each phrase followed by a 0; pack_constraints makes such rows"
        )
    return [phrase.astype(np.int32) for phrase in phrases]


def checked_constraints(
    constraints: Any,
    *,
    rows: int,
    vocabulary: int,
    never: Collection[int],
    room: Sequence[int] | np.ndarray,
) -> list[list[np.ndarray]]:
    """The phrases of each row as int32 arrays, if a search can generate them.

    Args:
        constraints: of each row a list of phrases, of each phrase its ids, an empty list or None
            for a row without constraints; or a packed int array [rows, N] (`unpack_constraints`).
        rows: of the batch that they belong to.
        vocabulary: V.
        never: ids that the search cannot generate before the end: </s>, <pad>, suppressed tokens.
        room: of each row, how many tokens there may be between a forced beginning and </s>. fairseq
            does not ask, and stops with an AssertionError at the greatest length.

    Raises:
        ValueError: the number of rows is another one; a phrase is empty, is no list of integers,
            holds an id outside the vocabulary or of `never`; or a row's phrases are longer than its
            room.
    """
    if getattr(constraints, "ndim", None) is not None:
        constraints = unpack_constraints(np.atleast_2d(np.asarray(constraints)))
    if not isinstance(constraints, Sequence) or isinstance(constraints, str):
        raise ValueError(
            "constraints must be a list with a list of phrases for each input, or "
            f"pack_constraints' array, not {constraints!r:.60}"
        )
    if len(constraints) != rows:
        raise ValueError(
            f"there are constraints for {len(constraints)} inputs, but {rows} inputs; give each "
            "input a list of phrases, an empty one where it has none"
        )
    checked = []
    for i, phrases in enumerate(constraints):
        if not isinstance(phrases, Sequence | np.ndarray | None) or isinstance(phrases, str):
            raise ValueError(
                f"the constraints of input {i} must be a list of phrases, not {phrases!r:.60}; an "
                "empty list where it has none"
            )
        row = [_phrase(phrase, i, j) for j, phrase in enumerate([] if phrases is None else phrases)]
        for j, phrase in enumerate(row):
            for token in phrase.tolist():
                if token >= vocabulary:
                    raise ValueError(
                        f"constraint {j} of input {i} holds the id {token}, outside the "
                        f"vocabulary of {vocabulary}"
                    )
                if token in never:
                    raise ValueError(
                        f"constraint {j} of input {i} holds the id {token}, which no output can "
                        "contain (</s>, <pad> or a suppressed token); leave it out"
                    )
        needed = sum(map(len, row))
        if needed > room[i]:
            raise ValueError(
                f"the constraints of input {i} have {needed} tokens, but its output has room for "
                f"{max(int(room[i]), 0)} of them; raise max_len_b or drop some"
            )
        checked.append([phrase.astype(np.int32) for phrase in row])
    return checked


def check_repetitions(phrases_per_row: Phrases, size: int, ordered: bool) -> None:
    """Looks for phrases that no hypothesis can hold.

    Args:
        phrases_per_row: what `checked_constraints` gives.
        size: n-grams of so many tokens may not come twice in a hypothesis; 0: any may.
        ordered: phrases come one after the other, and share no tokens.

    Raises:
        ValueError: an n-gram comes twice in a phrase, or in ordered phrases.
    """
    for i, phrases in enumerate(phrases_per_row if size else ()):
        seen: set[tuple[int, ...]] = set()
        for j, phrase in enumerate(phrases):
            seen = seen if ordered else set()
            ids = phrase.tolist()
            for ngram in (tuple(ids[n : n + size]) for n in range(len(ids) - size + 1)):
                if ngram in seen:
                    raise ValueError(
                        f"constraint {j} of input {i} repeats {list(ngram)}, which "
                        f"no_repeat_ngram_size={size} forbids; raise it, or change the phrases"
                    )
                seen.add(ngram)


def _phrase(phrase: Any, i: int, j: int) -> np.ndarray:
    ids = np.asarray(phrase)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"constraint {j} of input {i} must be a list of integer ids, not {ids.dtype} of shape "
            f"{ids.shape}; each input has a list of phrases, each phrase a list of ids"
        )
    if not ids.size:
        raise ValueError(f"constraint {j} of input {i} is empty; leave it out or give it ids")
    if ids.min() < 0:
        raise ValueError(
            f"constraint {j} of input {i} holds the id {ids.min()}; ids are 0 and more"
        )
    return ids.astype(np.int64)


def compile_constraints(phrases_per_row: Phrases, ordered: bool, rows: int) -> Constraints:
    """Tables for the device, as numpy arrays; what `checked_constraints` gives goes in.

    The result is a pytree, one type for each value of `ordered`: an argument of a compiled
    function, never static. Its sizes beside `rows` are powers of two, so that other phrases seldom
    compile anything again.

    Args:
        phrases_per_row: of each row a list of phrases, int arrays of 1 id and more.
        ordered: whether the phrases must come in the given order.
        rows: B, at least `len(phrases_per_row)`. Rows without phrases are searched as without
            constraints.
    """
    kind = OrderedConstraints if ordered else UnorderedConstraints
    return kind.of(phrases_per_row, rows)


# The functions below run on the device.


def initial_states(constraints: Constraints, beam: int) -> States:
    """The states of hypotheses without tokens: a pytree with leading axes [B, beam]."""
    return constraints.initial_states(beam)


def advance(constraints: Constraints, states: T, tokens: jax.Array) -> T:
    """The states [B, N, ...] after one more token each, int32 [B, N]."""
    return constraints.advance(states, tokens)  # type: ignore[arg-type, return-value]


def satisfied(constraints: Constraints, states: States) -> jax.Array:
    """How many constraint tokens there are, int32 [B, N]: fairseq's bank."""
    return constraints.satisfied(states)  # type: ignore[arg-type]


def may_end(constraints: Constraints, states: States) -> jax.Array:
    """Whether all phrases are there, bool [B, N]; otherwise </s> is forbidden.

    This holds for the first step too, where fairseq lets a hypothesis end without its phrases if
    `min_len` and the forced beginning do.
    """
    return constraints.may_end(states)  # type: ignore[arg-type]


def next_tokens(constraints: Constraints, states: States) -> jax.Array:
    """Tokens that bring a state on or begin a phrase again, int32 [B, N, M].

    No id comes twice for a state; -1 fills up. What they are for ordered and unordered constraints
    is said there.
    """
    return constraints.next_tokens(states)  # type: ignore[arg-type]


def take_states(states: T, index: jax.Array) -> T:
    """The states [B, N', ...] at `index` (int32 [B, N'], positions in 0 ... N - 1)."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows, index], states)


def constrained_candidates(
    constraints: Constraints,
    states: T,
    best: jax.Array,
    best_tokens: jax.Array,
    score_of: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, T]:
    """The candidates of one step, in the order in which a search considers them.

    All candidates are: the best 2 W continuations of all beams, the best one of each beam, and each
    token that a beam's state offers (`next_tokens`). A candidate's bank is the number of constraint
    tokens that it would have. In turn the best candidate of every bank is taken, the highest bank
    first, then the second best of every bank, and so on. In a row without constraints these are the
    best 2 W continuations, best first.

    The caller has made -inf whatever is not allowed, </s> where `may_end` is False included, and
    all of a dead beam (at the first step, all beams but the first). Such candidates come last and
    have the score -inf, so that scores of -inf mean that there are fewer than 2 W. Otherwise the
    order is fairseq's, with what it means to do where it does something else: it sorts by
    (constraint tokens - bank) * -100 + score, which mixes the banks where scores differ by 100 and
    more or are -inf, and lets the highest banks come again before the lowest if these are farther
    apart than there are candidates.

    Equal scores keep the order of `jax.lax.top_k` over `best`: the lower beam, then the earlier
    entry.

    Args:
        constraints, states: of the present beams, with leading axes [B, W].
        best: float32 [B, W, K], cumulative scores of each beam's best continuations, best first; K
            is at least 2, and 2 W unless the vocabulary is smaller.
        best_tokens: int32 [B, W, K], their tokens.
        score_of: the cumulative scores, float32 [B, W, M], of tokens int32 [B, W, M] (ids of the
            vocabulary) after the present beams.

    Returns:
        (scores float32, tokens int32, beams int32) [B, 2 W] and the states after those tokens, with
        leading axes [B, 2 W].
    """
    batch, beam, width = best.shape
    scores, index = jax.lax.top_k(best.reshape(batch, -1), 2 * beam)
    offered = constraints.next_tokens(states)  # type: ignore[arg-type]
    ids = jnp.maximum(offered, 0)
    offers = jnp.where(offered >= 0, score_of(ids), -jnp.inf)
    numbers = jnp.broadcast_to(jnp.arange(beam, dtype=jnp.int32), (batch, beam))

    scores = jnp.concatenate([scores, best[:, :, 0], offers.reshape(batch, -1)], axis=1)
    beams = jnp.concatenate(
        [index // width, numbers, jnp.repeat(numbers, offered.shape[2], axis=1)], axis=1
    )
    tokens = jnp.concatenate(
        [
            jnp.take_along_axis(best_tokens.reshape(batch, -1), index, 1),
            best_tokens[:, :, 0],
            ids.reshape(batch, -1),
        ],
        axis=1,
    )
    # Of all candidates only the banks; a state is large where there are many phrases.
    banks = satisfied(constraints, advance(constraints, take_states(states, beams), tokens))
    scores, chosen = _order(scores, tokens, beams, banks, 2 * beam)
    tokens, beams = (jnp.take_along_axis(x, chosen, 1) for x in (tokens, beams))
    return scores, tokens, beams, advance(constraints, take_states(states, beams), tokens)


def _order(
    scores: jax.Array, tokens: jax.Array, beams: jax.Array, banks: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The first `count` candidates by turns of the banks: scores and positions, both [B, count]."""
    place = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    # Of equal candidates the first counts, the others are out.
    beams, tokens, place, scores, banks = jax.lax.sort(
        (beams, tokens, place, scores, banks), num_keys=3
    )
    same = (beams[:, 1:] == beams[:, :-1]) & (tokens[:, 1:] == tokens[:, :-1])
    scores = scores.at[:, 1:].set(jnp.where(same, -jnp.inf, scores[:, 1:]))
    out = scores == -jnp.inf

    out, falling, lower, place = jax.lax.sort((out, -banks, -scores, place), num_keys=4)
    number = jnp.arange(place.shape[1])
    first = (falling != jnp.roll(falling, 1, axis=1)) | (number == 0)
    turn = number - jax.lax.cummax(jnp.where(first, number, 0), axis=1)
    _, _, _, scores, place = jax.lax.sort((out, turn, falling, -lower, place), num_keys=3)
    return scores[:, :count], place[:, :count]
