"""How the searches that follow the greatest scores choose: beam search, with and without diversity.

Shapes: B batch, W beam width, C candidates, G groups.

Source: fairseq `search.py` (BeamSearch, DiverseSiblingsSearch, DiverseBeamSearch).
"""

import jax
import jax.numpy as jnp

from bart_hk.generation.edits import Scored, best_of_each_beam
from bart_hk.generation.state import Choice, Limits, Rules, State


def beam_search(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """The best continuations over all beams."""
    count = rules.candidate_multiple * rules.beam
    # Each beam's best C hold the best C of all beams.
    best, tokens = best_of_each_beam(scored, state, limits, count)
    return _best(best, tokens, count)


def diverse_siblings(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """Beam search in which a beam's n-th best continuation pays n times `limits.strength`.

    The first step, where there is one beam, is beam search's. Source: Li et al. 2016 (A Simple,
    Fast Diverse Decoding Algorithm for Neural Generation).
    """
    count = 2 * rules.beam
    best, tokens = best_of_each_beam(scored, state, limits, count)
    rank = jnp.arange(1, best.shape[2] + 1, dtype=best.dtype)
    best = best - jnp.where(state.step > 0, rank * limits.strength, 0.0)
    return _best(best, tokens, count)


def _best(scores: jax.Array, tokens: jax.Array, count: int) -> Choice:
    """The `count` best of [B, W, K] continuations, or all where there are fewer."""
    batch, beam, each = scores.shape
    scores, index = jax.lax.top_k(scores.reshape(batch, -1), min(count, beam * each))
    tokens = jnp.take_along_axis(tokens.reshape(batch, -1), index, 1)
    return Choice(scores, tokens, index // each)


def diverse_groups(
    scored: Scored, state: State, limits: Limits, rules: Rules
) -> tuple[Choice, jax.Array]:
    """Beam search in G groups; a group pays for tokens that earlier groups choose in this step.

    Group g is the beams g, g + G, ...; a token costs it `limits.strength` for each earlier choice
    of that token, times one plus what the two groups had in common before, discounted by
    `limits.discount` for every step since (discount 0: the Hamming diversity of the paper).
    Source: Vijayakumar et al. 2016 (Diverse Beam Search), fairseq's cumulative variant.

    Returns:
        The candidates, the groups taking turns, and the new overlap of groups [B, G, G].
    """
    batch, groups = scored.only.shape[0], rules.groups
    count = rules.candidate_multiple * rules.beam // groups
    # At most C tokens are ever punished, so a group finds its best among so many more.
    most = count + rules.candidate_multiple * rules.beam
    best, tokens = best_of_each_beam(scored, state, limits, most)
    overlap = state.extra.overlap
    found: list[Choice] = []
    for group in range(groups):
        scores, own = best[:, group::groups], tokens[:, group::groups]
        for earlier, choice in enumerate(found):
            same = own[..., None] == choice.tokens[:, None, None]  # [B, W / G, K, C / G]
            same &= (choice.scores > -jnp.inf)[:, None, None]
            weight = 1 + overlap[:, group, earlier]
            times = jnp.sum(same, axis=3) * weight[:, None, None]
            scores = scores - limits.strength * times
        choice = _best(scores, own, count)
        found.append(choice._replace(beams=choice.beams * groups + group))
    chosen = jnp.stack(
        [jnp.where(c.scores > -jnp.inf, c.tokens, -1 - i) for i, c in enumerate(found)]
    )
    same = chosen[:, None] == chosen[None]  # [G, G, B, C / G]
    common = jnp.moveaxis(jnp.sum(same, axis=3), 2, 0)
    overlap = (overlap + common) * limits.discount

    def in_turns(name: str) -> jax.Array:
        return jnp.stack([getattr(c, name) for c in found], axis=2).reshape(batch, -1)

    return Choice(in_turns("scores"), in_turns("tokens"), in_turns("beams")), overlap
