"""Adam and the learning-rate schedules, with fairseq's values, as optax transforms.

`optimizer(config, schedule)` gives a transform that already holds the learning rate. Update k
(0-based) uses schedule(k), so with a warm-up the first update uses rate 0, as in fairseq.
"""

import ast
import dataclasses
import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

# A Python int gives a value to print, a traced int32 one to use inside a step.
Schedule = Callable[[Any], Any]


class AdamEpsilon(enum.StrEnum):
    """Where Adam's epsilon is added."""

    fairseq = "fairseq"  # to sqrt(v), before bias correction
    optax = "optax"  # to sqrt(v / (1 - b2^t)), as in the paper, optax and torch


@dataclass
class AdamConfig:
    """fairseq `optim/adam.py`. Weight decay is decoupled and takes every parameter."""

    _name: str = "adam"
    adam_betas: Any = dataclasses.field(default_factory=lambda: [0.9, 0.999])  # or "(0.9, 0.999)"
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    epsilon: AdamEpsilon = AdamEpsilon.fairseq


@dataclass
class PolynomialDecayConfig:
    """Linear warm-up, then (lr - end) * (1 - progress)^power + end. fairseq's `polynomial_decay`.

    Where `warmup_updates` is not given it is `warmup_ratio` of all updates: the 6 % of the
    published GLUE recipes. `total_num_update` 0 means the whole run.
    """

    _name: str = "polynomial_decay"
    warmup_updates: int | None = None
    warmup_ratio: float = 0.06
    end_learning_rate: float = 0.0
    power: float = 1.0
    total_num_update: int = 0


@dataclass
class InverseSqrtConfig:
    """Linear warm-up from `warmup_init_lr` (negative: 0), then lr * sqrt(warmup / update)."""

    _name: str = "inverse_sqrt"
    warmup_updates: int = 4000
    warmup_init_lr: float = -1.0


@dataclass
class CosineConfig:
    """Warm restarts (Loshchilov and Hutter 2017): the rate falls by half a cosine in each period,
    periods grow by `t_mult` and the rates shrink by `lr_shrink`. fairseq's `cosine`.

    Without `lr_period_updates` one period is what the warm-up leaves of the run.
    """

    _name: str = "cosine"
    warmup_updates: int = 0
    warmup_init_lr: float = -1.0  # negative: min_lr
    min_lr: float = 0.0
    t_mult: float = 1.0
    lr_period_updates: float = -1.0
    lr_shrink: float = 0.1


@dataclass
class FixedConfig:
    """A constant rate after a linear warm-up that starts at lr / warmup_updates."""

    _name: str = "fixed"
    warmup_updates: int = 0


OPTIMIZERS = {"adam": AdamConfig}
LR_SCHEDULERS = {
    "polynomial_decay": PolynomialDecayConfig,
    "inverse_sqrt": InverseSqrtConfig,
    "cosine": CosineConfig,
    "fixed": FixedConfig,
}


def depends_on_total(config: Any) -> bool:
    """Whether a schedule is stretched over the whole run."""
    if config._name == "polynomial_decay":
        return config.total_num_update < 1
    return config._name == "cosine" and config.lr_period_updates <= 0


def schedule(config: Any, lr: float, total: int) -> Schedule:
    """The learning rate as a function of the number of updates done.

    Args:
        config: one of the `LR_SCHEDULERS`' configs.
        lr: the peak.
        total: updates of the whole run, for the schedules that end with it; 0 where nobody knows.

    Raises:
        ValueError: the values contradict each other.
    """
    kind = config._name
    if kind == "polynomial_decay":
        return _polynomial_decay(config, lr, total)
    if kind == "inverse_sqrt":
        return _inverse_sqrt(config, lr)
    if kind == "cosine":
        return _cosine(config, lr, total)
    return _fixed(config, lr)


def _polynomial_decay(config: PolynomialDecayConfig, lr: float, total: int) -> Schedule:
    total = config.total_num_update or total
    if total < 1:
        raise ValueError(
            "lr_scheduler.polynomial_decay needs an end: set optimization.max_update, "
            "optimization.max_epoch or lr_scheduler.total_num_update"
        )
    warmup = config.warmup_updates
    if warmup is None:
        warmup = round(config.warmup_ratio * total)
    end, power = config.end_learning_rate, config.power
    _check_warmup(warmup, total)

    def rate(n: Any) -> Any:
        left = jnp.clip(1 - (n - warmup) / (total - warmup), 0.0, 1.0)
        decayed = (lr - end) * left**power + end
        return jnp.where(n <= warmup, lr * n / warmup, decayed) if warmup else decayed

    return rate


