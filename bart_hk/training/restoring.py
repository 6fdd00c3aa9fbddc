"""What a run takes over from another one, beside its model: fairseq's `reset_*` options.

fairseq restores everything from `restore_file` unless told otherwise. Here that is a model most
often, so all four are true unless told otherwise; one that is false makes the run begin with the
training state in `restore_file`, with its parameters rather than with its best model or average:

    reset_optimizer      Adam's moments begin at zero, and the run with update 0. (fairseq's option
                         implies the next one, too.)
    reset_lr_scheduler   updates, and so the learning rate's warm-up and decay, begin at 0; Adam's
                         bias correction goes on with its moments. (fairseq's schedulers hold next
                         to nothing, so there the option does next to nothing.)
    reset_dataloader     the run begins with the first batch of epoch 1. Where it goes on, the data,
                         the task and what plans the batches must be those of the other run.
    reset_meters         no best model yet, and nothing that waits to be logged. Where they go on,
                         the best model so far is copied (unless the optimizer is reset, as in
                         fairseq).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bart_hk.checkpoint import files
from bart_hk.training import state
from bart_hk.training.config import CheckpointConfig, ConfigError

_RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_dataloader", "reset_meters")
# What says which rows are in which batch.
_OF_BATCHES = ("task.", "dataset.", "the data of task.train")
_ALSO_OF_BATCHES = ("common.seed", "optimization.update_freq")
_OF_NEW_MODELS = ("task.tokenizer", "task.vocab_size")  # a restored one brings its own
_LOGS = ("log.jsonl",)


@dataclass
class TakenOver:
    """The state, the fields of `Progress` that go on, and what copies the best model."""

    tree: Any
    progress: dict[str, Any]
    copy_best: Callable[[Path], None]


def take_over(config: CheckpointConfig, tree: Any, identity: dict[str, Any]) -> TakenOver | None:
    """What `checkpoint.reset_*` ask for, or None where only a model is wanted.

    Args:
        tree: the state of a run that begins with the restored model.
        identity: of the run, as its run.json has it.

    Raises:
        ConfigError: there is no such state, it does not fit, or its batches are others.
        ValueError: every state there is damaged.
    """
    kept = [name for name in _RESETS if not getattr(config, name)]
    if not kept:
        return None
    asked = f"checkpoint.{kept[0]}=false"
    if not config.restore_file:
        raise ConfigError(f"{asked} needs checkpoint.restore_file, a run to take the state from")
    run = Path(config.restore_file)
    found = state.peek(run / "training")
    if found is None:
        raise ConfigError(
            f"{asked} asks for a training state, and checkpoint.restore_file={run} has none in "
            f"{run / 'training'}; a run's directory has one, and to begin with a model alone all "
            "reset_* are true"
        )
    old_tree, old = found
    if not config.reset_dataloader:
        _check_batches(run, identity)
    resets_updates = config.reset_optimizer or config.reset_lr_scheduler
    new = _assembled(run, old_tree, tree, config.reset_optimizer, resets_updates)
    progress: dict[str, Any] = {}
    if not resets_updates:
        progress["update"] = old["update"]
    if not config.reset_dataloader:
        progress |= {name: old[name] for name in ("epoch", "batch")}
    if not config.reset_meters:
        progress["window"] = old["window"]
        if not config.reset_optimizer:
            progress |= {name: old[name] for name in ("best", "stale", "valid")}
    has_best = progress.get("best") is not None
    return TakenOver(new, progress, lambda to: _copy_model(run, to) if has_best else None)


def _assembled(
    run: Path, old: dict[str, np.ndarray], tree: Any, new_optimizer: bool, new_updates: bool
) -> Any:
    """The new run's tree with the old one's values, where they go on."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    chosen = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        begins = name.startswith("['optimizer']") and new_optimizer
        # Of the two counts, Adam's is for its bias correction.
        counts = name.startswith("['optimizer']") and name.endswith(".count")
        if begins or (new_updates and counts and name != "['optimizer'][0].count"):
            chosen.append(leaf)
            continue
        if name.startswith("['ema']") and name not in old:  # it begins as a copy
            name = name.replace("['ema']", "['params']", 1)
        found = old.get(name)
        if found is None or found.shape != leaf.shape:
            shape = None if found is None else found.shape
            raise ConfigError(
                f"the training state of checkpoint.restore_file={run} does not fit: {name} has "
                f"shape {shape} there, and {leaf.shape} here; set the reset_* to true"
            )
        chosen.append(found.astype(leaf.dtype))
    return jax.tree.unflatten(structure, chosen)


def _check_batches(run: Path, identity: dict[str, Any]) -> None:
    theirs = files.read_json(run / "training" / "run.json")
    for key in sorted((theirs.keys() & identity.keys()) - set(_OF_NEW_MODELS)):
        counts = key.startswith(_OF_BATCHES) or key in _ALSO_OF_BATCHES
        if counts and theirs[key] != identity[key]:
            raise ConfigError(
                f"checkpoint.reset_dataloader=false goes on within an epoch of {run}, which had "
                f"{key}={theirs[key]}, and now it is {identity[key]}: take the same, or set it to "
                "true"
            )


def _copy_model(run: Path, to: Path) -> None:
    with files.replacing(to) as staging:
        for path in run.iterdir():
            if path.is_file() and path.name not in _LOGS:
                shutil.copyfile(path, staging / path.name)
