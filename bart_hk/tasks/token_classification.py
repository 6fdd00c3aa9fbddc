"""A label for every word: names, parts of speech; the paper's token classification.

A row is `<s> words </s>`; a head classifies the decoder's features at the first token of each word.
Shapes: B rows, S tokens, C classes.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig, Flavour
from bart_hk.data.batching import pad_rows
from bart_hk.data.readers import COMPRESSIONS, DataError
from bart_hk.model import BART
from bart_hk.tasks import Batch, TaskKind, files
from bart_hk.tasks.heads import HeadTask, Tree, described
from bart_hk.tasks.labels import check_label, label_names
from bart_hk.tasks.tagging import Sentence, entity_f1, read_tagged
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)
READING = "token_classification"  # in bart_hk.json, the columns that were learned
_NONE = -1  # the target of a token that has no label


@dataclass
class TokenClassificationConfig(files.FilesConfig):
    """Where the sentences are: task.data is a folder with train and valid (or dev) as .txt, .conll
    or .jsonl; or task.train and task.valid. See bart_hk/tasks/tagging.py for the formats."""

    _name: str = "token_classification"
    word_column: int = 0  # of files with columns; -1 is the last
    label_column: int = -1
    # The classes in the order of the head's outputs; sorted, numbers as numbers, if not given.
    labels: list[str] = dataclasses.field(default_factory=list)
    max_positions: int = 512  # words that do not fit are left out, with a note


@dataclass
class TokenClassificationCriterionConfig:
    """The mean over words. Where labels are B-... and I-... the F1 of entities is reported."""

    _name: str = "token_classification"
    head_name: str = "token_classification_head"
    label_smoothing: float = 0.0


class TaggedRows:
    """A file's rows: ids, and a target at the first token of each word."""

    def __init__(
        self,
        path: Path,
        sentences: list[Sentence],
        rows: list[np.ndarray],
        places: list[np.ndarray],
        targets: list[np.ndarray],
        pad: int,
    ) -> None:
        self.path, self.sentences, self.rows = path, sentences, rows
        self.places, self.targets = places, targets  # int64 [words] of each row
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self._pad = pad

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens, prev_output_tokens and targets int32 [B, S]; -1 where there is no word."""
        chosen = [self.rows[i] for i in rows]
        targets = np.full((count, length), _NONE, np.int32)
        for number, i in enumerate(rows):
            targets[number, self.places[i]] = self.targets[i]
        return {
            "src_tokens": pad_rows(chosen, self._pad, length, count),
            "prev_output_tokens": pad_rows(
                [np.roll(r, 1) for r in chosen], self._pad, length, count
            ),
            "targets": targets,
        }

    def where(self, rows: Sequence[int]) -> str:
        """File and lines of some rows."""
        return f"{self.path}, lines {', '.join(str(self.sentences[i].line) for i in rows)}"


class TokenClassification(HeadTask):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    # A decoder's features are those from which it predicts the next token.
    flavours: tuple[str, ...] = (Flavour.encoder_decoder, Flavour.encoder_only)
    train: TaggedRows
    valid: TaggedRows | None
    metric_names: tuple[str, ...]

    def __init__(
        self, config: TokenClassificationConfig, criterion: TokenClassificationCriterionConfig
    ) -> None:
        self.config, self.criterion = config, criterion
        self._asked_order = bool(config.labels)
        if not 0 <= criterion.label_smoothing < 1:
            raise DataError(
                f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)"
            )
        self._paths = [path for path in _files(config) if path is not None]
        self._sentences = [
            read_tagged(path, config.word_column, config.label_column) for path in self._paths
        ]
        of_words = (sentence.labels for sentence in self._sentences[0])
        self.labels = label_names(self._paths[0], of_words, config.labels, unit="word")
        for path, sentences in zip(self._paths, self._sentences, strict=True):
            for sentence in sentences:
                where = f"{path}, the sentence of line {sentence.line}"
                for label in sentence.labels:
                    check_label(label, self.labels, bool(config.labels), self._paths[0], where)
        self.validates = len(self._paths) > 1
        self._in_entities = any(label.startswith(("B-", "I-")) for label in self.labels)
        self.metric_names = ("accuracy", "f1") if self._in_entities else ("accuracy",)

    def extras(self) -> dict[str, Any]:
        """How long rows were at most, and the columns of words and labels."""
        read = {name: getattr(self.config, name) for name in ("word_column", "label_column")}
        return super().extras() | {READING: read}

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        roles = zip(("train", "valid"), self._paths, strict=False)
        return {role: files.digest(path) for role, path in roles}

    def labelled_files(self) -> list[tuple[Path]]:
        """The validation file."""
        return [(path,) for path in self._paths[1:]]

    def texts(self) -> Iterable[str]:
        """The training sentences, for making a vocabulary."""
        return (" ".join(sentence.words) for sentence in self._sentences[0])

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes both files; says how many words did not fit."""
        splits = [
            self._encode(path, sentences, encoder, config)
            for path, sentences in zip(self._paths, self._sentences, strict=True)
        ]
        self.train, self.valid = splits[0], splits[1] if len(splits) > 1 else None

    def _encode(
        self, path: Path, sentences: list[Sentence], encoder: TextEncoder, config: BARTConfig
    ) -> TaggedRows:
        longest = min(self.config.max_positions, config.max_positions)
        if longest < 3:
            raise DataError(f"task.max_positions={longest} leaves no room for a word")
        numbers = {label: i for i, label in enumerate(self.labels)}
        rows, places, targets, lost = [], [], [], 0
        for sentence in sentences:
            row, of_row = encode_words(encoder, config, sentence.words, longest)
            lost += len(sentence.words) - len(of_row)
            rows.append(row)
            places.append(of_row)
            labels = [numbers[label] for label in sentence.labels[: len(of_row)]]
            targets.append(np.array(labels, np.int64))
        if lost:
            _log.info("%s: %d words beyond %d tokens are left out", path, lost, longest)
        return TaggedRows(path, sentences, rows, places, targets, config.pad_token_id)

    def _outputs(self) -> int:
        return len(self.labels)

    def _fits(self, head: HeadFiles) -> bool:
        named = sorted(head.labels or ()) == sorted(self.labels)
        return named and not head.multi_label

    def _wanted(self) -> str:
        return described(self.labels, len(self.labels))

    def _renumber(self, there: np.ndarray) -> None:
        for split in (self.train, self.valid):
            if split is not None:
                split.targets = [there[targets] for targets in split.targets]

    def _weights(self, batch: dict[str, jax.Array]) -> jax.Array:
        return batch["targets"] != _NONE

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Of each row [B] the `loss`; and the classes of its tokens, `classes` int32 [B, P], -1
        behind them: P is the model's positions, for all rows of all batches. Traced."""
        logits, targets = self._logits(bart, params, batch, None), batch["targets"]
        logp = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(logp, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        room = bart.config.max_positions - targets.shape[1]
        classes = jnp.pad(logits.argmax(-1), ((0, 0), (0, room)), constant_values=_NONE)
        return {"loss": jnp.where(targets != _NONE, nll, 0).sum(1), "classes": classes}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats a word; `accuracy` of words and `f1` of entities in percent. Words that
        did not fit are wrong: their label is "O" where there is one, or the first."""
        assert self.valid is not None  # whoever calls this has predicted its rows
        other = "O" if "O" in self.labels else self.labels[0]
        predicted, right, words = [], 0, 0
        for sentence, places, classes in zip(
            self.valid.sentences, self.valid.places, outputs["classes"], strict=True
        ):
            found = [self.labels[int(classes[place])] for place in places]
            right += sum(a == b for a, b in zip(found, sentence.labels, strict=False))
            words += len(sentence.words)
            predicted.append([*found, *[other] * (len(sentence.words) - len(found))])
        read = sum(len(places) for places in self.valid.places)
        metrics = {
            "loss": float(outputs["loss"].astype(np.float64).sum()) / read,
            "accuracy": 100 * right / words,
        }
        if self._in_entities:
            targets = [sentence.labels for sentence in self.valid.sentences]
            metrics["f1"] = 100 * entity_f1(predicted, targets)
        return metrics


KIND = TaskKind(
    TokenClassificationConfig(), (TokenClassificationCriterionConfig(),), TokenClassification
)


def encode_words(
    encoder: TextEncoder, config: BARTConfig, words: Sequence[str], longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """`<s> words </s>`, and the place of each word's first token: int32 [N], int64 [words]. Words
    that do not fit into `longest` tokens are left out, the last first."""
    spaced = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    ids, places = [config.bos_token_id], []
    for of_word in encoder.encode_batch(spaced):
        if len(ids) + max(len(of_word), 1) + 1 > longest:
            break
        places.append(len(ids))
        unknown = config.pad_token_id if config.unk_token_id is None else config.unk_token_id
        ids += of_word or [unknown]
    return np.array([*ids, config.eos_token_id], np.int32), np.array(places, np.int64)


def _files(config: TokenClassificationConfig) -> tuple[Path, Path | None]:
    folder = files.folder_of(config)
    if folder is None:
        if not config.train:
            raise DataError("task.train is not set; give it a .txt, .conll or .jsonl file")
        return Path(config.train), Path(config.valid) if config.valid else None
    ends = [
        f"{end}{packed}" for end in (".txt", ".conll", ".jsonl") for packed in ("", *COMPRESSIONS)
    ]
    found = [
        next((p for n in names for end in ends if (p := folder / f"{n}{end}").is_file()), None)
        for names in (("train",), files.VALID_NAMES)
    ]
    if found[0] is None:
        raise DataError(f"task.data={folder} has no train.txt, train.conll or train.jsonl")
    return found[0], found[1]
