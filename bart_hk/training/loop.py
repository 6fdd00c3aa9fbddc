"""The training loop: `train(config)`, which `bart-hk-train` calls.

A run is a function of its config and its data: batches are planned by (seed, epoch), dropout is
keyed by (seed, update), and all else that changes is in the train state. So a run that was killed
goes on in its directory and ends with the same bits.

The directory of a run is a model: the best one, by `checkpoint.best_checkpoint_metric` on
`task.valid`, or the last where nothing is validated. `last/` holds the last one when the run ends.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from bart_hk.checkpoint import files
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.compilation import use_persistent_cache
from bart_hk.memory import keep_freed_memory
from bart_hk.tasks import Tree
from bart_hk.text import TextEncoder
from bart_hk.training import optim, state, tuning
from bart_hk.training.config import GROUPS, ConfigError, TrainConfig, complete
from bart_hk.training.distillation import Teacher
from bart_hk.training.loader import Loaded, Loader
from bart_hk.training.log import RunLog, means
from bart_hk.training.restoring import take_over
from bart_hk.training.start import make_task, start
from bart_hk.training.step import Loss, Step
from bart_hk.training.stopping import EXIT_CODE, catching_sigterm
from bart_hk.training.throughput import peak_flops

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is; saved with its parameters."""

    update: int = 0  # done
    epoch: int = 1  # the present one, counted from 1
    batch: int = 0  # updates done in this epoch
    best: float | None = None  # best value of the metric
    stale: int = 0  # validations since
    valid: dict[str, float] = dataclasses.field(default_factory=dict)  # of the best model
    window: dict[str, float] = dataclasses.field(default_factory=dict)  # sums not yet logged
    log_size: int = 0


@dataclass
class TrainResult:
    """What a run ended with."""

    save_dir: Path
    update: int
    epoch: int  # completed
    valid: dict[str, float]  # the best model's metrics, in percent but `loss`; {} if not validated
    labelled_files: Sequence[tuple[Path, ...]] = ()  # `Task.labelled_files`


def train(config: Mapping[str, Any] | DictConfig | TrainConfig) -> TrainResult:
    """Trains a model, or goes on with a run that was interrupted.

    Args:
        config: keys as for `bart-hk-train`, nested: {"task": {"train": "train.tsv"}, "model":
            "bart_base", "checkpoint": {"save_dir": "out"}}. See `bart_hk.training.config`;
            "keep_memory" of "common" concerns the whole process, also after this.

    Raises:
        ConfigError, DataError (both ValueErrors), FileNotFoundError: something given is wrong;
            before the first update.
        FloatingPointError: a loss is not finite; names update, file and lines.
        WorkerError: a process that makes batches died or stands still; the updates are saved.
        SystemExit: SIGTERM came; the state is saved, and the same call goes on from it.
        OSError: the directory cannot be written; what was saved there before is unchanged.
    """
    config = complete(config)
    if config.common.keep_memory:
        keep_freed_memory()
    save_dir = Path(config.checkpoint.save_dir)
    with catching_sigterm() as asked, state.locked(save_dir / "training"):
        run = Run(config, save_dir, asked)
        try:
            return run.run()
        finally:
            run.log.close()


