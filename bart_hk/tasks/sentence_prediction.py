"""Classifying and scoring sentences and pairs of them, as fairseq's `sentence_prediction`.

A row is `<s> A </s>` or `<s> A </s> B </s>`; the decoder reads the same row rolled by one, and the
head sees its features at the last `</s>`. Shapes: B rows, S tokens, C classes.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.data.batching import pad_rows
from bart_hk.data.readers import DataError, Examples, read_examples
from bart_hk.model import BART, Params
from bart_hk.tasks import Batch, TaskKind, binarised, files, losses, metrics
from bart_hk.tasks.binarised import ids_of, is_binarised, read_binarised
from bart_hk.tasks.glue import GlueTask, glue_task
from bart_hk.tasks.heads import HeadTask, Tree, described
from bart_hk.tasks.labels import check_label, label_names, number, separated
from bart_hk.tasks.sentence_options import (
    READING,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
    as_glue,
    check,
    input_files,
    reading,
)
from bart_hk.tasks.teaching import Answers, soft_binary_cross_entropy
from bart_hk.text import TextEncoder
from bart_hk.text.framing import frame, truncate

_log = logging.getLogger(__name__)


class EncodedExamples:
    """A file's rows as ids, with their targets: int32 [N], or float32 [N] or [N, C]."""

    def __init__(
        self, examples: Examples, rows: list[np.ndarray], targets: np.ndarray, pad: int, eos: int
    ) -> None:
        self.examples, self.rows, self.targets = examples, rows, targets
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self._pad, self._eos = pad, eos

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens and prev_output_tokens int32 [B, S], targets [B, ...], mask bool [B]."""
        chosen = [self.rows[i] for i in rows]
        # np.roll of the row without its padding, as fairseq: </s> <s> A ...
        rolled = [np.roll(row, 1) for row in chosen]
        targets = np.zeros((count, *self.targets.shape[1:]), self.targets.dtype)
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


class SentencePrediction(HeadTask):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    more_metrics: tuple[str, ...] = (
        "criterion.report_mcc",
        "criterion.report_acc_and_f1",
        "criterion.report_pearson_and_spearman",
    )
    head_option = "classification_head_name"
    reads_ends = True
    train: EncodedExamples
    valid: EncodedExamples | None

    def __init__(
        self, config: SentencePredictionConfig, criterion: SentencePredictionCriterionConfig
    ) -> None:
        glue = glue_task(config.glue) if config.glue else None
        self._asked_order = bool(config.labels)
        if config.data and is_binarised(Path(config.data)):
            self.tokenizer_folder = config.data
        if glue is not None:
            config, criterion = as_glue(glue, config, criterion, self.tokenizer_folder is not None)
        self.config, self.criterion = config, criterion
        self.regression = criterion.regression_target
        check(config, criterion)
        self._mask_id = -1  # until `encode` knows it
        train, valid = input_files(config, glue)
        self._train = self._read(train, config.text_columns, config.label_column, glue)
        self._valid = None
        if valid is not None:
            # The columns that the training file has, under the same names.
            columns = self._train.text_columns, self._train.label_column
            self._valid = self._read(valid, *columns, glue)
        self.validates = self._valid is not None
        self.labels = (
            []
            if self.regression
            else label_names(
                self._train.path,
                _lists(self._train),
                config.labels,
                several=config.multi_label,
                num_classes=config.num_classes,
            )
        )
        self._targets = {e.path: self._read_targets(e) for e in self._both()}
        self.metric_names = self._metric_names()
        weights = self._class_weights()  # are checked
        for path, targets in self._targets.items():
            if weights is not None and not weights[targets].any():
                raise DataError(f"criterion.class_weights: every row of {path} has a weight of 0")

    def _read(
        self, path: Path, texts: Sequence[str], label: str | None, glue: GlueTask | None
    ) -> Examples:
        if self.tokenizer_folder is not None:
            return read_binarised(path, self.regression)
        examples = read_examples(
            path,
            texts,
            label,
            header=glue.header if glue else None,
            skip_malformed=glue is not None and glue.skip_malformed,
            empty_texts=glue is not None,  # as published
            several_labels=self.config.multi_label,
        )
        if self.config.multi_label:
            listed = [separated(text, self.config.label_separator) for text in examples.labels]
            examples = dataclasses.replace(examples, labels=listed)
        return examples

    def _both(self) -> list[Examples]:
        return [e for e in (self._train, self._valid) if e is not None]

    def _read_targets(self, examples: Examples) -> np.ndarray:
        if self.regression:
            hint = "; for classes leave out criterion.regression_target=true"
            values = [number(examples, i, hint) for i in range(len(examples))]
            return np.array(values, np.float32) / np.float32(self.config.label_divisor)
        ids = {label: i for i, label in enumerate(self.labels)}
        of_rows = _lists(examples)
        given = bool(self.config.labels)
        for i, labels in enumerate(of_rows):
            for label in labels:
                check_label(label, ids, given, self._train.path, examples.where(i))
        if not self.config.multi_label:
            return np.array([ids[label] for (label,) in of_rows], np.int32)
        targets = np.zeros((len(of_rows), len(ids)), np.float32)
        for i, labels in enumerate(of_rows):
            targets[i, [ids[label] for label in labels]] = 1
        return targets

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
        if self.config.multi_label:
            if asked.report_mcc or asked.report_acc_and_f1:
                raise DataError(
                    "criterion.report_mcc and report_acc_and_f1 are for classes that exclude each "
                    "other; with task.multi_label=true micro_f1 and macro_f1 are reported"
                )
            return ("accuracy", "micro_f1", "macro_f1")
        names = ["accuracy"] if classes else []
        names += ["f1", "acc_and_f1"] if asked.report_acc_and_f1 else []
        names += ["mcc"] if asked.report_mcc else []
        names += ["pearson", "spearman"] if correlations else []
        return tuple(names)

    def _class_weights(self) -> np.ndarray | None:
        """Float32 [C], in the present order of the labels."""
        asked = self.criterion.class_weights
        if asked is None:
            return None
        if self.regression or self.config.multi_label:
            raise DataError("criterion.class_weights are for classes that exclude each other")
        if asked == "balanced":  # scikit-learn's: rows / (classes * rows of the class)
            rows = np.array([self._train.labels.count(label) for label in self.labels])
            return (rows.sum() / (len(rows) * np.maximum(rows, 1))).astype(np.float32)
        if not isinstance(asked, Mapping):
            raise DataError(
                f"criterion.class_weights={asked} is neither balanced nor {{label: weight, ...}}"
            )
        given = {str(label): weight for label, weight in asked.items()}
        for label, weight in given.items():
            if label not in self.labels:
                raise DataError(
                    f"criterion.class_weights: there is no label {label!r}; there are "
                    f"{', '.join(self.labels)}"
                )
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise DataError(
                    f"criterion.class_weights.{label}={weight} must be a number that is not "
                    "negative"
                )
        return np.array([float(given.get(label, 1)) for label in self.labels], np.float32)

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        roles = zip(("train", "valid"), self._both(), strict=False)
        if self.tokenizer_folder is not None:
            return {role: files.digest(*binarised.binarised_files(e.path)) for role, e in roles}
        return {role: files.digest(examples.path) for role, examples in roles}

    def labelled_files(self) -> list[tuple[Path]]:
        """The validation tables: MNLI has two. None where they are stores of ids."""
        if self._valid is None or self.tokenizer_folder is not None:
            return []
        glue = glue_task(self.config.glue) if self.config.glue else None
        first = Path(self._valid.path)
        return [(path,) for path in (first, *(glue.beside(first) if glue else ()))]

    def texts(self) -> Iterable[str]:
        """The training texts, for making a vocabulary."""
        return (t for texts in self._train.texts for t in texts if isinstance(t, str))

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes both files; says how many rows had to be cut."""
        if encoder.mask_id is not None:
            self._mask_id = encoder.mask_id
        elif self.config.token_dropout:
            raise DataError("task.token_dropout needs a <mask>, which the tokenizer does not have")
        longest = min(self.config.max_positions, config.max_positions)
        splits = [self._encode(examples, encoder, config, longest) for examples in self._both()]
        self.train, self.valid = splits[0], splits[1] if len(splits) > 1 else None

    def _encode(
        self, examples: Examples, encoder: TextEncoder, config: BARTConfig, longest: int
    ) -> EncodedExamples:
        if self.tokenizer_folder is not None:
            for name in examples.text_columns:
                folder = examples.path.parent
                files.check_dictionary(encoder, folder / name / "dict.txt")
        columns = [
            ids_of(encoder, [texts[c] for texts in examples.texts])
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

    def _outputs(self) -> int:
        return 1 if self.regression else len(self.labels)

    def _fits(self, head: HeadFiles) -> bool:
        wanted = None if self.regression else sorted(self.labels)
        given = None if head.regression else sorted(head.labels or ())
        if head.labels is None and self._asked_order and head.num_classes == len(self.labels):
            given = wanted
        return given == wanted and head.multi_label == self.config.multi_label

    def _wanted(self) -> str:
        return described(self.labels, 1, self.regression, self.config.multi_label)

    def _renumber(self, there: np.ndarray) -> None:
        for split in (self.train, self.valid):
            if split is not None and self.config.multi_label:
                split.targets = split.targets[:, np.argsort(there)]
            elif split is not None:
                split.targets = there[split.targets]

    def loss(
        self, bart: BART, params: Tree, key: jax.Array | None, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The summed loss of a batch; `count` is its number of rows, or their weight. Traced."""
        batch, key = self._dropped(batch, key, bart.config)
        alpha = self.criterion.rdrop_alpha
        if not alpha or key is None:
            return super().loss(bart, params, key, batch)
        first, second = (self._logits(bart, params, batch, k) for k in jax.random.split(key))
        (one, sums), (other, _) = (self._judged(bart, x, batch) for x in (first, second))
        # Half of the paper's sum, so that the loss is the plain one where both passes agree.
        return (one + other + alpha * losses.disagreement(first, second, batch["mask"])) / 2, sums

    def answers(
        self,
        bart: BART,
        params: Tree,
        key: jax.Array | None,
        batch: dict[str, jax.Array],
        return_all_hiddens: bool = False,
    ) -> Answers:
        """One pass; a key turns dropout on, that of tokens too. Traced."""
        batch, key = self._dropped(batch, key, bart.config)
        return super().answers(bart, params, key, batch, return_all_hiddens)

    def soft_loss(self, student: Answers, teacher: Answers, temperature: float) -> jax.Array:
        """The summed distance from the teacher's answers, of numbers their squared difference.
        Traced."""
        both = student.logits, teacher.logits
        if self.regression:
            return losses.squared_error(both[0][:, 0], both[1][:, 0], student.weights)
        if self.config.multi_label:
            return soft_binary_cross_entropy(*both, student.weights, temperature)
        return super().soft_loss(student, teacher, temperature)

    def _weights(self, batch: dict[str, jax.Array]) -> jax.Array:
        of_classes = self._class_weights()
        if of_classes is None:
            return batch["mask"]
        return jnp.where(batch["mask"], jnp.asarray(of_classes)[batch["targets"]], 0)

    def _loss_of(
        self, logits: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        mask, targets = batch["mask"], batch["targets"]
        count = mask.sum()
        if self.regression:
            return losses.squared_error(logits[:, 0], targets, mask), {"count": count}
        if self.config.multi_label:
            correct = (((logits > 0) == (targets > 0)).all(1) & mask).sum()
            loss = losses.binary_cross_entropy(logits, targets, mask)
            return loss, {"count": count, "correct": correct}
        sums = {"count": count, "correct": ((logits.argmax(-1) == targets) & mask).sum()}
        smoothing, weighted = self.criterion.label_smoothing, self.criterion.class_weights
        if weighted is None:
            return losses.cross_entropy(logits, targets, mask, smoothing)[0], sums
        of_rows = self._weights(batch)
        loss = losses.weighted_cross_entropy(logits, targets, of_rows, smoothing)
        return loss, sums | {"count": of_rows.sum(), "predicted": count}

    def _dropped(
        self, batch: dict[str, jax.Array], key: jax.Array | None, config: BARTConfig
    ) -> tuple[dict[str, jax.Array], jax.Array | None]:
        """With `task.token_dropout` and a key the batch with some ordinary tokens masked, the same
        in source and decoder input, and a key for the rest; else both as they are."""
        if key is None or not self.config.token_dropout:
            return batch, key
        key, drop_key = jax.random.split(key)
        source, previous = batch["src_tokens"], batch["prev_output_tokens"]
        special = jnp.array([config.bos_token_id, config.eos_token_id, config.pad_token_id])
        drop = jax.random.bernoulli(drop_key, self.config.token_dropout, source.shape)
        drop &= ~jnp.isin(source, special)
        rolled = jnp.pad(drop[:, :-1], ((0, 0), (1, 0)))
        return batch | {
            "src_tokens": jnp.where(drop, self._mask_id, source),
            "prev_output_tokens": jnp.where(rolled, self._mask_id, previous),
        }, key

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Logits float32 [B, C]. Traced."""
        return {"logits": self._logits(bart, params, batch, None)}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats, not smoothed, and the asked metrics, in percent as fairseq's."""
        assert self.valid is not None  # whoever calls this has predicted its rows
        logits, targets = outputs["logits"].astype(np.float64), self.valid.targets
        if self.regression:
            predicted = logits[:, 0]
            loss = float(np.mean((predicted - targets) ** 2))
            found = metrics.of_values(predicted, targets)
        elif self.config.multi_label:
            loss = float(np.mean(np.logaddexp(0, logits) - logits * targets))
            found = metrics.of_label_sets(logits > 0, targets > 0)
        else:
            shifted = logits - logits.max(1, keepdims=True)
            logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            weights = self._class_weights()
            of_rows = None if weights is None else weights[targets]
            loss = float(-np.average(logp[np.arange(len(targets)), targets], weights=of_rows))
            found = metrics.of_classes(logits.argmax(1), targets, len(self.labels))
        return {"loss": loss} | {name: found[name] for name in self.metric_names}

    def extras(self) -> dict[str, Any]:
        """How the examples were read, which is how others are read to judge the model."""
        examples = None if self.tokenizer_folder else self._train
        return super().extras() | {READING: reading(self.config, self.criterion, examples)}

    def parts(self, params: Tree) -> tuple[Params, dict[str, HeadFiles]]:
        """The body's parameters, and the head with its label names."""
        labels = None if self.regression else list(self.labels)
        head = HeadFiles(params["head"], labels, self.regression, self.config.multi_label)
        return params["model"], {self._head_name: head}


KIND = TaskKind(
    SentencePredictionConfig(), (SentencePredictionCriterionConfig(),), SentencePrediction
)


def _lists(examples: Examples) -> list[list[str]]:
    """The labels of each row."""
    of_rows: Any = examples.labels
    return [row if isinstance(row, list) else [row] for row in of_rows]
