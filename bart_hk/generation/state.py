"""What a search is compiled for, what may change from call to call, and what it carries along.

Shapes: B batch, W beam width, V vocabulary, S source length, T room for target tokens.

Nothing that grows with a hypothesis is ever moved. A *slot* (t, w) holds what beam row w wrote at
step t: the token it was fed, its cumulative score, its keys and values. When beams are reordered
only `lineage` is, which names the slot of each beam at every earlier step; hypotheses are read out
at the end by following `parents` back (`read_out`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Method = Literal["beam", "siblings", "groups", "constraints", "sampling", "beam_sampling"]
# (tokens int32 [N, T], how many of them count) -> log probabilities float32 [N, V] of the next
LanguageModel = Callable[[jax.Array, jax.Array], jax.Array]
# (tokens int32 [N, T], how many of them count, scores float32 [N, V] of the next) -> new scores
LogitsProcessor = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Rules:
    """The part of a search that a program is compiled for."""

    beam: int
    eos: int
    pad: int
    unk: int | None
    method: Method | Literal["contrastive"] = "beam"
    no_repeat_ngram_size: int = 0
    tempered: bool = False  # is the temperature anything but 1?
    encoder_no_repeat_ngram_size: int = 0
    # Do biases and penalties work on logits (greedy search, sampling) or on log probabilities?
    on_logits: bool = False
    renormalised: bool = False  # are the probabilities of what may be chosen made to sum to 1?
    groups: int = 1  # of diverse beam search
    candidate_multiple: int = 2  # candidates for each beam; 1: an ended beam leaves its place empty
    topk: int = 0  # sampling: from so many tokens; contrastive search: so many candidates; 0: all
    nucleus: bool = False  # sampling: from the most probable tokens alone?
    early_stopping: bool | str = True
    lm: LanguageModel | None = None
    logits_processor: LogitsProcessor | None = None

    @property
    def at_the_beginning(self) -> "Rules":
        """What of them the state before the first step depends on; the rest is as by default."""
        kept = (self.beam, self.eos, self.pad, self.unk)
        return Rules(*kept, method=self.method, groups=self.groups)


class Limits(NamedTuple):
    """The part of a search that may change from call to call without compiling again.

    A part that is None is one that the search does without.
    """

    min_len: Any  # int32 [B]
    max_len: Any  # int32 [B]
    prefix: Any  # int32 [B, P], the first tokens of each row; -1 behind its last
    temperature: Any = np.float32(1)
    unkpen: Any = np.float32(0)
    free_eos: Any = np.bool_(False)  # </s> at the greatest length scores 0 (match_source_len)
    lenpen: Any = np.float32(1)  # for the rules of when to stop that compare scores
    suppress: Any = None  # int32 [N], V where there is none
    begin_suppress: Any = None  # the same, for the first token behind the prefix
    sequence_bias: Any = None  # `bart_hk.generation.histories.Sequences`
    bad_words: Any = None  # the same
    repetition_penalty: Any = None  # float32
    encoder_repetition_penalty: Any = None  # float32
    source: Any = None  # int32 [B, S], V behind the last; for what looks at the source
    decay: Any = None  # of </s>: int32 [B] the length that it begins after, float32 the factor
    draws: Any = None  # uint32 [B, 2], the row's key of a sampling
    topp: Any = np.float32(1)
    min_p: Any = None  # float32, as are the three that follow
    typical_p: Any = None
    epsilon_cutoff: Any = None
    eta_cutoff: Any = None
    strength: Any = np.float32(0)  # of the diversity between groups, or the rate among siblings
    discount: Any = np.float32(1)
    penalty_alpha: Any = np.float32(0)
    lm_weight: Any = np.float32(1)
    constraints: Any = None  # `bart_hk.generation.constraints.Constraints`
    trie: Any = None  # the tables of a `bart_hk.generation.trie.Trie`
    stops: Any = None  # `bart_hk.generation.stops.Stops`
    allowed: Any = None  # bool [B, W, V], what a host's function allows at this step
    until: Any = np.int32(2**31 - 1)  # the search pauses before this step


class Extra(NamedTuple):
    """What single methods carry along; None where the search is of another one."""

    overlap: Any = None  # groups: float32 [B, G, G], discounted counts of tokens in common
    constraints: Any = None  # the states of the beams' constraints, [B, W, ...]
    nodes: Any = None  # int32 [B, W], the beams' nodes in a trie
    stops: Any = None  # int32 [B, W], ... and in the automaton of the strings to stop at
    chance: Any = None  # contrastive: float32 [B, W], probabilities of the present candidates
    context: Any = None  # contrastive: float32 [B, T, D], unit features of the chosen tokens


class State(NamedTuple):
    step: jax.Array  # int32, the number of slots written
    # Of the present beams: the last token, the cumulative score, the beam it came from.
    token: jax.Array  # int32 [B, W]
    score: jax.Array  # float32 [B, W]; -inf: there is no such beam
    parent: jax.Array  # int32 [B, W]
    lineage: jax.Array  # int32 [B, W, T], the slot of each beam at each step
    ignore: jax.Array  # bool [B, W], places in the list of candidates that may not end or go on
    # Of every slot.
    tokens: jax.Array  # int32 [B, T, W]
    scores: jax.Array  # float32 [B, T, W]
    parents: jax.Array  # int32 [B, T, W]
    attention: Any  # float32 [B, T, W, S]; None once nobody asks for it
    # Of the hypotheses that ended: in the order in which they did, or the best first where
    # `early_stopping` is not True.
    ended_step: jax.Array  # int32 [B, W], the step that chose the last token
    ended_token: jax.Array  # int32 [B, W], </s> or what completes a stop string
    ended_beam: jax.Array  # int32 [B, W], the beam that did
    ended_score: jax.Array  # float32 [B, W], cumulative
    ended: jax.Array  # int32 [B], how many
    done: jax.Array  # bool [B]
    cache: Any
    extra: Extra = Extra()


class Choice(NamedTuple):
    """The candidates of a step, best first: C of them, 2 W or W."""

    scores: jax.Array  # float32 [B, C], cumulative; -inf: none
    tokens: jax.Array  # int32 [B, C]
    beams: jax.Array  # int32 [B, C], that they go on from
    constraints: Any = None  # states after these tokens, [B, C, ...]


def begin(
    rows: jax.Array,
    source_length: int,
    length: int,
    cache: Any,
    rules: Rules,
    start: int,
    extra: Extra = Extra(),  # noqa: B008  (it holds nothing)
) -> State:
    """The state before the first step, with room for `length` steps; `rows` bool [B] take part."""
    (batch,) = rows.shape
    beam = rules.beam

    def full(value: float, *shape: int) -> jax.Array:
        return jnp.full(
            (batch, *shape), value, jnp.float32 if isinstance(value, float) else jnp.int32
        )

    # All beams are the same at first, so only the first (of each group) has any chance; samples
    # are drawn independently.
    alive = beam if rules.method == "sampling" else rules.groups
    return State(
        step=jnp.int32(0),
        token=full(start, beam),
        score=full(-jnp.inf, beam).at[:, :alive].set(0.0),
        parent=full(0, beam),
        lineage=full(0, beam, length),
        ignore=jnp.zeros((batch, beam), bool),
        tokens=full(0, length, beam),
        scores=full(0.0, length, beam),
        parents=full(0, length, beam),
        attention=full(0.0, length, beam, source_length),
        ended_step=full(0, beam),
        ended_token=full(rules.eos, beam),
        ended_beam=full(0, beam),
        ended_score=full(0.0, beam),
        ended=full(0),
        done=~rows,
        cache=cache,
        extra=extra,
    )


def grow(state: State, length: int, cache: Any) -> State:
    """`state` with room for `length` steps, and the cache that has it too."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        room = [(0, 0)] * x.ndim
        room[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, room)

    extra = state.extra
    if extra.context is not None:
        extra = extra._replace(context=pad(extra.context, 1))
    return state._replace(
        lineage=pad(state.lineage, 2),
        tokens=pad(state.tokens, 1),
        scores=pad(state.scores, 1),
        parents=pad(state.parents, 1),
        attention=pad(state.attention, 1),
        cache=cache,
        extra=extra,
    )


def history(state: State) -> jax.Array:
    """The tokens of each beam, the decoder's start token first: int32 [B, W, T]."""
    return jnp.take_along_axis(state.tokens, state.lineage.swapaxes(1, 2), 2).swapaxes(1, 2)


class Ended(NamedTuple):
    """One hypothesis, read out: N tokens, </s> included where it ended with that."""

    tokens: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N], cumulative log probabilities
    attention: np.ndarray  # float32 [S, N]


def read_out(state: State, row: int, source_length: int) -> list[Ended]:
    """The hypotheses of one row of a state on the host, in the state's order.

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
        tokens = np.append(state.tokens[row, steps, slots][1:], state.ended_token[row, i])
        scores = np.append(state.scores[row, steps, slots][1:], state.ended_score[row, i])
        attention = np.empty(0, np.float32)
        if state.attention is not None:
            attention = np.asarray(state.attention[row, steps, slots, :source_length]).T
        found.append(Ended(tokens.astype(np.int32), scores, attention))
    return found
