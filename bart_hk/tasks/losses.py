"""Losses as sums; whoever sums over batches and hosts divides once, by the count of them all."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.data.readers import DataError
from bart_hk.model import BART, DecoderOutput, EncoderOutput, Params


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
    # R-Drop (Wu et al. 2021): every batch passes twice, and the two are to agree. 0: once.
    rdrop_alpha: float = 0.0


# fairseq keeps their divisor in the optimization group.
SEQUENCE_CRITERIA: tuple[CrossEntropyConfig, ...] = tuple(
    kind(sentence_avg="${optimization.sentence_avg}")  # type: ignore[arg-type]
    for kind in (CrossEntropyConfig, LabelSmoothedCrossEntropyConfig)
)


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
        batch: src_tokens int32 [B, S], prev_output_tokens and target int32 [B, T], right-padded;
            without what a stack would read that the model does not have. A row of padding alone
            counts nowhere.

    Returns:
        The loss, float32, and sums: `count` (what to divide by: target tokens or sentences),
        `nll_loss` (without smoothing), `tokens` (of targets), and where asked for `correct` and
        `predicted` (the tokens that had a loss).
    """
    target, pad = batch["target"], bart.config.pad_token_id
    _, _, alpha = _smoothing(criterion)
    second = None
    if alpha and key is not None:
        key, second = jax.random.split(key)
    logits = sequence_logits(bart, params, key, batch)
    loss, sums = sequence_loss_of(logits, target, pad, criterion)
    if second is not None:
        other = sequence_logits(bart, params, second, batch)
        again, _ = sequence_loss_of(other, target, pad, criterion)
        counted = counted_tokens(target, pad, criterion)
        # Half of the paper's sum, so that the loss is the plain one where both passes agree.
        loss = (loss + again + alpha * disagreement(logits, other, counted)) / 2
    return loss, sums


def sequence_loss_of(
    logits: jax.Array, target: jax.Array, pad: int, criterion: CrossEntropyConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`sequence_loss` of logits [B, T, V] that are there, without R-Drop. Traced."""
    real = target != pad
    counted = counted_tokens(target, pad, criterion)
    loss, nll = cross_entropy(logits, target, counted, _smoothing(criterion)[0])
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


def counted_tokens(target: jax.Array, pad: int, criterion: CrossEntropyConfig) -> jax.Array:
    """Which tokens of int32 [B, T] have a loss: bool [B, T]."""
    return (target != pad) & (jnp.arange(target.shape[1]) >= _smoothing(criterion)[1])


def sequence_logits(
    bart: BART, params: Params, key: jax.Array | None, batch: dict[str, jax.Array]
) -> jax.Array:
    """Of every target token, [B, T, V]; a key turns dropout on. Traced.

    Where the batch has `places`, int32 [B, T], the target's tokens are those of these positions.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    both = batch.get("src_tokens"), batch.get("prev_output_tokens")
    features = bart.features(params, *both, keys=keys).features
    if "places" in batch:  # before the projection, which is a third of a small model's work
        features = jnp.take_along_axis(features, batch["places"][..., None], axis=1)
    return bart.project(params, features)


def sequence_states(
    bart: BART,
    params: Params,
    key: jax.Array | None,
    batch: dict[str, jax.Array],
    return_all_hiddens: bool = False,
) -> tuple[EncoderOutput, DecoderOutput]:
    """What both sides give for a batch; a key turns dropout on. Traced."""
    keys = (None, None) if key is None else jax.random.split(key)
    encoded = bart.encode(
        params, batch["src_tokens"], key=keys[0], return_all_hiddens=return_all_hiddens
    )
    decoded = bart.decode(
        params,
        batch["prev_output_tokens"],
        encoded,
        key=keys[1],
        return_all_hiddens=return_all_hiddens,
    )
    return encoded, decoded


def sequence_outputs(
    bart: BART, params: Params, batch: dict[str, jax.Array], criterion: CrossEntropyConfig
) -> dict[str, jax.Array]:
    """Sums of each row, [B]: `loss` as the criterion has it, `nll`, `tokens`, and of those that
    have a loss `predicted` and `correct`. Traced."""
    logits, target = sequence_logits(bart, params, None, batch), batch["target"]
    real = target != bart.config.pad_token_id
    smoothing = _smoothing(criterion)[0]
    counted = counted_tokens(target, bart.config.pad_token_id, criterion)
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
    share = smoothing / (logits.shape[-1] - 1) if smoothing else 0.0
    loss = (1 - smoothing - share) * nll - share * logp.sum(-1) if smoothing else nll
    return {
        "loss": jnp.where(counted, loss, 0).sum(1),
        "nll": jnp.where(counted, nll, 0).sum(1),
        "tokens": real.sum(1),
        "predicted": counted.sum(1),
        "correct": (counted & (logits.argmax(-1) == target)).sum(1),
    }


def sequence_metrics(
    outputs: dict[str, np.ndarray], criterion: CrossEntropyConfig
) -> dict[str, float]:
    """Of `sequence_outputs` of all rows: `loss` by the criterion's divisor, `nll_loss` in nats a
    token, its exponential `ppl`, and `accuracy` in percent."""
    sums = {name: float(values.astype(np.float64).sum()) for name, values in outputs.items()}
    nll = sums["nll"] / sums["tokens"]
    return {
        "loss": sums["loss"] / (len(outputs["loss"]) if criterion.sentence_avg else sums["tokens"]),
        "nll_loss": nll,
        "ppl": float(np.exp(min(nll, 700.0))),
        "accuracy": 100 * sums["correct"] / max(sums["predicted"], 1.0),
    }


def _smoothing(criterion: CrossEntropyConfig) -> tuple[float, int, float]:
    """label_smoothing, ignore_prefix_size and rdrop_alpha, where a criterion has them."""
    if isinstance(criterion, LabelSmoothedCrossEntropyConfig):
        return criterion.label_smoothing, criterion.ignore_prefix_size, criterion.rdrop_alpha
    return 0.0, 0, 0.0


def check(criterion: CrossEntropyConfig) -> None:
    """Raises DataError for a value that makes no sense."""
    if not isinstance(criterion, LabelSmoothedCrossEntropyConfig):
        return
    if not 0 <= criterion.label_smoothing < 1:
        raise DataError(f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)")
    for name in ("ignore_prefix_size", "rdrop_alpha"):
        if getattr(criterion, name) < 0:
            value = getattr(criterion, name)
            raise DataError(f"criterion.{name}={value} must not be negative")


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
    return _cross_entropy(logits, targets, mask, label_smoothing)


# With a gradient of its own, one pass over the logits, which are the largest array there is. The
# one that jax derives makes an array of zeros for the targets' places, too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    return _forward(logits, targets, mask, smoothing)[0]


def _forward(logits: jax.Array, targets: jax.Array, mask: jax.Array, smoothing: float) -> Any:
    x = logits.astype(jnp.float32)
    logsumexp = jax.nn.logsumexp(x, axis=-1)
    # Read, not summed over a row of zeros: XLA would write an array of the logits' size for that.
    nll = logsumexp - jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]
    loss = nll
    if smoothing:
        share = smoothing / (x.shape[-1] - 1)
        rest = jnp.sum(logsumexp[..., None] - x, axis=-1)  # -log p, summed over the classes
        loss = (1 - smoothing - share) * nll + share * rest
    sums = jnp.where(mask, loss, 0).sum(), jnp.where(mask, nll, 0).sum()
    return sums, (logits, targets, mask, logsumexp)