class Run:
    """One run: its functions, its state, its files."""

    def __init__(self, config: TrainConfig, save_dir: Path, asked: threading.Event) -> None:
        """`asked` is set when the run is to save its state and end."""
        self._asked = asked
        self.config, self.save_dir, self.folder = config, save_dir, save_dir / "training"
        self.metric = config.checkpoint.best_checkpoint_metric
        self.task = make_task(config)
        self._check()
        use_persistent_cache()
        init_key, self.key = jax.random.split(jax.random.key(config.common.seed))
        begun = start(config, self.task, init_key)
        self.encoder, self.bart, params = begun.encoder, begun.bart, begun.params
        self._extras = begun.extras
        self.loader = Loader(
            config.dataset,
            self.task,
            self.bart.config,
            config.common.seed,
            config.optimization.update_freq,
        )
        self._refuse(self.loader.misfit())
        total = self._total_updates()
        self.rate = optim.schedule(config.lr_scheduler, config.optimization.lr, total)
        loss: Loss = functools.partial(self.task.loss, self.bart)
        given: tuple[Tree, ...] = ()
        if config.distillation.teacher:
            teacher = Teacher(config.distillation, self.task, self.bart, self.encoder)
            loss, given = teacher.loss, (teacher.params,)
        self.step = Step(
            tuning.without_frozen(config.tuning, loss, params),
            tuning.tuned(
                config.tuning,
                optim.optimizer(config.optimizer, self.rate),
                params,
                config.optimization.lr,
            ),
            config.optimization.clip_norm,
            self.key,
            config.ema,
            given,
        )
        self.predict = jax.jit(functools.partial(self.task.predict, self.bart))

        self.state, self.progress = self.step.init(params), Progress()
        identity = _identity(config, self.task.fingerprint(), self.encoder, total)
        taken = take_over(config.checkpoint, self.state, identity)
        self._claim(identity)
        found = state.load(self.folder, self.state)
        if found is not None:
            self._set(found[0], found[1])
            _log.info("going on in %s after update %d", save_dir, self.progress.update)
        elif taken is not None:
            taken.copy_best(save_dir)
            self._set(taken.tree, taken.progress)
            _log.info("going on from %s", config.checkpoint.restore_file)
        # The last update that was started: its number, its rows, what it cost, its sums.
        self.pending: tuple[int, list[np.ndarray], dict[str, float], Any] | None = None
        self.log = RunLog(
            save_dir / "log.jsonl",
            self.progress.log_size,
            config.common.tensorboard_logdir,
            config.common.peak_flops or peak_flops(self.bart.dtype),
        )

    @property
    def model(self) -> Tree:
        """What is validated and written: the parameters, or their average where there is one."""
        return self.state.get("ema", self.state["params"])

    def _set(self, tree: Tree, progress: dict[str, Any]) -> None:
        """Makes a stored state the run's; the update step overwrites it, so it is copied."""
        self.state = jax.tree.map(lambda a: jnp.array(a, copy=True), tree)
        self.progress = Progress(**progress)

    # --- The loop ---------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Trains to the end."""
        while not self._finished():
            self._epoch()
        self._finish()
        return TrainResult(
            self.save_dir,
            self.progress.update,
            self.progress.epoch - 1,
            self.progress.valid,
            self.task.labelled_files(),
        )

    def _finished(self) -> bool:
        done, limits = self.progress, self.config.optimization
        patience = self.config.checkpoint.patience
        return (
            (0 < limits.max_update <= done.update)
            or (0 < limits.max_epoch < done.epoch)
            or (0 < patience <= done.stale)
        )

    def _epoch(self) -> None:
        config, done = self.config, self.progress
        epoch, groups = done.epoch, self.loader.updates(done.epoch)
        bar = tqdm(
            desc=f"epoch {epoch}",
            total=len(groups),
            initial=done.batch,
            unit="update",
            leave=False,
            disable=True if config.common.no_progress_bar else None,  # None: where no terminal is
        )
        with bar, self.loader.batches(groups[done.batch :]) as updates:
            while done.batch < len(groups):
                if self._asked.is_set():
                    self._stop()
                self._update(self._next(updates))
                bar.update()
                done.batch += 1
                if done.batch == len(groups):
                    break
                self._maybe_checkpoint(None)
                if self._finished():
                    return
        done.epoch, done.batch = epoch + 1, 0
        self._maybe_checkpoint(epoch)

    def _stop(self) -> None:
        """Saves the state and ends the process, as SIGTERM asked."""
        self._look_at_pending()
        self._save_state()
        _log.warning(
            "stopped by SIGTERM after update %d, which is saved; the same command goes on",
            self.progress.update,
        )
        raise SystemExit(EXIT_CODE)

    def _next(self, updates: Iterator[Loaded]) -> Loaded:
        """The next update's batches; where they cannot be made the updates before are saved."""
        try:
            return next(updates)
        except Exception:
            if self.progress.update:
                self._look_at_pending()
                self._save_state()
            raise

    def _update(self, made: Loaded) -> None:
        update = self.progress.update
        self.state, sums = self.step.update(self.state, update, made.batches)
        self.progress.update = update + 1
        # Looked at one update later, so that the device never waits for the host.
        self._look_at_pending()
        costs = made.costs | {"rows": float(sum(map(len, made.rows))), "waited": made.waited}
        self.pending = (update + 1, made.rows, costs, sums)

    def _look_at_pending(self) -> None:
        """Checks and logs the last update that was started."""
        if self.pending is None:
            return
        update, group, costs, device_sums = self.pending
        self.pending = None
        sums = {name: float(value) for name, value in jax.device_get(device_sums).items()}
        for name, what in (("loss", "loss"), ("gnorm", "gradient norm")):
            if not math.isfinite(sums[name]):
                raise FloatingPointError(
                    f"the {what} of update {update} is {sums[name]}; its batch: "
                    f"{self.task.train.where(np.sort(np.concatenate(group)).tolist())}. A lower "
                    "optimization.lr, a longer warm-up or optimization.clip_norm may help"
                )
        window = self.progress.window
        more = {"updates": 1.0, "seconds": self.log.lap()}
        for name, value in (sums | costs | more).items():
            window[name] = window.get(name, 0.0) + value
        if update % self.config.common.log_interval == 0:
            self._log_window(update)

    def _log_window(self, update: int) -> None:
        """Logs the means since the last such line."""
        sums = self.progress.window
        if not sums:
            return
        self.progress.window = {}
        values = means(sums) | {"gnorm": sums["gnorm"] / sums["updates"]}
        values["lr"] = float(self.rate(update - 1))
        values["padding"] = sums["padding"] / sums["positions"]
        counts = {name: int(sums[name]) for name in ("rows", "tokens", "flops")}
        # An older version's state has no times.
        seconds, waited = sums.get("seconds", 0.0), sums.get("waited", 0.0)
        self.log.write("train", update, seconds, **values, **counts, waited=waited)

    # --- Validation and checkpoints ---------------------------------------------------------------

    def _maybe_checkpoint(self, epoch: int | None) -> None:
        """Validates and saves if it is time; `epoch` is the one that has just ended, if one has."""
        dataset, checkpoint = self.config.dataset, self.config.checkpoint
        update = self.progress.update

        def due(epochs: int, updates: int) -> bool:
            at_epoch = epoch is not None and epoch % epochs == 0
            return at_epoch or (updates > 0 and update % updates == 0)

        ends = self._finished()
        validates = ends or due(dataset.validate_interval, dataset.validate_interval_updates)
        if not (validates or due(checkpoint.save_interval, checkpoint.save_interval_updates)):
            if epoch is not None:
                self._look_at_pending()
                self._log_window(update)
            return
        self._look_at_pending()
        if epoch is not None or ends:
            self._log_window(update)
        if self.task.valid is None:
            self._write_model(self.save_dir)
        elif validates:
            self._validate(epoch)
        self._save_state()

    def _save_state(self) -> None:
        self.progress.log_size = self.log.size
        progress = dataclasses.asdict(self.progress)
        state.save(self.folder, self.progress.update, self.state, progress)

    def _validate(self, epoch: int | None) -> None:
        done = self.progress
        found = self._evaluate()
        value, sign = found[self.metric], 1 if self._maximises() else -1
        improved = done.best is None or sign * value > sign * done.best
        if improved:
            done.best, done.stale, done.valid = value, 0, found
            self._write_model(self.save_dir)
        else:
            done.stale += 1
        self.log.write("valid", done.update, self.log.lap(), **found, best=improved)
        shown = ", ".join(f"{name} {number:.4g}" for name, number in found.items())
        ended = f"epoch {epoch}" if epoch is not None else f"update {done.update}"
        _log.info("%s: %s%s", ended, shown, " (best)" if improved else "")

    def _evaluate(self) -> dict[str, float]:
        found, results = [], []
        with self.loader.valid_batches() as batches:
            for made in batches:  # all are started before the first is waited for
                (rows,), (batch,) = made.rows, made.batches
                found.append(rows)
                results.append((len(rows), self.predict(self.model, batch)))
        order = np.concatenate(found)
        outputs = {}
        for name in results[0][1]:
            values = np.concatenate([np.asarray(r[name])[:count] for count, r in results])
            outputs[name] = np.empty_like(values)
            outputs[name][order] = values
        return self.task.metrics(outputs) | self.task.written(self.bart, self.model)

    def _write_model(self, directory: Path) -> None:
        body, heads = self.task.parts(jax.device_get(self.model))
        config = self.bart.config
        about: dict[str, Any] = {"update": self.progress.update, "task": self.config.task._name}
        if self.progress.valid:
            about |= {"valid": self.progress.valid}
        write_model(
            directory,
            config,
            body,
            heads,
            {**self._extras, "training": about, **self.task.extras()},
            also=lambda folder: self.encoder.save(folder, config.max_positions),
        )

    def _finish(self) -> None:
        if self.task.valid is not None:
            self._write_model(self.save_dir / "last")
        done = self.progress
        shown = ", ".join(f"{name} {number:.4g}" for name, number in done.valid.items())
        _log.info("done after %d updates; %s %s", done.update, self.save_dir, shown)

    # --- What the config means --------------------------------------------------------------------

    def _total_updates(self) -> int:
        """Updates of the whole run, 0 where only patience ends it."""
        limits = self.config.optimization
        epochs = range(limits.max_epoch)
        # Shards differ in size; of one, every epoch counts as the first.
        counts = [len(self.loader.updates(epoch + 1)) for epoch in epochs[: self.task.shards]]
        by_epochs = sum(counts[epoch % self.task.shards] for epoch in epochs)
        return min(filter(None, (by_epochs, limits.max_update)), default=0)

    def _maximises(self) -> bool:
        asked = self.config.checkpoint.maximize_best_checkpoint_metric
        return self.metric not in ("loss", "nll_loss", "ppl") if asked is None else asked

    def _check(self) -> None:
        """What the task decides about the config."""
        limits, checkpoint = self.config.optimization, self.config.checkpoint
        if limits.max_epoch < 1 and limits.max_update < 1:
            if checkpoint.patience < 1 or not self.task.validates:
                raise ConfigError(
                    "nothing ends this run: set optimization.max_epoch, optimization.max_update "
                    "or, with task.valid, checkpoint.patience"
                )
        names = ("loss", *self.task.metric_names)
        if self.metric not in names:
            more = self.task.more_metrics
            raise ConfigError(
                f"checkpoint.best_checkpoint_metric={self.metric} is not reported, only "
                f"{', '.join(names)}" + (f"; more with {', '.join(more)}" if more else "")
            )
        if not self.task.validates:
            _log.warning("nothing is validated: there is no text for it; the last model is kept")
            for key, default in (("patience", -1), ("best_checkpoint_metric", "loss")):
                value = getattr(checkpoint, key)
                if value != default:
                    self._refuse(
                        f"checkpoint.{key}={value} needs validation, and there is no text for it; "
                        f"give task.valid (or valid.bin in task.data), or set it to {default}"
                    )
        if self.config.common.evaluate and not self.task.labelled_files():
            raise ConfigError(
                "common.evaluate=true needs a validation file of texts with labels or targets, and "
                f"task={self.config.task._name} has none here; give task.valid, or leave it out"
            )
        self._refuse(self.task.unread())

    def _refuse(self, misfit: str | None) -> None:
        """Raises, unless the run was begun before: an older version may not have minded."""
        if misfit and not (self.folder / _RECORD).exists():
            raise ConfigError(misfit)

    def _claim(self, identity: dict[str, Any]) -> None:
        """Makes the directory this run's, or makes sure that it is."""
        record = self.folder / _RECORD
        if record.exists():
            # What an older version did not know of was as it is by default.
            chosen = {group: getattr(self.config, group)._name for group in GROUPS}
            begun = _flat(complete(chosen)) | files.read_json(record)
            begun.setdefault(_TOKENIZER, identity[_TOKENIZER])  # nor could it tell these apart
            for key in sorted({*begun, *identity}):
                if begun.get(key) != identity.get(key):
                    raise ConfigError(
                        f"{self.save_dir} was begun with {key}={begun.get(key)}, now it is "
                        f"{identity.get(key)}: choose another checkpoint.save_dir, or remove this "
                        "one to begin again"
                    )
        elif (self.save_dir / "config.json").exists():
            raise ConfigError(
                f"checkpoint.save_dir={self.save_dir} holds a model that no run of it wrote; take "
                "another directory, and name that model in checkpoint.restore_file to start from it"
            )
        else:
            with files.replacing(self.folder) as staging:
                files.write_json(staging / record.name, identity)