def _check_warmup(warmup: int, total: int) -> None:
    if warmup >= total:
        raise ValueError(f"lr_scheduler.warmup_updates={warmup} must be below the {total} updates")


def _inverse_sqrt(config: InverseSqrtConfig, lr: float) -> Schedule:
    warmup = config.warmup_updates
    if warmup < 1:
        raise ValueError("lr_scheduler.warmup_updates of inverse_sqrt must be at least 1")
    start = max(config.warmup_init_lr, 0.0)

    def rate(n: Any) -> Any:
        decayed = lr * warmup**0.5 / jnp.sqrt(jnp.maximum(n, 1))
        return jnp.where(n < warmup, start + n * (lr - start) / warmup, decayed)

    return rate


def _cosine(config: CosineConfig, lr: float, total: int) -> Schedule:
    warmup, mult = config.warmup_updates, config.t_mult
    period = config.lr_period_updates
    if period <= 0:
        if total < 1:
            raise ValueError(
                "lr_scheduler.cosine needs a period: set optimization.max_update, "
                "optimization.max_epoch or lr_scheduler.lr_period_updates"
            )
        _check_warmup(warmup, total)
        period = total - warmup
    low = min(config.min_lr, lr)
    start = config.warmup_init_lr if config.warmup_init_lr >= 0 else low

    def begin(i: Any) -> Any:
        return (mult**i - 1) / (mult - 1) * period

    def rate(n: Any) -> Any:
        past = jnp.maximum(n - warmup, 0)
        if mult == 1:
            i = jnp.floor(past / period)
            progress = past / period - i
        else:
            i = jnp.floor(jnp.log1p(past / period * (mult - 1)) / math.log(mult))
            i += past >= begin(i + 1)  # the float32 logarithm may fall just short of a restart
            progress = (past - begin(i)) / (mult**i * period)
        shrink = config.lr_shrink**i
        # 1 + cos(pi x) without its cancellation near x = 1.
        cosine = 2 * jnp.sin(math.pi / 2 * (1 - progress)) ** 2
        falling = shrink * (low + 0.5 * (lr - low) * cosine)
        warming = start + n * (lr - start) / max(warmup, 1)
        return jnp.where(n < warmup, warming, falling)

    return rate


def _fixed(config: FixedConfig, lr: float) -> Schedule:
    warmup = max(config.warmup_updates, 1)
    return lambda n: lr * jnp.minimum(n + 1, warmup) / warmup


def scale_by_fairseq_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction with fairseq's epsilon: m * sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps).

    Source: fairseq `optim/adam.py`, `step`.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params)
        )

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> Any:
        del params
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, grads, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, grads, state.nu)
        count = state.count + 1
        # 1 - b^t through expm1: in float32 the difference itself loses five digits at small t.
        correction1, correction2 = (-jnp.expm1(count * math.log(b)) if b else 1.0 for b in (b1, b2))
        scale = jnp.sqrt(correction2) / correction1
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def optimizer(config: AdamConfig, rate: Schedule) -> optax.GradientTransformation:
    """Adam with decoupled weight decay: p - lr * (direction + weight_decay * p).

    Raises:
        ValueError: betas that are not two numbers in [0, 1).
    """
    b1, b2 = betas(config.adam_betas)
    if config.epsilon == AdamEpsilon.fairseq:
        direction = scale_by_fairseq_adam(b1, b2, config.adam_eps)
    else:
        direction = optax.scale_by_adam(b1, b2, config.adam_eps)
    return optax.chain(
        direction,
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def betas(value: Any) -> tuple[float, float]:
    """Adam's two numbers; fairseq's command lines and YAML files write them as one string."""
    given = value
    if isinstance(value, str):
        try:
            given = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given = ()
    try:
        b1, b2 = (float(b) for b in given)
    except (TypeError, ValueError):
        raise ValueError(f"optimizer.adam_betas={value!r} must be two numbers") from None
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(f"optimizer.adam_betas={value!r} must be in [0, 1)")
    return b1, b2


def clip_by_norm(grads: Any, clip_norm: float) -> tuple[Any, jax.Array]:
    """Scales gradients to a global norm of at most `clip_norm` (0: only measures).

    The factor is min(1, clip_norm / (norm + 1e-6)), as fairseq's `utils.clip_grad_norm_`.

    Returns:
        The gradients and their norm before, float32 scalar.
    """
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    if clip_norm <= 0:
        return grads, norm
    factor = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * factor, grads), norm
