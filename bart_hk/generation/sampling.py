"""Random choices: keyed by row, step and beam, never by the batch that a row is in.

Shapes: B batch, W beam width, V vocabulary.

The greatest of log probabilities plus Gumbel noise is a draw from them, and the greatest few are
draws without replacement (Kool et al. 2019). What is drawn from is what the edits and `truncate`
left, normalised anew; what a token scores is its own log probability, as in fairseq, however few
tokens it was drawn from, unless the rules ask for that to be normalised, too.
"""

import jax
import jax.numpy as jnp

from bart_hk.generation.edits import Scored, alone_if_forced, cumulative, renormalised
from bart_hk.generation.ranking import best_of_first_axis
from bart_hk.generation.state import Choice, Limits, Rules, State


def samples(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """One continuation drawn for each beam, so W independent samples of each row."""
    scored, logits = _left(scored, limits, rules)
    batch, beam = logits.shape[1:]
    noisy = logits + _gumbel(logits.shape, state, limits)
    tokens = jnp.argmax(noisy, axis=0).astype(jnp.int32)  # [B, W]
    drawn = jnp.take_along_axis(logits, tokens[None], 0)[0]
    scores = cumulative(drawn[..., None], scored, state, limits)[..., 0]
    return Choice(scores, tokens, jnp.broadcast_to(jnp.arange(beam), (batch, beam)))


def beam_samples(scored: Scored, state: State, limits: Limits, rules: Rules) -> Choice:
    """2 W continuations of all beams, drawn without replacement by their cumulative scores.

    They come in the order of their scores, not in that of the draws. Source: transformers'
    `generate(do_sample=True, num_beams=W)`.
    """
    scored, logits = _left(scored, limits, rules)
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


def _left(scored: Scored, limits: Limits, rules: Rules) -> tuple[Scored, jax.Array]:
    """What may be drawn: logits [V, B, W], and what they are scored by."""
    logits = truncate(alone_if_forced(scored), limits, rules)
    return (renormalised(scored, logits) if rules.renormalised else scored), logits


def truncate(logits: jax.Array, limits: Limits, rules: Rules) -> jax.Array:
    """-inf for all of [V, B, W] but for the tokens that these leave, one after the other, each by
    the probabilities that the one before it left:

    * `topk`: the greatest so many logits;
    * `topp`: the most probable tokens that together reach that (the nucleus of Holtzman et al.
      2019);
    * `min_p`: those at least so probable, as a share of the greatest probability (Nguyen et al.
      2024);
    * `typical_p`: those whose surprise is nearest to the entropy and that together reach that
      (Meister et al. 2023);
    * `epsilon_cutoff`: those at least so probable; `eta_cutoff` e: at least min(e, sqrt(e)
      exp(-entropy)) (Hewitt et al. 2022).

    Ties with the last token that is kept are kept as well. Each leaves at least one token, and with
    beams two, for one may be </s>.
    """
    fewest = 2 if rules.method == "beam_sampling" else 1

    def keep(kept: jax.Array, order: jax.Array) -> jax.Array:
        """The logits of what is kept, and of the first in that order."""
        if fewest == 1:
            least = jnp.max(order, axis=0)
        else:
            least = best_of_first_axis(order, fewest)[0][..., -1]
        return jnp.where(kept | (order >= least), logits, -jnp.inf)

    if 0 < rules.topk < logits.shape[0]:
        best, _ = best_of_first_axis(logits, max(rules.topk, fewest))
        logits = jnp.where(logits >= best[..., -1], logits, -jnp.inf)
    if rules.nucleus:
        probabilities = jax.nn.softmax(logits, axis=0)
        logits = keep(_reaching(_bits(probabilities), probabilities, limits.topp), logits)
    if limits.min_p is not None:
        logits = keep(logits >= jnp.max(logits, axis=0) + jnp.log(limits.min_p), logits)
    if limits.typical_p is not None:
        log_probs = jax.nn.log_softmax(logits, axis=0)
        strange = jnp.abs(-log_probs - _entropy(log_probs))
        order = _bits(jnp.float32(jnp.inf)) - _bits(strange)
        logits = keep(_reaching(order, jnp.exp(log_probs), limits.typical_p), -strange)
    if limits.epsilon_cutoff is not None:
        logits = keep(jax.nn.softmax(logits, axis=0) >= limits.epsilon_cutoff, logits)
    if limits.eta_cutoff is not None:
        log_probs, eta = jax.nn.log_softmax(logits, axis=0), limits.eta_cutoff
        least = jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-_entropy(log_probs)))
        logits = keep(jnp.exp(log_probs) >= least, logits)
    return logits


def _entropy(log_probs: jax.Array) -> jax.Array:
    """[V, B, W] -> [B, W]."""
    terms = jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0)
    return -jnp.sum(terms, axis=0)


def _bits(x: jax.Array) -> jax.Array:
    """int32 numbers in the order of positive floats."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _reaching(order: jax.Array, probabilities: jax.Array, mass: jax.Array) -> jax.Array:
    """Which of [V, B, W] are the greatest, by an int32 `order` from 0, that reach a mass."""

    # The last that is needed is found bit by bit.
    def try_bit(i: jax.Array, least: jax.Array) -> jax.Array:
        greater = least | (1 << (30 - i))
        reached = jnp.sum(jnp.where(order >= greater, probabilities, 0.0), axis=0)
        return jnp.where(reached >= mass, greater, least)

    least = jax.lax.fori_loop(0, 31, try_bit, jnp.zeros(order.shape[1:], jnp.int32))
    return order >= least


def _gumbel(shape: tuple[int, ...], state: State, limits: Limits) -> jax.Array:
    """Standard Gumbel noise [V, B, W] for this step."""
    vocabulary, _, beam = shape
    keys = jax.random.wrap_key_data(limits.draws, impl="threefry2x32")  # [B]

    def of_row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, state.step)
        each = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(beam))
        return jax.vmap(lambda k: jax.random.gumbel(k, (vocabulary,)))(each)  # [W, V]

    return jnp.moveaxis(jax.vmap(of_row)(keys), -1, 0)
