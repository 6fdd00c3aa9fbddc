"""Losses as sums; whoever sums over batches and hosts divides once, by the count of them all."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bart_hk.data.readers import DataError
from bart_hk.model import BART, Params


@dataclass
class CrossEntropyConfig:
    """Of tasks that write a text. Source: fairseq `criterions/cross_entropy.py`."""

    _name: str = "cross_entropy"
    # The divisor of losses and gradients: target sentences instead of target tokens.
    sentence_avg: bool = False
    report_accuracy: bool = False  # of the next token; fairseq has it in the smoothed one alone


@dataclass
class LabelSmoothedCrossEntropyConfig(CrossEntropyConfig):
    """fairseq `criterions/label_smoothed_cross_entropy.py`.

    Prefix tokens that are ignored still count in the divisor, as in fairseq.
    """

    _name: str = "label_smoothed_cross_entropy"
    label_smoothing: float = 0.0
    ignore_prefix_size: int = 0  # first target tokens without a loss (a language tag)


def sequence_loss(
    bart: BART,
    params: Params,
    key: jax.Array | None,
    batch: dict[str, jax.Array],
    criterion: CrossEntropyConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The summed loss, in nats, of writing `target`; padding is left out. Traced.

    Args:
        key: turns dropout on; None is evaluation.
        batch: src_tokens int32 [B, S], prev_output_tokens and target int32 [B, T], right-padded.
            A row of padding alone counts nowhere.

    Returns:
        The loss, float32, and sums: `count` (what to divide by: target tokens or sentences),
        `nll_loss` (without smoothing), `tokens` (of targets), and where asked for `correct` and
        `predicted` (the tokens that had a loss).
    """
    keys = (None, None) if key is None else jax.random.split(key)
    encoded = bart.encode(params, batch["src_tokens"], key=keys[0])
    decoded = bart.decode(params, batch["prev_output_tokens"], encoded, key=keys[1])
    logits, target = bart.project(params, decoded.features), batch["target"]
    real = target != bart.config.pad_token_id
    smoothing, ignored = 0.0, 0
    if isinstance(criterion, LabelSmoothedCrossEntropyConfig):
        smoothing, ignored = criterion.label_smoothing, criterion.ignore_prefix_size
    counted = real & (jnp.arange(target.shape[1]) >= ignored)
    loss, nll = cross_entropy(logits, target, counted, smoothing)
    tokens = real.sum()
    sums = {
        "count": real.any(axis=1).sum() if criterion.sentence_avg else tokens,
        "nll_loss": nll,
        "tokens": tokens,
    }
    if criterion.report_accuracy:
        correct = (logits.argmax(-1) == target) & counted
        sums |= {"correct": correct.sum(), "predicted": counted.sum()}
    return loss, sums


def check(criterion: CrossEntropyConfig) -> None:
    """Raises DataError for a value that makes no sense."""
    if not isinstance(criterion, LabelSmoothedCrossEntropyConfig):
        return
    if not 0 <= criterion.label_smoothing < 1:
        raise DataError(f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)")
    if criterion.ignore_prefix_size < 0:
        raise DataError(
            f"criterion.ignore_prefix_size={criterion.ignore_prefix_size} must not be negative"
        )


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
