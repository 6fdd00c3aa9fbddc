"""Random choices: keyed by row, step and beam, never by the batch that a row is in.

Shapes: B batch, W beam width, V vocabulary.

The greatest of log probabilities plus Gumbel noise is a draw from them, and the greatest few are
draws without replacement (Kool et al. 2019). What is drawn from is what the edits and `truncate`
left, normalised anew; what a token scores is its own log probability, as in fairseq, however few
tokens it was drawn from.
"""

import jax
import jax.numpy as jnp

from bart_hk.generation.edits import Scored, alone_if_forced, cumulative
from bart_hk.generation.ranking import best_of_first_axis
from bart_hk.generation.state import Choice, Limits, Rules, State


def samples(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """One continuation drawn for each beam, so W independent samples of each row."""
    logits = alone_if_forced(scored)
    batch, beam = logits.shape[1:]
    noisy = truncate(logits, limits, rules) + _gumbel(logits.shape, state, limits)
    tokens = jnp.argmax(noisy, axis=0).astype(jnp.int32)  # [B, W]
    drawn = jnp.take_along_axis(logits, tokens[None], 0)[0]
    scores = cumulative(drawn[..., None], scored, state, limits)[..., 0]
    return Choice(scores, tokens, jnp.broadcast_to(jnp.arange(beam), (batch, beam)))


def beam_samples(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """2 W continuations of all beams, drawn without replacement by their cumulative scores.

    They come in the order of their scores, not in that of the draws. Source: transformers'
    `generate(do_sample=True, num_beams=W)`.
    """
    logits = truncate(alone_if_forced(scored), limits, rules)
    vocabulary, batch, beam = logits.shape
    offset = state.score - scored.normaliser
    noisy = logits + offset + _gumbel(logits.shape, state, limits)
    noisy, tokens = best_of_first_axis(noisy, min(2 * beam, vocabulary))  # [B, W, K]
    b, w = (x[..., None] for x in jnp.indices((batch, beam)))
    scores = cumulative(logits[tokens, b, w], scored, state, limits)
    _, index = jax.lax.top_k(noisy.reshape(batch, -1), 2 * beam)
    scores, order = jax.lax.top_k(
        jnp.take_along_axis(scores.reshape(batch, -1), index, 1), 2 * beam
    )
    index = jnp.take_along_axis(index, order, 1)
    tokens = jnp.take_along_axis(tokens.reshape(batch, -1), index, 1)
    return Choice(scores, tokens, index // noisy.shape[2])


def truncate(logits: jax.Array, limits: Limits, rules: Rules) -> jax.Array:
    """-inf for all but the `topk` greatest logits of [V, B, W], and then, of the probabilities
    that these have, for all but the greatest that together reach `topp` (the nucleus of Holtzman
    et al. 2019). Tokens as probable as the last one that is kept are kept as well.
    """
    if 0 < rules.topk < logits.shape[0]:
        best, _ = best_of_first_axis(logits, rules.topk)
        logits = jnp.where(logits >= best[..., -1], logits, -jnp.inf)
    if not rules.nucleus:
        return logits
    # The order of positive floats is that of their bits: the least probability of the nucleus is
    # found bit by bit.
    probabilities = jax.nn.softmax(logits, axis=0)
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def try_bit(i: jax.Array, least: jax.Array) -> jax.Array:
        greater = least | (1 << (30 - i))
        mass = jnp.sum(jnp.where(bits >= greater, probabilities, 0.0), axis=0)
        return jnp.where(mass >= limits.topp, greater, least)

    least = jax.lax.fori_loop(0, 31, try_bit, jnp.zeros(logits.shape[1:], jnp.int32))
    return jnp.where(bits >= least, logits, -jnp.inf)


def _gumbel(shape: tuple[int, ...], state: State, limits: Limits) -> jax.Array:
    """Standard Gumbel noise [V, B, W] for this step."""
    vocabulary, _, beam = shape
    keys = jax.random.wrap_key_data(limits.draws, impl="threefry2x32")  # [B]

    def of_row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, state.step)
        each = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(beam))
        return jax.vmap(lambda k: jax.random.gumbel(k, (vocabulary,)))(each)  # [W, V]

    return jnp.moveaxis(jax.vmap(of_row)(keys), -1, 0)
