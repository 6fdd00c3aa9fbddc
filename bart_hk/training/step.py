"""One update, compiled: gradients summed over its batches, clipping, the optimiser, the average.

Nothing here knows of files or epochs; `bart_hk.training.loop` drives it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bart_hk.tasks import Tree
from bart_hk.training import optim

# (params, key, batch, *given) -> the summed loss and sums to log, `count` (its divisor) among them.
# With the batch's arrays comes "update", an int32 scalar: how many updates were done before.
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclass
class EMAConfig:
    """An exponential moving average of the parameters. fairseq `models/ema/ema.py`; float32.

    Where it is stored it is the model that is validated and written; training goes on with the
    parameters themselves, and the state holds both. (fairseq validates the parameters, and keeps
    the average in `extra_state` of its checkpoints.)
    """

    store_ema: bool = False
    ema_decay: float = 0.9999
    ema_start_update: int = 0  # up to this update it is a copy of the parameters
    ema_update_freq: int = 1  # updates between two steps of the average


class Step:
    """The compiled functions of a run.

    The state is a dictionary: `params`, `optimizer` (optax's) and, where asked for, `ema`.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        clip_norm: float,
        key: jax.Array,
        ema: EMAConfig | None = None,
        given: tuple[Any, ...] = (),
    ) -> None:
        """`key` is the run's; a batch's is made of it, the update's and the batch's number. `given`
        are arrays that the loss reads and that do not change, such as a teacher's parameters. The
        compiled functions take both as arguments: a constant would be stored in each, and another
        seed would compile them again."""
        self._loss, self._optimizer, self._clip_norm, self._key = loss, optimizer, clip_norm, key
        self._ema, self._given = ema or EMAConfig(), given
        self._accumulate = jax.jit(self._accumulated, donate_argnums=0)
        self._apply = jax.jit(self._applied, donate_argnums=(0, 1))
        self._whole = jax.jit(self._made_of_one, donate_argnums=0)
        self._totals: Any = None

    def init(self, params: Tree) -> dict[str, Any]:
        """The state before the first update."""
        state = {"params": params, "optimizer": self._optimizer.init(params)}
        if self._ema.store_ema:
            state["ema"] = jax.tree.map(lambda a: jnp.array(a, copy=True), params)
        return state

    def update(
        self, state: dict[str, Any], update: int, batches: list[Any]
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """The state after one update, and the sums over its batches with `gnorm`, not waited for.

        Args:
            state: is overwritten.
            update: how many were done before.
            batches: whose gradients are summed and divided once, by the sum of `count`.
        """
        number, key = jnp.int32(update), jax.random.fold_in(self._key, update)
        if len(batches) == 1:
            return self._whole(state, key, number, batches[0], self._given)
        for micro, batch in enumerate(batches):
            if self._totals is None:
                self._totals = self._zeros(state["params"], key, batch)
            self._totals = self._accumulate(
                self._totals, state["params"], key, number, jnp.int32(micro), batch, self._given
            )
        state, self._totals, sums = self._apply(state, self._totals, number)
        return state, sums

    # --- Traced -----------------------------------------------------------------------------------

    def _of_batch(
        self,
        params: Tree,
        key: jax.Array,
        update: jax.Array,
        micro: jax.Array,
        batch: Any,
        given: Any,
    ) -> Any:
        """A batch's summed gradients and sums; `key` is the update's."""
        key = jax.random.fold_in(key, micro)
        whole = jax.value_and_grad(self._loss, has_aux=True)
        (value, sums), grads = whole(params, key, {**batch, "update": update}, *given)
        return {"grads": grads, "sums": {"loss": value, **sums}}

    def _accumulated(self, totals: Any, *of_batch: Any) -> Any:
        """Adds a batch's gradients and sums (see `_of_batch`) to those of the update so far."""
        return jax.tree.map(jnp.add, totals, self._of_batch(*of_batch))

    def _made_of_one(
        self, state: dict[str, Any], key: jax.Array, update: jax.Array, batch: Any, given: Any
    ) -> Any:
        """A whole update of a single batch: its gradients are never stored beside their totals."""
        totals = self._of_batch(state["params"], key, update, jnp.int32(0), batch, given)
        return self._changed(state, totals, update)

    def _applied(self, state: dict[str, Any], totals: Any, update: jax.Array) -> Any:
        """One update from the totals, which come back as zeros; and what is to be logged."""
        new, sums = self._changed(state, totals, update)
        return new, jax.tree.map(jnp.zeros_like, totals), sums

    def _changed(self, state: dict[str, Any], totals: Any, update: jax.Array) -> Any:
        """The state after an update of these totals, and what is to be logged."""
        params, sums = state["params"], totals["sums"]
        # One division, after all sums. Nothing counts where noise has left every token as it was.
        count = jnp.where(sums["count"] == 0, 1, sums["count"])
        grads = jax.tree.map(lambda g: g / count, totals["grads"])
        grads, norm = optim.clip_by_norm(grads, self._clip_norm)
        changes, opt_state = self._optimizer.update(grads, state["optimizer"], params)
        new = {"params": optax.apply_updates(params, changes), "optimizer": opt_state}
        if self._ema.store_ema:
            new["ema"] = self._averaged(state["ema"], new["params"], update + 1)
        return new, {**sums, "gnorm": norm}

    def _averaged(self, average: Tree, params: Tree, update: jax.Array) -> Tree:
        """The moving average after update number `update`, counted from 1."""
        config = self._ema
        decay = jnp.where(update < config.ema_start_update, 0.0, config.ema_decay)
        decay = jnp.where(update % config.ema_update_freq == 0, decay, 1.0)
        return jax.tree.map(lambda a, p: a * decay + p * (1 - decay), average, params)

    def _zeros(self, params: Tree, key: jax.Array, batch: Any) -> Any:
        number = jnp.int32(0)
        shapes = jax.eval_shape(self._of_batch, params, key, number, number, batch, self._given)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