def _backward(smoothing: float, stored: Any, cotangents: tuple[jax.Array, jax.Array]) -> Any:
    """d loss / d logits = p - (1 - eps - share) [target] - share; share is 0 for the likelihood."""
    logits, targets, mask, logsumexp = stored
    of_loss, of_nll = (jnp.where(mask, g, 0)[..., None] for g in cotangents)
    share = smoothing / (logits.shape[-1] - 1) if smoothing else 0.0
    x = logits.astype(jnp.float32)
    hit = (1 - smoothing - share) * of_loss + of_nll
    gradient = jnp.exp(x - logsumexp[..., None]) * (of_loss + of_nll) - share * of_loss
    gradient -= jnp.where(_is_target(x, targets), hit, 0)
    return gradient.astype(logits.dtype), None, None


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


_cross_entropy.defvjp(_forward, _backward)


def squared_error(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The summed squared error, float32 scalar; predictions, targets and mask are [...]."""
    errors = jnp.square(predictions.astype(jnp.float32) - targets)
    return jnp.where(mask, errors, 0).sum()


def weighted_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """The summed cross-entropy of rows that do not count alike, in nats; float32 scalar.

    Divide it by the sum of the weights, as torch's `CrossEntropyLoss(weight=...)` does.

    Args:
        logits: [B, C].
        targets: int32 [B].
        weights: float32 [B]; 0 for rows that do not count.
        label_smoothing: as `cross_entropy`'s.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(logp, targets[:, None], axis=1)[:, 0]
    share = label_smoothing / (logits.shape[-1] - 1) if label_smoothing else 0.0
    loss = (1 - label_smoothing - share) * nll - share * logp.sum(1)
    return (loss * weights).sum()


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Of classes that do not exclude each other: the sum over rows of the mean over classes, in
    nats, float32 scalar; so divided by the rows it is torch's `BCEWithLogitsLoss`.

    Args:
        logits: [B, C].
        targets: [B, C], 1 where the class is the row's, else 0.
        mask: bool [B].
    """
    x = logits.astype(jnp.float32)
    each = jnp.maximum(x, 0) - x * targets + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.where(mask, each.mean(1), 0).sum()


def disagreement(one: jax.Array, other: jax.Array, mask: jax.Array) -> jax.Array:
    """R-Drop's term for two passes with different dropout: the mean of the two Kullback-Leibler
    divergences, summed over the places that the mask has; float32 scalar.

    Args:
        one, other: logits [..., V].
        mask: bool or weights [...].

    Source: Wu et al. 2021, equation 1.
    """
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (one, other))
    # KL(p|q) + KL(q|p) = sum (p - q) (log p - log q)
    both = ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1)
    return (both * mask).sum() / 2
