"""Classifying and scoring sentences and pairs of them, as fairseq's `sentence_prediction`.

A row is `<s> A </s>` or `<s> A </s> B </s>`; the decoder reads the same row rolled by one, and the
head sees its features at the last `</s>`. Shapes: B rows, S tokens, C classes.
"""

import dataclasses
import hashlib
import importlib.resources
import logging
import math
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
from bart_hk.data.readers import FORMATS, DataError, Examples, read_examples
from bart_hk.model import BART, ClassificationHead, Params, sentence_representation
from bart_hk.tasks import Batch, losses, metrics
from bart_hk.text import TextEncoder
from bart_hk.text.framing import frame, truncate

_log = logging.getLogger(__name__)

Tree = dict[str, Params]  # {"model": the body's parameters, "head": the head's}


@dataclass
class SentencePredictionConfig:
    """Where the examples are and how they are read."""

    _name: str = "sentence_prediction"
    # A prepared directory: holds train and valid (or dev) as .tsv, .csv or .jsonl, .gz or not;
    # pkg://PACKAGE/PATH means one in an installed package. Instead of it, the files themselves.
    data: str | None = None
    train: str | None = None
    valid: str | None = None
    # One or two columns with texts, one with labels; found by their usual names if not given.
    text_columns: list[str] = dataclasses.field(default_factory=list)
    label_column: str | None = None
    # The classes in the order of the head's outputs; sorted, numbers as numbers, if not given.
    labels: list[str] = dataclasses.field(default_factory=list)
    num_classes: int = -1  # checked against the labels found, if positive
    max_positions: int = 512  # longer rows are cut, the longer text first; the last </s> stays
    # In training each token becomes <mask> with this probability, which keeps a small model from
    # knowing its examples by their rare words (word dropout: Iyyer et al. 2015, section 3.2).
    token_dropout: float = 0.0
    # Without checkpoint.restore_file: a directory with a tokenizer's files, or the size of a
    # byte-level BPE to learn from the training texts. Neither: GPT-2's, as published BARTs.
    tokenizer: str | None = None
    vocab_size: int | None = None


@dataclass
class SentencePredictionCriterionConfig:
    """What is minimised and reported. Source: fairseq `criterions/sentence_prediction.py`."""

    _name: str = "sentence_prediction"
    classification_head_name: str = "sentence_classification_head"
    regression_target: bool = False  # labels are numbers, the loss is the squared error
    label_smoothing: float = 0.0  # fairseq has none here
    report_mcc: bool = False
    report_acc_and_f1: bool = False  # F1 of class 1 of two, macro-averaged over more
    report_pearson_and_spearman: bool = False


