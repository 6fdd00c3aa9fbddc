"""What keeps latents near their prior N(0, I): maximum mean discrepancy, or the KL of a real VAE.

Source: Zhao et al. 2017 (InfoVAE) and Fraser Greenlee's T5-VAE for the discrepancy; Kingma and
Welling 2014 and Kingma et al. 2016 (free bits) for the divergence. Shapes: B rows, n latent tokens
of Z numbers.
"""

import jax
import jax.numpy as jnp

from bart_hk.model import Latents


def mmd(
    samples: jax.Array, prior: jax.Array, mask: jax.Array, bandwidth: float | None = None
) -> jax.Array:
    """The squared maximum mean discrepancy between samples and draws from the prior.

        E k(p, p') + E k(s, s') - 2 E k(s, p),   k(x, y) = exp(-|x - y|^2 / bandwidth)

    Pairs of a sample with itself count, as in T5-VAE. Its bandwidth is Z^2, for which N(0, I) is
    one point: of 1,000 numbers, samples that are all zero are at 2e-5 and samples of the prior
    itself at 1e-5 to 2e-5. With Z, the default, they are at 0.40 and 0.008 (256 samples).

    Args:
        samples, prior: float [N, Z].
        mask: bool [N]; samples that count.
        bandwidth: above 0; Z if None.

    Returns:
        A float32 scalar, at least 0 but for rounding.
    """
    width = jnp.float32(samples.shape[1] if bandwidth is None else bandwidth)
    weights = mask.astype(jnp.float32) / jnp.maximum(mask.sum(), 1)
    x, p = samples.astype(jnp.float32), prior.astype(jnp.float32)

    def mean_kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        squares = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1) - 2 * a @ b.T
        # expm1, and the sum of the three in its scale: a wide kernel is 1 - something small.
        return weights @ jnp.expm1(-jnp.maximum(squares, 0) / width) @ weights

    return mean_kernel(p, p) + mean_kernel(x, x) - 2 * mean_kernel(x, p)


def mmd_of_latents(
    latents: jax.Array, real: jax.Array, key: jax.Array, bandwidth: float | None = None
) -> jax.Array:
    """`mmd` of latents [B, n, Z], every latent token a sample; `real` is bool [B]."""
    rows, tokens, size = latents.shape
    samples = latents.reshape(rows * tokens, size)
    prior = jax.random.normal(key, samples.shape, jnp.float32)
    return mmd(samples, prior, jnp.repeat(real, tokens), bandwidth)


def kl(latents: Latents, real: jax.Array, free_bits: float = 0.0) -> jax.Array:
    """KL(q | N(0, I)) of a row's latents in nats, the mean over rows; float32 scalar.

    Args:
        latents: with variances.
        real: bool [B]; rows that count.
        free_bits: nats that each of the n Z numbers may have for nothing: its mean over the rows is
            raised to that (Kingma et al. 2016, appendix C.8, with a group for every number).
    """
    assert latents.log_variance is not None  # the task has looked
    log_variance = latents.log_variance
    each = (jnp.square(latents.mean) + jnp.exp(log_variance) - 1 - log_variance) / 2
    weights = real.astype(jnp.float32) / jnp.maximum(real.sum(), 1)
    means = jnp.einsum("b,bnz->nz", weights, each)
    return jnp.maximum(means, free_bits).sum()


def sigmoid_weight(update: jax.Array, slope: float = 0.0025, offset: float = 6.25) -> jax.Array:
    """sigmoid(slope * update - offset): 0.002 at first and a half at update 2,500 (T5-VAE)."""
    return jax.nn.sigmoid(slope * update.astype(jnp.float32) - offset)
