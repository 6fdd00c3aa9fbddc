"""What latents cost: the discrepancy that sees a collapse, the one that does not, and the KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.model import Latents
from bart_hk.tasks.latent_losses import kl, mmd, mmd_of_latents, sigmoid_weight

D, N = 1000, 256


@pytest.fixture(scope="module")
def drawn() -> list[jax.Array]:
    """Two draws from the prior."""
    keys = jax.random.split(jax.random.key(0), 2)
    return [jax.random.normal(key, (N, D)) for key in keys]


def test_the_default_tells_collapsed_latents_from_healthy_ones(drawn):
    prior, healthy = drawn
    every = jnp.ones(N, bool)
    collapsed = float(mmd(jnp.zeros((N, D)), prior, every))
    noise = float(mmd(healthy, prior, every))
    assert collapsed == pytest.approx(0.40, abs=0.01) and noise == pytest.approx(0.007, abs=0.002)
    # Those that are too near to each other or too wide lie between.
    narrow, wide = (float(mmd(healthy * scale, prior, every)) for scale in (0.5, 1.5))
    assert 5 * noise < narrow < collapsed and 5 * noise < wide < collapsed


def test_the_original_bandwidth_does_not(drawn):
    """At 1,000 numbers all that it sees is sampling noise: the worst latents score better."""
    prior, healthy = drawn
    every = jnp.ones(N, bool)
    collapsed, noise = (
        float(mmd(x, prior, every, float(D) ** 2)) for x in (jnp.zeros((N, D)), healthy)
    )
    assert 0 < collapsed < noise < 3e-5


def test_it_is_the_formula_over_the_rows_that_count():
    rng = np.random.default_rng(1)
    x, p = rng.standard_normal((2, 9, 4)).astype(np.float32)
    mask = np.arange(9) % 3 > 0

    def kernel(a, b, bandwidth):
        return np.exp(-np.square(a[:, None] - b).sum(-1) / bandwidth).mean()

    for bandwidth in (4.0, 16.0, 0.7):
        a, b = x[mask].astype(np.float64), p[mask].astype(np.float64)
        wanted = kernel(a, a, bandwidth) + kernel(b, b, bandwidth) - 2 * kernel(a, b, bandwidth)
        found = mmd(jnp.asarray(x), jnp.asarray(p), jnp.asarray(mask), bandwidth)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(
        mmd(jnp.asarray(x), jnp.asarray(p), jnp.asarray(mask)),
        mmd(jnp.asarray(x), jnp.asarray(p), jnp.asarray(mask), 4.0),
    )
    assert float(mmd(jnp.asarray(x), jnp.asarray(p), jnp.zeros(9, bool))) == 0


def test_every_latent_token_is_a_sample_and_padding_is_none():
    latents = jax.random.normal(jax.random.key(1), (6, 3, 4))
    real, key = jnp.arange(6) < 4, jax.random.key(2)
    prior = jax.random.normal(key, (18, 4))
    wanted = mmd(latents[:4].reshape(12, 4), prior[:12], jnp.ones(12, bool))
    np.testing.assert_allclose(mmd_of_latents(latents, real, key), wanted, atol=1e-6)
    lost = latents.at[4:].set(1e3)
    np.testing.assert_allclose(mmd_of_latents(lost, real, key), wanted, atol=1e-6)
    gradient = jax.grad(lambda z: mmd_of_latents(z, real, key))(latents * 2)
    assert not gradient[4:].any() and np.isfinite(gradient).all()
    # Downhill leads to the prior: latents that are too wide are drawn in.
    assert float((gradient[:4] * latents[:4]).sum()) > 0


def test_kl_is_that_of_gaussians():
    mean = jnp.array([[[0.0, 1.0]], [[2.0, -1.0]], [[50.0, 50.0]]])
    log_variance = jnp.log(jnp.array([[[1.0, 0.25]], [[4.0, 1.0]], [[9.0, 9.0]]]))
    latents, real = Latents(mean, log_variance, mean), jnp.array([True, True, False])
    m, v = np.asarray(mean[:2], np.float64), np.exp(np.asarray(log_variance[:2], np.float64))
    each = (m**2 + v - 1 - np.log(v)) / 2
    assert float(kl(latents, real)) == pytest.approx(each.mean(0).sum(), rel=1e-6)
    # Each number has its free bits: those below are raised to them, and have no gradient.
    free = 1.3
    assert each.mean(0).min() < free < each.mean(0).max()
    wanted = np.maximum(each.mean(0), free).sum()
    assert float(kl(latents, real, free)) == pytest.approx(wanted, rel=1e-6)
    gradient = jax.grad(lambda m: kl(latents._replace(mean=m), real, free))(mean)
    below = each.mean(0)[0] < free
    assert not gradient[:2, 0, below].any() and gradient[:2, 0, ~below].any()


def test_the_weight_comes_in_as_in_the_original():
    weights = [float(sigmoid_weight(jnp.int32(step))) for step in (0, 2500, 5000)]
    assert weights == pytest.approx([0.0019267, 0.5, 0.9980733], abs=1e-6)
