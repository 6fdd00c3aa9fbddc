"""Losses as sums; whoever sums over batches and hosts divides once, by the count of them all."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """fairseq's (label-smoothed) cross-entropy, in nats.

    With V classes, the target has 1 - eps and every other class eps / (V - 1).
    Source: fairseq `criterions/label_smoothed_cross_entropy.py`.

    Args:
        logits: [..., V], any float dtype; computed in float32.
        targets: int32 [...]; those that the mask leaves out may have any value.
        mask: bool [...], True = counts.
        label_smoothing: eps in [0, 1).

    Returns:
        The summed loss and the summed negative log-likelihood, float32 scalars.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    classes = logp.shape[-1]
    safe = jnp.where(mask, targets, 0)
    nll = -jnp.take_along_axis(logp, safe[..., None], axis=-1)[..., 0]
    loss = nll
    if label_smoothing:
        share = label_smoothing / (classes - 1)
        loss = (1 - label_smoothing - share) * nll - share * logp.sum(-1)
    return jnp.where(mask, loss, 0).sum(), jnp.where(mask, nll, 0).sum()


def squared_error(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The summed squared error, float32 scalar; predictions, targets and mask are [...]."""
    errors = jnp.square(predictions.astype(jnp.float32) - targets)
    return jnp.where(mask, errors, 0).sum()
