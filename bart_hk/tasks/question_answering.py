"""Questions whose answers stand in a text: SQuAD, as of the paper's section 5.1.

A row is `<s> question </s> context </s>`; a head of two outputs scores every position's decoder
features as the answer's first and its last token. A context that is too long is read in windows,
and the best answer of them all is taken. Where there is none both are at `<s>`.
Shapes: B rows, S tokens, D model width.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
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
from bart_hk.model import BART, Params, head_logits
from bart_hk.tasks import Batch, TaskKind, files, losses
from bart_hk.tasks.heads import HeadTask, Tree
from bart_hk.tasks.squad import Question, exact_match, f1, read_squad
from bart_hk.tasks.teaching import Answers
from bart_hk.text import TextEncoder
from bart_hk.text.pieces import Pieces, encode_pieces

_log = logging.getLogger(__name__)

LABELS = ["start", "end"]
READING = "question_answering"  # in bart_hk.json, how questions are read: `as_trained`
_STORED = ("max_question_length", "doc_stride", "max_answer_length")


@dataclass
class QuestionAnsweringConfig(files.FilesConfig):
    """Where the questions are, and how long rows and answers may be. task.data is a folder with
    train*.json and dev*.json (train-v1.1.json); or task.train and task.valid."""

    _name: str = "question_answering"
    max_positions: int = 512
    max_question_length: int = 64  # tokens; what is longer is cut
    doc_stride: int = 128  # tokens of the context between the beginnings of two windows
    max_answer_length: int = 30  # tokens of an answer that is given


@dataclass
class QuestionAnsweringCriterionConfig:
    """The mean of the cross-entropies of first and last token. Source: Devlin et al. 2019, 4.2."""

    _name: str = "question_answering"
    head_name: str = "question_answering_head"


class Windows:
    """A file's rows: windows of contexts.

    Attributes:
        owner: int64, the number of each row's question.
        shifts: int64, what is subtracted from a position for a token of the context.
    """

    def __init__(
        self,
        name: str,
        questions: list[Question],
        contexts: list[Pieces],
        rows: list[tuple[int, np.ndarray, int, int, int, int]],
        config: BARTConfig,
    ) -> None:
        """rows: (question, ids, first position of the context, first token of the context there,
        position of the answer's first token, of its last)."""
        self.name, self.questions, self.contexts = name, questions, contexts
        self.rows = [row[1] for row in rows]
        self.owner = np.array([row[0] for row in rows], np.int64)
        self._first = np.array([row[2] for row in rows], np.int32)
        self.shifts = np.array([row[2] - row[3] for row in rows], np.int64)
        self._targets = np.array([row[4:] for row in rows], np.int32)
        self.lengths = np.array([len(row) for row in self.rows], np.int64)
        self._pad = config.pad_token_id

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """src_tokens, prev_output_tokens int32 [B, S]; first (of the context) and sizes int32 [B],
        targets int32 [B, 2], mask bool [B]."""
        chosen = [self.rows[i] for i in rows]
        spare = count - len(rows)
        return {
            "src_tokens": pad_rows(chosen, self._pad, length, count),
            "prev_output_tokens": pad_rows(
                [np.roll(r, 1) for r in chosen], self._pad, length, count
            ),
            "first": np.pad(self._first[rows], (0, spare)),
            "sizes": np.pad(self.lengths[rows].astype(np.int32), (0, spare)),
            "targets": np.pad(self._targets[rows], ((0, spare), (0, 0))),
            "mask": np.arange(count) < len(rows),
        }

    def where(self, rows: Sequence[int]) -> str:
        """File and questions of some rows."""
        ids = dict.fromkeys(self.questions[self.owner[i]].id for i in rows)
        return f"{self.name}, questions {', '.join(ids)}"


class QuestionAnswering(HeadTask):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: a file or an option is not as it should be.
    """

    # A decoder's features are those from which it predicts the next token.
    flavours: tuple[str, ...] = (Flavour.encoder_decoder, Flavour.encoder_only)
    labels = LABELS
    train: Windows
    valid: Windows | None
    metric_names: tuple[str, ...] = ("exact_match", "f1")

    def __init__(
        self, config: QuestionAnsweringConfig, criterion: QuestionAnsweringCriterionConfig
    ) -> None:
        self.config, self.criterion = config, criterion
        for name in ("max_question_length", "doc_stride", "max_answer_length"):
            if getattr(config, name) < 1:
                raise DataError(f"task.{name}={getattr(config, name)} must be at least 1")
        self._paths = [path for path in _files(config) if path is not None]
        self._questions = [read_squad(path) for path in self._paths]
        self.validates = len(self._paths) > 1
        self._may_be_none = any(not question.answers for question in self._questions[0])

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        roles = zip(("train", "valid"), self._paths, strict=False)
        return {role: files.digest(path) for role, path in roles}

    def labelled_files(self) -> list[tuple[Path]]:
        """The validation file."""
        return [(path,) for path in self._paths[1:]]

    def texts(self) -> Iterable[str]:
        """Every context once, and the questions, for making a vocabulary."""
        yield from dict.fromkeys(question.context for question in self._questions[0])
        for question in self._questions[0]:
            yield question.question

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Encodes and cuts into windows."""
        splits = [
            make_windows(str(path), questions, encoder, config, self.config)
            for path, questions in zip(self._paths, self._questions, strict=True)
        ]
        for split in splits:
            _log.info(
                "%s: %d questions in %d rows", split.name, len(split.questions), len(split.rows)
            )
        self.train, self.valid = splits[0], splits[1] if len(splits) > 1 else None

    def extras(self) -> dict[str, Any]:
        """How long rows are, and how questions are read and answered."""
        stored = {name: getattr(self.config, name) for name in _STORED}
        return super().extras() | {READING: {**stored, "may_be_none": self._may_be_none}}

    def _outputs(self) -> int:
        return len(LABELS)

    def _fits(self, head: HeadFiles) -> bool:
        return head.labels == LABELS

    def _wanted(self) -> str:
        return "start and end"

    def _shaped(self, logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        return _of_places(logits, batch)

    def _weights(self, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.broadcast_to(batch["mask"], (len(LABELS), *batch["mask"].shape))

    def _loss_of(
        self, logits: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of both; `count` is the number of rows."""
        both = losses.cross_entropy(logits, batch["targets"].T, self._weights(batch))[0]
        return both / len(LABELS), {"count": batch["mask"].sum()}

    def soft_loss(self, student: Answers, teacher: Answers, temperature: float) -> jax.Array:
        """The mean of both, too."""
        return super().soft_loss(student, teacher, temperature) / len(LABELS)

    def predict(
        self, bart: BART, params: Tree, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Of each row [B]: the best answer's `score`, `first` and `last` position, the score of
        having `none`, and the `loss`. Traced."""
        logits = self._logits(bart, params, batch, None)
        targets = batch["targets"][..., None]
        logp = jax.nn.log_softmax(logits)
        nll = [jnp.take_along_axis(logp[i], targets[:, i], axis=1)[:, 0] for i in (0, 1)]
        return best_spans(logits, self.config.max_answer_length) | {"loss": -(nll[0] + nll[1]) / 2}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats a row, and exact match and F1 in percent."""
        assert self.valid is not None  # whoever calls this has predicted its rows
        answers = best_answers(self.valid, outputs, self._may_be_none)
        pairs = [
            (answer, [text for text, _ in question.answers])
            for (answer, _), question in zip(answers, self.valid.questions, strict=True)
        ]
        return {
            "loss": float(outputs["loss"].astype(np.float64).mean()),
            "exact_match": 100 * float(np.mean([exact_match(*pair) for pair in pairs])),
            "f1": 100 * float(np.mean([f1(*pair) for pair in pairs])),
        }


KIND = TaskKind(QuestionAnsweringConfig(), (QuestionAnsweringCriterionConfig(),), QuestionAnswering)


def as_trained(
    extras: Mapping[str, Any], max_positions: int
) -> tuple[QuestionAnsweringConfig, bool]:
    """How a model reads questions, by what `QuestionAnswering.extras` stored with it, and whether
    there may be no answer."""
    stored = extras.get(READING, {})
    options = {name: stored[name] for name in _STORED if name in stored}
    config = QuestionAnsweringConfig(max_positions=max_positions, **options)
    return config, bool(stored.get("may_be_none", False))


def make_windows(
    name: str,
    questions: list[Question],
    encoder: TextEncoder,
    config: BARTConfig,
    asked: QuestionAnsweringConfig,
) -> Windows:
    """Rows of questions and their contexts.

    Raises:
        DataError: a question leaves no room for its context.
    """
    longest = min(asked.max_positions, config.max_positions)
    texts = list(dict.fromkeys(question.context for question in questions))
    encoded = dict(zip(texts, encode_pieces(encoder, texts), strict=True))
    contexts = [encoded[question.context] for question in questions]
    bos, eos = config.bos_token_id, config.eos_token_id
    rows = []
    for number, (question, ids) in enumerate(
        zip(questions, encoder.encode_batch([q.question for q in questions]), strict=True)
    ):
        begin = [bos, *ids[: asked.max_question_length], eos]
        room = longest - len(begin) - 1
        if room < 1:
            raise DataError(
                f"{name}, question {question.id}: {len(begin)} tokens leave no room for the "
                f"context in {longest}; lower task.max_question_length"
            )
        pieces = contexts[number]
        first, last = _span(pieces, question)
        total, step = len(pieces.ids), min(asked.doc_stride, room)
        for start in (0, *range(step, max(total - room + step, 1), step)):
            window = pieces.ids[start : start + room]
            row = np.array([*begin, *window, eos], np.int32)
            target = (0, 0)
            if first is not None and start <= first and last < start + len(window):
                target = (first + len(begin) - start, last + len(begin) - start)
            rows.append((number, row, len(begin), start, *target))
    return Windows(name, questions, contexts, rows, config)


def span_logits(bart: BART, params: Params, head: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """Of first and last token, float32 [2, B, S]; -1e9 where neither may be. Traced."""
    both = batch["src_tokens"], batch["prev_output_tokens"]
    return _of_places(head_logits(bart, params, head, *both, at_ends=False), batch)


def _of_places(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """`span_logits` of what the head gives, [B, S, 2]."""
    return jnp.where(_allowed(batch), jnp.moveaxis(logits, -1, 0), -1e9)


def best_answers(
    split: Windows, outputs: dict[str, np.ndarray], may_be_none: bool
) -> list[tuple[str, float]]:
    """The best answer of each question's windows and its score; "" where having none scores more in
    all of them, if that `may_be`."""
    best: dict[int, int] = {}
    none: dict[int, float] = {}
    for row, number in enumerate(split.owner.tolist()):
        none[number] = min(none.get(number, np.inf), float(outputs["none"][row]))
        held = best.setdefault(number, row)
        if outputs["score"][row] > outputs["score"][held]:
            best[number] = row
    answers = []
    for number, question in enumerate(split.questions):
        row = best[number]
        score = float(outputs["score"][row])
        if (may_be_none and none[number] >= score) or not np.isfinite(score):
            answers.append(("", none[number]))
            continue
        first, last = (int(outputs[side][row] - split.shifts[row]) for side in ("first", "last"))
        pieces = split.contexts[number]
        answers.append((question.context[pieces.begins[first] : pieces.ends[last]], score))
    return answers


def _allowed(batch: dict[str, jax.Array]) -> jax.Array:
    """The places of first and last tokens, bool [B, S]: the context, and `<s>` for none."""
    places = jnp.arange(batch["src_tokens"].shape[1])
    inside = (places >= batch["first"][:, None]) & (places < batch["sizes"][:, None] - 1)
    return inside | (places == 0)


def best_spans(logits: jax.Array, longest: int) -> dict[str, jax.Array]:
    """`score`, `first` and `last` [B] of the best answers of at most so many tokens, and the score
    `none` of having none, from logits [2, B, S]. Traced."""
    starts, ends = logits[0], logits[1]
    places = jnp.arange(starts.shape[1])
    after = places[None, :] - places[:, None]  # [first, last]
    fits = (after >= 0) & (after < longest) & (places[:, None] > 0)
    scores = jnp.where(fits, starts[:, :, None] + ends[:, None, :], -jnp.inf)
    scores = jnp.where(scores > -1e8, scores, -jnp.inf)  # outside of the context
    flat = scores.reshape(len(starts), -1)
    best = flat.argmax(1)
    return {
        "score": flat.max(1),
        "first": best // starts.shape[1],
        "last": best % starts.shape[1],
        "none": starts[:, 0] + ends[:, 0],
    }


def _files(config: QuestionAnsweringConfig) -> tuple[Path, Path | None]:
    folder = files.folder_of(config)
    if folder is None:
        if not config.train:
            raise DataError("task.train is not set; give it a .json file in SQuAD's format")
        return Path(config.train), Path(config.valid) if config.valid else None
    found: list[Path | None] = []
    for names in (("train",), files.VALID_NAMES):
        globs = [f"{name}*.json{packed}" for name in names for packed in ("", *COMPRESSIONS)]
        there = sorted({path for glob in globs for path in folder.glob(glob)})
        if len(there) > 1:
            raise DataError(
                f"task.data={folder} has {', '.join(path.name for path in there)}; choose with "
                "task.train and task.valid"
            )
        found.append(there[0] if there else None)
    if found[0] is None:
        raise DataError(f"task.data={folder} has no train*.json in SQuAD's format")
    return found[0], found[1]


def _span(pieces: Pieces, question: Question) -> tuple[Any, Any]:
    """First and last token of the first answer; None where there is none."""
    if not question.answers:
        return None, None
    text, start = question.answers[0]
    inside = (pieces.ends > start) & (pieces.begins < start + len(text))
    found = np.flatnonzero(inside)
    return (int(found[0]), int(found[-1])) if len(found) else (None, None)
