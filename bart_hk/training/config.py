"""The whole configuration of a run: fairseq's groups and keys, typed, and checked before any work.

`complete` turns what a caller gives (a dict, an OmegaConf config, a `TrainConfig`) into a
`TrainConfig`; `bart_hk.cli.train` registers `GROUPS` with Hydra.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from bart_hk.config import ARCHITECTURES, BARTConfig
from bart_hk.tasks.kinds import CRITERIA, TASKS
from bart_hk.training.distillation import DistillationConfig
from bart_hk.training.distillation import check as check_distillation
from bart_hk.training.optim import LR_SCHEDULERS, OPTIMIZERS, betas
from bart_hk.training.step import EMAConfig
from bart_hk.training.tuning import TuningConfig
from bart_hk.training.tuning import check as check_tuning


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key, its value and the remedy."""


@dataclass
class CommonConfig:
    """What concerns the run as a whole."""

    seed: int = 1
    log_interval: int = 100  # updates
    no_progress_bar: bool = False
    bf16: bool = False  # compute in bfloat16; parameters stay float32
    tensorboard_logdir: str | None = None  # needs bart_hk[train]
    peak_flops: float = 0.0  # FLOP/s of the device, which `mfu` is a share of; 0: known or measured
    # What is freed stays with the process (`bart_hk.memory`), which saves much time on a CPU, and
    # may take more memory at the peak. False: it goes back to the system, unless an earlier run of
    # this process (of a --multirun, say) has had it kept.
    keep_memory: bool = True
    # At the end of `bart-hk-train`: what `bart-hk-evaluate` says of the best model and the labelled
    # validation file, in SAVE_DIR/evaluation-FILE: metrics, predictions, the worst errors. Null:
    # if a head was trained; many texts take long to write.
    evaluate: bool | None = None


@dataclass
class DatasetConfig:
    """How rows become batches; batch_size or max_tokens is needed, both may be given."""

    batch_size: int | None = 32
    max_tokens: int | None = None  # of a batch, padding included
    batch_size_valid: int | None = "${dataset.batch_size}"  # type: ignore[assignment]
    max_tokens_valid: int | None = "${dataset.max_tokens}"  # type: ignore[assignment]
    # Padded lengths of batches, each a program. Empty: with max_tokens and no batch_size the fewest
    # that pad the rows of the first epoch by less than 8 %, and the longest row of every epoch and
    # of validation; LENGTH_BUCKETS otherwise. What is longer than all has the model's positions.
    length_buckets: list[int] = dataclasses.field(default_factory=list)
    validate_interval: int = 1  # epochs
    validate_interval_updates: int = 0  # 0: at the ends of epochs only
    # Processes that make batches; 0: a thread of this one, as fast as any step needs it unless a
    # task's batches are much work. The result is the same for any number.
    num_workers: int = 0
    data_buffer_size: int = 10  # updates whose batches are made, and on the device, ahead
    worker_timeout: float = 600.0  # seconds without a batch before the run gives up


@dataclass
class OptimizationConfig:
    """How long, how fast. fairseq writes lr and update_freq as lists; here they have one entry."""

    max_epoch: int = 10  # 0: no limit
    max_update: int = 0  # 0: no limit
    lr: Any = dataclasses.field(default_factory=lambda: [1e-5])
    update_freq: Any = dataclasses.field(default_factory=lambda: [1])  # batches per update
    clip_norm: float = 0.0  # 0: gradients are only measured
    # For deep models: compute activations again, not keep them; compile one layer, not all.
    checkpoint_activations: bool = False
    stack_layers: bool = False
    sentence_avg: bool = False  # text-writing criteria: divide by sentences instead of tokens


@dataclass
class CheckpointConfig:
    """Where a run starts from and what it leaves behind."""

    save_dir: str = "checkpoints"  # the best model; `last/` the last one; `training/` the state
    restore_file: str | None = None  # a model to start from: a directory or a name
    reset_heads: bool = False  # leave out its heads: the task's is new
    # False takes that part of the training state in restore_file, too, which must be a run's
    # directory; see bart_hk/training/restoring.py. (fairseq's are false by default.)
    reset_optimizer: bool = True
    reset_lr_scheduler: bool = True
    reset_dataloader: bool = True
    reset_meters: bool = True
    save_interval: int = 1  # epochs
    save_interval_updates: int = 0  # 0: at the ends of epochs only
    best_checkpoint_metric: str = "loss"
    # By default known from the metric's name: losses and ppl fall, the rest rises.
    maximize_best_checkpoint_metric: bool | None = None
    patience: int = -1  # validations without improvement before the run ends


