"""Tasks: what a model is trained for. Each turns files into batches and batches into a loss.

A task is a module: its configuration, its criteria, a class with the methods of `Task`, and a
`KIND` that puts them together; `bart_hk.tasks.kinds` lists them. `bart_hk.training.loop` drives any
of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from bart_hk.config import BARTConfig, Flavour
from bart_hk.model import BART
from bart_hk.tasks.teaching import Answers
from bart_hk.text import TextEncoder

Batch = dict[str, np.ndarray]
Tree = Any  # of arrays; what the optimiser sees


class Split(Protocol):
    """One file's examples, encoded. It can be pickled, for processes that make batches."""

    lengths: np.ndarray  # int64, tokens of each row

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """The arrays of some rows, padded to [count, length]."""

    def where(self, rows: Sequence[int]) -> str:
        """File and lines, for messages about rows."""


class Task(Protocol):
    """What the training loop asks of a task. Making one reads and checks all its files."""

    criterion: Any  # the options of its loss
    flavours: tuple[str, ...]  # of the models that it can train
    validates: bool  # whether there will be a `valid`
    metric_names: tuple[str, ...]  # of `metrics` and `written`, beside `loss`
    more_metrics: tuple[str, ...]  # options that ask for more of them
    # Whether sources may be of another vocabulary than what the model writes.
    separate_sources: bool
    # A folder with the tokenizer that the data were encoded with, if they are ids already.
    tokenizer_folder: str | None
    shards: int  # epochs after which the rows come again
    longest: int  # tokens of the longest row of all epochs, where they differ

    @property
    def train(self) -> Split: ...

    @property
    def valid(self) -> Split | None: ...

    def unread(self) -> str | None:
        """What to say of an option that was given and that nothing reads, if there is one."""

    def fingerprint(self) -> dict[str, Any]:
        """What the data were, to refuse going on with others."""

    def texts(self) -> Iterable[str]:
        """The training texts, for making a vocabulary."""

    def symbols(self) -> Sequence[str]:
        """Special symbols that a new model's vocabulary must have; `tokenizer_folder`'s may not."""

    def text_encoder(self, encoder: TextEncoder) -> TextEncoder:
        """The tokenizer of the model that is trained, from that of the one it begins with."""

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """The config of the model that is trained, from that of the one it begins with."""

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Fills `train` and `valid`."""

    def labelled_files(self) -> Sequence[tuple[Path, ...]]:
        """What `bart-hk-evaluate` judges the model on: the validation data, as far as they are
        texts with labels. Each a file, or one of sources and one of targets."""

    def begin_epoch(self, epoch: int) -> None:
        """Makes `train` that epoch's, counted from 1; for tasks whose rows change."""

    def init(self, bart: BART, params: Tree, key: jax.Array, restored: dict[str, Any]) -> Tree:
        """The tree to train, around the body's `params` and the `restored` model's heads."""

    def loss(
        self, bart: BART, params: Tree, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the losses, and sums to log: `count`, its divisor, and others. Traced.

        `batch["update"]` is an int32 scalar: how many updates were done before.
        """

    def answers(
        self,
        bart: BART,
        params: Tree,
        key: jax.Array | None,
        batch: dict[str, jax.Array],
        return_all_hiddens: bool = False,
    ) -> Answers:
        """One pass of a student or of its teacher; a key turns dropout on. Traced."""

    def loss_of(
        self, bart: BART, found: Answers, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss as `loss` has it, of a student's pass that is there. Traced."""

    def soft_loss(self, student: Answers, teacher: Answers, temperature: float) -> jax.Array:
        """The summed distance from the teacher's answers. Traced."""

    def teacher_tree(self, params: Tree, heads: dict[str, Any]) -> Tree:
        """A teacher's parameters as `init` gives those of the model that is trained."""

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """What `metrics` needs of each row. Traced."""

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` and the asked metrics over all rows of `valid`, in their order."""

    def written(self, bart: BART, params: Tree) -> dict[str, float]:
        """More metrics: those of texts that the model writes for the rows of `valid`."""

    def parts(self, params: Tree) -> tuple[Tree, dict[str, Any]]:
        """The body's parameters and the heads' `HeadFiles`, for the model directory."""

    def extras(self) -> dict[str, Any]:
        """What else the model directory's `bart_hk.json` has to say."""


class TaskDefaults:
    """What most tasks do not need."""

    flavours: tuple[str, ...] = tuple(Flavour)
    more_metrics: tuple[str, ...] = ()
    separate_sources: bool = False
    tokenizer_folder: str | None = None
    shards: int = 1
    longest: int = 0

    def unread(self) -> str | None:
        """Nothing."""
        return None

    def symbols(self) -> Sequence[str]:
        """None."""
        return ()

    def text_encoder(self, encoder: TextEncoder) -> TextEncoder:
        """As it is."""
        return encoder

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """As it is."""
        return config

    def labelled_files(self) -> Sequence[tuple[Path, ...]]:
        """None."""
        return ()

    def begin_epoch(self, epoch: int) -> None:
        """Every epoch has the same rows."""

    def written(self, bart: BART, params: Tree) -> dict[str, float]:
        """Nothing is written."""
        return {}

    def extras(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class TaskKind:
    """What a task's module offers to `bart_hk.tasks.kinds`.

    Attributes:
        config: an instance of its options' dataclass, whose `_name` is the task's.
        criteria: instances of the dataclasses of its losses, the default first.
        make: the task, from its options and those of a criterion; raises DataError.
    """

    config: Any
    criteria: tuple[Any, ...]
    make: Callable[[Any, Any], Task]