class EncodedExamples:
    """A file's rows as ids, with their targets."""

    def __init__(
        self, examples: Examples, rows: list[np.ndarray], targets: np.ndarray, pad: int, eos: int
    ) -> None:
        self.examples, self.rows, self.targets = examples, rows, targets
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self._pad, self._eos = pad, eos

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens and prev_output_tokens int32 [B, S], targets [B], mask bool [B]."""
        chosen = [self.rows[i] for i in rows]
        # np.roll of the row without its padding, as fairseq: </s> <s> A ...
        rolled = [np.roll(row, 1) for row in chosen]
        targets = np.zeros(count, self.targets.dtype)
        targets[: len(rows)] = self.targets[rows]
        return {
            "src_tokens": pad_rows(chosen, self._pad, length, count),
            "prev_output_tokens": pad_rows(rolled, self._pad, length, count),
            "targets": targets,
            "mask": np.arange(count) < len(rows),
        }

    def where(self, rows: Sequence[int]) -> str:
        """File and lines of some rows."""
        lines = ", ".join(str(self.examples.lines[i]) for i in rows)
        return f"{self.examples.path}, lines {lines}"


class SentencePrediction:
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    train: EncodedExamples
    valid: EncodedExamples | None

    def __init__(
        self, config: SentencePredictionConfig, criterion: SentencePredictionCriterionConfig
    ) -> None:
        self.config, self.criterion = config, criterion
        self.regression = criterion.regression_target
        if not 0 <= criterion.label_smoothing < 1:
            raise DataError(
                f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)"
            )
        if not 0 <= config.token_dropout < 1:
            raise DataError(f"task.token_dropout={config.token_dropout} must be in [0, 1)")
        self._mask_id = -1  # until `encode` knows it
        train, valid = _files(config)
        self._train = read_examples(train, config.text_columns, config.label_column)
        self._valid = None
        if valid is not None:
            # The columns that the training file has, under the same names.
            self._valid = read_examples(valid, self._train.text_columns, self._train.label_column)
        self.validates = self._valid is not None
        self.labels = [] if self.regression else _label_names(self._train, config)
        self._targets = {e.path: self._read_targets(e) for e in self._both()}
        self.metric_names = self._metric_names()

    def _both(self) -> list[Examples]:
        return [e for e in (self._train, self._valid) if e is not None]

    def _read_targets(self, examples: Examples) -> np.ndarray:
        if self.regression:
            return np.array([_number(examples, i) for i in range(len(examples))], np.float32)
        ids = {label: i for i, label in enumerate(self.labels)}
        for i, label in enumerate(examples.labels):
            if label not in ids:
                known = "task.labels" if self.config.labels else str(self._train.path)
                raise DataError(
                    f"{examples.where(i)}: label {label!r} is not in {known}, which has "
                    f"{', '.join(self.labels)}"
                )
        return np.array([ids[label] for label in examples.labels], np.int32)

    def _metric_names(self) -> tuple[str, ...]:
        asked = self.criterion
        correlations, classes = asked.report_pearson_and_spearman, not self.regression
        if correlations and classes:
            raise DataError(
                "criterion.report_pearson_and_spearman needs criterion.regression_target=true"
            )
        if not classes and (asked.report_mcc or asked.report_acc_and_f1):
            raise DataError(
                "criterion.report_mcc and report_acc_and_f1 are for classes; with "
                "criterion.regression_target=true ask for report_pearson_and_spearman"
            )
        names = ["accuracy"] if classes else []
        names += ["f1", "acc_and_f1"] if asked.report_acc_and_f1 else []
        names += ["mcc"] if asked.report_mcc else []
        names += ["pearson", "spearman"] if correlations else []
        return tuple(names)

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        found = {}
        for role, examples in zip(("train", "valid"), self._both(), strict=False):
            found[role] = hashlib.sha256(examples.path.read_bytes()).hexdigest()
        return found

    def texts(self) -> Iterable[str]:
        """The training texts, for making a vocabulary."""
        return (text for texts in self._train.texts for text in texts)

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes both files; says how many rows had to be cut."""
        if encoder.mask_id is not None:
            self._mask_id = encoder.mask_id
        elif self.config.token_dropout:
            raise DataError("task.token_dropout needs a <mask>, which the tokenizer does not have")
        longest = min(
            self.config.max_positions, config.max_source_positions, config.max_target_positions
        )
        splits = [self._encode(examples, encoder, config, longest) for examples in self._both()]
        self.train, self.valid = splits[0], splits[1] if len(splits) > 1 else None

    def _encode(
        self, examples: Examples, encoder: TextEncoder, config: BARTConfig, longest: int
    ) -> EncodedExamples:
        columns = [
            encoder.encode_batch([texts[c] for texts in examples.texts])
            for c in range(len(examples.text_columns))
        ]
        bos, eos = config.bos_token_id, config.eos_token_id
        budget = longest - 1 - len(columns)
        if budget < len(columns):
            raise DataError(f"task.max_positions={longest} leaves no room for the texts")
        cut = 0
        rows = []
        for parts in zip(*columns, strict=True):
            kept = truncate(parts, budget)
            cut += kept != list(parts)
            rows.append(frame(kept, bos, eos))
        if cut:
            _log.info("%s: %d of %d rows cut to %d tokens", examples.path, cut, len(rows), longest)
        targets = self._targets[examples.path]
        return EncodedExamples(examples, rows, targets, config.pad_token_id, eos)

    def begin_epoch(self, epoch: int) -> None:
        """Every epoch has the same rows."""

    def init(
        self, bart: BART, params: Params, key: jax.Array, restored: dict[str, HeadFiles]
    ) -> Tree:
        """The tree to train: the body, and the restored model's head of our name or a new one.

        A restored head is kept where it has the same classes; its order of them becomes ours.
        """
        name = self.criterion.classification_head_name
        found = restored.get(name)
        if found is not None and self._adopt(found):
            return {"model": params, "head": found.params}
        if found is not None:
            _log.info("the restored head %r has other classes; a new one takes its place", name)
        return {"model": params, "head": self._head(bart).init(key)}

    def _adopt(self, head: HeadFiles) -> bool:
        if self.regression or head.regression:
            return self.regression and head.regression
        if head.labels is None or sorted(head.labels) != sorted(self.labels):
            return False
        if self.config.labels and head.labels != self.labels:
            return False
        order = np.array([head.labels.index(label) for label in self.labels], np.int32)
        for split in (self.train, self.valid):
            if split is not None:
                split.targets = order[split.targets]
        self.labels = list(head.labels)
        return True

    def _head(self, bart: BART) -> ClassificationHead:
        return ClassificationHead(bart.config, 1 if self.regression else len(self.labels))

    def _logits(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> jax.Array:
        """Float32 [B, C]."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        features = sentence_representation(
            bart, params["model"], batch["src_tokens"], batch["prev_output_tokens"], keys[:2]
        )
        return self._head(bart).apply(params["head"], features, keys[2])

    def loss(
        self, bart: BART, params: Tree, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss of a batch; `count` is its number of rows. Traced."""
        if self.config.token_dropout:
            key, drop_key = jax.random.split(key)
            batch = batch | self._drop_tokens(batch, drop_key, bart.config)
        logits = self._logits(bart, params, batch, key)
        mask, targets = batch["mask"], batch["targets"]
        sums = {
            "count": mask.sum(),
            "tokens": (batch["src_tokens"] != bart.config.pad_token_id).sum(),
        }
        if self.regression:
            loss = losses.squared_error(logits[:, 0], targets, mask)
            return loss, sums
        loss, _ = losses.cross_entropy(logits, targets, mask, self.criterion.label_smoothing)
        correct = (logits.argmax(-1) == targets) & mask
        return loss, {**sums, "correct": correct.sum()}

    def _drop_tokens(
        self, batch: dict[str, jax.Array], key: jax.Array, config: BARTConfig
    ) -> dict[str, jax.Array]:
        """Source and decoder input with the same ordinary tokens masked."""
        source, previous = batch["src_tokens"], batch["prev_output_tokens"]
        special = jnp.array([config.bos_token_id, config.eos_token_id, config.pad_token_id])
        drop = jax.random.bernoulli(key, self.config.token_dropout, source.shape)
        drop &= ~jnp.isin(source, special)
        rolled = jnp.pad(drop[:, :-1], ((0, 0), (1, 0)))
        return {
            "src_tokens": jnp.where(drop, self._mask_id, source),
            "prev_output_tokens": jnp.where(rolled, self._mask_id, previous),
        }

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Logits float32 [B, C]. Traced."""
        return {"logits": self._logits(bart, params, batch, None)}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats and the asked metrics, in percent as fairseq reports them."""
        assert self.valid is not None  # whoever calls this has predicted its rows
        logits, targets = outputs["logits"].astype(np.float64), self.valid.targets
        if self.regression:
            predicted = logits[:, 0]
            loss = float(np.mean((predicted - targets) ** 2))
            found = {
                "pearson": metrics.pearson(predicted, targets),
                "spearman": metrics.spearman(predicted, targets),
            }
        else:
            shifted = logits - logits.max(1, keepdims=True)
            logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            loss = float(-np.mean(logp[np.arange(len(targets)), targets]))
            predicted, classes = logits.argmax(1), len(self.labels)
            accuracy = metrics.accuracy(predicted, targets)
            f1 = metrics.f1(predicted, targets, classes)
            found = {
                "accuracy": accuracy,
                "f1": f1,
                "acc_and_f1": (accuracy + f1) / 2,
                "mcc": metrics.mcc(predicted, targets, classes),
            }
        return {"loss": loss} | {name: 100 * found[name] for name in self.metric_names}

    def parts(self, params: Tree) -> tuple[Params, dict[str, HeadFiles]]:
        """The body's parameters, and the head with its label names."""
        labels = None if self.regression else self.labels
        head = HeadFiles(params["head"], labels, self.regression)
        return params["model"], {self.criterion.classification_head_name: head}


def _files(config: SentencePredictionConfig) -> tuple[Path, Path | None]:
    """The training and validation files."""
    if config.data is not None and (config.train or config.valid):
        raise DataError("give task.data or task.train and task.valid, not both")
    if config.data is None:
        if not config.train:
            raise DataError("task.train is not set; give it a .tsv, .csv or .jsonl file")
        return Path(config.train), Path(config.valid) if config.valid else None
    folder = _folder(config.data)
    if not folder.is_dir():
        raise DataError(f"task.data={folder} is not a directory; for a file use task.train")
    if (folder / "input0").is_dir():
        raise DataError(
            f"task.data={folder} was binarised by fairseq-preprocess, which is not read yet; "
            "give the texts as task.train and task.valid"
        )

    def find(*stems: str) -> Path | None:
        names = [
            f"{stem}{suffix}{gz}" for stem in stems for suffix in FORMATS for gz in ("", ".gz")
        ]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    train = find("train")
    if train is None:
        raise DataError(f"task.data={folder} has no train{', train'.join(FORMATS)}")
    return train, find("valid", "dev")


def _folder(name: str) -> Path:
    if not name.startswith("pkg://"):
        return Path(name)
    package, _, path = name.removeprefix("pkg://").partition("/")
    try:
        return Path(str(importlib.resources.files(package))) / path
    except ModuleNotFoundError:
        raise DataError(f"task.data={name}: there is no package {package}") from None


def _label_names(train: Examples, config: SentencePredictionConfig) -> list[str]:
    labels = list(config.labels) or sorted(set(train.labels), key=_label_order)
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"task.labels has {label!r} twice")
    if len(labels) < 2:
        raise DataError(
            f"{train.path}: every row has the label {labels[0]!r}; two classes at least are needed "
            "(for numbers to predict, set criterion.regression_target=true)"
        )
    if config.num_classes > 0 and config.num_classes != len(labels):
        raise DataError(
            f"task.num_classes={config.num_classes}, but there are {len(labels)} labels: "
            f"{', '.join(labels[:10])}"
        )
    return labels


def _label_order(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdigit()
    return not number, int(label) if number else 0, label


def _number(examples: Examples, row: int) -> float:
    try:
        value = float(examples.labels[row])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{examples.where(row)}: label {examples.labels[row]!r} is not a finite number, which "
            "criterion.regression_target=true needs"
        )
    return value