@dataclass
class TrainConfig:
    """The root. `task`, `model`, `criterion`, `optimizer` and `lr_scheduler` are chosen by name."""

    common: CommonConfig = dataclasses.field(default_factory=CommonConfig)
    task: Any = MISSING
    model: Any = MISSING
    criterion: Any = MISSING
    optimizer: Any = MISSING
    lr_scheduler: Any = MISSING
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    optimization: OptimizationConfig = dataclasses.field(default_factory=OptimizationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)
    tuning: TuningConfig = dataclasses.field(default_factory=TuningConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)


def _model_node(name: str, config: BARTConfig) -> Any:
    """BARTConfig as a dataclass that can be overridden, with an architecture's values."""
    types = typing.get_type_hints(BARTConfig)
    node = dataclasses.make_dataclass(
        "BARTModelConfig",
        [("_name", str), *((f.name, types[f.name]) for f in dataclasses.fields(BARTConfig))],
    )
    return node(name, **{f.name: getattr(config, f.name) for f in dataclasses.fields(BARTConfig)})


# Group -> name -> the node that the name stands for.
GROUPS: dict[str, dict[str, Any]] = {
    "task": {name: kind.config for name, kind in TASKS.items()},
    "model": {name: _model_node(name, config) for name, config in ARCHITECTURES.items()},
    "criterion": CRITERIA,
    "optimizer": {name: node() for name, node in OPTIMIZERS.items()},
    "lr_scheduler": {name: node() for name, node in LR_SCHEDULERS.items()},
}
DEFAULTS = {
    "task": "sentence_prediction",
    "model": "bart_base",
    "criterion": "sentence_prediction",
    "optimizer": "adam",
    "lr_scheduler": "polynomial_decay",
}

_NOT_NEGATIVE = {
    "optimization": ("lr", "clip_norm", "max_epoch", "max_update"),
    "optimizer": ("adam_eps", "weight_decay"),
    "lr_scheduler": (
        *("warmup_updates", "warmup_ratio", "end_learning_rate", "power", "total_num_update"),
        *("min_lr", "t_mult", "lr_shrink"),
    ),
    "dataset": ("validate_interval_updates",),
    "checkpoint": ("save_interval_updates",),
    "ema": ("ema_start_update",),
    "common": ("peak_flops",),
}


def complete(config: Mapping[str, Any] | DictConfig | TrainConfig) -> TrainConfig:
    """The whole configuration, typed, with defaults where `config` says nothing.

    A group's value is a name ("bart_base") or its keys, `_name` among them where the default is not
    meant.

    Raises:
        ConfigError: a key that does not exist (the nearest is named), or a value of a wrong type or
            out of its range.
    """
    if not isinstance(config, Mapping | DictConfig | TrainConfig):
        raise ConfigError(f"config={config!r:.80} is no dictionary such as {{'task': {{...}}}}")
    try:
        plain: Any = dataclasses.asdict(config) if isinstance(config, TrainConfig) else config
        given = OmegaConf.create(plain)
        base = OmegaConf.structured(TrainConfig)
        for group, options in GROUPS.items():
            default = DEFAULTS[group]
            if group == "criterion":
                kind = TASKS[OmegaConf.select(base, "task._name")]
                default = kind.criteria[0]._name
            chosen = given.get(group, default)
            named = isinstance(chosen, str)
            name = chosen if named else chosen.get("_name", default)
            if name not in options:
                raise ConfigError(f"{group}={name} is not one of {', '.join(options)}")
            base[group] = options[name]
            if named:
                given.pop(group, None)
        merged = OmegaConf.merge(base, given)
        complete = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    assert isinstance(complete, TrainConfig)
    _check(complete)
    return complete


def explain(error: OmegaConfBaseException) -> str:
    """One line for OmegaConf's complaint about a key or a value."""
    key = str(error.full_key or error.key)
    if not isinstance(error, ConfigKeyError | AttributeError | KeyError):
        return f"{key}: {str(error).splitlines()[0]}"
    return unknown_key(key, error.object_type)


