"""Multiple choice: which of a row's options goes with its context. fairseq's `sentence_ranking`.

Each option is a row of its own, `<s> option </s> context </s>`; a head of one output scores it at
its last `</s>`, and the loss is the cross-entropy of the right one among the scores. (fairseq's
does not run with its BART.) Shapes: B rows, O options, S tokens.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.data.batching import pad_rows
from bart_hk.data.readers import LABEL_COLUMNS, DataError, Table, read_table
from bart_hk.model import BART
from bart_hk.tasks import Batch, TaskKind, files
from bart_hk.tasks.heads import HeadTask, Tree
from bart_hk.text import TextEncoder
from bart_hk.text.framing import frame, truncate

_log = logging.getLogger(__name__)

READING = "sentence_ranking"  # in bart_hk.json, how the table that was learned was read
CONTEXT_COLUMNS = ("context", "question", "premise", "sent1", "startphrase")
_OPTION = re.compile(r"(option|choice|ending|answer|hypothesis|solution|sol)_?\d+")


@dataclass
class SentenceRankingConfig(files.FilesConfig):
    """Where the examples are and how they are read."""

    _name: str = "sentence_ranking"
    # Found by their usual names: context, question; option1, option2, ..., or choice1, ending0.
    # A context may be missing, then the options stand alone.
    context_column: str | None = None
    option_columns: list[str] = dataclasses.field(default_factory=list)
    # Holds the right option's number, its column's name, or its letter (A is the first).
    label_column: str | None = None
    first_label: int = 0  # the number of the first option: 0 or 1
    num_classes: int = -1  # checked against the options found, if positive
    max_option_length: int = 0  # tokens of an option; 0: as many as fit
    max_positions: int = 512  # longer rows are cut, the longer text first; the last </s> stays


@dataclass
class SentenceRankingCriterionConfig:
    """Source: fairseq `criterions/sentence_ranking.py`."""

    _name: str = "sentence_ranking"
    ranking_head_name: str = "sentence_classification_head"
    label_smoothing: float = 0.0  # fairseq has none here


class EncodedOptions:
    """A file's rows: of each option the ids, and which one is right."""

    def __init__(
        self,
        table: Table,
        rows: list[list[np.ndarray]],
        targets: np.ndarray,
        config: BARTConfig,
    ) -> None:
        self.table, self.rows, self.targets = table, rows, targets
        self.lengths = np.array([max(map(len, row)) for row in rows], np.int64)
        self._pad, self._eos = config.pad_token_id, config.eos_token_id

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens and prev_output_tokens int32 [B * O, S], a row's options together; targets
        int32 [B], mask bool [B]. Rows of padding have a `</s>`, since each is scored."""
        chosen = [option for i in rows for option in self.rows[i]]
        options = len(self.rows[0])
        empty = [np.array([self._eos], np.int32)] * ((count - len(rows)) * options)
        targets = np.zeros(count, np.int32)
        targets[: len(rows)] = self.targets[rows]
        rolled = [np.roll(option, 1) for option in chosen]
        return {
            "src_tokens": pad_rows([*chosen, *empty], self._pad, length),
            "prev_output_tokens": pad_rows([*rolled, *empty], self._pad, length),
            "targets": targets,
            "mask": np.arange(count) < len(rows),
        }

    def where(self, rows: Sequence[int]) -> str:
        """File and lines of some rows."""
        lines = ", ".join(str(self.table.records[i].line) for i in rows)
        return f"{self.table.path}, lines {lines}"


class SentenceRanking(HeadTask):
    """The task; see `bart_hk.tasks.Task` for what its methods are for. A batch of `batch_size` has
    so many rows with all their options; `max_tokens` counts the longest option of a row.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    head_option = "ranking_head_name"
    reads_ends = True
    train: EncodedOptions
    valid: EncodedOptions | None
    metric_names: tuple[str, ...] = ("accuracy",)

    def __init__(
        self, config: SentenceRankingConfig, criterion: SentenceRankingCriterionConfig
    ) -> None:
        self.config, self.criterion = config, criterion
        if not 0 <= criterion.label_smoothing < 1:
            raise DataError(
                f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)"
            )
        if config.first_label not in (0, 1) or config.max_option_length < 0:
            raise DataError("task.first_label must be 0 or 1, task.max_option_length not negative")
        train, valid = files.table_files(config)
        self._tables = [read_table(path) for path in (train, valid) if path is not None]
        first = self._tables[0]
        self._context, self._options, self._label = _columns(first, config)
        self._targets = [self._read(table) for table in self._tables]
        self.validates = valid is not None

    def _read(self, table: Table) -> np.ndarray:
        """The right options' numbers, int32 [N]."""
        if not table.records:
            raise DataError(f"{table.path} has a header and no rows")
        at_label = table.column(self._label)
        targets = []
        for row, (_, fields) in enumerate(table.records):
            for name in self.text_columns:
                table.text(row, name)
            targets.append(self._target(table, row, fields[at_label].strip()))
        return np.array(targets, np.int32)

    def _target(self, table: Table, row: int, label: str) -> int:
        count, first = len(self._options), self.config.first_label
        if label in self._options:
            return self._options.index(label)
        if len(label) == 1 and "A" <= label.upper() < chr(ord("A") + count):
            return ord(label.upper()) - ord("A")
        if label.isascii() and label.isdigit() and first <= int(label) < first + count:
            return int(label) - first
        raise DataError(
            f"{table.where(row)}: label {label!r} names none of the {count} options; it is a "
            f"number from {first} to {first + count - 1} (task.first_label={first}), a letter or "
            "the name of a column"
        )

    @property
    def option_columns(self) -> list[str]:
        """The names of the options' columns, in their order."""
        return list(self._options)

    @property
    def text_columns(self) -> list[str]:
        """The context's, if there is one, and the options'."""
        return [*([self._context] if self._context else []), *self._options]

    def extras(self) -> dict[str, Any]:
        """How long rows were at most, and the columns with the first option's number."""
        read = {"context_column": self._context, "option_columns": self.option_columns}
        read |= {"label_column": self._label, "first_label": self.config.first_label}
        return super().extras() | {READING: read}

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        roles = zip(("train", "valid"), self._tables, strict=False)
        return {role: files.digest(Path(table.path)) for role, table in roles}

    def labelled_files(self) -> list[tuple[Path]]:
        """The validation table."""
        return [(Path(table.path),) for table in self._tables[1:]]

    def texts(self) -> Iterable[str]:
        """The training texts, for making a vocabulary."""
        table = self._tables[0]
        columns = [table.column(name) for name in self.text_columns]
        return (fields[column] for _, fields in table.records for column in columns)

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes both files; says how many options had to be cut."""
        longest = min(self.config.max_positions, config.max_positions)
        budget = longest - 2 - bool(self._context)
        if budget < 1 + bool(self._context):
            raise DataError(f"task.max_positions={longest} leaves no room for the texts")
        pairs = zip(self._tables, self._targets, strict=True)
        splits = [self._encode(table, right, encoder, config, budget) for table, right in pairs]
        self.train, self.valid = splits[0], splits[1] if len(splits) > 1 else None

    def _encode(
        self,
        table: Table,
        targets: np.ndarray,
        encoder: TextEncoder,
        config: BARTConfig,
        budget: int,
    ) -> EncodedOptions:
        ids = {
            name: encoder.encode_batch([f[table.column(name)] for _, f in table.records])
            for name in self.text_columns
        }
        cut, rows = 0, []
        for i in range(len(table.records)):
            context = [ids[self._context][i]] if self._context else []
            row = []
            for name in self._options:
                option = ids[name][i]
                if self.config.max_option_length:
                    option = option[: self.config.max_option_length]
                parts = [option, *context]
                kept = truncate(parts, budget)
                cut += kept != parts
                row.append(frame(kept, config.bos_token_id, config.eos_token_id))
            rows.append(row)
        if cut:
            _log.info("%s: %d options cut to %d tokens", table.path, cut, budget)
        return EncodedOptions(table, rows, targets, config)

    def _outputs(self) -> int:
        return 1

    def _fits(self, head: HeadFiles) -> bool:
        return head.num_classes == 1 and not head.regression

    def _wanted(self) -> str:
        return "scores of options"

    def _shaped(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """Float32 [B, O]."""
        return logits.reshape(-1, len(self._options))

    def _real(self, batch: dict[str, jax.Array], config: BARTConfig) -> jax.Array:
        of_row = jnp.repeat(batch["mask"], len(self._options))
        return super()._real(batch, config) & of_row[:, None]

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Logits float32 [B, O]. Traced."""
        return {"logits": self._logits(bart, params, batch, None)}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats, and `accuracy` in percent."""
        assert self.valid is not None  # whoever calls this has predicted its rows
        logits, targets = outputs["logits"].astype(np.float64), self.valid.targets
        shifted = logits - logits.max(1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        loss = float(-np.mean(logp[np.arange(len(targets)), targets]))
        return {"loss": loss, "accuracy": 100 * float(np.mean(logits.argmax(1) == targets))}


KIND = TaskKind(SentenceRankingConfig(), (SentenceRankingCriterionConfig(),), SentenceRanking)


def _columns(table: Table, config: SentenceRankingConfig) -> tuple[str | None, list[str], str]:
    """Of context, options and label."""
    header = table.header
    options = list(config.option_columns) or [n for n in header if _OPTION.fullmatch(n.lower())]
    for name in options:
        table.column(name)
    if len(options) < 2:
        raise DataError(
            f"{table.path} has the columns {', '.join(header)}: name those with the options, two "
            "at least, in task.option_columns"
        )
    if config.num_classes > 0 and config.num_classes != len(options):
        raise DataError(
            f"task.num_classes={config.num_classes}, but there are {len(options)} options: "
            f"{', '.join(options)}"
        )
    label = config.label_column or next((n for n in LABEL_COLUMNS if n in header), None)
    if label is None:
        raise DataError(
            f"{table.path} has the columns {', '.join(header)}: name the one with the right option "
            "in task.label_column"
        )
    table.column(label)
    context = config.context_column or next((n for n in CONTEXT_COLUMNS if n in header), None)
    if context is not None:
        table.column(context)
    for name in (used := [*options, label, *([context] if context else [])]):
        if used.count(name) > 1:
            raise DataError(
                f"{table.path}: the column {name!r} is used twice; give every column once, in "
                "task.option_columns, task.label_column or task.context_column"
            )
    return context, options, label
