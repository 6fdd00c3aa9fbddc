"""The values named fairseq are what fairseq 0.12.3.1 gives on the same inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bart_hk.training import optim

GRADS = ([0.5, -0.1], [0.0, 0.2], [1.0, 1.0])


def descend(config, lr=0.1):
    transform = optim.optimizer(config, lambda n: lr)
    params = jnp.array([1.0, -2.0])
    state = transform.init(params)
    out = []
    for grads in GRADS:
        updates, state = transform.update(jnp.array(grads), state, params)
        params = optax.apply_updates(params, updates)
        out.append(np.asarray(params))
    return np.stack(out)


def test_adam_is_fairseqs():
    config = optim.AdamConfig(adam_betas=[0.9, 0.98], adam_eps=1e-3, weight_decay=0.01)
    expected = [[0.9003945, -1.9046041], [0.83311248, -1.9380836], [0.75295019, -2.0035822]]
    np.testing.assert_allclose(descend(config), expected, rtol=5e-7)
    config = optim.AdamConfig(adam_betas="(0.9, 0.999)", adam_eps=1e-8, weight_decay=0.1)
    expected = [[0.8900001, -1.8800004], [0.81409431, -1.8978106], [0.72565955, -1.9473481]]
    np.testing.assert_allclose(descend(config), expected, rtol=5e-7)


def test_optax_epsilon_is_optax_adamw():
    config = optim.AdamConfig(adam_eps=1e-3, weight_decay=0.01, epsilon=optim.AdamEpsilon.optax)
    ours = descend(config)
    transform = optax.adamw(0.1, 0.9, 0.999, 1e-3, weight_decay=0.01)
    params = jnp.array([1.0, -2.0])
    state = transform.init(params)
    for expected, grads in zip(ours, GRADS, strict=True):
        updates, state = transform.update(jnp.array(grads), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(expected, params, rtol=1e-6)
    fairseqs = descend(optim.AdamConfig(adam_eps=1e-3, weight_decay=0.01))
    assert np.abs(ours - fairseqs).max() > 1e-3  # the choice changes something


@pytest.mark.parametrize("betas", ["(0.9", [0.9], 0.9, [0.9, 1.0], "(0.9, 'x')"])
def test_betas_are_checked(betas):
    with pytest.raises(ValueError, match="optimizer.adam_betas="):
        optim.optimizer(optim.AdamConfig(adam_betas=betas), lambda n: 0.1)


FAIRSEQ_RATES = [
    (
        optim.PolynomialDecayConfig(warmup_updates=500, total_num_update=20000),
        3e-5,
        {0: 0, 1: 6e-8, 250: 1.5e-5, 500: 3e-5, 501: 2.999846e-5, 10250: 1.5e-5, 20000: 0},
    ),
    (
        optim.PolynomialDecayConfig(
            warmup_updates=100, total_num_update=1000, end_learning_rate=1e-4, power=2.0
        ),
        2e-3,
        {0: 0, 1: 2e-5, 100: 0.002, 101: 0.001995780123, 550: 0.000575, 1000: 1e-4, 1200: 1e-4},
    ),
    (
        optim.InverseSqrtConfig(),
        5e-4,
        {0: 0, 1: 1.25e-7, 2000: 2.5e-4, 4000: 5e-4, 16000: 2.5e-4},
    ),
    (
        optim.InverseSqrtConfig(warmup_updates=10, warmup_init_lr=1e-4),
        1e-3,
        {0: 1e-4, 5: 5.5e-4, 10: 1e-3, 40: 5e-4},
    ),
    (
        optim.CosineConfig(warmup_updates=10, min_lr=1e-5, lr_period_updates=190),
        1e-3,
        {0: 1e-5, 5: 5.05e-4, 10: 1e-3, 100: 5.45876776e-4, 199: 1.006766403e-5, 200: 1e-4}
        | {210: 9.932488452e-5},
    ),
    (
        optim.CosineConfig(
            warmup_updates=10, warmup_init_lr=1e-6, lr_period_updates=100, t_mult=2, lr_shrink=0.5
        ),
        1e-3,
        {0: 1e-6, 5: 5.005e-4, 10: 1e-3, 50: 6.545084972e-4, 109: 2.467198171e-7, 110: 5e-4}
        | {115: 4.992293334e-4, 300: 3.077914851e-6, 310: 2.5e-4, 315: 2.499036295e-4},
    ),
    (optim.FixedConfig(warmup_updates=10), 1e-3, {0: 1e-4, 1: 2e-4, 9: 1e-3, 10: 1e-3, 11: 1e-3}),
    (optim.FixedConfig(), 1e-3, {0: 1e-3, 1: 1e-3}),
]


@pytest.mark.parametrize(("config", "lr", "expected"), FAIRSEQ_RATES)
def test_schedules_are_fairseqs(config, lr, expected):
    rate = optim.schedule(config, lr, total=0)
    compiled = jax.jit(rate)
    for n, value in expected.items():
        assert float(rate(n)) == pytest.approx(value, rel=2e-5, abs=1e-12), n
        assert float(compiled(jnp.int32(n))) == pytest.approx(value, rel=2e-5, abs=1e-12), n


def test_schedules_that_end_with_the_run_take_its_length():
    rate = optim.schedule(optim.PolynomialDecayConfig(warmup_updates=0), 1.0, total=10)
    assert [float(rate(n)) for n in (0, 5, 10)] == [1.0, 0.5, 0.0]
    rate = optim.schedule(optim.PolynomialDecayConfig(), 1.0, total=100)  # 6 % of warm-up
    assert [round(float(rate(n)), 6) for n in (0, 3, 6, 53)] == [0.0, 0.5, 1.0, 0.5]
    rate = optim.schedule(optim.CosineConfig(), 1.0, total=10)
    assert float(rate(5)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("config", "total", "message"),
    [
        (optim.PolynomialDecayConfig(), 0, "polynomial_decay needs an end"),
        (
            optim.PolynomialDecayConfig(warmup_updates=9, total_num_update=9),
            0,
            "must be below the 9",
        ),
        (optim.CosineConfig(), 0, "cosine needs a period"),
        (optim.CosineConfig(warmup_updates=9), 9, "warmup_updates=9 must be below the 9 updates"),
        (optim.InverseSqrtConfig(warmup_updates=0), 0, "must be at least 1"),
    ],
)
def test_contradictions_in_schedules(config, total, message):
    with pytest.raises(ValueError, match=message):
        optim.schedule(config, 1.0, total=total)


def test_the_first_update_of_a_warm_up_changes_nothing():
    rate = optim.schedule(optim.PolynomialDecayConfig(warmup_updates=4), 0.1, total=10)
    transform = optim.optimizer(optim.AdamConfig(), rate)
    params = jnp.ones(3)
    updates, _ = transform.update(jnp.ones(3), transform.init(params), params)
    assert not np.any(updates)


def test_clipping_is_fairseqs():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    clipped, norm = optim.clip_by_norm(grads, 1.0)
    assert float(norm) == 5.0
    np.testing.assert_allclose(clipped["a"], [3 / (5 + 1e-6), 0], rtol=1e-7)
    same, _ = optim.clip_by_norm(grads, 0.0)
    assert same is grads
    unclipped, _ = optim.clip_by_norm(grads, 6.0)
    np.testing.assert_array_equal(unclipped["b"], grads["b"])