# What may change between two starts of a run: where things are, and when it ends.
_FREE = {
    "task": {"data", "train", "valid"},  # their content counts
    "common": {"log_interval", "no_progress_bar", "tensorboard_logdir", "peak_flops"}
    | {"keep_memory", "evaluate"},
    "dataset": {"num_workers", "data_buffer_size", "worker_timeout"},
    "optimization": {"max_epoch", "max_update"},
    "checkpoint": {"save_dir", "patience", "save_interval", "save_interval_updates"},
}


_RECORD = "run.json"  # what the run is
_TOKENIZER = "the tokenizer's symbols"


def _identity(
    config: TrainConfig, data: dict[str, Any], encoder: TextEncoder, total: int
) -> dict[str, Any]:
    """Everything that the parameters of a run depend on, flat."""
    flat = _flat(config)
    symbols = json.dumps(encoder.dictionary.symbols)  # in the order of their ids
    flat[_TOKENIZER] = hashlib.sha256(symbols.encode()).hexdigest()
    flat |= {f"the data of task.{role}": digest for role, digest in data.items()}
    if optim.depends_on_total(config.lr_scheduler):
        flat["the number of updates"] = total
    return json.loads(json.dumps(flat))  # as it will be read


def _flat(config: TrainConfig) -> dict[str, Any]:
    return {
        f"{group}.{key}": value
        for group, section in dataclasses.asdict(config).items()
        for key, value in section.items()
        if key not in _FREE.get(group, ())
    }
