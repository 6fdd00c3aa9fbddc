"""What a student learns from its teacher's outputs beside its own task: knowledge distillation.

Source: Hinton et al. 2015 (soft targets); Sanh et al. 2019 (the weights); Shleifer and Rush 2020,
section 3.2 (hidden states). Shapes: B rows, S source tokens, T target tokens, D model width, C
classes or V tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bart_hk.model import DecoderOutput, EncoderOutput


class Answers(NamedTuple):
    """What one pass of a model gives for a batch.

    Attributes:
        logits: float32 [B, T, V] of a text; of a head [B, C], [B, T, C] or, of an answer's first
            and last token, [2, B, T].
        weights: how much each place counts in the loss: bool or float32, without the last axis.
        encoded, decoded: what the two sides gave; with hidden states where they were asked for.
        target_mask: bool [B, T], True at the tokens that the decoder reads.
    """

    logits: jax.Array
    weights: jax.Array
    encoded: EncoderOutput
    decoded: DecoderOutput
    target_mask: jax.Array


def soft_cross_entropy(
    student: jax.Array, teacher: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """How far the student's distribution is from the teacher's, both softened: the summed
    Kullback-Leibler divergence, times the temperature's square, so that its gradient does not
    shrink with it; in nats, float32 scalar.

    Args:
        student, teacher: logits [..., V].
        weights: [...], 0 or False for places that do not count.
        temperature: above 0.

    Source: Hinton et al. 2015, section 2.
    """
    p, q = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        for logits in (teacher, student)
    )
    each = (jnp.exp(p) * (p - q)).sum(-1)
    return (each * weights).sum() * temperature**2


def hidden_loss(
    student: Sequence[jax.Array],
    teacher: Sequence[jax.Array],
    layers: Sequence[int],
    mask: jax.Array,
    normalize: bool = False,
) -> jax.Array:
    """The mean squared difference of hidden states over real tokens and width, summed over the
    student's layers; float32 scalar.

    Args:
        student, teacher: hidden states [B, T, D] as `BART.encode` and `decode` return them: the
            embedding, then each layer's output.
        layers: of each of the student's layers, the number of the teacher's that it is to be like.
        mask: bool [B, T], True at real tokens.
        normalize: compares states of mean 0 and variance 1 (over D).
    """
    total = jnp.float32(0)
    for mine, number in zip(student[1:], layers, strict=True):
        pair = [x.astype(jnp.float32) for x in (mine, teacher[number + 1])]
        if normalize:
            pair = [jax.nn.standardize(x, epsilon=1e-5) for x in pair]
        squares = jnp.square(pair[0] - pair[1]).mean(-1)
        total += jnp.where(mask, squares, 0).sum() / jnp.maximum(mask.sum(), 1)
    return total


def soft_binary_cross_entropy(
    student: jax.Array, teacher: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """`soft_cross_entropy` of classes that do not exclude each other: the sum over rows of the mean
    over classes; logits [B, C], weights [B]."""
    found: Any = 0.0
    for sign in (1.0, -1.0):
        p, q = (
            jax.nn.log_sigmoid(sign * logits.astype(jnp.float32) / temperature)
            for logits in (teacher, student)
        )
        found += jnp.exp(p) * (p - q)
    return (found.mean(-1) * weights).sum() * temperature**2
