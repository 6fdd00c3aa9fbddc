import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from bart_hk.tasks.losses import cross_entropy, squared_error

PROBABILITIES = np.array(
    [
        [0.05, 0.05, 0.10, 0.05, 0.30, 0.40, 0.05],
        [0.05, 0.10, 0.20, 0.05, 0.20, 0.30, 0.10],
        [0.05, 0.15, 0.30, 0.05, 0.05, 0.20, 0.20],
        [0.05, 0.05, 0.10, 0.05, 0.30, 0.40, 0.05],
    ]
)


def test_cross_entropy_without_smoothing_is_the_negative_log_likelihood():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    targets = np.array([0, 2, 1, 1, 0], np.int32)
    mask = np.array([True, True, False, True, True])
    loss, nll = cross_entropy(jnp.array(logits), targets, mask)
    expected = -log_softmax(logits, -1)[np.arange(5), targets][mask].sum()
    assert float(loss) == float(nll) == pytest.approx(expected, rel=1e-6)


def test_smoothing_is_fairseqs():
    # label_smoothed_nll_loss of fairseq 0.12.3.1 on these, with ignore_index=1.
    logits = jnp.log(PROBABILITIES)
    for targets, expected in (
        ([4, 2, 1, 5], (4.091753593112042, 3.7297014486341915)),
        ([4, 4, 2, 1], (4.32756255229998, 4.017383521085972)),
    ):
        targets = jnp.array(targets)
        sums = cross_entropy(logits, targets, targets != 1, label_smoothing=0.1)
        np.testing.assert_allclose(sums, expected, rtol=1e-6)


def test_what_the_mask_leaves_out_may_hold_anything():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    mask = jnp.array([True, False])
    loss, _ = cross_entropy(logits, jnp.array([1, -1]), mask, 0.1)
    alone, _ = cross_entropy(logits[:1], jnp.array([1]), mask[:1], 0.1)
    assert float(loss) == float(alone)
    errors = squared_error(jnp.array([1.0, 5.0]), jnp.array([3.0, jnp.nan]), mask)
    assert float(errors) == 4.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_the_gradient_is_the_derived_one(smoothing, weights):
    """The loss has a gradient of its own; here is the formula that jax derives one for."""
    rng = np.random.default_rng(1)
    logits = jnp.array(rng.normal(size=(3, 5, 17)) * 3, jnp.float32)
    targets, mask = jnp.array(rng.integers(0, 17, (3, 5))), jnp.array(rng.random((3, 5)) > 0.3)

    def plain(logits):
        logp = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        share = smoothing / 16
        loss = (1 - smoothing - share) * nll - share * logp.sum(-1)
        return jnp.where(mask, weights[0] * loss + weights[1] * nll, 0).sum()

    def ours(logits):
        loss, nll = cross_entropy(logits, targets, mask, smoothing)
        return weights[0] * loss + weights[1] * nll

    (value, gradient), (known, derived) = (jax.value_and_grad(f)(logits) for f in (ours, plain))
    np.testing.assert_allclose(value, known, rtol=1e-6)
    np.testing.assert_allclose(gradient, derived, atol=1e-6)
