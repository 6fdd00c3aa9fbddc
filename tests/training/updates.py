"""Our updates of a small model, and how they compare with the real fairseq's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.config import DROPOUT_RATES, BARTConfig
from bart_hk.model import BART
from bart_hk.tasks import losses
from bart_hk.training import optim
from bart_hk.training.step import EMAConfig, Step

CRITERIA = {
    "cross_entropy": losses.CrossEntropyConfig,
    "label_smoothed_cross_entropy": losses.LabelSmoothedCrossEntropyConfig,
}
TOLERANCE = 1e-5


def part(arrays: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The entries `kind/NAME` as NAME."""
    return {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{kind}/")}


def check_case(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Makes a recorded case's updates, and compares everything that fairseq gave."""
    config = BARTConfig(**case["fields"]).replace(**dict.fromkeys(DROPOUT_RATES, 0.0))
    bart = BART(config)
    criterion = CRITERIA[case["criterion"]["_name"]](**case["criterion"])
    before, _ = from_fairseq(part(arrays, "before"), config)
    params = jax.tree.map(jnp.array, before)  # the updates overwrite theirs
    updates = [[_batch(ids) for ids in update] for update in case["updates"]]

    def loss(params: Any, key: jax.Array, batch: Any) -> Any:
        return losses.sequence_loss(bart, params, key, batch, criterion)

    key = jax.random.key(0)
    given = [loss(params, key, batch) for batches in updates for batch in batches]
    for ours, theirs in zip(given, case["criteria"], strict=True):
        _check_sums(*ours, theirs)

    rate = optim.schedule(
        optim.PolynomialDecayConfig(**case["lr_scheduler"]), case["lr"], total=len(updates)
    )
    adam = optim.optimizer(optim.AdamConfig(**case["optimizer"]), rate)
    ema = EMAConfig(**case.get("ema", {}))
    step = Step(loss, adam, case["optimization"].get("clip_norm", 0.0), key, ema)
    state = step.init(params)
    for update, batches in enumerate(updates):
        assert abs(float(rate(update)) - case["rates"][update]) < 1e-9
        state, sums = step.update(state, update, batches)
        np.testing.assert_allclose(sums["gnorm"], case["gnorm"][update], rtol=1e-5)
    close(state["params"], part(arrays, "weights"), config)
    pairs = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state["params"])
    moved = max(jax.tree.leaves(pairs))
    assert moved > 100 * TOLERANCE  # else nothing was compared
    if "ema" in case:
        close(state["ema"], part(arrays, "ema"), config)


def _batch(ids: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.asarray(rows, np.int32) for name, rows in ids.items()}


def _check_sums(loss: jax.Array, sums: dict[str, jax.Array], theirs: dict[str, float]) -> None:
    """Ours against the logging output of fairseq's criterion, in nats."""
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(sums["nll_loss"], theirs.get("nll_loss", theirs["loss"]), rtol=1e-5)
    assert int(sums["count"]) == theirs["sample_size"]
    assert int(sums["tokens"]) == theirs["ntokens"]
    if "total" in theirs:
        assert (int(sums["correct"]), int(sums["predicted"])) == (
            theirs["n_correct"],
            theirs["total"],
        )


def close(params: Any, state: dict[str, np.ndarray], config: BARTConfig) -> None:
    """Our parameters against a fairseq state."""
    expected, _ = from_fairseq(state, config)
    for path, module in expected.items():
        for name, array in module.items():
            np.testing.assert_allclose(
                params[path][name], array, rtol=0, atol=TOLERANCE, err_msg=f"{path}/{name}"
            )