def unknown_key(key: str, node: Any = None) -> str:
    """One line for a key that does not exist, with the nearest that do.

    `node` is the type of what it was looked for in, which of several may be that group's.
    """
    names = [
        f"{group}.{field.name}"
        for group, nodes in _nodes().items()
        for node in nodes
        for field in dataclasses.fields(node)
        if field.name != "_name"
    ]
    known = list(dict.fromkeys(names))  # several nodes of a group share some
    group, dot, _ = key.partition(".")
    if dot and dataclasses.is_dataclass(node):
        chosen = {f"{group}.{field.name}" for field in dataclasses.fields(node)}
        known = [name for name in known if name in chosen or not name.startswith(group + ".")]
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    candidates = known if "." in key else [*known, *_nodes()]
    near = near or difflib.get_close_matches(key, candidates, n=1, cutoff=0.75)
    if near:
        return f"there is no {key}; did you mean {' or '.join(near)}?"
    section = [name for name in known if name.startswith(group + ".")]
    return f"there is no {key}; there are {', '.join(section or _nodes())}"


def _nodes() -> dict[str, list[Any]]:
    plain = {
        field.name: [field.default_factory()]
        for field in dataclasses.fields(TrainConfig)
        if field.default_factory is not dataclasses.MISSING
    }
    return plain | {group: list(options.values()) for group, options in GROUPS.items()}


def _check(config: TrainConfig) -> None:
    optimization, dataset = config.optimization, config.dataset
    optimization.lr = _single("optimization.lr", optimization.lr, float)
    optimization.update_freq = _single("optimization.update_freq", optimization.update_freq, int)
    try:
        check_tuning(config.tuning, optimization.lr)
        check_distillation(config.distillation)
        config.optimizer.adam_betas = list(betas(config.optimizer.adam_betas))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    positive = {
        "optimization.update_freq": optimization.update_freq,
        "common.log_interval": config.common.log_interval,
        "dataset.validate_interval": dataset.validate_interval,
        "dataset.data_buffer_size": dataset.data_buffer_size,
        "checkpoint.save_interval": config.checkpoint.save_interval,
        "ema.ema_update_freq": config.ema.ema_update_freq,
    }
    for key, value in positive.items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1")
    for group, names in _NOT_NEGATIVE.items():
        for name in names:
            value = getattr(getattr(config, group), name, None)  # schedules have different ones
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{group}.{name}={value} must be a number, 0 or more")
    for key in ("batch_size", "max_tokens", "batch_size_valid", "max_tokens_valid"):
        value = getattr(dataset, key)
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}={value} must be at least 1")
    if dataset.num_workers < 0:
        raise ConfigError(f"dataset.num_workers={dataset.num_workers} must be at least 0")
    if not dataset.worker_timeout > 0:
        raise ConfigError(f"dataset.worker_timeout={dataset.worker_timeout} must be above 0")
    if dataset.batch_size is None and dataset.max_tokens is None:
        raise ConfigError("set dataset.batch_size or dataset.max_tokens (or both)")
    if not 0 <= config.ema.ema_decay <= 1:
        raise ConfigError(f"ema.ema_decay={config.ema.ema_decay} must be in [0, 1]")
    # What a key of jax's and one of `data.draws.KeyedDraws` can hold.
    for group, bits in (("common", 32), ("task", 64)):
        seed = getattr(getattr(config, group), "seed", 0)
        if not 0 <= seed < 2**bits:
            raise ConfigError(f"{group}.seed={seed} must be in [0, 2^{bits})")
    buckets = dataset.length_buckets
    if buckets != sorted(set(buckets)) or (buckets and buckets[0] < 1):
        raise ConfigError(f"dataset.length_buckets={buckets} must be rising lengths")


def _single(key: str, value: Any, kind: type) -> Any:
    """A number, or fairseq's list of one."""
    entries = value if isinstance(value, list | tuple) else [value]
    if len(entries) != 1:
        raise ConfigError(f"{key}={value} must have one entry; per-epoch lists are not supported")
    entry = entries[0]
    if isinstance(entry, bool) or not isinstance(entry, kind | int):
        try:
            entry = kind(entry) if isinstance(entry, str) else None
        except ValueError:
            entry = None
        if entry is None:
            raise ConfigError(f"{key}={value} must be a number ({kind.__name__})")
    return kind(entry)
